import { signal } from "@preact/signals"
import type { ComponentChildren, JSX } from "preact"

import { ViewFrame } from "../components/view-frame.tsx"
import { formatBytes, formatCount, formatDuration, formatSpeed } from "../format.ts"
import { t } from "../language.ts"
import { VIEW_ADDRESS } from "../library.ts"
import { apiKey, openPanel } from "../state.ts"
import type { StringKey } from "../strings/en.ts"
import { usePolling } from "../use-polling.ts"
import {
  type EngineInfo,
  fetchMachine,
  fetchMetrics,
  type Machine,
  type MachineModel,
} from "./api.ts"
import { CacheTiers } from "./cache-tiers.tsx"
import { Chart } from "./chart.tsx"
import { ExpertMap } from "./experts.tsx"
import { type History, historyOf, record } from "./history.ts"
import { Placement } from "./placement.tsx"
import { parseMetrics, quantile, type Sample } from "./prometheus.ts"
import { RooflineShare } from "./roofline.tsx"

const REFRESH_MS = 2000

const machine = signal<Machine | undefined>(undefined)
const problem = signal<string | undefined>(undefined)
const samples = signal<readonly Sample[]>([])
/** The model on show, "" for the first one. */
const shownName = signal("")
/** What a model said last; a busy engine says nothing. */
const lastSaid = new Map<string, MachineModel>()

async function refresh(): Promise<void> {
  const [answer, metrics] = await Promise.all([
    fetchMachine(apiKey.value),
    fetchMetrics(apiKey.value),
  ])
  if ("failure" in answer) {
    problem.value = answer.failure.message
    if (answer.failure.kind === "auth") openPanel.value = "key"
    return
  }
  problem.value = undefined
  for (const model of answer.value.models) {
    if (model.stats === null) continue
    record(model.name, model.stats, Date.now())
    lastSaid.set(model.name, model)
  }
  if ("value" in metrics) samples.value = parseMetrics(metrics.value)
  machine.value = answer.value
}

/** What runs where, and how fast. */
export function MachineView(): JSX.Element {
  usePolling(refresh, REFRESH_MS)
  const known = machine.value
  const all = known?.models ?? []
  const model = all.find((each) => each.name === shownName.value) ?? all[0]
  return (
    <ViewFrame title={t("machine")} aside={<ModelSelect all={all} shown={model} />}>
      {problem.value !== undefined && (
        <p class="view-problem" role="alert">
          {t("refusedView", { reason: problem.value })}
        </p>
      )}
      {known === undefined && problem.value === undefined && (
        <p class="view-empty">{t("waitingForServer")}…</p>
      )}
      {known !== undefined && model === undefined && (
        <p class="view-empty">
          {t("noneLoaded")} <a href={VIEW_ADDRESS.models}>{t("seeModels")}</a>
        </p>
      )}
      {known !== undefined && model !== undefined && (
        <ModelPart key={model.name} machine={known} model={model} />
      )}
    </ViewFrame>
  )
}

interface SelectProps {
  all: readonly MachineModel[]
  shown: MachineModel | undefined
}

function ModelSelect({ all, shown }: SelectProps): JSX.Element | null {
  if (shown === undefined) return null
  return (
    <div class="model">
      {all.length > 1 ? (
        <select
          aria-label={t("shownModel")}
          value={shown.name}
          onChange={(event) => (shownName.value = event.currentTarget.value)}
        >
          {all.map(({ name }) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      ) : (
        <span class="model-name">{shown.name}</span>
      )}
    </div>
  )
}

interface PartProps {
  machine: Machine
  model: MachineModel
}

function ModelPart({ machine, model }: PartProps): JSX.Element {
  const { memory, queue } = machine
  const said = model.stats === null ? (lastSaid.get(model.name) ?? model) : model
  const { stats, modules, experts } = said
  const history = historyOf(model.name)
  return (
    <>
      {model.stats === null && (
        <p class="view-summary" role="status">
          {t("busyEngine")}
        </p>
      )}
      <Section id="now" title="now">
        <dl class="tiles">
          <Tile label="generationSpeed" value={speed(history?.generated)} />
          <Tile label="promptSpeed" value={speed(history?.prompt)} />
          <Tile label="runningNow" value={formatCount(stats?.running ?? queue.active)} />
          <Tile label="waitingNow" value={formatCount((stats?.waiting ?? 0) + queue.waiting)} />
          <Tile label="kvInUse" value={stats === null ? "–" : kvUse(stats)} />
          <Tile label="processMemory" value={formatBytes(memory.resident)} />
          <Latency
            label="timeToFirst"
            metric="vllm:time_to_first_token_seconds"
            model={model.name}
          />
          <Latency
            label="betweenTokens"
            metric="vllm:inter_token_latency_seconds"
            model={model.name}
          />
        </dl>
      </Section>
      {history !== undefined && (
        <Section id="over-time" title="overTime">
          <Charts history={history} />
        </Section>
      )}
      {machine.can_measure && (
        <Section id="roofline" title="roofline">
          <RooflineShare model={model.name} roofline={said.roofline} onMeasured={refresh} />
        </Section>
      )}
      <Section id="placement" title="placement">
        <Placement modules={modules} />
      </Section>
      {experts.length > 0 && (
        <Section id="experts" title="experts">
          <ExpertMap layers={experts} />
        </Section>
      )}
      {stats !== null && (
        <Section id="prefix-cache" title="prefixCache">
          <CacheTiers info={model.info} stats={stats} />
        </Section>
      )}
      <Section id="hardware" title="hardware">
        <dl class="facts is-wide">
          {facts(model.info).map(([label, value]) => (
            <div key={label}>
              <dt>{t(label)}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </Section>
    </>
  )
}

interface SectionProps {
  id: string
  title: StringKey
  children: ComponentChildren
}

function Section({ id, title, children }: SectionProps): JSX.Element {
  return (
    <section class="view-section" id={id} aria-labelledby={`${id}-title`}>
      <h2 id={`${id}-title`}>{t(title)}</h2>
      {children}
    </section>
  )
}

function Tile({ label, value }: { label: StringKey; value: string }): JSX.Element {
  return (
    <div class="tile">
      <dt>{t(label)}</dt>
      <dd>{value}</dd>
    </div>
  )
}

interface LatencyProps {
  label: StringKey
  metric: string
  model: string
}

/** Median and tail of all requests since the server's start. */
function Latency({ label, metric, model }: LatencyProps): JSX.Element {
  const [median, tail] = [0.5, 0.95].map((share) => quantile(samples.value, metric, model, share))
  const isKnown = median !== undefined && tail !== undefined
  const words = isKnown
    ? { median: formatDuration(median * 1000), tail: formatDuration(tail * 1000) }
    : undefined
  return (
    <div class="tile" title={words === undefined ? "" : t("medianAndTail", words)}>
      <dt>{t(label)}</dt>
      <dd>
        {words === undefined ? "–" : words.median}
        {words !== undefined && <small>p95 {words.tail}</small>}
      </dd>
    </div>
  )
}

function speed(values: History["generated"] | undefined): string {
  const last = values?.at(-1) ?? null
  return last === null ? "–" : formatSpeed(last)
}

function kvUse({ kvPagesTotal, kvPagesFree }: NonNullable<MachineModel["stats"]>): string {
  return kvPagesTotal === 0 ? "0 %" : `${Math.round((1 - kvPagesFree / kvPagesTotal) * 100)} %`
}

function Charts({ history }: { history: History }): JSX.Element {
  const { times, generated, prompt, running, waiting } = history
  const n = Math.round((times.at(-1) ?? 0) - (times[0] ?? 0))
  const shown = (value: number | null | undefined): string =>
    value === null || value === undefined ? t("measuring") : formatSpeed(value)
  return (
    <div class="charts">
      <div>
        <h3>{t("speedOverTime")}</h3>
        <Chart
          label={t("chartSpeed", {
            n,
            generated: shown(generated.at(-1)),
            prompt: shown(prompt.at(-1)),
          })}
          times={times}
          lines={[
            { label: t("generated"), color: "--accent", values: generated },
            { label: t("ofPrompts"), color: "--second", values: prompt },
          ]}
        />
      </div>
      <div>
        <h3>{t("queueOverTime")}</h3>
        <Chart
          label={t("chartQueue", {
            n,
            running: running.at(-1) ?? 0,
            waiting: waiting.at(-1) ?? 0,
          })}
          times={times}
          lines={[
            { label: t("runningNow"), color: "--accent", values: running },
            { label: t("waitingNow"), color: "--second", values: waiting },
          ]}
        />
      </div>
    </div>
  )
}

function facts(info: EngineInfo): [StringKey, string][] {
  return [
    ["threads", formatCount(info.threads)],
    ["isaLevel", info.isa],
    ["numaNodes", formatCount(info.numaNodes)],
    ["device", info.device],
    ["precision", info.precision],
    ["architecture", info.architecture],
    ["quantization", info.quantization],
    ["weights", formatBytes(info.weightBytes)],
    ["contextLength", formatCount(info.contextLength)],
    ["batchSize", formatCount(info.maxBatchSize)],
    [
      "kvTokens",
      t("kvTokensOf", {
        n: formatCount(info.kvCacheTokens),
        bytes: formatBytes(info.kvCacheBytes),
      }),
    ],
    ["loadTime", formatDuration(info.loadMs)],
  ]
}

import { useSignal } from "@preact/signals"
import type { JSX } from "preact"

import { chooseModel } from "../actions.ts"
import { Confirm } from "../components/confirm.tsx"
import { Icon, type IconName } from "../components/icons.tsx"
import { formatBytes, formatCount } from "../format.ts"
import { language, t } from "../language.ts"
import { newChat } from "../library.ts"
import { apiKey } from "../state.ts"
import type { StringKey } from "../strings/en.ts"
import { fetchDetails, type ModelDetails, type ModelEntry } from "./api.ts"
import { changing, load, remove, unload } from "./models-state.ts"

const STATE_TEXT = {
  unloaded: "stateUnloaded",
  loading: "stateLoading",
  loaded: "stateLoaded",
  unloading: "stateUnloading",
} as const

const CAPABILITIES: Readonly<Record<string, StringKey>> = {
  completion: "capCompletion",
  tools: "capTools",
  thinking: "capThinking",
  insert: "capInsert",
  embedding: "capEmbedding",
  vision: "capVision",
}

export function ModelCard({ model }: { model: ModelEntry }): JSX.Element {
  const isAsking = useSignal(false)
  const { name, state, problem } = model
  return (
    <li class={state === "loaded" ? "card is-loaded" : "card"} aria-label={name}>
      <div class="card-head">
        <h2 title={name}>{name}</h2>
        <span class="tags">
          {model.default && <span class="tag">{t("isDefault")}</span>}
          <span class={`tag is-${state}`}>{t(STATE_TEXT[state])}</span>
        </span>
      </div>
      <Progress model={model} />
      {problem !== null && <p class="problem">{problem}</p>}
      <dl class="facts">
        {facts(model).map(([label, value]) => (
          <div key={label}>
            <dt>{t(label)}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <Buttons model={model} onRemove={() => (isAsking.value = true)} />
      <Details name={name} />
      {isAsking.value && (
        <Confirm
          question={t("removeQuestion", { name })}
          hint={t("removeHint", { size: formatBytes(model.size) })}
          action={t("remove")}
          onAnswer={(isConfirmed) => {
            isAsking.value = false
            if (isConfirmed) void remove(model)
          }}
        />
      )}
    </li>
  )
}

function Progress({ model: { name, loading } }: { model: ModelEntry }): JSX.Element | null {
  if (loading === null) return null
  const isMeasured = loading.total > 0
  const n = isMeasured ? Math.floor((loading.done / loading.total) * 100) : 0
  return (
    <progress
      aria-label={t("loadingShare", { name, n })}
      max={100}
      {...(isMeasured ? { value: n } : {})}
    />
  )
}

/** What is known of it; what does not apply is left out. */
function facts(model: ModelEntry): [StringKey, string][] {
  const isLoaded = model.state === "loaded"
  const abilities = model.capabilities.map((each) => {
    const known = CAPABILITIES[each]
    return known === undefined ? each : t(known)
  })
  const all: [StringKey, string | null][] = [
    ["fileSize", formatBytes(model.size)],
    ["parameterCount", model.parameters || null],
    ["quantization", model.quantization || null],
    ["family", model.family || null],
    ["madeOf", model.parent],
    ["canDo", abilities.join(language.value === "zh" ? "、" : ", ") || null],
    ["contextLength", model.context === null ? null : formatCount(model.context)],
    ["inMemory", model.memory === null ? null : formatBytes(model.memory)],
    ["activeNow", isLoaded ? formatCount(model.active) : null],
    ["staysUntil", isLoaded ? until(model.expires) : null],
  ]
  return all.filter((fact): fact is [StringKey, string] => fact[1] !== null)
}

/** The time of day, with the day where it is another one. */
function until(expires: string | null): string {
  if (expires === null) return t("staysLoaded")
  const time = new Date(expires)
  const isToday = time.toDateString() === new Date().toDateString()
  return time.toLocaleString(language.value, {
    hour: "2-digit",
    minute: "2-digit",
    ...(isToday ? {} : { month: "short", day: "numeric" }),
  })
}

interface ButtonsProps {
  model: ModelEntry
  onRemove: () => void
}

function Buttons({ model, onRemove }: ButtonsProps): JSX.Element {
  const { name, state } = model
  const isChanging = changing.value.has(name) || state === "loading" || state === "unloading"
  const isUsable = model.problem === null
  const isChat = model.capabilities.length === 0 || model.capabilities.includes("completion")
  return (
    <div class="card-buttons">
      {state === "loaded" || state === "unloading" ? (
        <TextButton
          icon="power"
          text={t("unload")}
          label={t("unloadModel", { name })}
          isDisabled={isChanging}
          onClick={() => void unload(model)}
        />
      ) : (
        <TextButton
          icon="power"
          text={t("load")}
          label={t("loadModel", { name })}
          isDisabled={isChanging || !isUsable}
          onClick={() => void load(model)}
        />
      )}
      {isUsable && isChat && (
        <TextButton
          icon="chat"
          text={t("chatWith")}
          label={t("chatWithModel", { name })}
          isDisabled={false}
          onClick={() => {
            newChat()
            chooseModel(name)
          }}
        />
      )}
      {model.deletable && (
        <TextButton
          icon="trash"
          text={t("remove")}
          label={t("removeModel", { name })}
          isDisabled={isChanging}
          onClick={onRemove}
        />
      )}
    </div>
  )
}

interface TextButtonProps {
  icon: IconName
  text: string
  label: string
  isDisabled: boolean
  onClick: () => void
}

function TextButton({ icon, text, label, isDisabled, onClick }: TextButtonProps): JSX.Element {
  return (
    <button type="button" class="button" aria-label={label} disabled={isDisabled} onClick={onClick}>
      <Icon name={icon} />
      {text}
    </button>
  )
}

/** Template, sampling and license, asked for when they are opened. */
function Details({ name }: { name: string }): JSX.Element {
  const known = useSignal<ModelDetails | string | undefined>(undefined)
  const open = async (isOpen: boolean): Promise<void> => {
    if (!isOpen || typeof known.value === "object") return
    const answer = await fetchDetails(name, apiKey.value)
    known.value = "value" in answer ? answer.value : answer.failure.message
  }
  return (
    <details class="fold" onToggle={(event) => void open(event.currentTarget.open)}>
      <summary aria-label={t("detailsOf", { name })}>{t("details")}</summary>
      {known.value === undefined ? (
        <p class="hint">{t("waitingForServer")}…</p>
      ) : typeof known.value === "string" ? (
        <p class="problem">{known.value}</p>
      ) : (
        <DetailTexts details={known.value} />
      )}
    </details>
  )
}

function DetailTexts({ details }: { details: ModelDetails }): JSX.Element {
  const all: [StringKey, string][] = [
    ["modelParameters", details.parameters],
    ["systemPrompt", details.system],
    ["template", details.template],
    ["license", details.license],
  ]
  const said = all.filter(([, text]) => text !== "")
  if (said.length === 0) return <p class="hint">{t("nothingTold")}</p>
  return (
    <>
      {said.map(([label, text]) => (
        <div key={label}>
          <h3>{t(label)}</h3>
          <pre tabIndex={0} aria-label={t(label)}>
            {text}
          </pre>
        </div>
      ))}
    </>
  )
}

import { useSignal } from "@preact/signals"
import type { JSX } from "preact"

import { formatSpeed } from "../format.ts"
import { t } from "../language.ts"
import { apiKey } from "../state.ts"
import type { StringKey } from "../strings/en.ts"
import { measureLimits, type PhaseShare, type Roofline } from "./api.ts"

interface Props {
  model: string
  roofline: Roofline | null
  /** Asks the server again, once it has measured. */
  onMeasured: () => Promise<void>
}

/** What the engine reaches of what memory and arithmetic of the machine allow. */
export function RooflineShare({ model, roofline, onMeasured }: Props): JSX.Element {
  const isMeasuring = useSignal(false)
  const problem = useSignal<string | undefined>(undefined)
  const measure = async (): Promise<void> => {
    isMeasuring.value = true
    problem.value = undefined
    const failure = await measureLimits(model, apiKey.value)
    problem.value = failure?.message
    if (failure === undefined) await onMeasured()
    isMeasuring.value = false
  }
  const phases = [
    ["rooflineGeneration", roofline?.generation],
    ["rooflinePrompts", roofline?.prompt],
  ] as const
  return (
    <>
      {roofline === null ? (
        <p class="hint">{t("rooflineUnknown")}</p>
      ) : (
        <>
          <p class="hint">
            {t("rooflineHint", { rate: `${(roofline.read_bytes / 1e9).toFixed(1)} GB/s` })}
          </p>
          <ul class="bars is-wide" aria-label={t("roofline")}>
            {phases.map(([label, phase]) => (
              <Phase key={label} label={label} phase={phase ?? null} />
            ))}
          </ul>
        </>
      )}
      <div class="section-buttons">
        <button
          type="button"
          class="button"
          aria-disabled={isMeasuring.value}
          onClick={() => !isMeasuring.value && void measure()}
        >
          {t(isMeasuring.value ? "measuringNow" : roofline === null ? "measure" : "measureAgain")}
        </button>
        <span class="hint" role="status">
          {problem.value ?? ""}
        </span>
      </div>
    </>
  )
}

function Phase({ label, phase }: { label: StringKey; phase: PhaseShare | null }): JSX.Element {
  const n = phase === null ? 0 : Math.round(phase.share * 100)
  const words =
    phase === null
      ? t("nothingComputed")
      : t("speedOfLimit", { speed: formatSpeed(phase.speed), limit: formatSpeed(phase.limit), n })
  return (
    <li>
      <span class="bar-name">{t(label)}</span>
      <meter min={0} max={100} value={Math.min(100, n)} aria-label={`${t(label)}: ${words}`} />
      <span class="bar-value">{words}</span>
    </li>
  )
}

import { useSignal } from "@preact/signals"
import type { JSX } from "preact"
import { useRef } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings } from "../library.ts"
import { isServersOrder } from "../settings.ts"
import { settings } from "../state.ts"
import type { StringKey } from "../strings/en.ts"
import { type SamplerName, SAMPLERS } from "../types.ts"
import { IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"

const LABELS: Readonly<Record<SamplerName, StringKey>> = {
  penalties: "samplerPenalties",
  dry: "samplerDry",
  top_n_sigma: "top_n_sigma",
  temperature: "temperature",
  top_k: "top_k",
  typ_p: "typical_p",
  top_p: "top_p",
  min_p: "min_p",
  xtc: "samplerXtc",
}

/** Which samplers act and in which order: dragged, or moved and switched by buttons. */
export function SamplerOrder(): JSX.Element {
  const acting = settings.value.samplers ?? SAMPLERS
  const idle = SAMPLERS.filter((name) => !acting.includes(name))
  const list = useRef<HTMLOListElement>(null)
  const dragged = useSignal<SamplerName | undefined>(undefined)
  const said = useSignal("")
  const set = (order: readonly SamplerName[]): void =>
    changeSettings({ ...settings.value, samplers: isServersOrder(order) ? null : [...order] })
  const moveTo = (name: SamplerName, to: number): void => {
    const others = acting.filter((each) => each !== name)
    const at = Math.max(0, Math.min(others.length, to))
    set(others.toSpliced(at, 0, name))
    said.value = t("samplerMoved", { name: t(LABELS[name]), n: at + 1, of: acting.length })
  }
  /** A button moves with its row: the browser may lose the focus on the way. */
  const move = (name: SamplerName, by: number): void => {
    moveTo(name, acting.indexOf(name) + by)
    const where = by < 0 ? "up" : "down"
    requestAnimationFrame(() =>
      list.current?.querySelector<HTMLElement>(`[data-name="${name}"] .move-${where}`)?.focus(),
    )
  }
  /** The dragged row goes before the first other one whose middle is below the pointer. */
  const drag = (y: number): void => {
    const name = dragged.value
    if (name === undefined || list.current === null) return
    const others = [...list.current.children].filter(
      (row) => row.getAttribute("data-name") !== name,
    )
    const above = others.filter((row) => {
      const { top, height } = row.getBoundingClientRect()
      return top + height / 2 < y
    })
    if (acting.indexOf(name) !== above.length) moveTo(name, above.length)
  }
  const toggle = (name: SamplerName): void => {
    if (!acting.includes(name)) set([...acting, name])
    else if (acting.length > 1) set(acting.filter((each) => each !== name))
  }
  return (
    <fieldset class="order">
      <legend class="field-label">{t("samplerOrder")}</legend>
      <p class="hint">{t("samplerOrderHint")}</p>
      <ol
        ref={list}
        onPointerMove={(event) => drag(event.clientY)}
        onLostPointerCapture={() => (dragged.value = undefined)}
      >
        {acting.map((name, index) => (
          <li key={name} data-name={name} class={dragged.value === name ? "is-dragged" : ""}>
            <span
              class="grip"
              aria-hidden="true"
              onPointerDown={(event) => {
                if (event.button !== 0) return
                event.preventDefault()
                // the list, for rows change their places under the pointer
                list.current?.setPointerCapture(event.pointerId)
                dragged.value = name
              }}
            >
              <Icon name="grip" />
            </span>
            <label>
              <input
                type="checkbox"
                checked
                disabled={acting.length === 1}
                onChange={() => toggle(name)}
              />
              {t(LABELS[name])}
            </label>
            <IconButton
              icon="up"
              class="move-up"
              label={t("moveUp", { name: t(LABELS[name]) })}
              isIdle={index === 0}
              onClick={() => move(name, -1)}
            />
            <IconButton
              icon="down"
              class="move-down"
              label={t("moveDown", { name: t(LABELS[name]) })}
              isIdle={index === acting.length - 1}
              onClick={() => move(name, 1)}
            />
          </li>
        ))}
      </ol>
      {idle.length > 0 && (
        <ul aria-label={t("samplersOff")}>
          {idle.map((name) => (
            <li key={name} data-name={name}>
              <label>
                <input type="checkbox" checked={false} onChange={() => toggle(name)} />
                {t(LABELS[name])}
              </label>
            </li>
          ))}
        </ul>
      )}
      {settings.value.samplers !== null && (
        <button type="button" class="button is-quiet" onClick={() => set(SAMPLERS)}>
          {t("serversOrder")}
        </button>
      )}
      <span class="visually-hidden" role="status">
        {said.value}
      </span>
    </fieldset>
  )
}

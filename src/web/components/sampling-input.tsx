import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings } from "../library.ts"
import { parseField, type SamplingField } from "../settings.ts"
import { settings } from "../state.ts"

/** A number of the settings: kept at once where it is one in range, with a sentence where it is not. */
export function SamplingInput({ field }: { field: SamplingField }): JSX.Element {
  const stored = settings.value[field.key]
  const [text, setText] = useState(stored === null ? "" : String(stored))
  const parsed = parseField(field, text)
  const problem = typeof parsed === "string" ? parsed : undefined
  const id = `setting-${field.key}`
  return (
    <div class="field is-row">
      <label for={id}>
        <span class="field-label">{t(field.key)}</span>
        <span class="hint">{t(`${field.key}Hint`)}</span>
      </label>
      <input
        id={id}
        type="text"
        inputMode={field.integer ? "numeric" : "decimal"}
        autocomplete="off"
        placeholder={t("default")}
        aria-invalid={problem !== undefined}
        aria-describedby={problem === undefined ? undefined : `${id}-problem`}
        value={text}
        onInput={(event) => {
          const typed = event.currentTarget.value
          setText(typed)
          const value = parseField(field, typed)
          if (typeof value !== "string") changeSettings({ ...settings.value, [field.key]: value })
        }}
        onKeyDown={(event) => {
          const direction = event.key === "ArrowUp" ? 1 : event.key === "ArrowDown" ? -1 : 0
          if (direction === 0 || typeof parsed !== "number") return
          event.preventDefault()
          const moved = Math.min(field.max, Math.max(field.min, parsed + direction * field.step))
          const value = Number(moved.toFixed(4))
          setText(String(value))
          changeSettings({ ...settings.value, [field.key]: value })
        }}
      />
      {problem !== undefined && (
        <p class="problem" id={`${id}-problem`} role="alert">
          {problem}
        </p>
      )}
    </div>
  )
}

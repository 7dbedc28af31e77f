import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings, forgetDefault, makeDefault } from "../library.ts"
import {
  countChanged,
  MAX_SYSTEM_CHARS,
  parseField,
  SAMPLING_FIELDS,
  type SamplingField,
} from "../settings.ts"
import { apiKey, defaults, openPanel, settings } from "../state.ts"
import { EMPTY_SETTINGS } from "../types.ts"
import { Panel } from "./panel.tsx"

/** System prompt and sampling of the conversation on screen. Changes apply at once, to the next answer. */
export function SettingsPanel(): JSX.Element {
  // Fields keep what was typed, also while it is invalid; a reset makes new fields.
  const [round, setRound] = useState(0)
  const now = settings.value
  const isDefault = JSON.stringify(now) === JSON.stringify(defaults.value)
  const reset = (): void => {
    changeSettings({ ...defaults.value })
    setRound(round + 1)
  }
  const clear = (): void => {
    forgetDefault()
    changeSettings({ ...EMPTY_SETTINGS })
    setRound(round + 1)
  }
  return (
    <Panel title={t("settingsOfChat")} class="is-side">
      <div class="fields" key={round}>
        <label class="field">
          <span class="field-label">{t("systemPrompt")}</span>
          <textarea
            id="system-prompt"
            rows={5}
            maxLength={MAX_SYSTEM_CHARS}
            placeholder={t("systemPromptHint")}
            value={now.system}
            onInput={(event) => changeSettings({ ...now, system: event.currentTarget.value })}
          />
        </label>
        <h3>{t("sampling")}</h3>
        <p class="hint">{t("emptyFields")}</p>
        {SAMPLING_FIELDS.map((field) => (
          <SamplingInput key={field.key} field={field} />
        ))}
      </div>
      <div class="panel-foot">
        <button type="button" class="button" disabled={isDefault} onClick={reset}>
          {t("resetDefaults")}
        </button>
        <button type="button" class="button" disabled={isDefault} onClick={() => makeDefault(now)}>
          {t("useForNew")}
        </button>
        {countChanged(defaults.value) > 0 && (
          <button type="button" class="button is-quiet" onClick={clear}>
            {t("forgetDefaults")}
          </button>
        )}
        <button type="button" class="button is-quiet" onClick={() => (openPanel.value = "key")}>
          {apiKey.value === "" ? t("setApiKey") : t("changeApiKey")}
        </button>
      </div>
    </Panel>
  )
}

function SamplingInput({ field }: { field: SamplingField }): JSX.Element {
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

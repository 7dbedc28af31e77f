import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings, forgetDefault, makeDefault } from "../library.ts"
import {
  countChanged,
  MAIN_FIELDS,
  MAX_SYSTEM_CHARS,
  MORE_FIELDS,
  parseSchema,
  parseTools,
  THINKING_BUDGET,
} from "../settings.ts"
import { apiKey, defaults, openPanel, settings } from "../state.ts"
import { EMPTY_SETTINGS, type Settings, THINKING } from "../types.ts"
import { BreakersField } from "./breakers-field.tsx"
import { Icon } from "./icons.tsx"
import { JsonField } from "./json-field.tsx"
import { Panel } from "./panel.tsx"
import { PromptLibrary } from "./prompt-library.tsx"
import { SamplerOrder } from "./sampler-order.tsx"
import { SamplingInput } from "./sampling-input.tsx"

function hasMore(now: Settings): boolean {
  const lists = [now.samplers, now.dry_sequence_breakers]
  return lists.some((list) => list !== null) || MORE_FIELDS.some(({ key }) => now[key] !== null)
}

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
            onInput={(event) =>
              changeSettings({ ...settings.value, system: event.currentTarget.value })
            }
          />
        </label>
        <PromptLibrary />
        <div class="field is-row">
          <label for="setting-thinking">
            <span class="field-label">{t("thinkingSetting")}</span>
            <span class="hint">{t("thinkingSettingHint")}</span>
          </label>
          <select
            id="setting-thinking"
            value={now.thinking}
            onChange={(event) => {
              const chosen = THINKING.find((each) => each === event.currentTarget.value)
              changeSettings({ ...settings.value, thinking: chosen ?? "" })
            }}
          >
            {THINKING.map((each) => (
              <option key={each} value={each}>
                {t(each === "" ? "default" : `thinking_${each}`)}
              </option>
            ))}
          </select>
        </div>
        <SamplingInput field={THINKING_BUDGET} />
        <h3>{t("sampling")}</h3>
        <p class="hint">{t("emptyFields")}</p>
        {MAIN_FIELDS.map((field) => (
          <SamplingInput key={field.key} field={field} />
        ))}
        <details class="more" open={hasMore(now)}>
          <summary>
            <Icon name="chevron" /> {t("moreSampling")}
          </summary>
          {MORE_FIELDS.map((field) => (
            <SamplingInput key={field.key} field={field} />
          ))}
          <BreakersField />
          <SamplerOrder />
        </details>
        <JsonField name="schema" parse={parseSchema} />
        <JsonField name="tools" parse={parseTools} />
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

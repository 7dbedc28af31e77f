import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings, deletePrompt, keepPrompt } from "../library.ts"
import { MAX_PROMPT_NAME_CHARS } from "../preferences.ts"
import { prompts, settings } from "../state.ts"
import { IconButton } from "./icon-button.tsx"

/** System prompts kept under names: choosing one puts it into the settings, saving keeps what is there. */
export function PromptLibrary(): JSX.Element {
  const { system } = settings.value
  const chosen = prompts.value.find((each) => each.text === system)
  const [name, setName] = useState("")
  const canSave = name.trim() !== "" && system.trim() !== ""
  const save = (): void => {
    if (!canSave) return
    keepPrompt(name, system)
    setName("")
  }
  return (
    <div class="prompt-library">
      {prompts.value.length > 0 && (
        <div class="prompt-row">
          <select
            aria-label={t("savedPrompts")}
            value={chosen?.name ?? ""}
            onChange={(event) => {
              const picked = prompts.value.find((each) => each.name === event.currentTarget.value)
              if (picked !== undefined) changeSettings({ ...settings.value, system: picked.text })
            }}
          >
            <option value="" disabled>
              {t("choosePrompt")}
            </option>
            {prompts.value.map((each) => (
              <option key={each.name} value={each.name}>
                {each.name}
              </option>
            ))}
          </select>
          {chosen !== undefined && (
            <IconButton
              icon="trash"
              label={t("deletePrompt", { name: chosen.name })}
              onClick={() => deletePrompt(chosen.name)}
            />
          )}
        </div>
      )}
      {system.trim() !== "" && chosen === undefined && (
        <form
          class="prompt-row"
          onSubmit={(event) => {
            event.preventDefault()
            save()
          }}
        >
          <input
            type="text"
            autocomplete="off"
            aria-label={t("promptName")}
            placeholder={t("promptName")}
            maxLength={MAX_PROMPT_NAME_CHARS}
            value={name}
            onInput={(event) => setName(event.currentTarget.value)}
          />
          <button type="submit" class="button" disabled={!canSave}>
            {t("savePrompt")}
          </button>
        </form>
      )}
    </div>
  )
}

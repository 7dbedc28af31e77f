import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { acceptApiKey } from "../actions.ts"
import { t } from "../language.ts"
import { apiKey } from "../state.ts"
import { Panel } from "./panel.tsx"

/**
 * Asks for the server's API key. The field is no password field, or browsers would offer to save the key as one; the style
 * hides what is typed.
 */
export function KeyPanel(): JSX.Element {
  const [key, setKey] = useState(apiKey.value)
  const [problem, setProblem] = useState<string | undefined>(undefined)
  const submit = async (): Promise<void> => setProblem((await acceptApiKey(key))?.message)
  return (
    <Panel title={t("apiKey")} class="is-small">
      <form
        onSubmit={(event) => {
          event.preventDefault()
          void submit()
        }}
      >
        <label class="field">
          <span class="hint">{t("apiKeyHint")}</span>
          <input
            id="api-key"
            class="secret"
            type="text"
            spellcheck={false}
            autocomplete="off"
            autofocus
            aria-label={t("apiKey")}
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        {problem !== undefined && (
          <p class="problem" role="alert">
            {problem}
          </p>
        )}
        <div class="panel-foot">
          <button
            type="submit"
            class="button is-primary"
            disabled={key.trim() === "" && apiKey.value === ""}
          >
            {key.trim() === "" && apiKey.value !== "" ? t("removeKey") : t("useKey")}
          </button>
        </div>
      </form>
    </Panel>
  )
}

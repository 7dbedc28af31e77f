import type { JSX } from "preact"

import { send } from "../actions.ts"
import { t } from "../language.ts"
import { model } from "../state.ts"
import { Mark } from "./icons.tsx"

const EXAMPLES = [
  ["exampleExplain", "exampleExplainPrompt"],
  ["exampleCode", "exampleCodePrompt"],
  ["exampleText", "exampleTextPrompt"],
  ["exampleNumbers", "exampleNumbersPrompt"],
] as const

/** What a new chat shows: where the model runs, and a few ways to begin. */
export function EmptyState(): JSX.Element {
  const name = model.value?.id
  return (
    <section class="empty" aria-labelledby="empty-title">
      <Mark />
      <h2 id="empty-title">{t("emptyTitle")}</h2>
      <p class="empty-sub">
        {name !== undefined && (
          <>
            <strong>{name}</strong> {t("emptyAnswers")}{" "}
          </>
        )}
        {t("emptyPrivacy")}
      </p>
      <ul class="examples">
        {EXAMPLES.map(([title, prompt]) => (
          <li key={title}>
            <button type="button" class="example" onClick={() => send(t(prompt))}>
              <span class="example-title">{t(title)}</span>
              <span class="example-prompt">{t(prompt)}</span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  )
}

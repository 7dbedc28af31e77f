import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings } from "../library.ts"
import { breakersText, parseBreakers } from "../settings.ts"
import { settings } from "../state.ts"

/** DRY's breakers, one a line; what is wrong stays in the field only, with a sentence that says why. */
export function BreakersField(): JSX.Element {
  const [text, setText] = useState(breakersText(settings.value.dry_sequence_breakers))
  const parsed = parseBreakers(text)
  const problem = typeof parsed === "string" ? parsed : undefined
  const id = "setting-dry_sequence_breakers"
  return (
    <div class="field is-lines">
      <label for={id}>
        <span class="field-label">{t("dry_sequence_breakers")}</span>
        <span class="hint">{t("dry_sequence_breakersHint")}</span>
      </label>
      <textarea
        id={id}
        rows={3}
        spellcheck={false}
        autocapitalize="off"
        placeholder={t("default")}
        aria-invalid={problem !== undefined}
        aria-describedby={problem === undefined ? undefined : `${id}-problem`}
        value={text}
        onInput={(event) => {
          const typed = event.currentTarget.value
          setText(typed)
          const breakers = parseBreakers(typed)
          if (typeof breakers !== "string")
            changeSettings({ ...settings.value, dry_sequence_breakers: breakers })
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

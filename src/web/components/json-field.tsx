import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { changeSettings } from "../library.ts"
import { MAX_JSON_CHARS } from "../settings.ts"
import { settings } from "../state.ts"

interface Props {
  name: "tools" | "schema"
  /** A sentence where the text is not what it must be. */
  parse: (text: string) => unknown
}

/** JSON of the settings; what is wrong stays in the field only, with a sentence that says why. */
export function JsonField({ name, parse }: Props): JSX.Element {
  const [text, setText] = useState(settings.value[name])
  const parsed = parse(text)
  const problem = typeof parsed === "string" ? parsed : undefined
  const id = `setting-${name}`
  return (
    <div class="field is-json">
      <label for={id}>
        <span class="field-label">{t(name)}</span>
        <span class="hint">{t(`${name}Hint`)}</span>
      </label>
      <textarea
        id={id}
        rows={4}
        spellcheck={false}
        autocapitalize="off"
        maxLength={MAX_JSON_CHARS}
        aria-invalid={problem !== undefined}
        aria-describedby={problem === undefined ? undefined : `${id}-problem`}
        value={text}
        onInput={(event) => {
          const typed = event.currentTarget.value
          setText(typed)
          if (typeof parse(typed) !== "string")
            changeSettings({ ...settings.value, [name]: typed.trim() === "" ? "" : typed })
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

import type { JSX } from "preact"
import { useLayoutEffect, useRef } from "preact/hooks"

import { t } from "../language.ts"

interface Props {
  question: string
  hint: string
  /** What the button says that does it. */
  action: string
  onAnswer: (isConfirmed: boolean) => void
}

/** Asks before something that cannot be undone; Escape and the focused button leave everything as it is. */
export function Confirm({ question, hint, action, onAnswer }: Props): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null)
  const isAnswered = useRef(false)
  const answer = (isConfirmed: boolean): void => {
    if (isAnswered.current) return
    isAnswered.current = true
    dialog.current?.close()
    onAnswer(isConfirmed)
  }
  useLayoutEffect(() => dialog.current?.showModal(), [])
  return (
    <dialog
      ref={dialog}
      class="panel is-small"
      aria-labelledby="confirm-title"
      aria-describedby="confirm-hint"
      onClose={() => answer(false)}
    >
      <div class="panel-content">
        <h2 id="confirm-title" class="confirm-title">
          {question}
        </h2>
        <p id="confirm-hint" class="hint">
          {hint}
        </p>
        <div class="confirm-buttons">
          <button type="button" class="button" autofocus onClick={() => answer(false)}>
            {t("cancel")}
          </button>
          <button type="button" class="button is-danger" onClick={() => answer(true)}>
            {action}
          </button>
        </div>
      </div>
    </dialog>
  )
}

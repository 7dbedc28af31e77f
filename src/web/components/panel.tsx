import type { ComponentChildren, JSX } from "preact"
import { useLayoutEffect, useRef } from "preact/hooks"

import { t } from "../language.ts"
import { openPanel } from "../state.ts"
import { IconButton } from "./icon-button.tsx"

interface Props {
  title: string
  class: string
  children: ComponentChildren
}

/**
 * A text field that gets the focus back while the page behind the dialog is still inert has no caret in Chromium, and typing
 * does nothing; focused again it has one.
 */
function refocus(): void {
  const field = document.activeElement
  if (!(field instanceof HTMLTextAreaElement)) return
  field.blur()
  field.focus()
}

/** A modal dialog; the browser keeps the focus inside, closes it on Escape and gives the focus back. */
export function Panel({ title, class: extra, children }: Props): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null)
  // The close event comes later, when another panel may be open already.
  const isGone = useRef(false)
  useLayoutEffect(() => {
    const element = dialog.current
    element?.showModal()
    return () => {
      isGone.current = true
      element?.close()
      requestAnimationFrame(refocus)
    }
  }, [])
  return (
    <dialog
      ref={dialog}
      class={`panel ${extra}`}
      aria-labelledby="panel-title"
      onClose={() => {
        if (!isGone.current) openPanel.value = "none"
      }}
      onClick={(event) => {
        // The dialog itself is hit only outside its content: on the backdrop.
        if (event.target === event.currentTarget) openPanel.value = "none"
      }}
    >
      <div class="panel-content">
        <div class="panel-head">
          <h2 id="panel-title">{title}</h2>
          <IconButton icon="close" label={t("close")} onClick={() => (openPanel.value = "none")} />
        </div>
        {children}
      </div>
    </dialog>
  )
}

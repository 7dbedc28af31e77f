import type { ComponentChildren, JSX } from "preact"
import { useEffect, useRef } from "preact/hooks"

import { openPanel } from "../state.ts"
import { IconButton } from "./icon-button.tsx"

interface Props {
  title: string
  class: string
  children: ComponentChildren
}

/** A modal dialog; the browser keeps the focus inside, closes it on Escape and gives the focus back. */
export function Panel({ title, class: extra, children }: Props): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    const element = dialog.current
    element?.showModal()
    return () => element?.close()
  }, [])
  return (
    <dialog
      ref={dialog}
      class={`panel ${extra}`}
      aria-labelledby="panel-title"
      onClose={() => (openPanel.value = "none")}
      onClick={(event) => {
        // The dialog itself is hit only outside its content: on the backdrop.
        if (event.target === event.currentTarget) openPanel.value = "none"
      }}
    >
      <div class="panel-content">
        <div class="panel-head">
          <h2 id="panel-title">{title}</h2>
          <IconButton icon="close" label="Close" onClick={() => (openPanel.value = "none")} />
        </div>
        {children}
      </div>
    </dialog>
  )
}

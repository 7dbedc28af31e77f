import type { ComponentChildren, JSX } from "preact"
import { useEffect, useRef } from "preact/hooks"

import { t } from "../language.ts"
import { newChat } from "../library.ts"
import { isSidebarOpen, view } from "../state.ts"
import { IconButton } from "./icon-button.tsx"

interface Props {
  title: string
  /** Beside the title. */
  aside?: ComponentChildren
  children: ComponentChildren
}

/** A view in place of the conversation: its heading, which has the focus at first, and what it shows. */
export function ViewFrame({ title, aside, children }: Props): JSX.Element {
  const heading = useRef<HTMLHeadingElement>(null)
  useEffect(() => heading.current?.focus(), [view.value])
  return (
    <>
      <header class="header">
        <IconButton
          icon="menu"
          label={t("conversations")}
          class="only-narrow open-list"
          onClick={() => (isSidebarOpen.value = true)}
        />
        <h1 class="header-title" id="view-title" tabIndex={-1} ref={heading}>
          {title}
        </h1>
        {aside}
        <IconButton
          icon="plus"
          label={t("newChat")}
          keys="Ctrl+K"
          class="only-narrow"
          onClick={newChat}
        />
      </header>
      <div class="view">
        <div class="view-column">{children}</div>
      </div>
    </>
  )
}

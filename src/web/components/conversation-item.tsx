import type { JSX } from "preact"
import { useLayoutEffect, useRef, useState } from "preact/hooks"

import { t } from "../language.ts"
import { deleteConversation, exportFile, openConversation, renameConversation } from "../library.ts"
import { currentId, generations, view } from "../state.ts"
import type { Conversation } from "../types.ts"
import { IconButton } from "./icon-button.tsx"

export function ConversationItem({ conversation }: { conversation: Conversation }): JSX.Element {
  const [isRenaming, setRenaming] = useState(false)
  const { id, title } = conversation
  const isCurrent = view.value === "chat" && currentId.value === id
  if (isRenaming)
    return (
      <li class="item">
        <TitleInput
          title={title}
          onDone={(text) => {
            setRenaming(false)
            if (text !== undefined) renameConversation(id, text)
          }}
        />
      </li>
    )
  return (
    <li class={isCurrent ? "item is-current" : "item"}>
      <button
        type="button"
        class="item-open"
        aria-current={isCurrent ? "page" : undefined}
        title={title}
        onClick={() => openConversation(id)}
      >
        {generations.value.has(id) && <span class="pulse" role="img" aria-label={t("answering")} />}
        <span class="item-title">{title}</span>
      </button>
      <div class="item-actions">
        <IconButton icon="edit" label={t("rename", { title })} onClick={() => setRenaming(true)} />
        <IconButton
          icon="download"
          label={t("exportOne", { title })}
          onClick={() => exportFile([conversation])}
        />
        <IconButton
          icon="trash"
          label={t("deleteOne", { title })}
          onClick={() => deleteConversation(id)}
        />
      </div>
    </li>
  )
}

function TitleInput(props: {
  title: string
  onDone: (text: string | undefined) => void
}): JSX.Element {
  const input = useRef<HTMLInputElement>(null)
  const isDone = useRef(false)
  useLayoutEffect(() => {
    input.current?.focus()
    input.current?.select()
  }, [])
  // Removing a focused input also blurs it, which must not count as a second answer.
  const finish = (text: string | undefined): void => {
    if (isDone.current) return
    isDone.current = true
    props.onDone(text)
  }
  return (
    <input
      ref={input}
      class="item-input"
      aria-label={t("title")}
      defaultValue={props.title}
      onBlur={(event) => finish(event.currentTarget.value)}
      onKeyDown={(event) => {
        if (event.isComposing) return
        if (event.key === "Enter") finish(event.currentTarget.value)
        if (event.key === "Escape") {
          event.stopPropagation()
          finish(undefined)
        }
      }}
    />
  )
}

import { useSignal } from "@preact/signals"
import type { JSX } from "preact"
import { useEffect, useRef } from "preact/hooks"

import { chooseTheme } from "../actions.ts"
import { searchConversations } from "../conversation.ts"
import { ageGroup } from "../format.ts"
import { exportFile, importFile, newChat } from "../library.ts"
import type { Theme } from "../preferences.ts"
import { conversations, isLoaded, isSidebarOpen, sorted, theme } from "../state.ts"
import type { Conversation } from "../types.ts"
import { ConversationItem } from "./conversation-item.tsx"
import { IconButton } from "./icon-button.tsx"
import { Icon, type IconName, Mark } from "./icons.tsx"

export function Sidebar({ isModal }: { isModal: boolean }): JSX.Element {
  const query = useSignal("")
  const root = useRef<HTMLElement>(null)
  const isOpen = isSidebarOpen.value
  const found = searchConversations(sorted.value, query.value)
  const wasOpen = useRef(false)
  useEffect(() => {
    if (isModal && isOpen) root.current?.querySelector<HTMLElement>("button")?.focus()
    else if (isModal && wasOpen.current) document.querySelector<HTMLElement>(".open-list")?.focus()
    wasOpen.current = isOpen
  }, [isModal, isOpen])
  return (
    <nav
      ref={root}
      id="conversations"
      class={isOpen ? "sidebar is-open" : "sidebar"}
      aria-label="Conversations"
      inert={isModal && !isOpen}
    >
      <div class="brand">
        <Mark />
        <span>KTransformers</span>
        <IconButton
          icon="close"
          label="Close conversations"
          class="only-narrow"
          onClick={() => (isSidebarOpen.value = false)}
        />
      </div>
      <button type="button" class="new-chat" title="New chat (Ctrl+K)" onClick={newChat}>
        <Icon name="plus" /> New chat <kbd>Ctrl K</kbd>
      </button>
      <label class="search">
        <Icon name="search" />
        <input
          type="search"
          aria-label="Search conversations"
          placeholder="Search"
          value={query.value}
          onInput={(event) => (query.value = event.currentTarget.value)}
        />
      </label>
      <div class="list">
        {groups(found).map(([name, items]) => (
          <section key={name} aria-label={name}>
            <h2>{name}</h2>
            <ul>
              {items.map((conversation) => (
                <ConversationItem key={conversation.id} conversation={conversation} />
              ))}
            </ul>
          </section>
        ))}
        {isLoaded.value && found.length === 0 && (
          <p class="list-empty">
            {query.value === "" ? "Conversations will appear here." : "Nothing found."}
          </p>
        )}
      </div>
      <Foot />
    </nav>
  )
}

function groups(list: readonly Conversation[]): [string, Conversation[]][] {
  const now = Date.now()
  const byAge = new Map<string, Conversation[]>()
  for (const conversation of list) {
    const name = ageGroup(conversation.updatedAt, now)
    byAge.set(name, [...(byAge.get(name) ?? []), conversation])
  }
  return [...byAge]
}

const THEMES: readonly { value: Theme; label: string; icon: IconName }[] = [
  { value: "system", label: "Theme of the system", icon: "screen" },
  { value: "light", label: "Light theme", icon: "sun" },
  { value: "dark", label: "Dark theme", icon: "moon" },
]

function Foot(): JSX.Element {
  const picker = useRef<HTMLInputElement>(null)
  return (
    <div class="sidebar-foot">
      <div class="themes" role="radiogroup" aria-label="Theme">
        {THEMES.map(({ value, label, icon }) => (
          <label key={value} title={label}>
            <input
              type="radio"
              name="theme"
              aria-label={label}
              checked={theme.value === value}
              onChange={() => chooseTheme(value)}
            />
            <Icon name={icon} />
          </label>
        ))}
      </div>
      <span class="spacer" />
      <IconButton
        icon="upload"
        label="Import conversations"
        onClick={() => picker.current?.click()}
      />
      <IconButton
        icon="download"
        label="Export all conversations"
        disabled={conversations.value.length === 0}
        onClick={() => exportFile(sorted.value)}
      />
      <input
        ref={picker}
        id="import-file"
        type="file"
        accept="application/json,.json"
        hidden
        onChange={(event) => {
          const input = event.currentTarget
          const file = input.files?.[0]
          if (file !== undefined) void importFile(file)
          input.value = ""
        }}
      />
    </div>
  )
}

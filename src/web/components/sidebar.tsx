import { useSignal } from "@preact/signals"
import type { JSX } from "preact"
import { useEffect, useRef } from "preact/hooks"

import { chooseTheme } from "../actions.ts"
import { searchConversations } from "../conversation.ts"
import { type AgeGroup, ageGroup } from "../format.ts"
import { chooseLanguage, type Language, language, LANGUAGES, t } from "../language.ts"
import { exportFile, importFile, newChat, VIEW_ADDRESS } from "../library.ts"
import type { Theme } from "../preferences.ts"
import { conversations, isLoaded, isSidebarOpen, sorted, theme, view } from "../state.ts"
import type { StringKey } from "../strings/en.ts"
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
      aria-label={t("conversations")}
      inert={isModal && !isOpen}
    >
      <div class="brand">
        <Mark />
        <span>KTransformers</span>
        <IconButton
          icon="close"
          label={t("closeConversations")}
          class="only-narrow"
          onClick={() => (isSidebarOpen.value = false)}
        />
      </div>
      <button type="button" class="new-chat" title={t("newChatKey")} onClick={newChat}>
        <Icon name="plus" /> {t("newChat")} <kbd>Ctrl K</kbd>
      </button>
      <Views />
      <label class="search">
        <Icon name="search" />
        <input
          type="search"
          aria-label={t("searchConversations")}
          placeholder={t("search")}
          value={query.value}
          onInput={(event) => (query.value = event.currentTarget.value)}
        />
      </label>
      <div class="list">
        {groups(found).map(([name, items]) => (
          <section key={name} aria-label={t(name)}>
            <h2>{t(name)}</h2>
            <ul>
              {items.map((conversation) => (
                <ConversationItem key={conversation.id} conversation={conversation} />
              ))}
            </ul>
          </section>
        ))}
        {isLoaded.value && found.length === 0 && (
          <p class="list-empty">{query.value === "" ? t("listEmpty") : t("nothingFound")}</p>
        )}
      </div>
      <Foot />
    </nav>
  )
}

const VIEWS = [
  { name: "models", label: "models", icon: "box" },
  { name: "machine", label: "machine", icon: "chip" },
] as const

function Views(): JSX.Element {
  return (
    <ul class="views">
      {VIEWS.map(({ name, label, icon }) => (
        <li key={name}>
          <a
            href={VIEW_ADDRESS[name]}
            aria-current={view.value === name ? "page" : undefined}
            // where the address is this one already, nothing else would close the drawer
            onClick={() => (isSidebarOpen.value = false)}
          >
            <Icon name={icon} /> {t(label)}
          </a>
        </li>
      ))}
    </ul>
  )
}

function groups(list: readonly Conversation[]): [AgeGroup, Conversation[]][] {
  const now = Date.now()
  const byAge = new Map<AgeGroup, Conversation[]>()
  for (const conversation of list) {
    const name = ageGroup(conversation.updatedAt, now)
    byAge.set(name, [...(byAge.get(name) ?? []), conversation])
  }
  return [...byAge]
}

const THEMES: readonly { value: Theme; label: StringKey; icon: IconName }[] = [
  { value: "system", label: "themeSystem", icon: "screen" },
  { value: "light", label: "themeLight", icon: "sun" },
  { value: "dark", label: "themeDark", icon: "moon" },
]

function Foot(): JSX.Element {
  const picker = useRef<HTMLInputElement>(null)
  return (
    <div class="sidebar-foot">
      <div class="themes" role="radiogroup" aria-label={t("theme")}>
        {THEMES.map(({ value, label, icon }) => (
          <label key={value} title={t(label)}>
            <input
              type="radio"
              name="theme"
              aria-label={t(label)}
              checked={theme.value === value}
              onChange={() => chooseTheme(value)}
            />
            <Icon name={icon} />
          </label>
        ))}
      </div>
      <select
        class="language"
        aria-label={t("language")}
        value={language.value}
        onChange={(event) => chooseLanguage(event.currentTarget.value as Language)}
      >
        {LANGUAGES.map(([code, name]) => (
          <option key={code} value={code} lang={code}>
            {name}
          </option>
        ))}
      </select>
      <span class="spacer" />
      <IconButton
        icon="upload"
        label={t("importConversations")}
        onClick={() => picker.current?.click()}
      />
      <IconButton
        icon="download"
        label={t("exportAll")}
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

import { effect } from "@preact/signals"
import { type JSX, render } from "preact"
import { useEffect, useState } from "preact/hooks"

import { checkHealth, leave, stop } from "./actions.ts"
import { Chat } from "./components/chat.tsx"
import { Composer } from "./components/composer.tsx"
import { Header } from "./components/header.tsx"
import { KeyPanel } from "./components/key-panel.tsx"
import { NoticeView } from "./components/notice-view.tsx"
import { SettingsPanel } from "./components/settings-panel.tsx"
import { Sidebar } from "./components/sidebar.tsx"
import { language, t } from "./language.ts"
import { loadLibrary, newChat } from "./library.ts"
import { MachineView } from "./machine/machine-view.tsx"
import { ModelsView } from "./models/models-view.tsx"
import {
  announcement,
  current,
  currentGeneration,
  isDark,
  isSidebarOpen,
  openPanel,
  theme,
  view,
} from "./state.ts"

/** Below this width the list of conversations is a drawer; styles/layout.css has the same number. */
const NARROW = "(max-width: 820px)"

function App(): JSX.Element {
  const isNarrow = useMedia(NARROW)
  const isDrawerOpen = isNarrow && isSidebarOpen.value
  return (
    <>
      <a class="skip" href={`#${mainId()}`} onClick={focusMain}>
        {t(view.value === "chat" ? "skipToMessage" : "skipToContent")}
      </a>
      <div class="layout">
        <Sidebar isModal={isNarrow} />
        {isDrawerOpen && <div class="scrim" onClick={() => (isSidebarOpen.value = false)} />}
        <main class="main" inert={isDrawerOpen}>
          {view.value === "models" ? (
            <ModelsView />
          ) : view.value === "machine" ? (
            <MachineView />
          ) : (
            <>
              <Header />
              <Chat />
              <Composer />
            </>
          )}
        </main>
      </div>
      {openPanel.value === "settings" && <SettingsPanel />}
      {openPanel.value === "key" && <KeyPanel />}
      <NoticeView />
      <div class="visually-hidden" aria-live="polite" aria-atomic="true">
        {announcement.value}
      </div>
    </>
  )
}

function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => matchMedia(query).matches)
  useEffect(() => {
    const list = matchMedia(query)
    const follow = (): void => setMatches(list.matches)
    list.addEventListener("change", follow)
    return () => list.removeEventListener("change", follow)
  }, [query])
  return matches
}

/** The address carries the conversation, so the link must not change it. */
function focusMain(event: Event): void {
  event.preventDefault()
  document.getElementById(mainId())?.focus()
}

function mainId(): string {
  return view.value === "chat" ? "prompt" : "view-title"
}

function onKeyDown(event: KeyboardEvent): void {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault()
    openPanel.value = "none"
    newChat()
  } else if (event.key === "Escape" && openPanel.value === "none") {
    if (isSidebarOpen.value) isSidebarOpen.value = false
    else if (currentGeneration.value !== undefined) stop()
  }
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)")

function applyTheme(): void {
  const dark = theme.value === "system" ? prefersDark.matches : theme.value === "dark"
  document.documentElement.dataset["theme"] = dark ? "dark" : "light"
  isDark.value = dark
}

effect(applyTheme)
effect(() => {
  document.documentElement.lang = language.value
})
prefersDark.addEventListener("change", applyTheme)
effect(() => {
  const title = view.value === "chat" ? current.value?.title : t(view.value)
  document.title = title === undefined ? "KTransformers" : `${title} · KTransformers`
})
window.addEventListener("keydown", onKeyDown)
window.addEventListener("pagehide", leave)
window.addEventListener("online", () => void checkHealth())
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) void checkHealth()
})

const root = document.getElementById("app")
// what was said in another language is said again
const Page = (): JSX.Element => <App key={language.value} />
if (root !== null) render(<Page />, root)
void loadLibrary()
void checkHealth()

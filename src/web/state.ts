import { computed, type Signal, signal } from "@preact/signals"

import { newConversation } from "./conversation.ts"
import type { Draft } from "./draft.ts"
import { loadApiKey, loadDefaults, loadModel, loadPrompts, loadTheme } from "./preferences.ts"
import type { Conversation, Model, Settings, TextFile } from "./types.ts"

/** What the page shows, as signals. Only actions.ts and library.ts change them. */

/** All conversations, in no particular order; the list sorts by last use. */
export const conversations = signal<readonly Conversation[]>([])
/** The one on screen; `null` is a new chat that has no message yet. */
export const currentId = signal<string | null>(null)
export const isLoaded = signal(false)

export type View = "chat" | "models" | "machine"
/** What fills the page beside the list of conversations. */
export const view = signal<View>("chat")

export const current = computed(() =>
  conversations.value.find((conversation) => conversation.id === currentId.value),
)
export const sorted = computed(() =>
  [...conversations.value].sort((a, b) => b.updatedAt - a.updatedAt),
)

/** An answer being streamed, by conversation. */
export interface Generation {
  messageId: string
  controller: AbortController
  draft: Signal<Draft>
}

export const generations = signal<ReadonlyMap<string, Generation>>(new Map())
export const currentGeneration = computed(() =>
  currentId.value === null ? undefined : generations.value.get(currentId.value),
)

export const defaults = signal<Settings>(loadDefaults())
/** Settings of a new chat, until its first message makes a conversation of it. */
export const pendingSettings = signal<Settings>({ ...defaults.value })
export const settings = computed(() => current.value?.settings ?? pendingSettings.value)

export const models = signal<readonly Model[]>([])
export const modelId = signal(loadModel())
/** The model that answers next: the conversation's while the server has it, else the chosen one, else the server's first. */
export const model = computed(() => {
  const known = (id: string | undefined): Model | undefined =>
    models.value.find((each) => each.id === id)
  return known(current.value?.model) ?? known(modelId.value) ?? models.value[0]
})

export const connection = signal<"unknown" | "online" | "loading" | "offline">("unknown")
export const apiKey = signal(loadApiKey())
export const theme = signal(loadTheme())
/** What the theme comes to, for what is drawn without styles; set once the page has its colours. */
export const isDark = signal(false)

export const openPanel = signal<"none" | "settings" | "key">("none")
export const isSidebarOpen = signal(false)
/** The message whose text is being edited. */
export const editingId = signal<string | null>(null)
/** Text typed but not sent, by conversation ("" is the new chat). */
export const unsent = signal<ReadonlyMap<string, string>>(new Map())
/** Files attached but not sent, likewise. */
export const unsentFiles = signal<ReadonlyMap<string, readonly TextFile[]>>(new Map())
/** System prompts kept under names. */
export const prompts = signal(loadPrompts())
/** What screen readers are told: the answer once it is complete, and short confirmations. */
export const announcement = signal("")

export interface Notice {
  text: string
  isError: boolean
  undo: (() => void) | undefined
}

export const notice = signal<Notice | undefined>(undefined)

/** A conversation with the settings and the model chosen for it. */
export function startConversation(now: number): Conversation {
  const conversation = newConversation(pendingSettings.value, now)
  const id = model.value?.id
  return id === undefined ? conversation : { ...conversation, model: id }
}

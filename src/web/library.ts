import { branchAt, settle } from "./conversation.ts"
import { backToPrompt } from "./focus.ts"
import { t } from "./language.ts"
import {
  MAX_PROMPT_NAME_CHARS,
  MAX_PROMPTS,
  saveDefaults,
  type SavedPrompt,
  savePrompts,
} from "./preferences.ts"
import {
  conversations,
  current,
  currentId,
  defaults,
  editingId,
  generations,
  isLoaded,
  isSidebarOpen,
  type Notice,
  notice,
  pendingSettings,
  prompts,
  type View,
  view,
} from "./state.ts"
import {
  excess,
  MAX_CONVERSATIONS,
  MAX_STORED_TITLE_CHARS,
  memoryStore,
  openStore,
  type Store,
} from "./storage.ts"
import { exportConversations, importConversations, MAX_IMPORT_BYTES } from "./transfer.ts"
import { type Conversation, EMPTY_SETTINGS, type Settings } from "./types.ts"

/** The list of conversations: loading, keeping, choosing, naming, deleting, export and import. */

/** To read a line, and to decide on what it offers. */
const NOTICE_MS = 4500
const OFFER_MS = 9000

let store: Store = memoryStore()
let noticeTimer: ReturnType<typeof setTimeout> | undefined
/** Tells other tabs of the same browser that a conversation changed. */
const channel =
  typeof BroadcastChannel === "undefined" ? undefined : new BroadcastChannel("kt.conversations")

export function notify(text: string, options: { isError?: boolean; undo?: () => void } = {}): void {
  clearTimeout(noticeTimer)
  const shown: Notice = { text, isError: options.isError ?? false, undo: options.undo }
  notice.value = shown
  noticeTimer = setTimeout(
    () => {
      if (notice.value === shown) notice.value = undefined
    },
    shown.isError || shown.undo !== undefined ? OFFER_MS : NOTICE_MS,
  )
}

export function closeNotice(): void {
  notice.value = undefined
}

/** Opens the database and shows the conversation that the address names. */
export async function loadLibrary(): Promise<void> {
  try {
    store = await openStore()
    conversations.value = (await store.load()).map(settle)
  } catch (error) {
    store = memoryStore()
    notify(t("storeUnusable", { reason: reason(error) }), { isError: true })
  }
  isLoaded.value = true
  followAddress()
  window.addEventListener("hashchange", followAddress)
  channel?.addEventListener("message", () => void reload())
}

/**
 * Takes over what another tab stored, except conversations that are being answered here. An answer that still streams there
 * shows as such; it is stored now and then and once more when it is complete.
 */
async function reload(): Promise<void> {
  try {
    const stored = await store.load()
    const busy = conversations.value.filter((each) => generations.value.has(each.id))
    const busyIds = new Set(busy.map((each) => each.id))
    conversations.value = [...stored.filter((each) => !busyIds.has(each.id)), ...busy]
  } catch (error) {
    notify(t("unreadableStore", { reason: reason(error) }), { isError: true })
  }
}

/** Writes a conversation to the database and drops the oldest ones beyond the limits. */
export async function keep(conversation: Conversation): Promise<void> {
  try {
    await store.put(conversation)
    const dropped = excess(conversations.value, conversation.id).filter(
      (id) => !generations.value.has(id),
    )
    if (dropped.length > 0) {
      conversations.value = conversations.value.filter((each) => !dropped.includes(each.id))
      for (const id of dropped) await store.remove(id)
      notify(
        dropped.length === 1
          ? t("oldestRemoved", { n: MAX_CONVERSATIONS })
          : t("oldestRemovedMany", { n: dropped.length }),
      )
    }
    channel?.postMessage(conversation.id)
  } catch (error) {
    notify(t("notStored", { reason: reason(error) }), { isError: true })
  }
}

/** Puts a changed or new conversation into the list and, unless told not to, into the database. */
export function update(conversation: Conversation, options: { store?: boolean } = {}): void {
  const rest = conversations.value.filter((each) => each.id !== conversation.id)
  conversations.value = [...rest, conversation]
  if (options.store !== false) void keep(conversation)
}

export function openConversation(id: string | null): void {
  editingId.value = null
  isSidebarOpen.value = false
  view.value = "chat"
  currentId.value = id
  const hash = id === null ? "" : `#${id}`
  if (location.hash !== hash) history.pushState(null, "", hash === "" ? location.pathname : hash)
}

/** Opens a new conversation that goes on from a message of the one on screen; that one stays as it is. */
export function branch(messageId: string): void {
  const conversation = current.value
  if (conversation === undefined) return
  const title = t("branchOf", { title: conversation.title }).slice(0, MAX_STORED_TITLE_CHARS)
  const made = branchAt(conversation, messageId, title, Date.now())
  if (made === undefined) return
  update(made)
  openConversation(made.id)
  notify(t("branched"))
  backToPrompt()
}

export function newChat(): void {
  pendingSettings.value = { ...defaults.value }
  openConversation(null)
  document.getElementById("prompt")?.focus()
}

/** The address of each view that is no conversation; ids of conversations have no slash. */
export const VIEW_ADDRESS: Readonly<Record<Exclude<View, "chat">, string>> = {
  models: "#/models",
  machine: "#/machine",
}

function followAddress(): void {
  const id = location.hash.slice(1)
  const other = (["models", "machine"] as const).find((each) => VIEW_ADDRESS[each] === `#${id}`)
  if (other !== undefined) {
    isSidebarOpen.value = false
    view.value = other
    return
  }
  openConversation(conversations.value.some((each) => each.id === id) ? id : null)
}

export function renameConversation(id: string, title: string): void {
  const conversation = conversations.value.find((each) => each.id === id)
  const trimmed = title.trim().slice(0, MAX_STORED_TITLE_CHARS)
  if (conversation === undefined || trimmed === "" || trimmed === conversation.title) return
  update({ ...conversation, title: trimmed })
}

/** Deletes at once; the notice can bring it back. */
export function deleteConversation(id: string): void {
  const conversation = conversations.value.find((each) => each.id === id)
  if (conversation === undefined) return
  generations.value.get(id)?.controller.abort()
  conversations.value = conversations.value.filter((each) => each.id !== id)
  if (currentId.value === id) openConversation(null)
  store.remove(id).then(
    () => channel?.postMessage(id),
    (error: unknown) => notify(t("notDeleted", { reason: reason(error) }), { isError: true }),
  )
  notify(t("deleted", { title: conversation.title }), {
    undo: () => {
      update(settle(conversation))
      openConversation(id)
    },
  })
}

export function changeSettings(settings: Settings): void {
  const conversation = conversations.value.find((each) => each.id === currentId.value)
  if (conversation === undefined) pendingSettings.value = settings
  else update({ ...conversation, settings })
}

export function makeDefault(settings: Settings): void {
  defaults.value = { ...settings }
  saveDefaults(settings)
  notify(t("newChatsStart"))
}

export function forgetDefault(): void {
  defaults.value = { ...EMPTY_SETTINGS }
  saveDefaults(defaults.value)
}

/** Keeps a system prompt under a name; one of that name is replaced. */
export function keepPrompt(name: string, text: string): void {
  const trimmed = name.trim().slice(0, MAX_PROMPT_NAME_CHARS)
  const others = prompts.value.filter((each) => each.name !== trimmed)
  if (trimmed === "") return
  if (others.length >= MAX_PROMPTS) {
    notify(t("tooManyPrompts", { n: MAX_PROMPTS }), { isError: true })
    return
  }
  setPrompts([...others, { name: trimmed, text }])
}

export function deletePrompt(name: string): void {
  const before = prompts.value
  setPrompts(before.filter((each) => each.name !== name))
  notify(t("deletedPrompt", { name }), { undo: () => setPrompts(before) })
}

function setPrompts(list: readonly SavedPrompt[]): void {
  prompts.value = [...list].sort((a, b) => a.name.localeCompare(b.name))
  savePrompts(prompts.value)
}

/** Offers the conversations (all, or one) as a file. */
export function exportFile(list: readonly Conversation[]): void {
  const blob = new Blob([exportConversations(list)], { type: "application/json" })
  const link = document.createElement("a")
  link.href = URL.createObjectURL(blob)
  const only = list.length === 1 ? list[0] : undefined
  const name = only?.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") ?? ""
  link.download = name === "" ? "conversations.json" : `${name}.json`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

export async function importFile(file: File): Promise<void> {
  if (file.size > MAX_IMPORT_BYTES) {
    notify(t("tooLarge", { name: file.name, n: MAX_IMPORT_BYTES / 1e6 }), { isError: true })
    return
  }
  const result = importConversations(await file.text(), conversations.value)
  if (typeof result === "string") {
    notify(`${file.name}: ${result}`, { isError: true })
    return
  }
  conversations.value = [...conversations.value, ...result.conversations]
  for (const conversation of result.conversations) await keep(conversation)
  const rejected = result.rejected === 0 ? "" : ` ${t("importRejected", { n: result.rejected })}`
  notify(t("imported", { n: result.conversations.length }) + rejected, {
    isError: result.rejected > 0,
  })
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message.replace(/\.$/, "") : String(error)
}

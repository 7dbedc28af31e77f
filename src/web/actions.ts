import { batch, signal } from "@preact/signals"

import { type ChatRequest, fetchHealth, fetchModels, streamChat } from "./api.ts"
import { MAX_FILES, readTextFile } from "./attachments.ts"
import {
  addAnswer,
  addResults,
  addUserMessage,
  canContinue,
  continuedMessages,
  editUserMessage,
  lacksAnswer,
  putMessage,
  removeMessage,
  requestMessages,
  setAside,
  switchVersion,
} from "./conversation.ts"
import { applyEvent, type Draft, fillMessage, newDraft } from "./draft.ts"
import { t } from "./language.ts"
import { keep, notify, openConversation, update } from "./library.ts"
import { saveApiKey, saveModel, saveTheme, type Theme } from "./preferences.ts"
import {
  announcement,
  apiKey,
  connection,
  conversations,
  current,
  currentId,
  editingId,
  type Generation,
  generations,
  model,
  modelId,
  models,
  openPanel,
  startConversation,
  theme,
  unsentFiles,
} from "./state.ts"
import { splitThinking } from "./think.ts"
import type { Conversation, Failure, Message, TextFile, Versions } from "./types.ts"

/** While an answer streams it is stored this often, so that closing the page loses little. */
const KEEP_INTERVAL_MS = 3000
/** Pause between two updates of a growing answer: smooth to read, and the model may need these same cores. */
const SHOW_INTERVAL_MS = 40
/** The same on a page that nobody sees; those get no animation frames either. */
const SHOW_HIDDEN_MS = 500
const HEALTH_ONLINE_MS = 20_000
const HEALTH_OFFLINE_MS = 3000

/** The answer whose request failed for want of a key; asked again once there is one. */
let waitingForKey: { conversationId: string; messageId: string } | undefined

export function send(text: string, files: readonly TextFile[] = []): void {
  const content = text.trim()
  if (content === "" && files.length === 0) return
  const now = Date.now()
  const before = current.value ?? startConversation(now)
  const conversation = addUserMessage(before, content, now, files)
  update(conversation)
  openConversation(conversation.id)
  void answer(conversation)
}

/** Puts files beside the text that is being written; what cannot go along is said. */
export async function attach(files: readonly File[]): Promise<void> {
  const key = currentId.value ?? ""
  const problems: string[] = []
  for (const file of files) {
    const read = await readTextFile(file)
    const list = unsentFiles.value.get(key) ?? []
    if (typeof read === "string") problems.push(read)
    else if (list.length >= MAX_FILES)
      problems.push(t("tooManyFiles", { n: MAX_FILES, name: read.name }))
    else setUnsentFiles(key, [...list, read])
  }
  if (problems.length > 0) notify(problems.join(" "), { isError: true })
}

export function setUnsentFiles(key: string, files: readonly TextFile[]): void {
  const next = new Map(unsentFiles.value)
  if (files.length === 0) next.delete(key)
  else next.set(key, files)
  unsentFiles.value = next
}

/** Stops the answer of a conversation (the one on screen by default). */
export function stop(conversationId: string | null = currentId.value): void {
  if (conversationId !== null) generations.value.get(conversationId)?.controller.abort()
}

/** Asks for an answer again; the old one stays as a version. */
export function regenerate(messageId: string): void {
  const conversation = current.value
  if (conversation === undefined || generations.value.has(conversation.id)) return
  const aside = setAside(conversation, messageId)
  if (aside === undefined || !lacksAnswer(aside.before)) return
  const { before, versions } = aside
  void answer(before, versions.others.length === 0 ? undefined : versions)
}

/** Asks for the answer that the end of the conversation still lacks. */
export function answerLast(): void {
  const conversation = current.value
  if (conversation !== undefined && lacksAnswer(conversation)) void answer(conversation)
}

/** Has an answer that ended early go on. */
export function continueAnswer(messageId: string): void {
  const conversation = current.value
  const message = conversation?.messages.at(-1)
  if (conversation === undefined || message?.id !== messageId) return
  if (generations.value.has(conversation.id) || !canContinue(conversation, message)) return
  const { failure: _, ...rest } = message
  const going: Message = { ...rest, state: "streaming" }
  void fill(putMessage(conversation, going), going, {
    messages: continuedMessages(conversation, message),
    continues: true,
  })
}

/** Gives the model what the calls of its last answer returned, in their order. */
export function answerCalls(messageId: string, results: readonly string[]): void {
  const conversation = current.value
  if (conversation?.messages.at(-1)?.id !== messageId) return
  if (generations.value.has(conversation.id)) return
  void answer(addResults(conversation, results, Date.now()))
}

export function resend(messageId: string, text: string): void {
  const conversation = current.value
  const content = text.trim()
  editingId.value = null
  if (conversation === undefined || generations.value.has(conversation.id)) return
  const old = conversation.messages.find((each) => each.id === messageId)
  if (content === "" && old?.files === undefined) return
  void answer(editUserMessage(conversation, messageId, content, Date.now()))
}

/** Shows another version of a message, from 0, with what followed it. */
export function showVersion(messageId: string, at: number): void {
  const conversation = current.value
  if (conversation === undefined || generations.value.has(conversation.id)) return
  editingId.value = null
  update(switchVersion(conversation, messageId, at))
}

export function deleteMessage(messageId: string): void {
  const conversation = current.value
  if (conversation === undefined || generations.value.has(conversation.id)) return
  update(removeMessage(conversation, messageId))
  notify(t("messageDeleted"), { undo: () => update(conversation) })
}

async function answer(conversation: Conversation, versions?: Versions): Promise<void> {
  if (generations.value.has(conversation.id)) return
  const withAnswer = addAnswer(conversation, model.value?.id, Date.now(), versions)
  const message = withAnswer.messages.at(-1)
  if (message === undefined) return
  await fill(withAnswer, message, { messages: requestMessages(conversation) })
}

/** Streams an answer into its message, which is the last of the conversation. */
async function fill(
  conversation: Conversation,
  message: Message,
  request: Pick<ChatRequest, "messages" | "continues">,
): Promise<void> {
  const generation: Generation = {
    messageId: message.id,
    controller: new AbortController(),
    draft: signal(newDraft(performance.now(), message)),
  }
  batch(() => {
    announcement.value = t("answering")
    update(conversation)
    generations.value = new Map(generations.value).set(conversation.id, generation)
  })
  const draft = await receive(conversation, generation, request)
  const filled = fillMessage(message, draft)
  batch(() => {
    const rest = new Map(generations.value)
    rest.delete(conversation.id)
    generations.value = rest
    // The conversation may have been renamed, or deleted, meanwhile.
    const latest = conversations.value.find((each) => each.id === conversation.id)
    if (latest === undefined) return
    update({ ...putMessage(latest, filled), updatedAt: Date.now() })
    announcement.value =
      filled.failure?.message ?? splitThinking(filled.content).answer.slice(0, 4000)
  })
  // it was loaded for this answer, and another one may have left
  if (models.value.find(({ id }) => id === message.model)?.isLoaded === false) void refreshModels()
  if (filled.failure !== undefined) afterFailure(filled.failure, conversation.id, message.id)
}

/** Reads the stream into the generation's draft, shown at a steady pace. */
async function receive(
  conversation: Conversation,
  generation: Generation,
  request: Pick<ChatRequest, "messages" | "continues">,
): Promise<Draft> {
  const { controller, messageId } = generation
  let draft = generation.draft.value
  let isScheduled = false
  let keptAt = performance.now()
  const show = (): void => {
    isScheduled = false
    generation.draft.value = draft
  }
  const events = streamChat({
    ...request,
    settings: conversation.settings,
    model: model.value?.id,
    apiKey: apiKey.value,
    signal: controller.signal,
  })
  for await (const event of events) {
    const now = performance.now()
    draft = applyEvent(draft, event, now)
    if (!isScheduled) {
      isScheduled = true
      setTimeout(show, document.hidden ? SHOW_HIDDEN_MS : SHOW_INTERVAL_MS)
    }
    if (now - keptAt < KEEP_INTERVAL_MS) continue
    keptAt = now
    keepDraft(conversation.id, messageId, draft)
  }
  if (draft.end === undefined) draft = { ...draft, end: "stopped" }
  return draft
}

function keepDraft(conversationId: string, messageId: string, draft: Draft): void {
  const latest = conversations.value.find((each) => each.id === conversationId)
  const message = latest?.messages.find((each) => each.id === messageId)
  if (latest !== undefined && message !== undefined)
    void keep(putMessage(latest, fillMessage(message, draft)))
}

/** Stops all running answers and stores what has arrived, for a page that is being closed. */
export function leave(): void {
  for (const [conversationId, { messageId, draft, controller }] of generations.value) {
    controller.abort()
    keepDraft(conversationId, messageId, draft.value)
  }
}

function afterFailure(failure: Failure, conversationId: string, messageId: string): void {
  if (failure.kind === "connection") void checkHealth()
  if (failure.kind !== "auth") return
  waitingForKey = { conversationId, messageId }
  openPanel.value = "key"
}

/** Tries a key; a refused one is not kept and its failure returned. Then the answer that waited for a key is asked again. */
export async function acceptApiKey(key: string): Promise<Failure | undefined> {
  const trimmed = key.trim()
  const result = await fetchModels(trimmed)
  if ("failure" in result && result.failure.kind === "auth") return result.failure
  apiKey.value = trimmed
  saveApiKey(trimmed)
  openPanel.value = "none"
  if ("value" in result) models.value = result.value
  const waiting = waitingForKey
  waitingForKey = undefined
  if (waiting !== undefined && currentId.value === waiting.conversationId)
    regenerate(waiting.messageId)
  return undefined
}

/** For the conversation on screen, and for new ones. */
export function chooseModel(id: string): void {
  const conversation = current.value
  if (conversation !== undefined) update({ ...conversation, model: id })
  modelId.value = id
  saveModel(id)
}

export function chooseTheme(choice: Theme): void {
  theme.value = choice
  saveTheme(choice)
}

export async function refreshModels(): Promise<void> {
  const result = await fetchModels(apiKey.value)
  if ("value" in result) models.value = result.value
  else if (result.failure.kind === "auth") openPanel.value = "key"
}

let healthTimer: ReturnType<typeof setTimeout> | undefined

/** Asks for the server's health now and keeps asking, more often while it is away. Hidden pages wait until they are shown. */
export async function checkHealth(): Promise<void> {
  clearTimeout(healthTimer)
  const before = connection.value
  const now = await fetchHealth()
  connection.value = now
  if (now === "online" && (before !== "online" || models.value.length === 0)) void refreshModels()
  clearTimeout(healthTimer)
  healthTimer = setTimeout(
    () => {
      if (!document.hidden) void checkHealth()
    },
    now === "online" ? HEALTH_ONLINE_MS : HEALTH_OFFLINE_MS,
  )
}

import { allMessages } from "./conversation.ts"
import { readSettings } from "./settings.ts"
import type { Conversation, Failure, Message, Stats, TextFile, ToolCall } from "./types.ts"

/** More conversations than this make the list useless and the start slow; the oldest go first. */
export const MAX_CONVERSATIONS = 500
/** All text together, in characters (2 bytes each in most browsers): well under what browsers grant a site. */
export const MAX_TOTAL_CHARS = 40_000_000
/** One conversation; far above any context, so only a broken or hostile file exceeds it. */
export const MAX_CONVERSATION_CHARS = 10_000_000
export const MAX_MESSAGES = 5_000
/** Versions within versions; each edit of what follows an edit is one deeper. */
const MAX_VERSION_DEPTH = 500
/** Longer than any title that titleFrom makes, for those typed by hand. */
export const MAX_STORED_TITLE_CHARS = 200
const MAX_MODEL_CHARS = 500

/** Where conversations are kept. Each call may fail with the browser's reason. */
export interface Store {
  load(): Promise<Conversation[]>
  put(conversation: Conversation): Promise<void>
  remove(id: string): Promise<void>
}

/** Size of a conversation in characters, for the limits above. */
export function conversationChars(conversation: Conversation): number {
  const { system, tools, schema } = conversation.settings
  let sum = conversation.title.length + system.length + tools.length + schema.length
  for (const { content, reasoning = "", files = [], calls = [] } of allMessages(
    conversation.messages,
  )) {
    sum += content.length + reasoning.length
    for (const file of files) sum += file.name.length + file.text.length
    for (const call of calls) sum += call.name.length + call.arguments.length
  }
  return sum
}

/**
 * Which conversations to drop, oldest first, so that the rest is within the limits. `keepId` is never dropped: it is the one
 * on screen.
 */
export function excess(conversations: readonly Conversation[], keepId: string | null): string[] {
  const byAge = [...conversations].sort((a, b) => a.updatedAt - b.updatedAt)
  let count = byAge.length
  let chars = byAge.reduce((sum, each) => sum + conversationChars(each), 0)
  const dropped: string[] = []
  for (const conversation of byAge) {
    if (count <= MAX_CONVERSATIONS && chars <= MAX_TOTAL_CHARS) break
    if (conversation.id === keepId) continue
    dropped.push(conversation.id)
    count -= 1
    chars -= conversationChars(conversation)
  }
  return dropped
}

/** A conversation out of unknown data, or `undefined` when it is not one or exceeds a limit. */
export function readConversation(data: unknown): Conversation | undefined {
  if (typeof data !== "object" || data === null) return undefined
  const { id, title, createdAt, updatedAt, settings, model, messages } = data as Record<
    string,
    unknown
  >
  if (typeof id !== "string" || id === "" || id.length > 64) return undefined
  if (typeof title !== "string" || !Array.isArray(messages) || messages.length > MAX_MESSAGES)
    return undefined
  const read = readMessages(messages, { left: MAX_MESSAGES }, 0)
  if (read === undefined) return undefined
  const created = asTime(createdAt)
  const conversation: Conversation = {
    id,
    title: title.slice(0, MAX_STORED_TITLE_CHARS),
    createdAt: created,
    updatedAt: Math.max(created, asTime(updatedAt)),
    settings: readSettings(settings),
    ...(typeof model === "string" && model.length <= MAX_MODEL_CHARS ? { model } : {}),
    messages: read,
  }
  if (conversationChars(conversation) > MAX_CONVERSATION_CHARS) return undefined
  return conversation
}

/** `undefined` when one of them, or of their versions, is none, or there are more than `room` has left. */
function readMessages(
  data: readonly unknown[],
  room: { left: number },
  depth: number,
): Message[] | undefined {
  room.left -= data.length
  if (room.left < 0 || depth > MAX_VERSION_DEPTH) return undefined
  const read = data.map((each) => readMessage(each, room, depth))
  return read.includes(undefined) ? undefined : read.filter((each) => each !== undefined)
}

function readMessage(data: unknown, room: { left: number }, depth: number): Message | undefined {
  if (typeof data !== "object" || data === null) return undefined
  const record = data as Record<string, unknown>
  const { id, role, content, reasoning, state, model, callId } = record
  if (typeof id !== "string" || typeof content !== "string") return undefined
  if (role !== "user" && role !== "assistant" && role !== "tool") return undefined
  const message: Message = { id, role, content, createdAt: asTime(record["createdAt"]) }
  if (typeof reasoning === "string") message.reasoning = reasoning
  if (typeof model === "string") message.model = model
  if (typeof callId === "string") message.callId = callId
  const files = readList(record["files"], (each): TextFile | undefined => {
    const { name, text } = each
    return typeof name === "string" && typeof text === "string" ? { name, text } : undefined
  })
  if (files !== undefined) message.files = files
  const calls = readList(record["calls"], (each): ToolCall | undefined => {
    const { id: call, name, arguments: text } = each
    const isCall = typeof call === "string" && typeof name === "string" && typeof text === "string"
    return isCall ? { id: call, name, arguments: text } : undefined
  })
  if (calls !== undefined) message.calls = calls
  const stats = readStats(record["stats"])
  if (stats !== undefined) message.stats = stats
  const failure = readFailure(record["failure"])
  if (failure !== undefined) message.failure = failure
  const known = STATES.find((each) => each === state)
  // Only what is shown can still be streaming, in another tab.
  if (known !== undefined) message.state = known === "streaming" && depth > 0 ? "stopped" : known
  if (record["versions"] === undefined) return message
  const versions = readVersions(record["versions"], room, depth)
  return versions === undefined ? undefined : { ...message, versions }
}

function readVersions(
  data: unknown,
  room: { left: number },
  depth: number,
): Message["versions"] | undefined {
  if (typeof data !== "object" || data === null) return undefined
  const { at, others } = data as Record<string, unknown>
  if (typeof at !== "number" || !Number.isInteger(at) || !Array.isArray(others)) return undefined
  if (at < 0 || at > others.length || others.length === 0) return undefined
  const read: Message[][] = []
  for (const tail of others as unknown[]) {
    const messages = Array.isArray(tail) ? readMessages(tail, room, depth + 1) : undefined
    if (messages === undefined || messages.length === 0) return undefined
    read.push(messages)
  }
  return { at, others: read }
}

/** A list without what `read` does not know; `undefined` when nothing is left. */
function readList<T>(
  data: unknown,
  read: (record: Record<string, unknown>) => T | undefined,
): T[] | undefined {
  if (!Array.isArray(data)) return undefined
  const known = (data as unknown[])
    .map((each) =>
      typeof each === "object" && each !== null ? read(each as Record<string, unknown>) : undefined,
    )
    .filter((each) => each !== undefined)
  return known.length === 0 ? undefined : known
}

const STATES = ["streaming", "done", "stopped", "length", "failed"] as const
const FAILURES = ["auth", "busy", "connection", "request", "server"] as const

function readStats(data: unknown): Stats | undefined {
  if (typeof data !== "object" || data === null) return undefined
  const record = data as Record<string, unknown>
  const stats: Stats = {
    firstTokenMs: asMeasure(record["firstTokenMs"]),
    generationMs: asMeasure(record["generationMs"]),
    promptTokens: asMeasure(record["promptTokens"]),
    cachedTokens: asMeasure(record["cachedTokens"]),
    answerTokens: asMeasure(record["answerTokens"]),
    tokensPerSecond: asMeasure(record["tokensPerSecond"]),
  }
  return Object.values(stats).some(Number.isNaN) ? undefined : stats
}

function asMeasure(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : Number.NaN
}

function readFailure(data: unknown): Failure | undefined {
  if (typeof data !== "object" || data === null) return undefined
  const { kind, message } = data as Record<string, unknown>
  const known = FAILURES.find((each) => each === kind)
  if (known === undefined || typeof message !== "string") return undefined
  return { kind: known, message }
}

function asTime(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0
}

const DATABASE = "ktransformers"
const TABLE = "conversations"

/** Opens the browser's database; fails with its reason where there is none (some private windows). */
export function openStore(): Promise<Store> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1)
    opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: "id" })
    opening.onerror = () => reject(opening.error ?? new Error("the database cannot be opened"))
    opening.onblocked = () => reject(new Error("the database is in use by an older page"))
    opening.onsuccess = () => {
      const database = opening.result
      // A newer page in another tab must be able to upgrade.
      database.onversionchange = () => database.close()
      resolve(databaseStore(database))
    }
  })
}

function databaseStore(database: IDBDatabase): Store {
  function run<T>(
    mode: IDBTransactionMode,
    work: (table: IDBObjectStore) => IDBRequest<T>,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(TABLE, mode)
      const request = work(transaction.objectStore(TABLE))
      // Without waiting for the request's answer, which a page that is being closed would never get.
      transaction.commit()
      transaction.oncomplete = () => resolve(request.result)
      transaction.onerror = () => reject(transaction.error ?? new Error("the write failed"))
      transaction.onabort = () => reject(transaction.error ?? new Error("the write was aborted"))
    })
  }
  return {
    async load() {
      const rows: unknown[] = await run(
        "readonly",
        (table) => table.getAll() as IDBRequest<unknown[]>,
      )
      return rows.map(readConversation).filter((each) => each !== undefined)
    },
    async put(conversation) {
      await run("readwrite", (table) => table.put(conversation))
    },
    async remove(id) {
      await run("readwrite", (table) => table.delete(id))
    },
  }
}

/** Keeps nothing beyond this page; used when the browser's database cannot be opened, which the page then says. */
export function memoryStore(): Store {
  return {
    load: () => Promise.resolve([]),
    put: () => Promise.resolve(),
    remove: () => Promise.resolve(),
  }
}

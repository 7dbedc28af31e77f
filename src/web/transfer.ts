import { settle } from "./conversation.ts"
import { t } from "./language.ts"
import { readConversation } from "./storage.ts"
import { type Conversation, newId } from "./types.ts"

const FORMAT = "ktransformers-conversations"
const VERSION = 1
/** Reading a larger file would freeze the page. */
export const MAX_IMPORT_BYTES = 100_000_000

/** Conversations as the text of an export file. */
export function exportConversations(conversations: readonly Conversation[]): string {
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, null, 2)
}

export interface Imported {
  conversations: Conversation[]
  /** Entries that are not conversations or exceed a limit. */
  rejected: number
}

/**
 * Reads an export file. Returns a sentence when it is none. A conversation whose id exists already with other content gets a
 * new id, so that nothing is overwritten; one that is already there unchanged is left out.
 */
export function importConversations(
  text: string,
  existing: readonly Conversation[],
): Imported | string {
  let data: unknown
  try {
    data = JSON.parse(text) as unknown
  } catch {
    return t("notJson")
  }
  if (typeof data !== "object" || data === null) return t("noConversations")
  const { format, version, conversations } = data as Record<string, unknown>
  if (format !== FORMAT || !Array.isArray(conversations)) return t("notExported")
  if (version !== VERSION) return t("otherVersion", { version: String(version), known: VERSION })
  const known = new Map(existing.map((each) => [each.id, each]))
  const result: Imported = { conversations: [], rejected: 0 }
  for (const item of conversations as unknown[]) {
    const conversation = readConversation(item)
    if (conversation === undefined) {
      result.rejected += 1
      continue
    }
    const present = known.get(conversation.id)
    if (
      present !== undefined &&
      JSON.stringify(present.messages) === JSON.stringify(conversation.messages)
    )
      continue
    const added = present === undefined ? conversation : { ...conversation, id: newId() }
    known.set(added.id, added)
    result.conversations.push(settle(added))
  }
  return result
}

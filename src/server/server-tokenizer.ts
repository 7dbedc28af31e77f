import { chatFormatOf } from "../tokenizer/chat-formats.ts"
import { ChatTemplate } from "../tokenizer/chat-template.ts"
import { fimTokens } from "../tokenizer/fim.ts"
import type { Tokenizer } from "../tokenizer/tokenizer.ts"
import type { ServerTokenizer } from "./types.ts"

export interface ServerTokenizerOptions {
  /** A template of the user's own (Jinja source) instead of the model's. */
  readonly template?: string
  readonly warn?: (message: string) => void
}

/** A tokenizer together with its chat template, as the server needs them. */
export function serverTokenizer(
  tokenizer: Tokenizer,
  options: ServerTokenizerOptions = {},
): ServerTokenizer {
  const { template, warn } = options
  const own = template === undefined ? tokenizer.chatTemplates : new Map([["default", template]])
  const source = {
    bosId: tokenizer.bosId,
    eosId: tokenizer.eosId,
    padId: tokenizer.padId,
    chatTemplates: own,
    tokenText: (id: number) => tokenizer.tokenText(id),
  }
  const plain = ChatTemplate.of(source, warn === undefined ? {} : { warn })
  // Some models have a second template for conversations with tools.
  const withTools = own.has("tool_use") ? ChatTemplate.of(source, { name: "tool_use" }) : plain
  return {
    vocabSize: tokenizer.vocabSize,
    bosId: tokenizer.bosId,
    eogIds: tokenizer.eogIds,
    stripsLeadingSpace: tokenizer.stripsLeadingSpace,
    encode: (text, encodeOptions) => tokenizer.encode(text, encodeOptions),
    encodePrompt: (text) => tokenizer.encodePrompt(text),
    encodePair: (first, second) => tokenizer.encodePair(first, second),
    truncate: (ids, limit) => tokenizer.truncate(ids, limit),
    tokenId: (text) => tokenizer.tokenId(text),
    rerankTemplate: tokenizer.chatTemplates.get("rerank"),
    tokenBytes: (id) => tokenizer.tokenBytes(id),
    isSpecial: (id) => tokenizer.isSpecial(id),
    fim: fimTokens((text) => tokenizer.tokenId(text)),
    chatFormat: chatFormatOf(withTools.source),
    renderChat(messages, { tools, addGenerationPrompt = true, vars } = {}) {
      const chosen = tools === undefined || tools.length === 0 ? plain : withTools
      return chosen.render({
        messages: messages.map((message) => ({ ...message })),
        tools,
        addGenerationPrompt,
        vars,
      })
    },
  }
}

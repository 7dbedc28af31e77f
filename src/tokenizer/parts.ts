import type { AddedToken } from "./special-tokens.ts"
import { type Spelling, type TextModel, TokenKind, type Vocabulary } from "./vocabulary.ts"

/** All that a tokenizer file says, ready for use; made by from-gguf.ts and from-pretrained.ts. */
export interface TokenizerParts {
  /** File or folder, for messages. */
  readonly source: string
  readonly vocabulary: Vocabulary
  /** TokenKind per id. */
  readonly kinds: Uint8Array
  readonly model: TextModel
  readonly spelling: Spelling
  /** Tokens whose text is not spelled that way but stands for itself; control tokens always do. */
  readonly verbatim: ReadonlySet<number>
  readonly added: readonly AddedToken[]
  /** Ids put before and after a text that is encoded with `addSpecial`. */
  readonly prefix: readonly number[]
  readonly suffix: readonly number[]
  /** Texts begin with a space that is not the user's and that decoding takes away. */
  readonly stripsLeadingSpace: boolean
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  readonly unknownId: number | undefined
  readonly eogIds: readonly number[]
  /** By name; the plain one is "default". */
  readonly chatTemplates: ReadonlyMap<string, string>
}

/** Texts with which models end a turn, whichever vocabulary they are in. */
const END_TEXTS: readonly string[] = [
  "<|eot_id|>",
  "<|eom_id|>",
  "<|im_end|>",
  "<|end|>",
  "<|return|>",
  "<|call|>",
  "<|flush|>",
  "<|calls|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|eot|>",
  "<|eom|>",
  "</s>",
  "<eos>",
  "<EOT>",
  "_<EOT>",
  "[EOT]",
  "[EOS]",
  "<turn|>",
  "<|tool_response>",
  "<end_of_utterance>",
  "<\uff5cend\u2581of\u2581sentence\uff5c>",
  "[e~[",
]

/** Ids after which generation stops: those named by the file and the well-known texts among the vocabulary. */
export function endOfGenerationIds(
  vocabulary: Vocabulary,
  kinds: Uint8Array,
  named: Iterable<number | undefined>,
): number[] {
  const ids = new Set<number>()
  for (const id of named) if (id !== undefined) ids.add(id)
  for (const text of END_TEXTS) {
    const id = vocabulary.ids.get(text)
    // where the file calls it an ordinary token, only a text that nobody writes by chance counts
    if (id !== undefined && (kinds[id] !== TokenKind.normal || /^<[|\uff5c]/.test(text)))
      ids.add(id)
  }
  const has = (text: string): boolean => ids.has(vocabulary.ids.get(text) ?? -1)
  const drop = (text: string): void => void ids.delete(vocabulary.ids.get(text) ?? -1)
  // Harmony (gpt-oss) and Solar end a message, not the turn, with <|end|>
  if (
    (has("<|return|>") && has("<|call|>")) ||
    (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")))
  )
    drop("<|end|>")
  // Gemma 4 has a leftover </s> that is ordinary text
  if (has("<|tool_response>")) drop("</s>")
  return [...ids].sort((a, b) => a - b)
}

import { ConfigError } from "../errors.ts"
import type { GgufMetadata } from "../weights/metadata.ts"
import { partsFromGguf } from "./from-gguf.ts"
import { preTokenizer } from "./pre-tokenizers.ts"
import type { PreTokenizerJson } from "./splitters.ts"

/** tokenizer.json as far as it is read and written here. */
export interface TokenizerJson {
  readonly version?: string
  readonly added_tokens?: readonly AddedTokenJson[]
  readonly normalizer?: object | null
  readonly pre_tokenizer?: PreTokenizerJson | null
  readonly post_processor?: object | null
  readonly decoder?: DecoderJson | null
  readonly model: ModelJson
}

export interface AddedTokenJson {
  readonly id: number
  readonly content: string
  readonly special?: boolean
  readonly lstrip?: boolean
  readonly rstrip?: boolean
  readonly single_word?: boolean
  readonly normalized?: boolean
}

export interface DecoderJson {
  readonly type: string
  readonly decoders?: readonly DecoderJson[]
  readonly [key: string]: unknown
}

export interface ModelJson {
  readonly type?: string
  readonly vocab: Record<string, number> | readonly (readonly [string, number])[]
  readonly merges?: readonly string[] | readonly (readonly [string, string])[]
  readonly unk_token?: string | null
  readonly unk_id?: number | null
  readonly continuing_subword_prefix?: string | null
  readonly end_of_word_suffix?: string | null
  readonly max_input_chars_per_word?: number | null
  readonly byte_fallback?: boolean
  readonly fuse_unk?: boolean
  readonly ignore_merges?: boolean
}

/**
 * The tokenizer.json of a byte-level BPE vocabulary that a GGUF file holds, for `@huggingface/tokenizers` and for
 * export. Other kinds have no exact counterpart there: score-based merging lets tokens of one score tie.
 * @throws ConfigError for those, and FormatError as `partsFromGguf` does.
 */
export function tokenizerJsonFromGguf(metadata: GgufMetadata, file: string): TokenizerJson {
  const parts = partsFromGguf(metadata, file)
  if (parts.spelling !== "byte-level")
    throw new ConfigError(
      `${file}: only byte-level BPE vocabularies can be written as tokenizer.json`,
    )
  const pre = preTokenizer((metadata.get("tokenizer.ggml.pre") as string | undefined) ?? "default")!
  const { vocabulary, prefix, suffix } = parts
  const around = (ids: readonly number[]): object[] =>
    ids.map((id) => ({ SpecialToken: { id: vocabulary.texts[id]!, type_id: 0 } }))
  return {
    version: "1.0",
    added_tokens: parts.added.map(({ id, text, special, lstrip, rstrip }) => ({
      id,
      content: text,
      single_word: false,
      lstrip,
      rstrip,
      normalized: false,
      special,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        ...pre.patterns.map((pattern) => ({
          type: "Split",
          pattern: { Regex: pattern },
          behavior: "Isolated",
          invert: false,
        })),
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [...around(prefix), { Sequence: { id: "A", type_id: 0 } }, ...around(suffix)],
      pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
      special_tokens: Object.fromEntries(
        [...prefix, ...suffix].map((id) => {
          const text = vocabulary.texts[id]!
          return [text, { id: text, ids: [id], tokens: [text] }]
        }),
      ),
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.wholeWords === "always",
      vocab: Object.fromEntries(vocabulary.ids),
      merges: metadata.get("tokenizer.ggml.merges") as readonly string[],
    },
  }
}

import { cpSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { BYTE_TO_CHAR } from "../../src/tokenizer/vocabulary.ts"

/** Copies a checkpoint that has no tokenizer and gives it one whose 256 tokens are the bytes. */
export function withByteTokenizer(source: string, target: string): void {
  cpSync(source, target, { recursive: true })
  const vocab = Object.fromEntries(BYTE_TO_CHAR.map((char, byte) => [char, byte]))
  writeFileSync(
    join(target, "tokenizer.json"),
    JSON.stringify({
      version: "1.0",
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
      post_processor: null,
      decoder: { type: "ByteLevel" },
      model: { type: "BPE", vocab, merges: [] },
    }),
  )
  const config = JSON.parse(readFileSync(join(target, "config.json"), "utf8")) as object
  // ids of a larger vocabulary would be none of this one's
  writeFileSync(
    join(target, "config.json"),
    JSON.stringify({ ...config, bos_token_id: null, eos_token_id: 10 }),
  )
}

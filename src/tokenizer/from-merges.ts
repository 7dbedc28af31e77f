import { FormatError } from "../errors.ts"
import { addedTokensOf } from "./added-tokens.ts"
import { type Json, partsFromJson } from "./from-json.ts"
import type { TokenizerParts } from "./parts.ts"
import { preTokenizer } from "./pre-tokenizers.ts"

/** Tokenizer classes and model types whose words are cut as GPT-2 does it, or as Qwen does. */
const GPT2 = /^(GPT2|CodeGen|Roberta|Bart|GPTNeoX|Longformer)Tokenizer|^(gpt2|phi|gpt_neox)$/
const QWEN2 = /^Qwen2Tokenizer|^qwen[23]/

/**
 * A byte-level BPE vocabulary as vocab.json ({text: id}) and merges.txt (one "left right" a line). How words are cut is
 * not in these files but in the code of the class that tokenizer_config.json names.
 * @throws FormatError where that class is not known.
 */
export function partsFromMerges(
  vocab: Json,
  merges: string,
  config: Json,
  file: string,
): TokenizerParts {
  const name = String(config["tokenizer_class"] ?? config["model_type"] ?? "")
  const isQwen = QWEN2.test(name)
  if (!isQwen && !GPT2.test(name))
    throw new FormatError(
      file,
      `tokenizer_class is "${name}", for which it is not known how words are cut`,
      { hint: "A tokenizer.json says it." },
    )
  const pattern = preTokenizer(isQwen ? "qwen2" : "gpt-2")!.patterns[0]!
  const addPrefixSpace = config["add_prefix_space"] === true
  return partsFromJson(
    {
      added_tokens: addedTokensOf(config, file),
      normalizer: isQwen ? { type: "NFC" } : null,
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          ...(addPrefixSpace
            ? [{ type: "ByteLevel", add_prefix_space: true, use_regex: false }]
            : []),
          { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
          { type: "ByteLevel", add_prefix_space: false, use_regex: false },
        ],
      },
      post_processor: null,
      decoder: { type: "ByteLevel" },
      model: {
        type: "BPE",
        vocab: vocab as Record<string, number>,
        merges: merges.split(/\r?\n/).filter((line) => line !== "" && !line.startsWith("#version")),
      },
    },
    config,
    file,
  )
}

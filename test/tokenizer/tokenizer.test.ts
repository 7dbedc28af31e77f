import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers"
import fc from "fast-check"

import { FormatError } from "../../src/errors.ts"
import { SpecialTokens } from "../../src/tokenizer/special-tokens.ts"
import { tokenizerJsonFromGguf } from "../../src/tokenizer/tokenizer-json.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import type { GgufMetadata, GgufValue } from "../../src/weights/metadata.ts"
import { golden } from "../setup.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"

/** One file per pre-tokenizer. */
const BPE_FILES = [
  "llama-rope-q4_k_m",
  "llama-f16",
  "qwen2-q8_0",
  "deepseek2-lite-q5_1",
  "deepseek2-v3-q4_1",
  "glm4moe-q4_0",
  "llama4-q8_0",
  "gpt-oss-mxfp4",
]

const busy = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        " ",
        "   ",
        "\n",
        "\r\n\n",
        "he",
        " the",
        "1234567",
        "it's",
        "HTTPServer",
        "日本",
        "é",
        "e\u0301",
      ),
      fc.constantFrom(
        "<|im_end|>",
        "<bos>",
        "\u200b",
        "\ufeff",
        "\u0085",
        "\u00a0",
        "!?",
        "_",
        "नमस्ते",
        "😀",
      ),
      fc.string({ unit: "grapheme", maxLength: 5 }),
    ),
    { maxLength: 25 },
  )
  .map((parts) => parts.join("").toWellFormed())

const folder = mkdtempSync(join(tmpdir(), "kt-tokenizer-"))
afterAll(() => rmSync(folder, { recursive: true }))

describe.each(BPE_FILES)("%s", (name) => {
  const metadata = readGgufMetadata(golden("gguf", `${name}.gguf`))
  const tokenizer = Tokenizer.fromGguf(metadata, name)
  const json = tokenizerJsonFromGguf(metadata, name)

  test("agrees with the library", () => {
    const library = new LibraryTokenizer(json, {})
    fc.assert(
      fc.property(busy, fc.boolean(), (text, addSpecial) => {
        const expected = library.encode(text, { add_special_tokens: addSpecial }).ids
        expect([...tokenizer.encode(text, { addSpecial, parseSpecial: true })]).toEqual(expected)
      }),
    )
  })

  test("is the same as a Hugging Face folder", async () => {
    await Bun.write(join(folder, name, "tokenizer.json"), JSON.stringify(json))
    const bos_token = { content: tokenizer.tokenText(tokenizer.bosId!), lstrip: false }
    const config = {
      bos_token,
      eos_token: tokenizer.tokenText(tokenizer.eosId!),
      chat_template: "old",
    }
    await Bun.write(join(folder, name, "tokenizer_config.json"), JSON.stringify(config))
    await Bun.write(join(folder, name, "chat_template.jinja"), tokenizer.chatTemplate!)
    const read = await Tokenizer.fromPretrained(join(folder, name))
    expect(read.vocabSize).toBe(tokenizer.vocabSize)
    expect([read.bosId, read.eosId]).toEqual([tokenizer.bosId, tokenizer.eosId])
    expect(read.eogIds).toEqual(tokenizer.eogIds)
    expect(read.chatTemplate).toBe(tokenizer.chatTemplate)
    fc.assert(
      fc.property(busy, fc.boolean(), fc.boolean(), (text, addSpecial, parseSpecial) => {
        const ids = read.encode(text, { addSpecial, parseSpecial })
        expect([...ids]).toEqual([...tokenizer.encode(text, { addSpecial, parseSpecial })])
        expect(read.decode(ids)).toBe(tokenizer.decode(ids))
      }),
      { numRuns: 30 },
    )
  })
})

describe("special tokens", () => {
  const metadata = readGgufMetadata(golden("gguf", "llama-f16.gguf"))
  const tokenizer = Tokenizer.fromGguf(metadata)
  const end = tokenizer.tokenId("<|im_end|>")!

  test("are text unless asked for", () => {
    expect([...tokenizer.encode("a<|im_end|>", { parseSpecial: true })]).toContain(end)
    const plain = tokenizer.encode("a<|im_end|>", { addSpecial: false })
    expect([...plain]).not.toContain(end)
    expect(tokenizer.decode(plain, { skipSpecial: true })).toBe("a<|im_end|>")
  })

  test("are left out on request", () => {
    const ids = tokenizer.encode("a<|im_end|>b", { addSpecial: false, parseSpecial: true })
    expect(tokenizer.decode(ids)).toBe("a<|im_end|>b")
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe("ab")
    expect(tokenizer.isSpecial(end)).toBe(true)
    expect(tokenizer.isEndOfGeneration(end)).toBe(true)
  })

  test("the start token is not doubled where a template writes it", () => {
    const spm = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", "llama-tied-bf16.gguf")))
    const bos = spm.tokenText(spm.bosId!)
    expect([...spm.encodePrompt(`${bos}a`)].filter((id) => id === spm.bosId)).toHaveLength(1)
    expect(spm.encodePrompt("a")[0]).toBe(spm.bosId!)
    expect([...spm.encodePrompt(`${bos}a`)]).toEqual([...spm.encodePrompt("a")])
  })

  test("take the white space beside them where they are made so", () => {
    const special = new SpecialTokens([
      { id: 7, text: "<a>", special: true, lstrip: true, rstrip: false },
      { id: 8, text: "<b>", special: false, lstrip: false, rstrip: true },
      { id: 9, text: "<b>!", special: true, lstrip: false, rstrip: false },
    ])
    const split = (text: string, parseSpecial: boolean): (string | number)[] =>
      special.split(text, parseSpecial).map((part) => (typeof part === "string" ? part : part.id))
    expect(split("x \u00a0\u0085<a> y", true)).toEqual(["x", 7, " y"])
    expect(split("x <b> \n y\ufeff", true)).toEqual(["x ", 8, "y\ufeff"])
    expect(split("<b>!<b>", true)).toEqual([9, 8])
    expect(split("<b>! <a><b>", false)).toEqual([8, "! <a>", 8])
    expect(split("<b", true)).toEqual(["<b"])
  })

  test("ids outside the vocabulary are no text", () => {
    expect(tokenizer.decode([99_999, -1])).toBe("")
    expect(() => tokenizer.tokenText(99_999)).toThrow("token id 99999 is outside the vocabulary")
  })

  test("half of a surrogate pair is U+FFFD", () => {
    expect(tokenizer.decode(tokenizer.encode("a\ud83d", { addSpecial: false }))).toBe("a\ufffd")
  })
})

describe("score-based merging", () => {
  const vocabulary = ["<unk>", "<s>", "</s>", "a", "b", "ab", "ba", "aba", "\u2581", ...bytes()]
  function bytes(): string[] {
    return Array.from(
      { length: 256 },
      (_, n) => `<0x${n.toString(16).toUpperCase().padStart(2, "0")}>`,
    )
  }
  function of(scores: Record<string, number>): Tokenizer {
    return Tokenizer.fromGguf(
      new Map<string, GgufValue>([
        ["tokenizer.ggml.model", "llama"],
        ["tokenizer.ggml.tokens", vocabulary],
        ["tokenizer.ggml.scores", Float32Array.from(vocabulary, (text) => scores[text] ?? -100)],
        [
          "tokenizer.ggml.token_type",
          Int32Array.from(vocabulary, (_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 9 ? 1 : 6)),
        ],
        ["tokenizer.ggml.add_space_prefix", false],
        ["tokenizer.ggml.add_bos_token", false],
      ]),
    )
  }
  const pieces = (tokenizer: Tokenizer, text: string): string[] =>
    [...tokenizer.encode(text)].map((id) => tokenizer.tokenText(id))

  test("the best score merges first", () => {
    expect(pieces(of({ ab: -1, ba: -2 }), "bab")).toEqual(["b", "ab"])
    expect(pieces(of({ ab: -2, ba: -1 }), "bab")).toEqual(["ba", "b"])
  })

  test("among equal scores the leftmost", () => {
    expect(pieces(of({ ab: -1, ba: -1 }), "bab")).toEqual(["ba", "b"])
    expect(pieces(of({ ab: -1, ba: -1 }), "aba")).toEqual(["aba"])
    const long = "ba".repeat(30)
    expect(pieces(of({ ab: -1, ba: -1 }), long)).toEqual(Array(30).fill("ba"))
  })

  test("merges may cross a space where a token does", () => {
    const tokens = [...vocabulary.slice(0, 9), "b\u2581", "b\u2581a", "\u2581a"]
    const crossing = Tokenizer.fromGguf(
      new Map<string, GgufValue>([
        ["tokenizer.ggml.model", "llama"],
        ["tokenizer.ggml.tokens", tokens],
        ["tokenizer.ggml.scores", Float32Array.from(tokens, (_, id) => -id)],
        ["tokenizer.ggml.add_space_prefix", false],
        ["tokenizer.ggml.add_bos_token", false],
      ]),
    )
    expect(pieces(crossing, "ab a")).toEqual(["ab", "\u2581a"])
    expect(pieces(crossing, "b a")).toEqual(["b\u2581a"])
  })

  test("what is no token is spelled in bytes", () => {
    expect(pieces(of({}), "é b")).toEqual(["<0xC3>", "<0xA9>", "\u2581", "b"])
  })
})

describe("bad input", () => {
  let good: Map<string, GgufValue>
  beforeAll(() => {
    good = new Map(readGgufMetadata(golden("gguf", "llama-f16.gguf")))
  })
  const withValue = (key: string, value: GgufValue | undefined): GgufMetadata => {
    const changed = new Map(good)
    if (value === undefined) changed.delete(`tokenizer.ggml.${key}`)
    else changed.set(`tokenizer.ggml.${key}`, value)
    return changed
  }

  const table: readonly [key: string, value: GgufValue | undefined, message: string][] = [
    ["model", undefined, "m.gguf: tokenizer.ggml.model is missing"],
    [
      "model",
      "hybriddna",
      'm.gguf: tokenizer.ggml.model is "hybriddna", a tokenizer that is not supported',
    ],
    ["model", "none", 'm.gguf: tokenizer.ggml.model is "none": the file has no vocabulary'],
    ["model", "plamo2", "m.gguf: tokenizer.ggml.scores is missing"],
    ["pre", "nonsense", 'm.gguf: tokenizer.ggml.pre is "nonsense", an unknown pre-tokenizer'],
    ["tokens", undefined, "m.gguf: tokenizer.ggml.tokens is missing"],
    [
      "tokens",
      new Int32Array(3),
      "m.gguf: tokenizer.ggml.tokens is not an array of strings but an array of 3",
    ],
    ["merges", undefined, "m.gguf: tokenizer.ggml.merges is missing"],
    [
      "token_type",
      new Int32Array(3),
      "m.gguf: tokenizer.ggml.token_type has 3 entries for 320 tokens",
    ],
    [
      "bos_token_id",
      320,
      "m.gguf: tokenizer.ggml.bos_token_id is 320, outside the vocabulary of 320",
    ],
    ["eos_token_id", "2", "m.gguf: tokenizer.ggml.eos_token_id is not a token id but string 2"],
    ["add_bos_token", 1, "m.gguf: tokenizer.ggml.add_bos_token is not a boolean but number 1"],
  ]
  test.each(table)("%s = %p", (key, value, message) => {
    const read = (): Tokenizer => Tokenizer.fromGguf(withValue(key, value), "m.gguf")
    expect(read).toThrow(FormatError)
    expect(read).toThrow(message)
  })

  test("a folder without or with a broken tokenizer.json", async () => {
    const empty = join(folder, "empty")
    await expect(Tokenizer.fromPretrained(empty)).rejects.toThrow("tokenizer.json: is missing")
    await Bun.write(join(folder, "broken", "tokenizer.json"), "{")
    await expect(Tokenizer.fromPretrained(join(folder, "broken"))).rejects.toThrow(
      "tokenizer.json: is not valid JSON",
    )
    await Bun.write(join(folder, "hollow", "tokenizer.json"), "{}")
    await expect(Tokenizer.fromPretrained(join(folder, "hollow"))).rejects.toThrow(
      "model.vocab is missing",
    )
  })
})

import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import fc from "fast-check"

import { FormatError } from "../../src/errors.ts"
import { partsFromSentencePiece } from "../../src/tokenizer/from-sentencepiece.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { BYTE_TO_CHAR } from "../../src/tokenizer/vocabulary.ts"
import { BYTE_TOKENS, charsmapOf, type Entry } from "./vocabularies.ts"

const root = mkdtempSync(join(tmpdir(), "kt-folders-"))
afterAll(() => rmSync(root, { recursive: true }))
let count = 0

async function folderOf(
  files: Readonly<Record<string, string | Uint8Array | object>>,
): Promise<string> {
  const folder = join(root, `${count++}`)
  for (const [name, content] of Object.entries(files))
    await Bun.write(
      join(folder, name),
      typeof content === "string" || content instanceof Uint8Array
        ? content
        : JSON.stringify(content),
    )
  return folder
}

function pieces(tokenizer: Tokenizer, text: string, parseSpecial = false): string[] {
  const ids = tokenizer.encode(text, { addSpecial: false, parseSpecial })
  return [...ids].map((id) => tokenizer.tokenText(id))
}

/** One field of a protocol-buffers message. */
function field(number: number, value: number | Uint8Array | string): number[] {
  if (typeof value === "number") return [...varint(number * 8), ...varint(value)]
  const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value
  return [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes]
}

function varint(value: number): number[] {
  // as int32 none (-1) is written in ten bytes
  if (value < 0) return [255, 255, 255, 255, 255, 255, 255, 255, 255, 1]
  const bytes: number[] = []
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest]
    bytes.push((rest % 128) + 128)
  }
}

/** A SentencePiece model file. */
function sentencePiece(
  entries: readonly Entry[],
  trainer: number[],
  normalizer: number[],
): Uint8Array {
  const all = entries.flatMap(([text, score, kind]) => {
    const four = new Uint8Array(Float32Array.of(score).buffer)
    const piece = [
      ...field(1, text),
      2 * 8 + 5,
      ...four,
      ...(kind === undefined ? [] : field(3, kind)),
    ]
    return field(1, Uint8Array.from(piece))
  })
  return Uint8Array.from([
    ...all,
    ...field(2, Uint8Array.from(trainer)),
    ...field(3, Uint8Array.from(normalizer)),
  ])
}

const START: readonly Entry[] = [
  ["<unk>", 0, 2],
  ["<s>", 0, 3],
  ["</s>", 0, 3],
]

describe("tokenizer.model", () => {
  const words: readonly Entry[] = [
    ["\u2581", -1],
    ["a", -2],
    ["b", -3],
    ["ab", -4],
    ["\u2581ab", -5],
  ]

  test("BPE with byte fallback, kept spaces and added tokens", async () => {
    const bytes: readonly Entry[] = BYTE_TOKENS.map((text) => [text, 0, 6])
    const model = sentencePiece([...START, ...bytes, ...words], field(3, 2), [
      ...field(3, 1),
      ...field(4, 0),
    ])
    const config = {
      added_tokens_decoder: {
        "264": { content: "<|im_end|>", special: true },
        "265": { content: "<x>", special: false, rstrip: true },
      },
      eos_token: "<|im_end|>",
    }
    const tokenizer = await Tokenizer.fromPretrained(
      await folderOf({ "tokenizer.model": model, "tokenizer_config.json": config }),
    )
    expect(tokenizer.vocabSize).toBe(266)
    expect([tokenizer.bosId, tokenizer.eosId]).toEqual([1, 264])
    expect(pieces(tokenizer, "ab  ab")).toEqual(["\u2581ab", "\u2581", "\u2581ab"])
    expect(pieces(tokenizer, "é")).toEqual(["\u2581", "<0xC3>", "<0xA9>"])
    expect(pieces(tokenizer, "a<x>  <|im_end|>")).not.toContain("<|im_end|>")
    expect(pieces(tokenizer, "a<x>  b<|im_end|>", true)).toEqual([
      "\u2581",
      "a",
      "<x>",
      "\u2581",
      "b",
      "<|im_end|>",
    ])
    expect(tokenizer.decode(tokenizer.encode("ab é"), { skipSpecial: true })).toBe("ab é")
  })

  test("BPE without byte tokens: charsmap, merged spaces, one unknown for a run", async () => {
    const normalizer = [...field(2, charsmapOf({ Ａ: "a" })), ...field(3, 0), ...field(4, 1)]
    const model = sentencePiece([...START, ...words], field(3, 2), normalizer)
    const tokenizer = await Tokenizer.fromPretrained(await folderOf({ "tokenizer.model": model }))
    expect(pieces(tokenizer, " Ａb   日本b ")).toEqual(["ab", "\u2581", "<unk>", "b"])
  })

  test("unigram", async () => {
    const trainer = [...field(3, 1), ...field(40, 0), ...field(43, -1)]
    const model = sentencePiece([...START, ...words], trainer, [])
    const tokenizer = await Tokenizer.fromPretrained(await folderOf({ "tokenizer.model": model }))
    expect(tokenizer.padId).toBeUndefined()
    expect(pieces(tokenizer, "ab  b")).toEqual(["\u2581ab", "\u2581", "b"])
  })

  test.each([
    [Uint8Array.of(10, 200), "is broken at byte 3"],
    [new Uint8Array(0), "holds no pieces"],
    [sentencePiece(START, field(3, 4), []), "trainer_spec.model_type is 4"],
  ])("that is broken %#", async (bytes, message) => {
    const folder = await folderOf({ "tokenizer.model": bytes })
    await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(
      `${join(folder, "tokenizer.model")}: ${message}`,
    )
  })
})

test("a damaged tokenizer.model is read or refused with one error, whatever is wrong with it", () => {
  const bytes: readonly Entry[] = BYTE_TOKENS.slice(0, 8).map((text) => [text, -1, 6])
  const charsmap = field(2, charsmapOf({ Ａ: "a" }))
  for (const kind of [1, 2]) {
    const good = sentencePiece([...START, ["a", -1], ...bytes], field(3, kind), charsmap)
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 4 }),
        fc.nat(good.length),
        (changes, length) => {
          const damaged = Uint8Array.from(good)
          for (const [at, byte] of changes) damaged[at] = byte
          try {
            new Tokenizer(partsFromSentencePiece(damaged.subarray(0, length), {}, "f")).encode(
              "aＡ b",
            )
          } catch (error) {
            expect(error).toBeInstanceOf(FormatError)
          }
        },
      ),
      { numRuns: 300 },
    )
  }
})

describe("tiktoken.model", () => {
  const tokens = [
    ...Array.from({ length: 256 }, (_, byte) => Buffer.of(byte)),
    ..."ab,bc,abc,日".split(",").map((text) => Buffer.from(text)),
    Buffer.of(0xe6, 0x97),
  ]
  const file = tokens.map((token, rank) => `${token.toString("base64")} ${rank}\n`).join("")
  const config = {
    tokenizer_class: "TikTokenTokenizer",
    added_tokens_decoder: { "262": { content: "<|im_end|>", special: true } },
  }

  test("merges what is a token, the lowest rank first", async () => {
    const tokenizer = await Tokenizer.fromPretrained(
      await folderOf({ "tiktoken.model": file, "tokenizer_config.json": config }),
    )
    expect([...tokenizer.encode("abcb bcab日x")]).toEqual([258, 98, 32, 257, 256, 259, 120])
    // a whole word that is a token is taken as it is
    expect([...tokenizer.encode("abc")]).toEqual([258])
    expect(tokenizer.vocabSize).toBe(261 + 256)
    expect([...tokenizer.encode("<|im_end|>", { parseSpecial: true })]).toEqual([262])
    expect(tokenizer.tokenText(263)).toBe("<|reserved_token_263|>")
    expect(tokenizer.decode(tokenizer.encode("abc 日本語"))).toBe("abc 日本語")
  })

  test("of a class whose pattern is not known", async () => {
    const folder = await folderOf({
      "tiktoken.model": file,
      "tokenizer_config.json": { tokenizer_class: "X" },
    })
    await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(
      'tiktoken.model: tokenizer_class is "X", for which it is not known how words are cut',
    )
  })

  test("with a broken line", async () => {
    const folder = await folderOf({
      "tiktoken.model": `${file}?? 9\n`,
      "tokenizer_config.json": config,
    })
    await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(
      "line 262 is no token and rank: ?? 9",
    )
  })
})

describe("vocab.json and merges.txt", () => {
  const texts = [...BYTE_TO_CHAR, "he", "hel", "\u0120he", "<|end|>"]
  const vocab = Object.fromEntries(texts.map((text, id) => [text, id]))
  const files = {
    "vocab.json": vocab,
    "merges.txt": "#version: 0.2\nh e\nhe l\n\u0120 he\n",
    "tokenizer_config.json": { tokenizer_class: "Qwen2Tokenizer", eos_token: "<|end|>" },
    "added_tokens.json": { "<|end|>": 259 },
  }

  test("are one tokenizer", async () => {
    const tokenizer = await Tokenizer.fromPretrained(await folderOf(files))
    expect(pieces(tokenizer, "hel he12")).toEqual(["hel", "\u0120he", "1", "2"])
    expect(pieces(tokenizer, "e\u0301")).toEqual(["\u00c3", "\u00a9"])
    expect(tokenizer.eosId).toBe(259)
    expect(pieces(tokenizer, "<|end|>")).not.toContain("<|end|>")
  })

  test("need each other, and a class that is known", async () => {
    const { "merges.txt": _, ...without } = files
    const alone = await folderOf(without)
    await expect(Tokenizer.fromPretrained(alone)).rejects.toThrow(
      "merges.txt: is missing beside vocab.json",
    )
    const strange = await folderOf({ ...files, "tokenizer_config.json": { tokenizer_class: "X" } })
    await expect(Tokenizer.fromPretrained(strange)).rejects.toThrow(FormatError)
  })
})

test("a folder without any of them", async () => {
  const folder = await folderOf({ "config.json": {} })
  await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow("tokenizer.json: is missing")
})

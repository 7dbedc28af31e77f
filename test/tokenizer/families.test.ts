import { describe, expect, test } from "bun:test"

import { FormatError } from "../../src/errors.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { BYTE_TOKENS, charsmapOf, type Entry, ggufVocabulary } from "./vocabularies.ts"

function pieces(tokenizer: Tokenizer, text: string, addSpecial = false): string[] {
  return [...tokenizer.encode(text, { addSpecial })].map((id) => tokenizer.tokenText(id))
}

describe("unigram", () => {
  const entries: Entry[] = [
    ["<pad>", 0, 3],
    ["</s>", 0, 3],
    ["<unk>", 0, 2],
    ["\u2581", -2],
    ["\u2581a", -3],
    ["a", -3],
    ["b", -3],
    ["ab", -4],
    ["ba", -4],
    ["aba", -9],
    ["fi", -2.5],
    ["<x>", 0, 4],
  ]
  const more = {
    remove_extra_whitespaces: true,
    precompiled_charsmap: charsmapOf({ ﬁ: "fi", A: "a" }),
  }
  const tokenizer = Tokenizer.fromGguf(ggufVocabulary("t5", entries, more))

  test("takes the most probable segmentation, the first among equals", () => {
    expect(pieces(tokenizer, "aba")).toEqual(["\u2581a", "ba"])
    expect(pieces(tokenizer, "bab")).toEqual(["\u2581", "b", "ab"])
  })

  test("joins unknown characters, which cost more than any token", () => {
    expect(pieces(tokenizer, "a日本語b")).toEqual(["\u2581a", "<unk>", "b"])
  })

  test("replaces by the charsmap and merges spaces", () => {
    expect(pieces(tokenizer, "  A  ﬁ ")).toEqual(["\u2581a", "\u2581", "fi"])
  })

  test("never finds control tokens in text, but those that users defined", () => {
    expect(pieces(tokenizer, "a</s><x>")).toEqual(["\u2581a", "<unk>", "<x>"])
    expect([...tokenizer.encode("a</s>", { parseSpecial: true })].at(-1)).toBe(1)
  })

  test("ends with </s> and decodes", () => {
    expect(pieces(tokenizer, "ab", true)).toEqual(["\u2581", "ab", "</s>"])
    expect(tokenizer.decode(tokenizer.encode("ab ba"), { skipSpecial: true })).toBe("ab ba")
  })

  test("keeps spaces where the file does not say to merge them", () => {
    const plain = Tokenizer.fromGguf(ggufVocabulary("t5", entries, { add_space_prefix: true }))
    expect(pieces(plain, " a  b")).toEqual(["\u2581", "\u2581a", "\u2581", "\u2581", "b"])
  })

  test.each([
    [new Uint8Array(3), "has 3 bytes"],
    [Uint8Array.of(200, 0, 0, 0, 1, 2), "has 6 bytes, which do not hold its table of 200"],
    [Uint8Array.of(4, 0, 0, 0, 0, 0, 0, 0, 65), "ends inside a replacement text"],
  ])("a broken charsmap %p", (table, message) => {
    const read = (): Tokenizer =>
      Tokenizer.fromGguf(ggufVocabulary("t5", entries, { precompiled_charsmap: table }), "m.gguf")
    expect(read).toThrow(FormatError)
    expect(read).toThrow(`m.gguf: tokenizer.ggml.precompiled_charsmap ${message}`)
  })
})

describe("WordPiece", () => {
  const words = [
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "\u2581un",
    "able",
    "a",
    "\u2581a",
    "\u2581!",
    "\u2581\u65e5",
    "\u2581e",
  ]
  const more = { bos_token_id: 0, seperator_token_id: 1, unknown_token_id: 2 }
  const of = (extra: Record<string, boolean> = {}): Tokenizer =>
    Tokenizer.fromGguf(
      ggufVocabulary(
        "bert",
        words.map((text, id): Entry => [text, 0, id < 3 ? 3 : 1]),
        { ...more, ...extra },
      ),
    )

  test("cuts words into the longest pieces, or not at all", () => {
    expect(pieces(of(), "Unable a!日 unx", true)).toEqual([
      "[CLS]",
      "\u2581un",
      "able",
      "\u2581a",
      "\u2581!",
      "\u2581\u65e5",
      "[UNK]",
      "[SEP]",
    ])
  })

  test("folds case and accents, and drops control characters", () => {
    expect(pieces(of(), "É\u0007 \u200ba")).toEqual(["\u2581e", "\u2581a"])
    expect(pieces(of({ "normalizer.lowercase": false }), "A \u00e9")).toEqual(["[UNK]", "[UNK]"])
    expect(pieces(of({ "normalizer.strip_accents": false }), "A \u00e9")).toEqual([
      "\u2581a",
      "[UNK]",
    ])
  })

  test("decodes", () => {
    expect(of().decode(of().encode("unable a", { addSpecial: false }))).toBe("unable a")
  })
})

test("RWKV takes the longest token of bytes", () => {
  const texts = [
    "<s>",
    ...BYTE_TOKENS.map((_, byte) => `\\x${byte.toString(16).padStart(2, "0")}`),
    "ab",
    "abcd",
    "\\n\\n",
    "\\xe6\\x97",
    "\\\\",
  ]
  const tokenizer = Tokenizer.fromGguf(
    ggufVocabulary(
      "rwkv",
      texts.map((text, id): Entry => [text, 0, id === 0 ? 3 : 1]),
    ),
  )
  expect(pieces(tokenizer, "abcab\n\n\\日")).toEqual([
    "ab",
    "\\x63",
    "ab",
    "\\n\\n",
    "\\\\",
    "\\xe6\\x97",
    "\\xa5",
  ])
  expect(tokenizer.decode(tokenizer.encode("abcab\n\n\\日é"))).toBe("abcab\n\n\\日é")
  expect(pieces(tokenizer, "<s>")).not.toContain("<s>")
})

test("PLaMo 2 takes the highest score, the longest first token among equals", () => {
  const entries: Entry[] = [
    ["<unk>", 0, 2],
    ["<s>", 0, 3],
    ["</s>", 0, 3],
    ...BYTE_TOKENS.map((text): Entry => [text, 0, 6]),
    ["a", -2],
    ["ab", -3],
    ["b", -2],
    ["bb", -3],
    [" ", -1],
    ["zz", -3000],
  ]
  const tokenizer = Tokenizer.fromGguf(ggufVocabulary("plamo2", entries))
  expect(pieces(tokenizer, "abb")).toEqual(["ab", "b"])
  expect(pieces(tokenizer, "\ufeffa é")).toEqual(["a", " ", "<0xC3>", "<0xA9>"])
  expect(pieces(tokenizer, "zz")).toEqual(["<0x7A>", "<0x7A>"])
  expect(tokenizer.decode(tokenizer.encode("ab é😀"))).toBe("ab é😀")
})

test("words between white space", () => {
  const entries = ["<unk>", "a", "b", "ab", "c"].map((text, id): Entry => [
    text,
    0,
    id === 0 ? 2 : 1,
  ])
  const tokenizer = Tokenizer.fromGguf(
    ggufVocabulary("whitespace", entries, {
      merges: ["a b"],
      unknown_token_id: 0,
      "normalizer.lowercase": true,
    }),
  )
  expect(pieces(tokenizer, " AB\u3000 c\nx")).toEqual(["ab", "c", "<unk>"])
})

test("numbers in groups of three from the right", () => {
  const tokens = ["1", "2", "3", "4", "12", "34", "234"]
  const tokenizer = Tokenizer.fromGguf(
    ggufVocabulary(
      "gpt2",
      tokens.map((text): Entry => [text, 0]),
      {
        pre: "afmoe",
        merges: ["1 2", "3 4", "2 34"],
        add_bos_token: false,
      },
    ),
  )
  expect(pieces(tokenizer, "1234")).toEqual(["1", "234"])
})

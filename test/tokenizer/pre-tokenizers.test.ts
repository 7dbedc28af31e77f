import { expect, test } from "bun:test"

import fc from "fast-check"

import { preTokenizer, preTokenizerNames } from "../../src/tokenizer/pre-tokenizers.ts"
import { isolate, splittersOf } from "../../src/tokenizer/splitters.ts"

function cut(name: string, text: string): string[] {
  return preTokenizer(name)!
    .patterns.map(isolate)
    .reduce((pieces, split) => pieces.flatMap((piece) => split(piece, true)), [text])
}

const table: readonly [name: string, text: string, pieces: string[]][] = [
  [
    "gpt-2",
    "I'll pay  1234 dollars!\n\n",
    ["I", "'ll", " pay", " ", " 1234", " dollars", "!", "\n\n"],
  ],
  ["smollm", "x 1234", ["x", " ", "1", "2", "3", "4"]],
  ["llama-bpe", "I'LL pay 12345\n\n  x", ["I", "'LL", " pay", " ", "123", "45", "\n\n", " ", " x"]],
  ["qwen2", "(a)\r\n12", ["(a", ")\r\n", "1", "2"]],
  ["qwen35", "नमस्ते", ["नमस्ते"]],
  ["qwen2", "नमस्ते", ["नमस", "्त", "े"]],
  ["gpt-4o", "HTTPServer isn't/\n", ["HTTPServer", " isn't", "/\n"]],
  ["gpt-4o", "camelCase", ["camel", "Case"]],
  ["tekken", "don't 12", ["don", "'t", " ", "1", "2"]],
  ["deepseek-v3", "日本語 abc,def 1234", ["日本語", " abc", ",def", " ", "123", "4"]],
  ["deepseek-llm", "日本 Привет, 12\n", ["日本", " Привет", ",", " ", "12", "\n"]],
  ["falcon", "f(x)=12345", ["f", "(", "x", ")=", "123", "45"]],
  ["kimi-k2", "说Hello世界", ["说", "Hello", "世界"]],
  ["superbpe", "1234567 a", ["1", "234", "567", " a"]],
  ["bloom", "a, b\u060c c", ["a", ",", " b", "\u060c", " c"]],
  ["gemma4", "a b\n\nc", ["a b", "\n\n", "c"]],
  // U+0085 and U+00A0 are white space and U+FEFF is not, unlike in JavaScript's own patterns
  ["gpt-2", "a\u0085\u00a0b\ufeff", ["a", "\u0085", "\u00a0", "b", "\ufeff"]],
]
test.each(table)("%s cuts %p", (name, text, pieces) => {
  expect(cut(name, text)).toEqual(pieces)
})

test("no pre-tokenizer loses or changes text", () => {
  const text = fc
    .array(
      fc.oneof(
        fc.constantFrom(
          " ",
          "\n",
          "\t",
          "'s",
          "12345",
          "日本",
          "ABc",
          "e\u0301",
          "!?",
          "\u3000",
          "\u0085",
          "IMGIMGAZ",
        ),
        fc.string({ unit: "grapheme", maxLength: 4 }),
      ),
      { maxLength: 15 },
    )
    .map((parts) => parts.join("").toWellFormed())
  for (const name of preTokenizerNames())
    fc.assert(
      fc.property(text, (value) => {
        const pieces = cut(name, value)
        expect(pieces.join("")).toBe(value)
        expect(pieces).not.toContain("")
      }),
      { numRuns: 40 },
    )
})

test("pre-tokenizers of tokenizer.json that the library applies", () => {
  const { splitters, byteLevel } = splittersOf({
    type: "Sequence",
    pretokenizers: [
      { type: "Digits", individual_digits: true },
      { type: "Split", pattern: { String: "," }, behavior: "Removed", invert: false },
      { type: "ByteLevel", add_prefix_space: true, use_regex: true },
    ],
  })
  expect(byteLevel).toBe(true)
  const pieces = splitters.reduce((all, split) => all.flatMap((piece) => split(piece, true)), [
    "a12,b c",
  ] as string[])
  expect(pieces).toEqual([" a", " 1", " 2", " b", " c"])
})

test.each([
  ["Isolated", false, ["-", "-", "a", "-", "b"]],
  ["Isolated", true, ["-", "-", "a", "-", "b"]],
  ["Removed", false, ["a", "b"]],
  ["Removed", true, ["-", "-", "-"]],
  ["Contiguous", false, ["--", "a", "-", "b"]],
  ["MergedWithPrevious", false, ["-", "-", "a-", "b"]],
  ["MergedWithNext", false, ["-", "-a", "-b"]],
] as const)("Split %s, invert %p", (behavior, invert, pieces) => {
  const { splitters } = splittersOf({ type: "Split", pattern: { String: "-" }, behavior, invert })
  expect(splitters[0]!("--a-b", true)).toEqual([...pieces])
})

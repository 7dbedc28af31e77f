import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { Detokenizer, StopMatcher } from "../../src/tokenizer/detokenizer.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { golden } from "../setup.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"

function load(name: string): Tokenizer {
  return Tokenizer.fromGguf(readGgufMetadata(golden("gguf", name)), name)
}

const FILES = [
  "llama-f16.gguf",
  "deepseek2-lite-q5_1.gguf",
  "llama-tied-bf16.gguf",
  "gemma3-q5_0.gguf",
]
const text = fc.string({ unit: "grapheme", maxLength: 60 })
/** Text that is likely to meet merges, spaces and special tokens. */
const busy = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        " ",
        "  ",
        "\n",
        "he",
        "the",
        "123",
        "<|im_end|>",
        "日本",
        "é",
        "\u2581",
        "\u200b",
        "\ufeff",
      ),
      fc.string({ unit: "binary", maxLength: 4 }),
    ),
    { maxLength: 20 },
  )
  .map((parts) => parts.join("").toWellFormed())

describe.each(FILES)("%s", (file) => {
  const tokenizer = load(file)
  // U+2581 stands for the space in such vocabularies, and so cannot come back
  const isMetaspace = file.startsWith("llama-tied") || file.startsWith("gemma3")
  const expected = (value: string): string =>
    isMetaspace ? value.replaceAll("\u2581", " ") : value

  test("decode gives back what was encoded", () => {
    fc.assert(
      fc.property(fc.oneof(text, busy), fc.boolean(), (value, parseSpecial) => {
        const ids = tokenizer.encode(value, { addSpecial: false, parseSpecial: false })
        expect(tokenizer.decode(ids)).toBe(expected(value))
        const shown = tokenizer.encode(value, { addSpecial: true, parseSpecial })
        if (!parseSpecial)
          expect(tokenizer.decode(shown, { skipSpecial: true })).toBe(expected(value))
      }),
    )
  })

  test("tokens one by one give the same text as all at once, for any ids", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat({ max: tokenizer.vocabSize + 3 }), { maxLength: 80 }),
        fc.boolean(),
        (ids, skipSpecial) => {
          const detokenizer = new Detokenizer(tokenizer, { skipSpecial, atStart: true })
          let streamed = ""
          for (const id of ids) {
            const piece = detokenizer.push(id)
            expect(piece.endsWith("\ud83d")).toBe(false)
            streamed += piece
          }
          streamed += detokenizer.flush()
          expect(streamed).toBe(tokenizer.decode(ids, { skipSpecial }))
        },
      ),
    )
  })
})

test("a character spread over tokens comes out whole and once", () => {
  const tokenizer = load("llama-f16.gguf")
  const ids = [...tokenizer.encode("a😀b", { addSpecial: false })]
  const detokenizer = new Detokenizer(tokenizer)
  const pieces = ids.map((id) => detokenizer.push(id))
  expect(pieces.filter((piece) => piece !== "")).toEqual(["a", "😀", "b"])
  expect(detokenizer.flush()).toBe("")
})

test("a continuation keeps its leading space", () => {
  const tokenizer = load("llama-tied-bf16.gguf")
  const ids = [...tokenizer.encode("the", { addSpecial: false })]
  const pushAll = (atStart: boolean): string => {
    const detokenizer = new Detokenizer(tokenizer, { atStart })
    return ids.map((id) => detokenizer.push(id)).join("") + detokenizer.flush()
  }
  expect(pushAll(false)).toBe(" the")
  expect(pushAll(true)).toBe("the")
})

describe("stop strings", () => {
  /** The definition: read character by character and look whether some stop string ends here. */
  function reference(
    whole: string,
    stops: readonly string[],
  ): { text: string; stop: string | undefined } {
    for (let end = 1; end <= whole.length; end++) {
      const ended = stops
        .filter((stop) => stop !== "" && whole.slice(0, end).endsWith(stop))
        .sort((a, b) => b.length - a.length)[0]
      if (ended !== undefined) return { text: whole.slice(0, end - ended.length), stop: ended }
    }
    return { text: whole, stop: undefined }
  }

  const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 30 })

  test("do not depend on how the text is cut", () => {
    fc.assert(
      fc.property(
        fc.array(letters, { maxLength: 12 }),
        fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 5 }), {
          maxLength: 4,
        }),
        (pieces, stops) => {
          const matcher = new StopMatcher(stops)
          let text = ""
          for (const piece of pieces) text += matcher.push(piece).text
          if (matcher.stopped === undefined) text += matcher.flush()
          expect({ text, stop: matcher.stopped }).toEqual(reference(pieces.join(""), stops))
        },
      ),
      { numRuns: 1000 },
    )
  })

  test("hold back only what may begin one", () => {
    const matcher = new StopMatcher(["</end>"])
    expect(matcher.push("one <")).toEqual({ text: "one ", stop: undefined })
    expect(matcher.push("b")).toEqual({ text: "<b", stop: undefined })
    expect(matcher.push("</en")).toEqual({ text: "", stop: undefined })
    expect(matcher.push("d> two")).toEqual({ text: "", stop: "</end>" })
    expect(matcher.push("three")).toEqual({ text: "", stop: "</end>" })
    expect(matcher.flush()).toBe("")
  })
})

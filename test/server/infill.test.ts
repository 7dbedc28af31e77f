import { describe, expect, test } from "bun:test"

import { infillPrompt, type InfillRequest } from "../../src/server/infill.ts"
import type { ServerTokenizer } from "../../src/server/types.ts"
import { fimTokens } from "../../src/tokenizer/fim.ts"
import { at, BOS, byteTokenizer, FakeClient, fillingTokenizer, json, testServer } from "./fakes.ts"

const MARKS: Readonly<Record<number, string>> = {
  [BOS]: "^",
  0xf8: "[P]",
  0xf9: "[S]",
  0xfa: "[M]",
  0xfb: "[F]",
}

function shown(ids: Int32Array): string {
  return Array.from(ids, (id) => MARKS[id] ?? String.fromCharCode(id)).join("")
}

function prompt(
  request: Partial<InfillRequest>,
  contextLength = 2048,
  tokenizer: ServerTokenizer = fillingTokenizer,
): string {
  const client = new FakeClient({ contextLength })
  const whole = { prefix: "", suffix: "", maxTokens: 8, param: "suffix", ...request }
  return shown(infillPrompt({ tokenizer, client }, whole))
}

describe("the prompt of a hole", () => {
  test("prefix, suffix, then the middle, which may have begun", () => {
    expect(prompt({ prefix: "a(", suffix: ")" })).toBe("^[P]a([S])[M]")
    expect(prompt({ prefix: "a(", suffix: ")", prompt: "b" })).toBe("^[P]a([S])[M]b")
  })

  test("other files come first, by name", () => {
    const files = [
      { name: "x", text: "1" },
      { name: "y", text: "2" },
    ]
    expect(prompt({ prefix: "p", suffix: "s", files })).toBe("^[F]x\n1[F]y\n2[P]p[S]s[M]")
    // 8 for the answer, 4 marks: room for the near file only
    expect(prompt({ prefix: "p", suffix: "s", files }, 8 + 4 + 2 + 5)).toBe("^[F]y\n2[P]p[S]s[M]")
  })

  test("what is farthest from the hole is left out where the context is short", () => {
    const long = { prefix: "0123456789abcdef", suffix: "ABCDEFGHIJKLMNOP" }
    expect(prompt(long, 8 + 4 + 16)).toBe("^[P]456789abcdef[S]ABCD[M]")
    expect(prompt({ ...long, prefix: "xy" }, 8 + 4 + 16)).toBe("^[P]xy[S]ABCDEFGHIJKLMN[M]")
    expect(prompt({ ...long, suffix: "Z" }, 8 + 4 + 16)).toBe("^[P]123456789abcdef[S]Z[M]")
    expect(prompt({ ...long, maxTokens: 4000 }, 64)).toBe("^[P][S][M]")
  })

  test("Codestral has the suffix first and no middle", () => {
    const fim = { ...fillingTokenizer.fim!, middle: undefined, suffixFirst: true }
    const tokenizer = { ...byteTokenizer, fim }
    expect(prompt({ prefix: "p", suffix: "s" }, 2048, tokenizer)).toBe("^[S]s[P]p")
  })

  test("the tokens are found in each family's vocabulary, or not", () => {
    const of = (...texts: string[]): ReturnType<typeof fimTokens> =>
      fimTokens((text) => (texts.includes(text) ? texts.indexOf(text) : undefined))
    expect(of("<|fim_middle|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|file_sep|>")).toEqual({
      prefix: 1,
      suffix: 2,
      middle: 0,
      repository: undefined,
      file: 3,
      suffixFirst: false,
    })
    expect(of("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>")).toBeUndefined()
    expect(of("[SUFFIX]", "[PREFIX]")).toMatchObject({ suffixFirst: true, middle: undefined })
    expect(of("<|im_end|>")).toBeUndefined()
  })
})

describe("routes", () => {
  const around = { input_prefix: "a(", input_suffix: ")" }
  const deps = { tokenizer: fillingTokenizer }

  test("/infill, /v1/completions and /api/generate ask for the same", async () => {
    const { post, client } = testServer({ answer: "b, c" }, {}, deps)
    const filled = await json(
      post("/infill", { ...around, n_predict: 8, input_extra: [{ filename: "f", text: "t" }] }),
    )
    expect(at(filled, "content")).toBe("b, c")
    const openai = { model: "fake", prompt: "a(", suffix: ")" }
    const completed = await json(post("/v1/completions", openai))
    expect(at(completed, "choices", 0, "text")).toBe("b, c")
    const generated = await json(post("/api/generate", { ...openai, stream: false }))
    expect(at(generated, "response")).toBe("b, c")
    expect(client.calls.map(({ ids }) => shown(ids))).toEqual([
      "^[F]f\nt[P]a([S])[M]",
      "^[P]a([S])[M]",
      "^[P]a([S])[M]",
    ])
  })

  test("a model that cannot is a 400 that says so", async () => {
    const { post } = testServer()
    const refused = await post("/infill", around)
    expect(refused.status).toBe(400)
    expect(at(await json(refused), "error", "message")).toBe(
      "input_prefix: this model cannot fill in the middle",
    )
    const many = testServer({}, {}, deps)
    const two = await many.post("/v1/completions", { model: "fake", prompt: ["a"], suffix: "b" })
    expect(two.status).toBe(400)
  })
})

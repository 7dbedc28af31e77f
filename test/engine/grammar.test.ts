import { afterAll, describe, expect, test } from "bun:test"

import { Grammars, type SequenceGrammar } from "../../src/engine/grammar.ts"
import { Scheduler } from "../../src/engine/scheduler.ts"
import { Sequence } from "../../src/engine/sequence.ts"
import { BlockManager } from "../../src/kvcache/block-manager.ts"
import { GREEDY } from "./fake-runner.ts"
import { tableOf } from "./token-table.ts"

const open: Grammars[] = []
afterAll(() => {
  for (const grammars of open) grammars[Symbol.dispose]()
})

/** Letters, then words of them, then a token that ends texts. */
const TEXTS = [
  ...Array.from({ length: 26 }, (_, i) => String.fromCharCode(97 + i)),
  ...Array.from({ length: 120_000 }, (_, i) => `${i.toString(36).replaceAll(/\d/g, "z")}"`),
  "</s>",
]
const END = TEXTS.length - 1

function make(texts: readonly string[] = TEXTS): Grammars {
  const grammars = new Grammars(texts.length)
  grammars.setVocabulary(tableOf(texts))
  open.push(grammars)
  return grammars
}

function tag(pattern: string): string {
  return JSON.stringify({ type: "structural_tag", format: { type: "regex", pattern } })
}

function allows({ mask }: SequenceGrammar, id: number): boolean {
  return (((mask[id >> 5] as number) >>> (id & 31)) & 1) === 1
}

describe("grammars", () => {
  test("the first one of a large vocabulary does not hold up this thread", async () => {
    const grammars = make()
    let turns = 0
    let isMade = false
    const made = grammars.matcher(tag("[a-c]+"), [END]).finally(() => (isMade = true))
    while (!isMade) {
      turns++
      await new Promise<void>((resolve) => setImmediate(resolve))
    }
    using grammar = await made
    // in this thread it took a handful of them
    expect(turns).toBeGreaterThan(200)
    expect([0, 1, 2, 3].map((id) => allows(grammar, id))).toEqual([true, true, true, false])
    expect(allows(grammar, END)).toBe(false)
    grammar.accept(0)
    expect(allows(grammar, END)).toBe(true)
    grammar.accept(END)
    expect(grammar.isTerminated).toBe(true)
  })

  test("while one is compiled, sequences of another thread go on", async () => {
    const grammars = make()
    using first = await grammars.matcher(tag("[a-c]+"), [END])
    let isMade = false
    const second = grammars.matcher(tag("[d-f]+x"), [END]).finally(() => (isMade = true))
    let accepted = 0
    for (; !isMade; accepted++) {
      expect(first.isReady).toBe(true)
      first.accept(accepted % 3)
      expect(allows(first, 1)).toBe(true)
      await new Promise<void>((resolve) => setImmediate(resolve))
    }
    using other = await second
    expect(allows(other, 3)).toBe(true)
    expect(accepted).toBeGreaterThan(20)
  })

  test("a text that is there already is taken first, or refused", async () => {
    const grammars = make(["a", "b", "c", "</s>"])
    using grammar = await grammars.matcher(tag("(ab)+c"), [3], "aba")
    expect([0, 1, 2, 3].map((id) => allows(grammar, id))).toEqual([false, true, false, false])
    const refused = (pattern: string, written?: string): Promise<string> =>
      grammars.matcher(tag(pattern), [3], written).then(String, (error: Error) => error.message)
    expect(await refused("(ab)+c", "abb")).toBe(
      "the text that is to be continued does not begin what the grammar or the schema allows",
    )
    expect(await refused("((")).toStartWith("the grammar cannot be compiled: ")
  })

  test("a wrong token is told with the next mask", async () => {
    const grammars = make(["a", "b", "</s>"])
    using grammar = await grammars.matcher(tag("ab"), [2])
    grammar.accept(1)
    expect(() => grammar.mask).toThrow("token 1 is not what the grammar allows")
  })
})

test("a sequence whose mask is not coming sits steps out", () => {
  const blocks = new BlockManager({ pages: 16, pageSize: 4, prefixCache: false })
  const limits = { maxBatchSize: 4, maxBatchTokens: 16, contextLength: 32 }
  const scheduler = new Scheduler(limits, blocks)
  const state = { isReady: true, [Symbol.dispose]: () => {} }
  const grammar = state as unknown as SequenceGrammar
  const prompt = Int32Array.of(1, 2, 3)
  scheduler.add(new Sequence(1, prompt, { ...GREEDY, maxTokens: 8 }, { grammar }))
  scheduler.add(new Sequence(2, prompt, { ...GREEDY, maxTokens: 8 }))
  const step = (): number[] => {
    const batch = scheduler.schedule()
    const ids = batch.seqs.map(({ id }) => id)
    const { seqs } = batch
    scheduler.commit(batch)
    for (const seq of seqs) seq.length++
    return ids
  }
  expect(step()).toEqual([1, 2])
  state.isReady = false
  expect(step()).toEqual([2])
  expect(step()).toEqual([2])
  state.isReady = true
  expect(step()).toEqual([1, 2])
})

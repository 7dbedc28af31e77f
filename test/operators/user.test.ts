import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { ConfigError } from "../../src/errors.ts"
import { parseRules } from "../../src/inject/rules.ts"
import { Backend } from "../../src/native/backend.ts"
import { Linear } from "../../src/nn/layers.ts"
import { operators } from "../../src/operators/builtin.ts"
import { loadUserOperators } from "../../src/operators/user.ts"
import { loadModel } from "../models/build.ts"
import { openHfGolden } from "../models/goldens.ts"
import { Sequences } from "../models/sequences.ts"
import { ROOT } from "../setup.ts"

// outside the project, where its modules are not found by looking upward
const folder = mkdtempSync(join(tmpdir(), "kt-operators-"))
const backend = new Backend({ threads: 1, precision: "f32" })
afterAll(() => {
  backend[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

function file(name: string, text: string): string {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

/** The example in rules/README.md. */
function exampleOfReadme(): string {
  const text = readFileSync(join(ROOT, "rules", "README.md"), "utf8")
  const code = /```ts\n(import \{ Linear, registerOperator[^]*?)```/.exec(text)?.[1]
  if (code === undefined) throw new Error("rules/README.md has no example of an operator")
  return code
}

beforeAll(() => loadUserOperators([file("counting.ts", exampleOfReadme())]))

test("an operator of a file outside the project takes part in the model", async () => {
  const { config, weights } = openHfGolden("llama")
  const rules = parseRules(
    '- match: { name: "up_proj$" }\n  replace: { class: CountingLinear }',
    "test.yaml",
  )
  const { model, loaded } = await loadModel(config, weights, { backend, rules })
  const plain = await loadModel(config, weights, { backend, fuse: false })
  const run = (root: typeof model): Float32Array => {
    const limits = { count: 1, maxTokens: 8, promptLength: 5 }
    using sequences = new Sequences(root, backend, limits)
    return sequences.step([{ sequence: 0, ids: [1, 2, 3, 4, 5] }])[0] as Float32Array
  }
  expect(run(model)).toEqual(run(plain.model))
  const [layer] = model.model.layers.items
  const mlp = new Map(layer?.children()).get("mlp")
  const up = new Map(mlp?.children()).get("up_proj")
  expect(up).toBeInstanceOf(Linear)
  expect(up).toMatchObject({ tokens: 5 })
  loaded[Symbol.dispose]()
  plain.loaded[Symbol.dispose]()
  weights.close()
})

test("its kwargs and what it replaces are checked like those of the others", () => {
  const operator = operators.find("CountingLinear")
  expect(operator?.check({ speed: 1 }, () => undefined)).toMatchObject({
    ok: false,
    problem: expect.stringContaining('unknown kwarg "speed" of CountingLinear'),
  })
})

test("a file that is missing, fails or takes a name twice is an error that names it", async () => {
  const failure = async (path: string): Promise<string> => {
    const error = await loadUserOperators([path]).catch((e: unknown) => e)
    expect(error).toBeInstanceOf(ConfigError)
    return (error as ConfigError).message
  }
  const missing = join(folder, "missing.ts")
  expect(await failure(missing)).toBe(`--operators ${missing}: no such file`)
  const broken = file("broken.ts", 'throw new Error("not today")')
  expect(await failure(broken)).toBe(`--operators ${broken}: not today`)
  const again = file("again.ts", exampleOfReadme())
  expect(await failure(again)).toContain('operator "CountingLinear" is registered already')
})

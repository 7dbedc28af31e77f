import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"

import { relativeError } from "../ops/harness.ts"
import { ROOT } from "../setup.ts"
import { kt } from "./kt.ts"

const FOLDER = join(ROOT, "test", "fixtures", "encoders")

interface Text {
  readonly text: string
  readonly mean: readonly number[]
  readonly cls: readonly number[]
}

const { embeddings } = JSON.parse(readFileSync(join(FOLDER, "bert", "golden.json"), "utf8")) as {
  embeddings: Text[]
}
const [first, second] = embeddings as [Text, Text]

function unit(values: readonly number[]): number[] {
  return values.map((x) => x / Math.hypot(...values))
}

test("kt embed: texts as arguments, one vector a line", async () => {
  const model = join(FOLDER, "bert.gguf")
  const args = ["embed", model, first.text, second.text, "--precision", "f32"]
  const { status, out } = await kt(args)
  expect(status).toBe(0)
  const lines = out.trim().split("\n")
  const vectors = lines.map((line) => JSON.parse(line) as number[])
  expect(vectors.length).toBe(2)
  expect(relativeError(vectors[0] ?? [], unit(first.mean))).toBeLessThan(1e-4)
  expect(relativeError(vectors[1] ?? [], unit(second.mean))).toBeLessThan(1e-4)
})

test("kt embed: lines of stdin, as JSON, as the model makes them", async () => {
  const flags = ["--json", "--pooling", "cls", "--no-normalize", "--precision", "f32"]
  const stdin = `${first.text}\n\n${second.text}\n`
  const { status, out } = await kt(["embed", join(FOLDER, "bert"), ...flags], { stdin })
  expect(status).toBe(0)
  const got = JSON.parse(out) as { embeddings: number[][]; pooling: string }
  expect(got.pooling).toBe("cls")
  expect(relativeError(got.embeddings[1] ?? [], second.cls)).toBeLessThan(1e-4)
})

test("kt embed: what is wrong is said; a model that only embeds answers no prompt", async () => {
  const model = join(FOLDER, "bert")
  const wide = await kt(["embed", model, "a", "--dimensions", "99"])
  expect([wide.status === 0, wide.err]).toEqual([false, expect.stringContaining("dimensions 99")])
  const twice = await kt(["embed", model, "a", "--file", "b"])
  expect(twice.err).toContain("given twice")
  const chat = await kt(["run", model, "--raw", "-p", "the cat"])
  expect([chat.status === 0, chat.err]).toEqual([false, expect.stringContaining("generates none")])
})

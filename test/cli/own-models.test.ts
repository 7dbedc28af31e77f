import { afterAll, describe, expect, test } from "bun:test"
import { copyFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { parseModelfile } from "../../src/cli/library/modelfile.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const home = temporaryFolder()
afterAll(() => home[Symbol.dispose]())
const env = { KT_HOME: home.path }

const MODELFILE = `# a pirate
FROM base
SYSTEM """You are a pirate.
Say arr."""
PARAMETER temperature 0.5
PARAMETER num_predict 5
PARAMETER stop "<end>"
PARAMETER stop zzz
MESSAGE user hello there
MESSAGE assistant arr
LICENSE MIT
`

describe("kt create, cp, rm", () => {
  test("made, listed, copied, deleted; what was put there by hand stays", async () => {
    const folder = join(home.path, "models")
    mkdirSync(folder)
    copyFileSync(golden("gguf", "llama-f16.gguf"), join(folder, "base.gguf"))
    const file = join(home.path, "Modelfile")
    writeFileSync(file, MODELFILE)
    expect(await kt(["create", "pirate", "-f", file, "--json"], { env })).toMatchObject({
      status: 0,
      out: '{"name":"pirate"}\n',
    })
    expect((await kt(["cp", "pirate", "arr:v2"], { env })).status).toBe(0)
    const listed = JSON.parse((await kt(["list", "--json"], { env })).out) as {
      models: { name: string; parent?: string; architecture: string }[]
    }
    expect(listed.models.map(({ name, parent }) => [name, parent])).toEqual([
      ["base", undefined],
      ["arr:v2", "base"],
      ["pirate", "base"],
    ])
    expect(listed.models[2]?.architecture).toBe("llama")

    // what it is made with counts where it is named: its own messages, and its parameters unless a flag is given
    const ask = async (...args: string[]): Promise<Record<string, unknown>> => {
      const { status, out, err } = await kt(["run", ...args, "-p", "who?", "--json"], { env })
      expect([status, err]).toEqual([0, expect.any(String)])
      return JSON.parse(out) as Record<string, unknown>
    }
    const plain = await ask("base", "-n", "3")
    const own = await ask("pirate:latest")
    expect(own).toMatchObject({ model: "pirate", tokens: 5 })
    expect(own["promptTokens"]).toBeGreaterThan(Number(plain["promptTokens"]) + 10)
    expect(await ask("ARR:v2", "-n", "2")).toMatchObject({ model: "arr:v2", tokens: 2 })
    const [tokens, same] = await Promise.all(
      ["pirate", "base"].map((name) => kt(["tokenize", name, "-p", "hello"], { env })),
    )
    expect(tokens?.status).toBe(0)
    expect(tokens?.out).toBe(same?.out as string)
    const wrong = await kt(["run", "parrot", "-p", "x"], { env })
    expect([wrong.status, wrong.err]).toEqual([
      1,
      expect.stringContaining('unknown model "parrot"'),
    ])

    const used = await kt(["rm", "base"], { env })
    expect([used.status, used.err]).toEqual([1, expect.stringContaining("delete these first")])
    for (const name of ["pirate", "arr:v2"])
      expect(await kt(["rm", name], { env })).toMatchObject({
        status: 0,
        out: `${name} is deleted\n`,
      })
    const kept = await kt(["rm", "base"], { env })
    expect([kept.status, kept.err]).toEqual([
      1,
      expect.stringContaining("neither pulled nor created"),
    ])
    expect(existsSync(join(folder, "base.gguf"))).toBe(true)
    const unknown = await kt(["rm", "nope"], { env })
    expect([unknown.status, unknown.err]).toEqual([1, expect.stringContaining("known are base")])
  }, 60_000)

  test("FROM a file of the user's own", async () => {
    const file = join(home.path, "Own")
    copyFileSync(golden("gguf", "llama-tied-bf16.gguf"), join(home.path, "own.gguf"))
    writeFileSync(file, "FROM ./own.gguf\n")
    const made = await kt(["create", "own", "-f", file, "-q", "q8_0", "--quiet"], { env })
    expect(made).toMatchObject({ status: 0, err: "", out: "own\n" })
    const { models } = JSON.parse((await kt(["list", "--json"], { env })).out) as {
      models: { name: string; quantization: string }[]
    }
    expect(models.find(({ name }) => name === "own")?.quantization).toBe("Q8_0")
    const bad = await kt(["create", "../x", "-f", file], { env })
    expect([bad.status, bad.err]).toEqual([1, expect.stringContaining("is no name for a model")])
  }, 60_000)
})

test("Modelfiles: every command, and what is wrong by line", () => {
  expect(parseModelfile("Modelfile", MODELFILE)).toEqual({
    from: "base",
    system: "You are a pirate.\nSay arr.",
    parameters: { temperature: 0.5, num_predict: 5, stop: ["<end>", "zzz"] },
    messages: [
      { role: "user", content: "hello there" },
      { role: "assistant", content: "arr" },
    ],
    license: ["MIT"],
  })
  const wrong: readonly (readonly [string, string])[] = [
    ["SYSTEM x", "has no FROM line"],
    ["FROM a\nNONSENSE x", 'm:2: unknown command "NONSENSE"'],
    ["FROM a\nADAPTER x", "m:2: ADAPTER"],
    ["FROM a\nMESSAGE robot x", "m:2: MESSAGE needs"],
    ["FROM a\nPARAMETER x", "m:2: PARAMETER needs"],
    ['FROM a\nSYSTEM """x', 'm:2: no closing """'],
    ["FROM", "m:1: FROM has no value"],
  ]
  for (const [text, sentence] of wrong) expect(() => parseModelfile("m", text)).toThrow(sentence)
})

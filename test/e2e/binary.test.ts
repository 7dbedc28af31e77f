import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { compile, hostTarget, isTarget } from "../../scripts/build/binary.ts"
import { ensureModel } from "../../scripts/setup/model.ts"
import { defaultModelPath } from "../../src/cli/home.ts"
import { ROOT } from "../setup.ts"

const READY_MS = 20_000
const host = hostTarget()
const folder = mkdtempSync(join(tmpdir(), "kt-binary-"))
const binary = join(folder, "kt")
const model = defaultModelPath()

afterAll(() => rmSync(folder, { recursive: true }))

/** Outside the checkout and without its paths, so that only what is inside the binary can be found. */
function start(...args: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> {
  const { KT_LIB_DIR: _lib, KT_MODEL: _model, ...env } = process.env
  return Bun.spawn([binary, ...args], {
    cwd: folder,
    env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
}

async function finish(
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const child = start(...args)
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stdout, stderr }
}

function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() })
  const port = server.port ?? 0
  void server.stop(true)
  return port
}

describe.skipIf(!isTarget(host))(`the compiled binary (${host})`, () => {
  beforeAll(async () => {
    if (isTarget(host)) await compile(ROOT, host, binary)
    await ensureModel(() => {})
  }, 300_000)

  test("says its version", async () => {
    const { version } = (await Bun.file(join(ROOT, "package.json")).json()) as { version: string }
    expect(await finish("--version")).toMatchObject({
      code: 0,
      stdout: expect.stringContaining(version),
    })
  })

  test("serves the page and a streamed chat, and stops on SIGTERM", async () => {
    const port = freePort()
    const url = `http://127.0.0.1:${port}`
    const cache = join(folder, "cache")
    const options = ["--port", String(port), "--model", model, "--precision", "f32"]
    // a page of it is whole after 32 tokens
    const kept = ["--cache-dir", cache, "--page-size", "32"]
    const server = start("serve", ...options, ...kept)
    try {
      await ready(url)
      const page = await fetch(url, { headers: { accept: "text/html" } })
      const html = await page.text()
      expect(html).toContain("<!doctype html>")
      const [, script = ""] = /<script[^>]*src="([^"]+)"/.exec(html) ?? []
      expect((await fetch(new URL(script, page.url))).status).toBe(200)

      const answer = await fetch(`${url}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          model: await servedModel(url),
          messages: [{ role: "user", content: "What is the capital of France?" }],
          temperature: 0,
          max_tokens: 24,
          stream: true,
        }),
      })
      expect(answer.status).toBe(200)
      const data = (await answer.text()).split("\n").filter((line) => line.startsWith("data: "))
      expect(data.at(-1)).toBe("data: [DONE]")
      const text = data
        .slice(0, -1)
        .map((line) => (JSON.parse(line.slice(6)) as Chunk).choices[0]?.delta.content ?? "")
        .join("")
      expect(text).toContain("Paris")
    } finally {
      server.kill("SIGTERM")
    }
    const stopping = performance.now()
    expect(await server.exited).toBe(0)
    // with nothing running the grace time is not waited for
    expect(performance.now() - stopping).toBeLessThan(5000)
    // the prefix cache's thread is in the binary too
    expect([...new Bun.Glob("*/*.index").scanSync({ cwd: cache })]).toHaveLength(1)
  })

  test("loads operators of a user's own from a folder without node_modules", async () => {
    const example =
      /```ts\n(import \{ Linear, registerOperator[^]*?)```/.exec(
        readFileSync(join(ROOT, "rules", "README.md"), "utf8"),
      )?.[1] ?? ""
    expect(example).toContain("CountingLinear")
    const operators = join(folder, "counting.ts")
    const rules = join(folder, "rules.yaml")
    writeFileSync(operators, example)
    writeFileSync(rules, '- match: { name: "up_proj$" }\n  replace: { class: CountingLinear }\n')
    const args = ["--model", model, "--rules", rules]
    const explained = await finish("rules", "explain", ...args, "--operators", operators)
    expect(explained).toMatchObject({ code: 0, stdout: expect.stringContaining("CountingLinear") })
    const run = await finish(
      "run",
      "-p",
      "The capital of France is",
      "--raw",
      "-n",
      "4",
      "--temperature",
      "0",
      ...args,
      "--operators",
      operators,
    )
    expect(run).toMatchObject({ code: 0, stdout: expect.stringContaining("Paris") })
    const without = await finish("rules", "explain", ...args)
    expect(without.code).not.toBe(0)
    expect(without.stderr).toContain("CountingLinear")
  })
})

interface Chunk {
  readonly choices: readonly { readonly delta: { readonly content?: string } }[]
}

async function ready(url: string): Promise<void> {
  for (const end = Date.now() + READY_MS; Date.now() < end; await Bun.sleep(50)) {
    const answer = await fetch(`${url}/ready`).catch(() => undefined)
    if (answer?.ok) return
  }
  throw new Error(`no server at ${url} after ${READY_MS} ms`)
}

async function servedModel(url: string): Promise<string> {
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] }
  return data[0]?.id ?? ""
}

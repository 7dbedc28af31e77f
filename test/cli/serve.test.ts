import { afterAll, describe, expect, test } from "bun:test"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { golden } from "../setup.ts"
import { kt, startKt, temporaryFolder } from "./kt.ts"

const MODEL = golden("gguf", "llama-rope-q4_k_m.gguf")
const folder = temporaryFolder()
afterAll(() => folder[Symbol.dispose]())

/** Starts a server and gives it once its first line, the URL, is there. */
async function serving(args: readonly string[]): Promise<{
  url: string
  child: ReturnType<typeof startKt>
  banner: string
}> {
  const child = startKt(["serve", MODEL, "--port", "0", ...args])
  const reader = child.stdout.getReader()
  let banner = ""
  while (!banner.includes("loaded")) {
    const { value, done } = await reader.read()
    if (done) throw new Error(`kt serve ended: ${await new Response(child.stderr).text()}`)
    banner += new TextDecoder().decode(value)
  }
  reader.releaseLock()
  return { url: banner.split("\n")[0]!, child, banner }
}

describe("kt serve", () => {
  test("a template of one's own with variables, names and origins as llama-server has them", async () => {
    const template = join(folder.path, "own.jinja")
    writeFileSync(
      template,
      "{% if enable_thinking is defined and not enable_thinking %}quick {% endif %}{{ mood }}: {{ messages[0].content }}",
    )
    const { url, child } = await serving(
      `-c 128 -t 1 -np 2 -a small,little --chat-template-file ${template} --reasoning off --cors-origins localhost --chat-template-kwargs {"mood":"kind"}`.split(
        " ",
      ),
    )
    try {
      const ask = (path: string, body: object, more: object = {}): Promise<Response> =>
        fetch(url + path, {
          method: "POST",
          headers: { "content-type": "application/json", ...more },
          body: JSON.stringify(body),
        })
      const messages = [{ role: "user", content: "hi" }]
      const prompt = async (body: object): Promise<unknown> =>
        ((await (await ask("/apply-template", { messages, ...body })).json()) as { prompt: string })
          .prompt
      expect(await prompt({})).toBe("quick kind: hi")
      expect(await prompt({ chat_template_kwargs: { mood: "calm", enable_thinking: true } })).toBe(
        "calm: hi",
      )
      for (const model of ["small", "little"])
        expect((await ask("/v1/chat/completions", { messages, model, max_tokens: 1 })).status).toBe(
          200,
        )
      const props = (await (await fetch(`${url}/props`)).json()) as object
      expect(props).toMatchObject({ model_alias: "small", total_slots: 2 })
      const from = async (origin: string): Promise<Response> =>
        ask("/tokenize", { content: "a" }, { origin })
      const local = await from("http://127.0.0.1:3000")
      expect(local.headers.get("access-control-allow-origin")).toBe("http://127.0.0.1:3000")
      expect((await from("http://localhost.example.org")).status).toBe(403)
    } finally {
      child.kill("SIGTERM")
    }
    expect(await child.exited).toBe(0)
  })

  test("says where it is and what it serves, answers with a key, and ends on SIGTERM", async () => {
    const keys = join(folder.path, "keys")
    writeFileSync(keys, "# of the tests\nsecret-1\n")
    const { url, child, banner } = await serving([
      "--api-key-file",
      keys,
      "--ctx",
      "128",
      "--model-name",
      "tiny",
    ])
    try {
      expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/)
      for (const word of ["tiny", "context  128 tokens", "KV cache", "threads", "API key required"])
        expect(banner).toContain(word)
      expect((await fetch(`${url}/v1/models`)).status).toBe(401)
      const headers = { authorization: "Bearer secret-1", "content-type": "application/json" }
      const body = JSON.stringify({ model: "tiny", prompt: "ab", max_tokens: 4, temperature: 0 })
      const answer = await fetch(`${url}/v1/completions`, { method: "POST", headers, body })
      expect(answer.status).toBe(200)
      expect(((await answer.json()) as { usage: unknown }).usage).toMatchObject({
        completion_tokens: 4,
      })
      const page = await fetch(`${url}/ui`)
      expect(page.headers.get("content-type")).toContain("text/html")
    } finally {
      child.kill("SIGTERM")
    }
    expect(await child.exited).toBe(0)
    const log = await new Response(child.stderr).text()
    expect(log).toMatch(/access: GET \/v1\/models 401 \d+ ms req_/)
    expect(log).toMatch(/access: POST \/v1\/completions 200 \d+ ms req_/)
    expect(log).toContain("SIGTERM: finishing running answers")
    expect(log).not.toContain("secret-1")
  }, 30_000)

  test("the log as JSON, with a request's parts by name", async () => {
    const { url, child } = await serving(["--log-format", "json", "--ctx", "128"])
    try {
      await fetch(`${url}/health`, { headers: { "x-request-id": "mine" } })
    } finally {
      child.kill("SIGTERM")
    }
    const log = (await new Response(child.stderr).text()).trimEnd().split("\n")
    const records = log.map((line) => JSON.parse(line) as { properties?: unknown })
    expect(records).toContainEqual(
      expect.objectContaining({
        level: "INFO",
        logger: "kt.access",
        properties: expect.objectContaining({ path: "/health", status: 200, id: "mine" }),
      }),
    )
  })

  test("a KTransformers config.yaml: known keys work, unknown ones are told with their line", async () => {
    const file = join(folder.path, "config.yaml")
    writeFileSync(
      file,
      `server:
  ip: 127.0.0.1
  port: 1
  api_key: from-file
model:
  name: named-in-file
  cache_lens: 256
  max_new_tokens: 3
  device: cuda:0
ext:
  cpu_infer: 1
attn:
  page_size: 16
  chunk_size: 64
kvc2:
  gpu_only: true
`,
    )
    const { url, child, banner } = await serving(["--config", file, "--ctx", "128"])
    try {
      expect(banner).toContain("named-in-file")
      expect(banner).toContain("KV cache 256 tokens")
      expect(banner).toContain("1 threads")
      const headers = { authorization: "Bearer from-file", "content-type": "application/json" }
      const body = JSON.stringify({
        model: "default",
        prompt: "ab",
        temperature: 0,
        ignore_eos: true,
      })
      const answer = await fetch(`${url}/v1/completions`, { method: "POST", headers, body })
      const { usage } = (await answer.json()) as { usage: { completion_tokens: number } }
      expect(usage.completion_tokens).toBeLessThanOrEqual(3)
    } finally {
      child.kill("SIGINT")
    }
    expect(await child.exited).toBe(0)
    const log = await new Response(child.stderr).text()
    expect(log).toContain(`${file}:9: key "model.device" has no effect`)
    expect(log).toContain(`${file}:16: key "kvc2.gpu_only" has no effect`)
  }, 30_000)
})

describe("kt run", () => {
  test("text alone on stdout, the same for the same seed; counts with --json", async () => {
    const argv = ["run", MODEL, "--raw", "-p", "abc", "-n", "6", "--seed", "7"]
    const first = await kt(argv)
    expect(first).toMatchObject({ status: 0, err: "" })
    expect((await kt(argv)).out).toBe(first.out)
    const json = await kt([...argv, "--json"])
    const result = JSON.parse(json.out) as Record<string, unknown>
    expect(`${result["text"] as string}\n`).toBe(first.out)
    expect(result).toMatchObject({ model: "llama-rope-q4_k_m", tokens: 6, finish: "length" })
    expect(result["ids"]).toHaveLength(6)
    const piped = await kt(["run", MODEL, "--raw", "-n", "6", "--seed", "7"], { stdin: "abc\n" })
    expect(piped.out).toBe(first.out)
    const stopped = await kt([...argv, "--json", "--stop", (result["text"] as string).slice(1, 3)])
    const cut = JSON.parse(stopped.out) as { text: string; finish: string }
    expect(cut.finish).toBe("stop")
    expect((result["text"] as string).startsWith(cut.text)).toBe(true)
    expect(cut.text.length).toBeLessThan((result["text"] as string).length)
  }, 30_000)
})

describe("kt chat", () => {
  test("piped: answers, commands, messages of several lines, and what /save writes", async () => {
    const saved = join(folder.path, "saved.json")
    const stdin = `Hello
/nonsense
/hlep
"""
two
lines"""
/retry
/info
/save ${saved}
/clear
/save ${saved}.empty
/quit
never read
`
    const result = await kt(["chat", MODEL, "-n", "4", "-s", "Be brief.", "--temperature", "0"], {
      stdin,
    })
    expect(result.status).toBe(0)
    expect(result.err.match(/\[4 tokens at|\[\d tokens/g)).toHaveLength(3)
    expect(result.err).toContain("unknown command /nonsense; /help lists them")
    expect(result.err).toContain("did you mean /help?")
    expect(result.err).toMatch(/messages 4, system prompt set/)
    const messages = JSON.parse(readFileSync(saved, "utf8")) as { role: string; content: string }[]
    expect(messages.map(({ role }) => role)).toEqual([
      "system",
      "user",
      "assistant",
      "user",
      "assistant",
    ])
    expect(messages[3]!.content).toBe("two\nlines")
    expect(result.out).toContain(messages[4]!.content)
    const cleared = JSON.parse(readFileSync(`${saved}.empty`, "utf8")) as unknown[]
    expect(cleared).toEqual([{ role: "system", content: "Be brief." }])

    const loaded = await kt(["chat", MODEL, "--load", saved], { stdin: "/info\n" })
    expect(loaded.err).toContain("messages 4, system prompt set")
  }, 30_000)

  test("/set draws otherwise, /undo and /load change what was said", async () => {
    const saved = join(folder.path, "changed.json")
    const stdin = `/set max-tokens 3
/set temperature 0
Hello
/set --max_tokens 2
/set samplers nothing
/set seed x
/set tempo 1
/set seed
/retry
Again
/undo
/undo
/undo
Once more
/save ${saved}
/clear
/load ${saved}
/load ${saved}.none
/info
/bye
never read
`
    const result = await kt(["chat", MODEL, "-s", "Be brief."], { stdin })
    expect(result.status).toBe(0)
    const counts = [...result.err.matchAll(/^\[(\d+) tokens?/gm)].map(([, count]) => Number(count))
    expect(counts).toEqual([3, 2, 2, 2])
    for (const line of [
      "temperature is 0 from now on",
      'kt: --samplers nothing: "n" is no sampler',
      "kt: --seed x: expected an integer",
      "tempo cannot be set; kt chat --help lists what can under SAMPLING",
      "/set needs a name and a value",
      "forgotten; 2 messages are left",
      "forgotten; 0 messages are left",
      "there is nothing to undo",
      `${saved}: 2 messages and a system prompt`,
      `kt: ${saved}.none: `,
      "messages 2, system prompt set",
    ])
      expect(result.err).toContain(line)
  }, 30_000)

  test("a message that does not fit is told, and the conversation goes on", async () => {
    const long = "word ".repeat(400)
    const result = await kt(["chat", MODEL, "--ctx", "64", "-n", "4"], {
      stdin: `${long}\n/info\n`,
    })
    expect(result.status).toBe(0)
    expect(result.err).toMatch(/kt: .*context of 64/)
    expect(result.err).toContain("messages 0")
  }, 30_000)
})

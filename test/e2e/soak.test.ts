import { expect, test } from "bun:test"
import { readdirSync } from "node:fs"

import { startKt } from "../cli/kt.ts"
import { goldenModels } from "../engine/golden-models.ts"

/** A longer run is asked for with these; CI's is short. */
const SECONDS = Number(process.env["KT_SOAK_SECONDS"] ?? 8)
const STREAMS = Number(process.env["KT_SOAK_STREAMS"] ?? 40)
/** Of all requests, those whose client goes away before the end. */
const GONE = 0.4
const GROWTH_BYTES = 96 * 1024 * 1024
const SETTLE_SECONDS = SECONDS < 60 ? 4 : 15

interface Case {
  readonly prompt: readonly number[]
  readonly maxTokens: number
  /** What it gives alone. */
  tokens: readonly number[]
}

/** Token ids of one answer. The client goes away after `leaveAfter` chunks. */
async function ask(
  url: string,
  { prompt, maxTokens }: Case,
  leaveAfter = Number.POSITIVE_INFINITY,
): Promise<number[]> {
  const controller = new AbortController()
  const response = await fetch(`${url}/completion`, {
    method: "POST",
    signal: controller.signal,
    body: JSON.stringify({
      prompt,
      n_predict: maxTokens,
      temperature: 0,
      ignore_eos: true,
      return_tokens: true,
      stream: true,
    }),
  })
  if (!response.ok || response.body === null)
    throw new Error(`${response.status} ${await response.text()}`)
  const tokens: number[] = []
  const decoder = new TextDecoder()
  let rest = ""
  let chunks = 0
  const reader = response.body.getReader()
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return tokens
    const frames = (rest + decoder.decode(value, { stream: true })).split("\n\n")
    rest = frames.pop() ?? ""
    for (const frame of frames) {
      if (frame.startsWith(":")) continue
      const event = JSON.parse(frame.replace("data: ", "")) as { tokens?: number[]; error?: object }
      if (event.error !== undefined) throw new Error(JSON.stringify(event.error))
      tokens.push(...(event.tokens ?? []))
      if (++chunks <= leaveAfter) continue
      controller.abort()
      return tokens
    }
  }
}

async function gauges(url: string): Promise<(name: string) => number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  return (name) => Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(text)?.[1])
}

/** Resident bytes once garbage is collected: the least that is seen for a while after the load. */
async function settled(url: string): Promise<number> {
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < SETTLE_SECONDS * 2; i++) {
    await Bun.sleep(500)
    least = Math.min(least, (await gauges(url))("kt_resident_bytes"))
  }
  return least
}

/** Open files, sockets and threads of a process; undefined where no system tells. */
function handles(pid: number): number | undefined {
  if (process.platform !== "linux") return undefined
  return readdirSync(`/proc/${pid}/fd`).length + readdirSync(`/proc/${pid}/task`).length
}

test(
  `${STREAMS} streams for ${SECONDS} s, many cut off: all answers are those given alone, nothing is left behind`,
  async () => {
    const model = goldenModels().find(({ name }) => name === "gguf/llama-f16")!
    const argv = ["--precision", "f32", "--threads", "2", "--max-batch-size", "24"]
    // less than all streams want, so that some wait and some are preempted
    const memory = ["--cache-tokens", "640", "--page-size", "8", "--max-queue", "2000"]
    const child = startKt(["serve", model.path, "--port", "0", "--no-ui", ...argv, ...memory])
    try {
      const { value = new Uint8Array() } = await child.stdout.getReader().read()
      const url = /http:\S+/.exec(new TextDecoder().decode(value))?.[0] as string
      const idle = await gauges(url)

      let seed = 1
      const random = (): number => (seed = (seed * 48271) % 2147483647) / 2147483647
      const cases: Case[] = Array.from({ length: 24 }, () => ({
        prompt: Array.from({ length: 2 + Math.floor(random() * 60) }, () =>
          Math.floor(random() * 60),
        ),
        maxTokens: 4 + Math.floor(random() * 60),
        tokens: [],
      }))
      for (const one of cases) {
        one.tokens = await ask(url, one)
        expect(one.tokens).toHaveLength(one.maxTokens)
      }

      const counts = { whole: 0, cut: 0 }
      const client = async (end: number): Promise<void> => {
        while (performance.now() < end) {
          const one = cases[Math.floor(random() * cases.length)] as Case
          if (random() < GONE) {
            await ask(url, one, Math.floor(random() * 6))
            counts.cut++
          } else {
            expect(await ask(url, one)).toEqual([...one.tokens])
            counts.whole++
          }
        }
      }
      const half = async (): Promise<void> => {
        const end = performance.now() + SECONDS * 500
        await Promise.all(Array.from({ length: STREAMS }, () => client(end)))
      }
      await half()
      const early = await settled(url)
      const earlyHandles = handles(child.pid)
      await half()
      const late = await settled(url)
      const after = await gauges(url)
      const lateHandles = handles(child.pid)
      expect(counts.whole).toBeGreaterThan(STREAMS)
      expect(counts.cut).toBeGreaterThan(STREAMS / 4)
      for (const name of [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "kt_active_sequences",
        "kt_queue_sequences",
      ])
        expect(after(name), name).toBe(0)
      expect(after("kt_kv_pages_free")).toBe(idle("kt_kv_pages_free"))
      expect(late - early).toBeLessThan(GROWTH_BYTES)
      // helpers of the runtime come and go
      expect((lateHandles ?? 0) - (earlyHandles ?? 0)).toBeLessThan(8)
      process.stderr.write(
        `soak: ${counts.whole} whole, ${counts.cut} cut off, ${after("vllm:num_preemptions_total")} preempted, resident ${(early / 1e6).toFixed(0)} MB to ${(late / 1e6).toFixed(0)} MB, handles ${earlyHandles} to ${lateHandles}\n`,
      )
    } finally {
      child.kill("SIGTERM")
      await child.exited
    }
  },
  (SECONDS + 120) * 1000,
)

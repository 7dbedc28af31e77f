import { afterAll, describe, expect, test } from "bun:test"

import { type LoadStats, loadStats } from "../../src/cli/bench-serve-load.ts"
import { type RunningServer, startServer } from "../../src/server/serve.ts"
import { type Script, testServer } from "../server/fakes.ts"
import { kt } from "./kt.ts"

const servers: RunningServer[] = []
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
})

function open(script: Script): { readonly url: string; readonly prompts: () => number[][] } {
  const { app, client } = testServer({ then: "endless", ...script })
  const server = startServer({ app, port: 0 })
  servers.push(server)
  return { url: server.url, prompts: () => client.calls.map(({ ids }) => [...ids]) }
}

type Row = LoadStats & { readonly load: string; readonly server: string }

async function rows(args: readonly string[]): Promise<Row[]> {
  const { out, err, status } = await kt(["bench", "serve", ...args, "--json"])
  if (status !== 0) throw new Error(err)
  return (JSON.parse(out) as { rows: Row[] }).rows
}

describe("kt bench serve", () => {
  test("loops of requests, two servers in turns, the same prompts for each", async () => {
    const slow = open({ delayMs: 4 })
    const quick = open({})
    const args = ["-c", "1,3", "-p", "8:2,20", "--shared", "4", "-n", "6", "-r", "2"]
    const measured = await rows([slow.url, "--peer", quick.url, ...args])
    expect(measured.map(({ load }) => load)).toEqual(
      ["1 at once", "3 at once"].flatMap((load) => [load, load]),
    )
    expect(measured.map(({ requests }) => requests)).toEqual([8, 8, 24, 24])
    for (const row of measured) expect(row.errors).toBe(0)
    const [first, other] = measured as [Row, Row]
    expect(first.tpot.p50).toBeGreaterThan(3)
    expect(other.tpot.p50).toBeLessThan(first.tpot.p50)
    expect(first.ttft.p50).toBeLessThan(first.total.p50)
    const sorted = (prompts: number[][]): string[] => prompts.map(String).toSorted()
    expect(sorted(slow.prompts())).toEqual(sorted(quick.prompts()))
    const lengths = new Set(slow.prompts().map(({ length }) => length))
    expect([...lengths].toSorted((a, b) => a - b)).toEqual([8, 20])
    expect(new Set(slow.prompts().map((ids) => String(ids.slice(0, 4)))).size).toBe(1)
    expect(new Set(slow.prompts().map(String)).size).toBeGreaterThan(20)
  })

  test("an open loop sends at its rate, and goodput counts what keeps to the bounds", async () => {
    const { url } = open({ delayMs: 30 })
    const load = ["-c", "0", "--rate", "20", "--seconds", "1", "-r", "1", "-n", "4", "-p", "3"]
    const [all] = await rows([url, ...load, "--max-ttft", "10000"])
    expect(all?.load).toBe("20/s")
    expect(all?.requests).toBeGreaterThan(8)
    expect(all?.requests).toBeLessThan(40)
    expect(all?.goodput).toBe(all?.requestRate as number)
    const [none] = await rows([url, ...load, "--max-tpot", "1"])
    expect(none?.goodput).toBe(0)
  })

  test("the table has the ratios; servers that fail or are not there are named", async () => {
    const good = open({})
    const bad = open({ failAt: 0 })
    const small = ["-c", "1", "-p", "4", "-n", "3", "-r", "1"]
    const { out, status } = await kt(["bench", "serve", good.url, "--peer", open({}).url, ...small])
    expect(status).toBe(0)
    expect(out).toMatch(/LOAD +SERVER +REQUESTS/)
    expect(out).toMatch(/TOKENS\/s × +TTFT p50 × +TPOT p50 ×\n1 at once +http:\S+ +\d+\.\d\d/)
    const failed = await kt(["bench", "serve", bad.url, ...small])
    expect(failed.err).toContain("the kernel failed")
    expect(failed.status).toBe(1)
    const missing = await kt(["bench", "serve", "http://127.0.0.1:1", ...small])
    expect(missing.err).toContain("http://127.0.0.1:1: no server answers there")
    for (const [args, sentence] of [
      [["-p", "12:x"], "--prompt 12:x: expected lengths"],
      [["--rate", "-1"], "--rate -1: expected numbers above 0"],
      [["-c", "0"], "leaves nothing to measure"],
    ] as const) {
      const wrong = await kt(["bench", "serve", good.url, ...args])
      expect(wrong.err).toContain(sentence)
      expect(wrong.status).toBe(2)
    }
  })
})

test("percentiles are by nearest rank, over all rounds", () => {
  const sample = (ttft: number): Parameters<typeof loadStats>[0][number]["samples"][number] => ({
    ttft,
    total: ttft + 90,
    promptTokens: 5,
    tokens: 10,
    longestGap: 20,
  })
  const samples = Array.from({ length: 100 }, (_, i) => sample(i + 1))
  const rounds = [
    { samples: samples.slice(0, 50), errors: [], seconds: 2 },
    { samples: samples.slice(50), errors: ["x"], seconds: 3 },
  ]
  const stats = loadStats(rounds, { ttft: 40, tpot: 10 })
  expect(stats.ttft).toEqual({ p50: 50, p90: 90, p99: 99 })
  expect(stats.tpot).toEqual({ p50: 10, p90: 10, p99: 10 })
  expect(stats).toMatchObject({ requests: 100, errors: 1, requestRate: 20, tokenRate: 200 })
  expect(stats.goodput).toBe(8)
})

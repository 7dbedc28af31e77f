import { afterEach, describe, expect, test } from "bun:test"
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { basename, dirname, join } from "node:path"

import { type EngineConfig, engineConfig } from "../../src/config.ts"
import { Engine } from "../../src/engine/engine.ts"
import { headerBytes } from "../../src/kvcache/block-record.ts"
import { golden } from "../setup.ts"
import { generateAll } from "./golden-models.ts"

const MODEL = golden("gguf", "llama-f16.gguf")
const cleanUps: (() => void)[] = []
afterEach(() => {
  for (const cleanUp of cleanUps.splice(0).reverse()) cleanUp()
})

function temporary(): string {
  const folder = mkdtempSync(join(tmpdir(), "kt-disk-tier-"))
  cleanUps.push(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

interface Started {
  readonly engine: Engine
  readonly log: string[]
}

async function start(options: Partial<EngineConfig>): Promise<Started> {
  const log: string[] = []
  const engine = await Engine.create(
    engineConfig({
      model: MODEL,
      threads: 1,
      pageSize: 8,
      precision: "f32",
      contextLength: 64,
      kvCacheTokens: 64,
      maxBatchSize: 2,
      ...options,
    }),
    { onLog: (level, message) => log.push(`${level}: ${message}`) },
  )
  cleanUps.push(() => engine[Symbol.dispose]())
  return { engine, log }
}

const prompt = (seed: number): Int32Array =>
  Int32Array.from({ length: 41 }, (_, i) => (i * 7 + seed * 13 + ((i * seed) % 5)) % 60)

function answer({ engine }: Started, seed: number): { tokens: number[]; cached: number } {
  const before = engine.stats().cachedTokensTotal
  const [tokens = []] = generateAll(engine, [prompt(seed)], { maxTokens: 6, ignoreEos: true })
  return { tokens, cached: engine.stats().cachedTokensTotal - before }
}

async function until(condition: () => boolean, ms = 10_000): Promise<void> {
  const end = performance.now() + ms
  while (!condition()) {
    if (performance.now() > end) throw new Error("it did not come to pass")
    await Bun.sleep(20)
  }
}

const disk = ({ engine }: Started): number => engine.stats().cacheDiskTokensTotal
const warnings = ({ log }: Started): string[] => log.filter((line) => line.startsWith("warning"))

/** Files of the cache, whatever fingerprint they are of. */
function cacheFiles(folder: string, ending: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(ending))
    .map((name) => join(folder, name))
}

describe("the disk tier of an engine", () => {
  test("blocks are on disk soon after they are computed, whether or not the engine ends well", async () => {
    const cacheDir = temporary()
    const first = await start({ cacheDir })
    const { tokens } = answer(first, 1)
    await until(() => first.engine.stats().cacheDiskWritesTotal === 5)
    // another process, while the first still runs, reads; it cannot write
    const second = await start({ cacheDir })
    expect(answer(second, 1)).toEqual({ tokens, cached: 40 })
    expect(disk(second)).toBe(40)
    expect(warnings(second)).toEqual([])
    expect(second.log.join("\n")).toContain("another server writes")
    answer(second, 2)
    expect(second.engine.stats().cacheDiskWritesTotal).toBe(0)
    // what the first writes from now on is seen by the second
    answer(first, 3)
    await until(() => first.engine.stats().cacheDiskWritesTotal === 10)
    await until(() => second.engine.stats().cacheDiskBytes === first.engine.stats().cacheDiskBytes)
    expect(answer(second, 3).cached).toBe(40)
    // and when the first is gone, the second writes
    first.engine[Symbol.dispose]()
    await until(() => {
      answer(second, 4)
      return second.engine.stats().cacheDiskWritesTotal > 0
    })
  }, 30_000)

  test("other types, rope factors, weights or page sizes never hit", async () => {
    const cacheDir = temporary()
    const copies = temporary()
    const changed = join(copies, basename(MODEL))
    const bytes = readFileSync(MODEL)
    const first = await start({ cacheDir })
    answer(first, 1)
    first.engine[Symbol.dispose]()
    // the same weights in another file, but for one in the middle; same size, same time
    const at = bytes.length - Math.floor(bytes.length / 3)
    bytes[at] = (bytes[at] as number) ^ 1
    writeFileSync(changed, bytes)
    const known = Bun.file(MODEL).lastModified / 1000
    utimesSync(changed, known, known)
    for (const other of [
      { kvDtype: "f16" },
      { precision: "fast" },
      { pageSize: 16 },
      { fuse: false },
      { model: changed },
    ] as const) {
      const engine = await start({ cacheDir, ...other })
      expect(answer(engine, 1).cached).toBe(0)
      expect(disk(engine)).toBe(0)
      engine.engine[Symbol.dispose]()
    }
    const folder = join(copies, "rope")
    mkdirSync(folder)
    const source = golden("hf", "llama")
    for (const name of readdirSync(source).filter((file) => !file.startsWith("golden")))
      copyFileSync(join(source, name), join(folder, name))
    const plain = await start({ cacheDir, model: folder })
    answer(plain, 1)
    plain.engine[Symbol.dispose]()
    const again = await start({ cacheDir, model: folder })
    expect(answer(again, 1).cached).toBe(40)
    again.engine[Symbol.dispose]()
    const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as object
    writeFileSync(
      join(folder, "config.json"),
      JSON.stringify({ ...config, rope_scaling: { rope_type: "linear", factor: 2 } }),
    )
    const scaled = await start({ cacheDir, model: folder })
    expect(answer(scaled, 1).cached).toBe(0)
  }, 60_000)

  test("damaged blocks are computed again, and said in the numbers", async () => {
    const cacheDir = temporary()
    const first = await start({ cacheDir })
    const { tokens } = answer(first, 1)
    first.engine[Symbol.dispose]()
    const [data = ""] = cacheFiles(cacheDir, ".data")
    const bytes = readFileSync(data)
    // of the third block of five
    const position = (bytes.length / 5) * 2 + headerBytes(8) + 11
    bytes[position] = (bytes[position] as number) ^ 0x10
    writeFileSync(data, bytes)
    const second = await start({ cacheDir })
    expect(answer(second, 1)).toEqual({ tokens, cached: 16 })
    expect(second.engine.stats().cacheDiskFailuresTotal).toBe(1)
    // and is written anew
    second.engine[Symbol.dispose]()
    const third = await start({ cacheDir })
    expect(answer(third, 1)).toEqual({ tokens, cached: 40 })
  })

  test("a folder that cannot be made costs one warning, and host memory still works", async () => {
    const file = join(temporary(), "file")
    writeFileSync(file, "")
    const started = await start({ cacheDir: join(file, "below"), cacheRamMib: 8 })
    const want = answer(started, 1)
    for (const seed of [2, 3, 4, 2, 3, 4]) answer(started, seed)
    expect(answer(started, 1)).toEqual({ ...want, cached: 40 })
    expect(warnings(started).length).toBe(1)
    expect(warnings(started)[0]).toContain(file)
  })

  const mounts = (options: string, folder: string): boolean =>
    process.platform === "linux" &&
    process.getuid?.() === 0 &&
    Bun.spawnSync(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], {
      stderr: "ignore",
    }).success
  const unmount = (folder: string): void => void Bun.spawnSync(["umount", "-l", folder])

  test("a full disk costs one warning; what was written before is kept", async () => {
    const folder = temporary()
    if (!mounts("size=64k", folder)) return expect(existsSync(folder)).toBe(true)
    cleanUps.push(() => unmount(folder))
    const started = await start({ cacheDir: folder, cacheRamMib: 8 })
    const want = answer(started, 1)
    await until(() => started.engine.stats().cacheDiskWritesTotal === 5)
    for (let seed = 2; seed < 30; seed++) answer(started, seed)
    await until(() => {
      started.engine.stats()
      return warnings(started).length > 0
    })
    for (let seed = 30; seed < 40; seed++) answer(started, seed)
    expect(answer(started, 1)).toEqual({ ...want, cached: 40 })
    started.engine[Symbol.dispose]()
    expect(warnings(started).length).toBe(1)
    expect(warnings(started)[0]).toContain("ENOSPC")
    const again = await start({ cacheDir: folder })
    expect(answer(again, 1)).toEqual({ ...want, cached: 40 })
    expect(disk(again)).toBe(40)
  }, 30_000)

  test("a read-only folder is read, with one warning", async () => {
    const folder = temporary()
    if (!mounts("size=4m", folder)) return expect(existsSync(folder)).toBe(true)
    cleanUps.push(() => unmount(folder))
    const first = await start({ cacheDir: folder })
    const want = answer(first, 1)
    first.engine[Symbol.dispose]()
    const remount = ["mount", "-o", "remount,ro", folder]
    expect(Bun.spawnSync(remount).success).toBe(true)
    const second = await start({ cacheDir: folder, cacheRamMib: 8 })
    expect(answer(second, 1)).toEqual({ ...want, cached: 40 })
    for (let seed = 2; seed < 8; seed++) answer(second, seed)
    expect(second.engine.stats().cacheDiskWritesTotal).toBe(0)
    expect(warnings(second).length).toBe(1)
    expect(dirname(cacheFiles(folder, ".data")[0] ?? "")).toContain(folder)
  }, 30_000)

  test("sequences that run are not held up by one whose prefix is read", async () => {
    const cacheDir = temporary()
    const first = await start({ cacheDir, kvCacheTokens: 128 })
    const alone = answer(first, 1)
    first.engine[Symbol.dispose]()
    const { engine } = await start({ cacheDir, kvCacheTokens: 128 })
    const params = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 }
    const rest = { presencePenalty: 0, frequencyPenalty: 0, stopTokens: [], ignoreEos: true }
    engine.add(1, prompt(9), { ...params, ...rest, maxTokens: 20 })
    engine.step()
    engine.add(2, prompt(1), { ...params, ...rest, maxTokens: 6 })
    const got: number[] = []
    let steps = 0
    while (engine.hasWork) {
      const events = engine.step()
      steps++
      for (const event of events) if (event.id === 2) got.push(event.token)
      // the first has its token in every step
      if (steps < 18) expect(events.some(({ id }) => id === 1)).toBe(true)
    }
    expect(got).toEqual(alone.tokens)
    expect(engine.stats().cacheDiskTokensTotal).toBe(40)
  })
})

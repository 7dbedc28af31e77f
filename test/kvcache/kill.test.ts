import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { folderParts } from "../../src/kvcache/disk-folder.ts"
import { DiskStore } from "../../src/kvcache/disk-store.ts"
import { SYSTEM_FILES } from "../../src/kvcache/store-files.ts"
import { FINGERPRINT, HEADER, numberOf, PAYLOAD, payload, RECORD, record } from "./chain.ts"

/** Processes that are killed; KT_KILL_RUNS=1000 takes about a minute. */
const RUNS = Number(process.env["KT_KILL_RUNS"] ?? 40)
/** Kills after which a folder is begun anew, so that checking it stays quick. */
const RUNS_A_FOLDER = 10
const LANES = 2

const folders: string[] = []
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})

interface Killed {
  /** It printed that it writes. */
  readonly hasStarted: boolean
  /** Numbers of blocks that were said to be kept, "-number" of those that made room. */
  readonly said: string[]
}

/** Starts a writer and kills it so many milliseconds after so many lines (-1: after its start). */
async function killWriter(
  args: readonly string[],
  afterLines: number,
  afterMs: number,
): Promise<Killed> {
  const child = Bun.spawn(
    [process.execPath, join(import.meta.dir, "writing-process.ts"), ...args],
    { stdout: "pipe", stderr: "inherit", stdin: null },
  )
  let text = ""
  let lines = 0
  const decoder = new TextDecoder()
  const kill = (): void => child.kill("SIGKILL")
  if (afterLines < 0) setTimeout(kill, afterMs)
  for await (const chunk of child.stdout) {
    const before = lines
    text += decoder.decode(chunk)
    lines = text.split("\n").length - 1
    if (before <= afterLines && lines > afterLines) setTimeout(kill, afterMs)
  }
  await child.exited
  expect(child.signalCode).toBe("SIGKILL")
  // the last line may be cut
  const whole = text.split("\n").slice(0, -1)
  return {
    hasStarted: whole.length > 0,
    said: whole.filter((line) => /^-?\d+$/.test(line)),
  }
}

/** All blocks that a new process finds, by number; fails where one holds anything but its bytes. */
async function findAll(folder: string): Promise<Set<number>> {
  const store = new DiskStore({
    folder,
    fingerprint: FINGERPRINT,
    limitBytes: 2 ** 30,
    headerBytes: HEADER,
    about: {},
  })
  const found = new Set<number>()
  for (const { place, digest, kind } of store.refresh().stored) {
    const into = new Uint8Array(place.bytes)
    // an entry of the journal promises a whole record
    expect(store.read(place, { kind, digest }, into)).toBe(true)
    const i = numberOf(digest)
    expect(i).toBeGreaterThanOrEqual(0)
    expect(Buffer.from(into.subarray(HEADER, HEADER + PAYLOAD))).toEqual(Buffer.from(payload(i)))
    found.add(i)
  }
  await store.close()
  return found
}

test("after kills at any instant every kept block is found, whole, and none that is wrong", async () => {
  let started = 0
  let kept = 0
  let done = 0
  const lane = async (): Promise<void> => {
    let folder = ""
    let next = 0
    let mustBe = new Set<number>()
    let limit = 0
    for (let run = 0; done < RUNS; run++) {
      done++
      if (run % RUNS_A_FOLDER === 0) {
        if (folder !== "") rmSync(folder, { recursive: true, force: true })
        folder = mkdtempSync(join(tmpdir(), "kt-kill-"))
        folders.push(folder)
        next = 0
        mustBe = new Set()
        // every other folder is so small that blocks leave all the time
        limit = (run / RUNS_A_FOLDER) % 2 === 0 ? 2 ** 28 : 30 * (RECORD + HEADER)
      }
      // most while it writes, some while it starts
      const atStart = Math.random() < 0.15
      const afterLines = atStart ? -1 : Math.floor(Math.random() * 12)
      const afterMs = atStart ? 5 + Math.random() * 40 : Math.random() * 4
      const seed = Math.floor(Math.random() * 2 ** 31)
      const args = [folder, String(next), String(limit), String(seed)]
      const result = await killWriter(args, afterLines, afterMs)
      for (const line of result.said) {
        if (line.startsWith("-")) mustBe.delete(Number(line.slice(1)))
        else mustBe.add(Number(line))
        next = Math.max(next, Number(line) + 1)
      }
      if (result.hasStarted) started++
      kept += result.said.length
      // what was written but not told of is there too; the next one goes on behind it
      record(next + 64)
      const found = await findAll(folder)
      if (limit > 2 ** 20) for (const n of mustBe) expect(found).toContain(n)
      for (const n of found) next = Math.max(next, n + 1)
      const bytes = folderParts(SYSTEM_FILES, folder).reduce((sum, part) => sum + part.bytes, 0)
      expect(bytes).toBeLessThanOrEqual(limit)
    }
  }
  await Promise.all(Array.from({ length: LANES }, lane))
  expect(started).toBeGreaterThan(RUNS / 2)
  expect(kept).toBeGreaterThan(RUNS)
}, 600_000)

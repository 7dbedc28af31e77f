import { afterEach, describe, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { folderParts, removePart } from "../../src/kvcache/disk-folder.ts"
import { DiskStore } from "../../src/kvcache/disk-store.ts"
import type { StoredBlock } from "../../src/kvcache/prefix-tiers.ts"
import { type StoreFiles, SYSTEM_FILES } from "../../src/kvcache/store-files.ts"
import {
  digestOfBlock,
  FINGERPRINT,
  HEADER,
  numberOf,
  PAYLOAD,
  payload,
  RECORD,
  record,
  tokensOf,
} from "./chain.ts"

const folders: string[] = []
const stores: DiskStore[] = []
afterEach(async () => {
  for (const store of stores.splice(0)) await store.close().catch(() => {})
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
})

function temporary(): string {
  const folder = mkdtempSync(join(tmpdir(), "kt-disk-store-"))
  folders.push(folder)
  return folder
}

interface Opened {
  readonly store: DiskStore
  readonly blocks: StoredBlock[]
}

function open(
  folder: string,
  { limitBytes = 2 ** 24, fingerprint = FINGERPRINT, files = SYSTEM_FILES, write = true } = {},
): Opened {
  const about = { model: "test" }
  const store = new DiskStore({
    folder,
    fingerprint,
    limitBytes,
    headerBytes: HEADER,
    about,
    files,
  })
  stores.push(store)
  if (write) store.becomeWriter()
  return { store, blocks: store.refresh().stored }
}

const records = (from: number, to: number): Uint8Array[] =>
  Array.from({ length: to - from }, (_, i) => record(from + i))

/** Blocks that can be read and hold what they should, by number. Fails where one holds anything else. */
function sound({ store, blocks }: Opened): number[] {
  const found: number[] = []
  for (const { place, digest, kind } of blocks) {
    const i = numberOf(digest)
    const into = new Uint8Array(place.bytes)
    if (!store.read(place, { kind, digest }, into)) continue
    expect(Buffer.from(into.subarray(HEADER, HEADER + PAYLOAD))).toEqual(Buffer.from(payload(i)))
    found.push(i)
  }
  return found.sort((a, b) => a - b)
}

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i)

function segmentFiles(folder: string): string[] {
  const part = join(folder, FINGERPRINT)
  return readdirSync(part)
    .filter((name) => /\.(data|index)$/.test(name))
    .map((name) => join(part, name))
}

describe("disk store", () => {
  test("what was written is found by the next start, and its bytes are the same", async () => {
    const folder = temporary()
    const { store } = open(folder)
    const places = await store.append(records(0, 5))
    expect(places.every((place) => place !== undefined)).toBe(true)
    await store.append(records(5, 9))
    await store.close()
    const again = open(folder)
    expect(again.blocks.map(({ digest }) => digest)).toEqual(upTo(9).map(digestOfBlock))
    expect(again.blocks.map(({ tokens }) => tokens)).toEqual(upTo(9).map(tokensOf))
    expect(sound(again)).toEqual(upTo(9))
    expect(again.store.bytes).toBe(9 * (RECORD + HEADER))
    expect(statSync(folder).isDirectory()).toBe(true)
  })

  test("the limit holds at any time, and the least recently used segment goes first", async () => {
    const folder = temporary()
    const limitBytes = 40 * (RECORD + HEADER)
    const { store } = open(folder, { limitBytes })
    // five records a segment
    for (let i = 0; i < 40; i += 5) await store.append(records(i, i + 5))
    const total = (): number =>
      segmentFiles(folder).reduce((sum, file) => sum + statSync(file).size, 0)
    expect(total()).toBeLessThanOrEqual(limitBytes)
    const [first] = store.refresh().stored
    expect(first).toBeUndefined()
    await Bun.sleep(5)
    store.use([1])
    for (let i = 40; i < 80; i++) {
      await store.append(records(i, i + 1))
      expect(total()).toBeLessThanOrEqual(limitBytes)
      expect(store.bytes).toBe(total())
      store.use([1])
      await Bun.sleep(1)
    }
    expect(store.takeDropped()).not.toContain(1)
    await store.close()
    const kept = sound(open(folder, { limitBytes }))
    expect(kept.slice(0, 4)).toEqual([0, 1, 2, 3])
    expect(kept).toContain(79)
    expect(kept).not.toContain(20)
  })

  test("a lower limit is kept from the first write on; a record above it is refused", async () => {
    const folder = temporary()
    const first = open(folder)
    await first.store.append(records(0, 30))
    await first.store.close()
    const limitBytes = 10 * (RECORD + HEADER)
    const second = open(folder, { limitBytes })
    expect(await second.store.makeRoom(0)).toBe(true)
    expect(second.store.bytes).toBeLessThanOrEqual(limitBytes)
    await second.store.close()
    const third = open(folder, { limitBytes: RECORD })
    expect(await third.store.append([record(40)])).toEqual([undefined])
  })

  test("any damage costs the records that it hits, never gives wrong ones", async () => {
    const folder = temporary()
    const { store } = open(folder)
    await store.append(records(0, 4))
    await store.close()
    const files = segmentFiles(folder)
    const intact = new Map(files.map((file) => [file, readFileSync(file)]))
    const restore = (): void => {
      for (const [file, bytes] of intact) writeFileSync(file, bytes)
    }
    let hits = 0
    for (const [file, bytes] of intact) {
      const isData = file.endsWith(".data")
      const stride = isData ? RECORD : HEADER
      // every byte of a header, and some of the payload and of the padding, of the first, a middle and the last
      for (const entry of [0, 2, 3]) {
        for (let at = 0; at < stride; at += at < HEADER ? 1 : 97) {
          const damaged = Buffer.from(bytes)
          const position = entry * stride + at
          damaged[position] = (damaged[position] as number) ^ 0x41
          writeFileSync(file, damaged)
          const opened = open(folder, { write: false })
          const found = sound(opened)
          await opened.store.close()
          const isPadding = isData && at >= HEADER + PAYLOAD
          expect(found).toEqual(upTo(4).filter((i) => isPadding || i !== entry))
          hits++
        }
      }
      for (let length = 0; length < bytes.length; length += 173) {
        writeFileSync(file, bytes.subarray(0, length))
        const opened = open(folder, { write: false })
        expect(sound(opened)).toEqual(upTo(Math.floor(length / stride)))
        await opened.store.close()
      }
      // bytes moved: whole records in the wrong places
      if (isData) {
        const swapped = Buffer.concat([
          bytes.subarray(RECORD, 2 * RECORD),
          bytes.subarray(0, RECORD),
          bytes.subarray(2 * RECORD),
        ])
        writeFileSync(file, swapped)
        const opened = open(folder, { write: false })
        expect(sound(opened)).toEqual([2, 3])
        await opened.store.close()
      }
      restore()
    }
    expect(hits).toBeGreaterThan(3000)
    rmSync(files.find((file) => file.endsWith(".index")) as string)
    expect(open(folder).blocks).toEqual([])
    // data without a journal is nothing, and takes no room
    expect(segmentFiles(folder)).toEqual([])
  }, 60_000)

  test("one writes; others read what it adds and see what goes, and one takes over when it ends", async () => {
    const folder = temporary()
    const writer = open(folder)
    const reader = open(folder, { write: false })
    expect(reader.store.becomeWriter()).toBe(false)
    await writer.store.append(records(0, 3))
    const seen = reader.store.refresh()
    expect(sound({ store: reader.store, blocks: seen.stored })).toEqual([0, 1, 2])
    await writer.store.append(records(3, 4))
    const more = reader.store.refresh()
    expect(sound({ store: reader.store, blocks: more.stored })).toEqual([3])
    await writer.store.clear()
    expect(writer.store.bytes).toBe(0)
    expect(reader.store.refresh()).toEqual({ stored: [], dropped: [1] })
    expect(reader.store.bytes).toBe(0)
    expect(sound({ store: reader.store, blocks: more.stored })).toEqual([])
    await writer.store.close()
    expect(reader.store.becomeWriter()).toBe(true)
    await reader.store.append(records(0, 2))
    expect(sound(open(folder, { write: false }))).toEqual([0, 1])
  })

  test("a full disk or a failing write loses what was not known yet, and nothing else", async () => {
    const folder = temporary()
    for (const failing of ["write", "sync", "create", "syncFolder"] as const) {
      const isRare = failing === "create" || failing === "syncFolder"
      for (let after = 0; after < (isRare ? 2 : 6); after++) {
        rmSync(join(folder, FINGERPRINT), { recursive: true, force: true })
        let isFull = false
        let left = after
        const fail = (): void => {
          if (isFull && left-- <= 0) throw Object.assign(new Error("no space"), { code: "ENOSPC" })
        }
        const files: StoreFiles = {
          ...SYSTEM_FILES,
          write(fd, bytes, at) {
            try {
              if (failing === "write") fail()
            } catch (error) {
              // as a full disk does it: a part is written
              SYSTEM_FILES.write(fd, bytes.subarray(0, bytes.length / 2), at)
              throw error
            }
            SYSTEM_FILES.write(fd, bytes, at)
          },
          async sync(fd) {
            if (failing === "sync") fail()
            await SYSTEM_FILES.sync(fd)
          },
          create(path) {
            if (failing === "create") fail()
            return SYSTEM_FILES.create(path)
          },
          syncFolder(path) {
            if (failing === "syncFolder") fail()
            SYSTEM_FILES.syncFolder(path)
          },
        }
        const limitBytes = 24 * (RECORD + HEADER)
        const { store } = open(folder, { files, limitBytes })
        await store.append(records(0, 2))
        isFull = true
        let failed = 0
        let known = 2
        for (let i = 2; i < 12; i += 2) {
          try {
            await store.append(records(i, i + 2))
            if (failed === 0) known = i + 2
          } catch (error) {
            expect((error as { code: string }).code).toBe("ENOSPC")
            failed++
          }
        }
        expect(failed).toBeGreaterThan(0)
        isFull = false
        await store.append(records(12, 14))
        expect(store.bytes).toBe(
          segmentFiles(folder).reduce((sum, file) => sum + statSync(file).size, 0),
        )
        await store.close()
        const found = sound(open(folder, { limitBytes, write: false }))
        expect(found.slice(0, known)).toEqual(upTo(known))
        expect(found.slice(-2)).toEqual([12, 13])
      }
    }
  })

  test("models share the limit: idle ones give way, live ones have equal parts", async () => {
    const folder = temporary()
    const limitBytes = 40 * (RECORD + HEADER)
    const old = open(folder, { limitBytes, fingerprint: "f".repeat(32) })
    await old.store.append(records(0, 35))
    const live = open(folder, { limitBytes })
    const total = (): number =>
      folderParts(SYSTEM_FILES, folder).reduce((sum, { bytes }) => sum + bytes, 0)
    // the other has the room until it takes notice: what is left holds the newest
    await live.store.append(records(0, 10))
    expect(total()).toBeLessThanOrEqual(limitBytes)
    expect(live.store.bytes).toBeGreaterThan(0)
    expect(live.store.bytes).toBeLessThanOrEqual(5 * (RECORD + HEADER))
    await old.store.close()
    const alone = open(folder, { limitBytes, fingerprint: "e".repeat(32) })
    expect((await alone.store.append(records(0, 10))).every((place) => place !== undefined)).toBe(
      true,
    )
    expect(total()).toBeLessThanOrEqual(limitBytes)
    expect(removePart(SYSTEM_FILES, folder, "e".repeat(32))).toBe(false)
    expect(removePart(SYSTEM_FILES, folder, "f".repeat(32))).toBe(true)
    expect(readdirSync(folder).sort()).toEqual([FINGERPRINT, "e".repeat(32)])
  })
})

import { afterAll, expect, test } from "bun:test"
import { join } from "node:path"

import { headerBytes } from "../../src/kvcache/block-record.ts"
import { DiskStore } from "../../src/kvcache/disk-store.ts"
import { record } from "../kvcache/chain.ts"
import { kt, temporaryFolder } from "./kt.ts"

const temporary = temporaryFolder()
afterAll(() => temporary[Symbol.dispose]())

async function store(fingerprint: string, folder: string): Promise<DiskStore> {
  const about = { model: "/models/tiny.gguf", precision: "fast", kvType: "F16", isa: "avx2" }
  const limitBytes = 2 ** 24
  const made = new DiskStore({
    folder,
    fingerprint,
    limitBytes,
    headerBytes: headerBytes(8),
    about,
  })
  made.becomeWriter()
  await made.append([record(0), record(1)])
  return made
}

test("kt cache lists and clears what no server writes", async () => {
  const folder = join(temporary.path, "kv")
  const live = await store("a".repeat(32), folder)
  await (await store("b".repeat(32), folder)).close()
  const env = { KT_CACHE_DIR: folder }
  const listed = await kt(["cache", "list"], { env })
  expect(listed).toMatchObject({ status: 0, err: "" })
  expect(listed.out).toContain("/models/tiny.gguf")
  expect(listed.out).toContain("fast, KV F16, avx2")
  const json = JSON.parse((await kt(["cache", "list", "--json"], { env })).out) as {
    models: { fingerprint: string; bytes: number }[]
  }
  expect(json.models.map(({ fingerprint }) => fingerprint[0])).toEqual(["a", "b"])
  expect(json.models[0]?.bytes).toBe(2 * (1536 + 512))

  const none = await kt(["cache", "clear", "c", "--cache-dir", folder])
  expect(none).toMatchObject({ status: 1 })
  expect(none.err).toContain('holds no "c"')
  const cleared = await kt(["cache", "clear", "b", "--cache-dir", folder, "--json"])
  expect(cleared.status).toBe(0)
  expect(JSON.parse(cleared.out)).toEqual({ bytes: expect.any(Number), busy: [] })
  const busy = await kt(["cache", "clear"], { env })
  expect(busy.status).toBe(1)
  expect(busy.err).toContain("DELETE /cache")
  await live.close()
  expect(await kt(["cache", "clear"], { env })).toMatchObject({ status: 0 })
  expect((await kt(["cache", "list"], { env })).out).toContain("holds no prefix cache")
  const unnamed = await kt(["cache", "list"])
  expect(unnamed).toMatchObject({ status: 2 })
  expect(unnamed.err).toContain("--cache-dir")
})

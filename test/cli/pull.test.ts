import { describe, expect, test } from "bun:test"
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { download } from "../../src/cli/download.ts"
import { chooseFiles, hubFromEnvironment, parseRepo } from "../../src/cli/hub.ts"
import { golden } from "../setup.ts"
import { type FakeFile, sha256, startFakeHub } from "./fake-hub.ts"
import { kt, temporaryFolder } from "./kt.ts"

const MODEL = new Uint8Array(readFileSync(golden("gguf", "llama-f16.gguf")))
const OTHER = new Uint8Array(readFileSync(golden("gguf", "llama-tied-bf16.gguf")))

const gguf = (path: string, extra: Partial<FakeFile> = {}): FakeFile => ({
  path,
  bytes: MODEL,
  lfs: true,
  ...extra,
})

/** What a folder holds beside the record of what was brought. */
function shown(folder: string): string[] {
  return readdirSync(folder).filter((name) => name !== ".pulled.json")
}

describe("kt pull", () => {
  test("a quantisation of a repository; the token stays with the hub; then it has a name", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({
      token: "hf_secret",
      files: [gguf("m-Q4_K_M.gguf"), gguf("m-Q8_0.gguf", { bytes: OTHER }), gguf("README.md")],
    })
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url, HF_TOKEN: "hf_secret" }
    const result = await kt(["pull", "org/model:q8_0"], { env })
    const path = join(home.path, "models/org/model/m-Q8_0.gguf")
    expect(result).toMatchObject({ status: 0, out: `${path}\n` })
    expect(new Uint8Array(readFileSync(path))).toEqual(OTHER)
    expect(shown(join(home.path, "models/org/model"))).toEqual(["m-Q8_0.gguf"])
    const stored = hub.seen.filter(({ host }) => host === "storage")
    expect(stored).toHaveLength(1)
    expect(stored[0]!.authorization).toBeNull()
    expect(
      hub.seen
        .filter(({ host }) => host === "hub")
        .every(({ authorization }) => authorization === "Bearer hf_secret"),
    ).toBe(true)

    const listed = await kt(["list", "--json"], { env })
    const { models } = JSON.parse(listed.out) as { models: unknown[] }
    expect(models).toEqual([
      { name: "m-Q8_0", size: OTHER.length, path, architecture: "llama", quantization: "BF16" },
    ])
    for (const name of ["m-Q8_0", "m-q", "org/model", "org/model:Q8_0", "org/model/m-Q8_0"])
      expect(await kt(["tokenize", name, "-p", "a", "--json"], { env })).toMatchObject({
        status: 0,
      })
    const wrong = await kt(["tokenize", "m-Q8_1", "-p", "a"], { env })
    expect(wrong.err).toMatch(/unknown model "m-Q8_1".*\n.*did you mean m-Q8_0/)

    // what is here and whole is not brought again
    const again = await kt(["pull", "org/model:Q8_0"], { env })
    expect(again.err).toContain("was here already")
    expect(hub.seen.filter(({ host }) => host === "storage")).toHaveLength(1)
  })

  test("a transfer that is cut goes on where it stopped", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({
      files: [gguf("m.gguf", { behaviour: ["cut", "cut", "whole"] })],
    })
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    const result = await kt(["pull", "org/model", "--json"], { env })
    expect(result.status).toBe(0)
    const printed = JSON.parse(result.out) as { path: string; files: { verified: boolean }[] }
    expect(new Uint8Array(readFileSync(printed.path))).toEqual(MODEL)
    expect(printed.files[0]!.verified).toBe(true)
    const ranges = hub.seen.filter(({ host }) => host === "storage").map(({ range }) => range)
    expect(ranges).toHaveLength(3)
    expect(ranges[0]).toBeNull()
    const half = Math.ceil(MODEL.length / 2)
    expect(ranges[1]).toBe(`bytes=${half}-`)
    expect(ranges[2]).toBe(`bytes=${half + Math.ceil((MODEL.length - half) / 2)}-`)
  })

  test("a process that was killed left a partial file and a journal: the next one continues", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({ files: [gguf("m.gguf")] })
    const path = join(home.path, "models/org/model/m.gguf")
    mkdirSync(join(path, ".."), { recursive: true })
    writeFileSync(`${path}.partial`, MODEL.subarray(0, 1000))
    const facts = { url: "x", etag: sha256(MODEL), size: MODEL.length, sha256: sha256(MODEL) }
    writeFileSync(`${path}.partial.json`, JSON.stringify(facts))
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    expect((await kt(["pull", "org/model"], { env })).status).toBe(0)
    expect(new Uint8Array(readFileSync(path))).toEqual(MODEL)
    expect(hub.seen.at(-1)).toMatchObject({ host: "storage", range: "bytes=1000-" })
    expect(existsSync(`${path}.partial`)).toBe(false)
    expect(existsSync(`${path}.partial.json`)).toBe(false)
  })

  test("a second process does not write what another is fetching", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({ files: [gguf("m.gguf")] })
    const folder = join(home.path, "models/org/model")
    mkdirSync(folder, { recursive: true })
    const other = Bun.spawn(["sleep", "30"])
    try {
      writeFileSync(join(folder, "m.gguf.lock"), `${other.pid}`)
      const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
      const refused = await kt(["pull", "org/model"], { env })
      expect(refused.status).not.toBe(0)
      expect(refused.err).toContain(`process ${other.pid} is fetching it already`)
      other.kill()
      await other.exited
      // the lock of a process that is gone does not count
      expect(await kt(["pull", "org/model"], { env })).toMatchObject({ status: 0 })
      expect(shown(folder)).toEqual(["m.gguf"])
    } finally {
      other.kill()
    }
  })

  test("a wrong checksum: one sentence, and nothing is left under the model's name", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({ files: [gguf("m.gguf", { behaviour: ["corrupt"] })] })
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    const result = await kt(["pull", "org/model"], { env })
    expect(result).toMatchObject({ status: 1, out: "" })
    expect(result.err).toMatch(
      /m\.gguf: the SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}\n.*try again/,
    )
    expect(shown(join(home.path, "models/org/model"))).toEqual([])
  })

  test("401, 404 and a quantisation that is not there", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({ token: "hf_right", files: [gguf("m-Q8_0.gguf")] })
    const base = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    const none = await kt(["pull", "org/model"], { env: base })
    expect(none).toMatchObject({ status: 1, out: "" })
    expect(none.err).toMatch(/access denied \(status 401\)\n.*set HF_TOKEN/)
    const wrong = await kt(["pull", "org/model"], { env: { ...base, HF_TOKEN: "hf_wrong" } })
    expect(wrong.err).toMatch(/access denied \(status 401\)\n.*the token in HF_TOKEN has no access/)
    expect(wrong.err).not.toContain("hf_wrong")
    const env = { ...base, HF_TOKEN: "hf_right" }
    expect((await kt(["pull", "org/nothing"], { env })).err).toMatch(
      /org\/nothing: not found \(status 404\)/,
    )
    expect((await kt(["pull", "org/model:Q2_K"], { env })).err).toMatch(
      /no file of quantisation Q2_K\n.*m-Q8_0\.gguf/,
    )
  })

  test("shards come together, and the first one is the model", async () => {
    using home = temporaryFolder()
    const shard = (n: number): FakeFile => {
      const path = `qwen3moe-split-q8_0-0000${n}-of-00002.gguf`
      return gguf(`Q8_0/${path}`, { bytes: new Uint8Array(readFileSync(golden("gguf", path))) })
    }
    await using hub = await startFakeHub({ files: [shard(2), shard(1)] })
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    const result = await kt(["pull", "org/model"], { env })
    expect(result.out).toEndWith("Q8_0/qwen3moe-split-q8_0-00001-of-00002.gguf\n")
    const listed = JSON.parse((await kt(["list", "--json"], { env })).out) as {
      models: Record<string, unknown>[]
    }
    expect(listed.models).toHaveLength(1)
    expect(listed.models[0]).toMatchObject({
      name: "qwen3moe-split-q8_0",
      architecture: "qwen3moe",
    })
  })

  test("a safetensors repository becomes a folder that runs", async () => {
    using home = temporaryFolder()
    const folder = golden("hf", "qwen3")
    const files = readdirSync(folder)
      .filter((name) => !name.startsWith("golden"))
      .map((path) => ({
        path,
        bytes: new Uint8Array(readFileSync(join(folder, path))),
        lfs: path.endsWith(".safetensors"),
      }))
    await using hub = await startFakeHub({ files })
    const env = { KT_HOME: home.path, HF_ENDPOINT: hub.url }
    const result = await kt(["pull", "org/model"], { env })
    expect(result.out).toBe(`${join(home.path, "models/org/model")}\n`)
    writeFileSync(join(home.path, "ids.json"), "[[1,2]]")
    const out = join(home.path, "o.safetensors")
    const argv = ["logits", "org/model", "--ids", join(home.path, "ids.json"), "--out", out]
    expect(await kt(argv, { env })).toMatchObject({ status: 0, err: "" })
  })

  test("a URL, with and without a checksum to ask for; the token is not for other hosts", async () => {
    using home = temporaryFolder()
    await using hub = await startFakeHub({ files: [gguf("m.gguf", { lfs: false })] })
    const url = `${hub.url}/org/model/resolve/main/m.gguf`
    const env = { KT_HOME: home.path, HF_TOKEN: "hf_secret", HF_ENDPOINT: "http://127.0.0.1:1" }
    const plain = await kt(["pull", url], { env })
    expect(plain.status).toBe(0)
    expect(plain.err).toContain("no checksum is known")
    expect(hub.seen.every(({ authorization }) => authorization === null)).toBe(true)
    const wrong = await kt(["pull", url, "--name", "n.gguf", "--sha256", "0".repeat(64)], { env })
    expect(wrong.err).toMatch(/the SHA-256 is/)
    const right = await kt(["pull", url, "--name", "n.gguf", "--sha256", sha256(MODEL)], { env })
    expect(right.err).not.toContain("no checksum")
  })
})

describe("download", () => {
  test("a server that ignores the range, and a file that changed, begin anew", async () => {
    using folder = temporaryFolder()
    const path = join(folder.path, "m.gguf")
    await using hub = await startFakeHub({
      files: [gguf("m.gguf", { behaviour: ["cut", "ignore-range"] })],
    })
    const url = `${hub.url}/org/model/resolve/main/m.gguf`
    await download({ url, path })
    expect(new Uint8Array(readFileSync(path))).toEqual(MODEL)

    const changed = join(folder.path, "changed.gguf")
    writeFileSync(`${changed}.partial`, OTHER.subarray(0, 500))
    const facts = { url, etag: "old", size: OTHER.length, sha256: sha256(OTHER) }
    writeFileSync(`${changed}.partial.json`, JSON.stringify(facts))
    await download({ url, path: changed })
    expect(new Uint8Array(readFileSync(changed))).toEqual(MODEL)
  })

  test("a partial file without a journal is not trusted, and endless cuts end", async () => {
    using folder = temporaryFolder()
    const path = join(folder.path, "m.gguf")
    writeFileSync(`${path}.partial`, "garbage")
    await using hub = await startFakeHub({ files: [gguf("m.gguf")] })
    await download({ url: `${hub.url}/org/model/resolve/main/m.gguf`, path })
    expect(new Uint8Array(readFileSync(path))).toEqual(MODEL)
    await using bad = await startFakeHub({ files: [gguf("m.gguf", { behaviour: ["cut"] })] })
    const request = {
      url: `${bad.url}/org/model/resolve/main/m.gguf`,
      path: join(folder.path, "x.gguf"),
      retries: 2,
    }
    await expect(download(request)).rejects.toThrow("interrupted 3 times")
  })

  test("a disk that is too small is told before the transfer", async () => {
    using folder = temporaryFolder()
    const server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: () => new Response("x", { headers: { "x-linked-size": String(2 ** 50) } }),
    })
    try {
      const path = join(folder.path, "m.gguf")
      const request = { url: `http://127.0.0.1:${server.port}/m.gguf`, path }
      await expect(download(request)).rejects.toThrow(/are still to come, but only .* are free/)
    } finally {
      await server.stop(true)
    }
  })
})

describe("names", () => {
  test("repositories, revisions and quantisations", () => {
    expect(parseRepo("a/b")).toEqual({ repo: "a/b", revision: "main", quant: undefined })
    expect(parseRepo("a/b-1.5:Q4_K_M")).toEqual({
      repo: "a/b-1.5",
      revision: "main",
      quant: "Q4_K_M",
    })
    expect(parseRepo("a/b@v1:q8_0")).toEqual({ repo: "a/b", revision: "v1", quant: "q8_0" })
    for (const bad of ["a", "a/b/c", "../b", "a/..", "a/b:", "/a/b"])
      expect(parseRepo(bad)).toBeUndefined()
    expect(hubFromEnvironment({ HF_ENDPOINT: "http://h/" }).endpoint).toBe("http://h")
  })

  test("which file is taken", () => {
    const file = (path: string) => ({ path, size: 1, sha256: undefined })
    const name = (quant?: string) => ({ repo: "a/b", revision: "main", quant })
    const files = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"].map(file)
    expect(chooseFiles(name(), files)[0]!.path).toBe("m-Q4_K_M.gguf")
    expect(chooseFiles(name("q4_k_s"), files)[0]!.path).toBe("m-Q4_K_S.gguf")
    expect(() => chooseFiles(name("Q4_K"), files)).toThrow("no file of quantisation Q4_K")
    expect(() => chooseFiles(name(), [file("a-X1.gguf"), file("a-X2.gguf")])).toThrow("name one")
    expect(() => chooseFiles(name(), [file("pytorch_model.bin")])).toThrow(
      "no GGUF and no safetensors",
    )
    expect(() => chooseFiles(name(), [file("m-00001-of-00003.gguf")])).toThrow("1 of the 3 shards")
  })
})

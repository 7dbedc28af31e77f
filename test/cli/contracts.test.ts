import { afterAll, describe, expect, test } from "bun:test"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { defaultModelPath } from "../../src/cli/home.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { type FixtureValue, writeGguf } from "../fixtures/gguf.ts"
import { readGoldenTensors } from "../fixtures/golden-tensors.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
const at = (name: string): string => join(folder.path, name)
afterAll(() => folder[Symbol.dispose]())

const ints = (bytes: Uint8Array<ArrayBuffer>): Int32Array => new Int32Array(bytes.buffer)

function relativeRms(ours: Float32Array, theirs: Float32Array): number {
  let error = 0
  let norm = 0
  for (let i = 0; i < theirs.length; i++) {
    error += (ours[i]! - theirs[i]!) ** 2
    norm += theirs[i]! ** 2
  }
  return Math.sqrt(error / norm)
}

describe("kt logits", () => {
  for (const [name, file] of [
    ["llama-rope-q4_k_m", "llama-rope-q4_k_m.gguf"],
    ["gemma3-q5_0", "gemma3-q5_0.gguf"],
    ["qwen3moe-split-q8_0", "qwen3moe-split-q8_0-00001-of-00002.gguf"],
    ["qwen3next-iq4_nl", "qwen3next-iq4_nl.gguf"],
  ] as const) {
    for (const extra of [[], ["--no-fuse"], ["--chunk-size", "7"]]) {
      test(`${name} ${extra.join(" ")}`, async () => {
        const reference = readGoldenTensors(golden("gguf", `${name}.golden.safetensors`))
        const ids = ints(reference.get("input_ids")!.bytes)
        // the second sequence shows that each is computed alone
        writeFileSync(at("ids.json"), JSON.stringify([[...ids], [...ids.subarray(0, 5)]]))
        const out = at("out.safetensors")
        const argv = ["--ids", at("ids.json"), "--greedy", "8", "--precision", "f32", "--out", out]
        const result = await kt(["logits", golden("gguf", file), ...argv, ...extra, "--json"])
        expect(result).toMatchObject({ status: 0, err: "" })
        const written = readGoldenTensors(out)
        const vocab = reference.get("logits")!.shape[1]!
        expect(JSON.parse(result.out)).toEqual({ out, sequences: 2, vocab })
        const logits = written.get("logits.0")!
        expect(logits).toMatchObject({ dtype: "F32", shape: [ids.length, vocab] })
        const expected = reference.get("logits")!.f32()
        expect(relativeRms(logits.f32(), expected)).toBeLessThan(1e-4)
        expect(
          relativeRms(written.get("logits.1")!.f32(), expected.subarray(0, 5 * vocab)),
        ).toBeLessThan(1e-4)
        const greedy = written.get("greedy_ids.0")!
        expect(greedy).toMatchObject({ dtype: "I32", shape: [8] })
        expect([...ints(greedy.bytes)]).toEqual([...ints(reference.get("greedy_ids")!.bytes)])
        const rows = written.get("greedy_logits.0")!
        expect(rows.shape).toEqual([8, vocab])
        expect(rows.f32().subarray(0, vocab)).toEqual(
          logits.f32().subarray((ids.length - 1) * vocab),
        )
        expect(written.get("greedy_ids.1")!.shape).toEqual([8])
      })
    }
  }

  test("a Hugging Face folder", async () => {
    writeFileSync(at("ids.json"), "[[1, 2, 3, 4]]")
    const argv = ["--ids", at("ids.json"), "--out", at("hf.safetensors")]
    expect(await kt(["logits", golden("hf", "qwen3"), ...argv])).toMatchObject({
      status: 0,
      err: "",
    })
    const written = readGoldenTensors(at("hf.safetensors"))
    expect([...written.keys()]).toEqual(["logits.0"])
    expect(written.get("logits.0")!.shape).toEqual([4, 256])
  })
})

interface TokenizeGolden {
  readonly cases: readonly { text: string; add_special: boolean; parse_special: boolean }[]
  readonly ids: Readonly<Record<string, readonly number[][]>>
}

describe("kt tokenize", () => {
  const { cases, ids } = JSON.parse(
    readFileSync(golden("gguf", "tokenize.json"), "utf8"),
  ) as TokenizeGolden
  for (const file of ["llama-rope-q4_k_m.gguf", "llama-tied-bf16.gguf"]) {
    test(`${file}: ids as the goldens have them, from a file`, async () => {
      const key = Object.keys(ids).find((name) => file.startsWith(name.replace(/\.gguf$/, "")))!
      for (const c of [0, 7, 21, 40, cases.length - 1]) {
        const { text, add_special, parse_special } = cases[c]!
        writeFileSync(at("text.txt"), text)
        const flags = [
          ...(add_special ? [] : ["--no-special"]),
          ...(parse_special ? ["--parse-special"] : []),
        ]
        const result = await kt([
          "tokenize",
          golden("gguf", file),
          "--file",
          at("text.txt"),
          ...flags,
          "--json",
        ])
        const printed = JSON.parse(result.out) as { ids: number[]; pieces: string[] }
        expect(printed.ids).toEqual([...ids[key]![c]!])
        expect(printed.pieces).toHaveLength(printed.ids.length)
        expect(Object.keys(printed)).toEqual(["ids", "pieces"])
      }
    })
  }

  test("a GGUF that holds only a vocabulary", async () => {
    const gguf = openGguf(golden("gguf", "llama-f16.gguf"))
    const metadata: Record<string, FixtureValue> = {}
    for (const [key, value] of gguf.metadata) {
      const isInts = value instanceof Int32Array
      metadata[key] = isInts
        ? { type: "array", of: "i32", value: [...value] }
        : (value as FixtureValue)
    }
    writeGguf(at("vocab.gguf"), metadata, [])
    gguf.close()
    const argv = ["-p", "Hello world", "--json"]
    const alone = await kt(["tokenize", at("vocab.gguf"), ...argv])
    expect(alone).toMatchObject({ status: 0, err: "" })
    expect(alone.out).toBe((await kt(["tokenize", golden("gguf", "llama-f16.gguf"), ...argv])).out)
  })

  test("stdin, and a table without --json", async () => {
    const result = await kt(["tokenize", golden("gguf", "llama-f16.gguf"), "--no-special"], {
      stdin: "ab",
    })
    expect(result.status).toBe(0)
    expect(result.out).toMatch(/^ +\d+ {2}"/)
  })
})

describe("kt template", () => {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Grüße  \n" },
  ]

  test("a template of the user's own, without a model: the text and nothing else", async () => {
    writeFileSync(at("m.json"), JSON.stringify({ messages, tools: [{ type: "function" }] }))
    writeFileSync(
      at("t.jinja"),
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}|{{ tools | length }}|{{ mood }}|{{ add_generation_prompt }}",
    )
    writeFileSync(at("vars.json"), '{"mood":"good"}')
    const argv = [
      "template",
      "--template",
      at("t.jinja"),
      "--messages",
      at("m.json"),
      "--vars",
      at("vars.json"),
    ]
    const result = await kt([...argv, "--no-generation-prompt"])
    expect(result).toEqual({
      status: 0,
      err: "",
      out: "<system>Be brief.<user>Grüße  \n|1|good|False",
    })
  })

  test("a model's own, from stdin", async () => {
    const model = golden("gguf", "llama-rope-q4_k_m.gguf")
    const argv = ["template", model, "--messages", "-"]
    const open = await kt(argv, { stdin: JSON.stringify(messages) })
    const closed = await kt([...argv, "--no-generation-prompt"], {
      stdin: JSON.stringify(messages),
    })
    expect(open).toMatchObject({ status: 0, err: "" })
    expect(open.out).toContain("Be brief.")
    expect(open.out).toStartWith(closed.out)
    expect(open.out.length).toBeGreaterThan(closed.out.length)
  })
})

describe("kt perplexity", () => {
  test("as computed from the logits that kt logits writes", async () => {
    const model = golden("gguf", "llama-tied-bf16.gguf")
    const text =
      "The quick brown fox jumps over the lazy dog, and then it rests in the shade of a tree."
    writeFileSync(at("ppl.txt"), text)
    const precise = ["--precision", "f32", "--json"]
    const result = await kt([
      "perplexity",
      model,
      "--file",
      at("ppl.txt"),
      "--ctx",
      "16",
      ...precise,
    ])
    expect(result).toMatchObject({ status: 0, err: "" })
    const { ppl, tokens, windows } = JSON.parse(result.out) as {
      ppl: number
      tokens: number
      windows: number
    }

    const { out } = await kt(["tokenize", model, "--file", at("ppl.txt"), "--json"])
    const { ids } = JSON.parse(out) as { ids: number[] }
    const bos = ids[0]!
    const cut = Array.from({ length: Math.floor(ids.length / 16) }, (_, w) => [
      bos,
      ...ids.slice(w * 16 + 1, w * 16 + 16),
    ])
    expect(windows).toBe(cut.length)
    expect(windows).toBeGreaterThan(1)
    expect(tokens).toBe(7 * windows)
    writeFileSync(at("windows.json"), JSON.stringify(cut))
    await kt([
      "logits",
      model,
      "--ids",
      at("windows.json"),
      "--precision",
      "f32",
      "--out",
      at("w.safetensors"),
    ])
    const written = readGoldenTensors(at("w.safetensors"))
    let sum = 0
    cut.forEach((window, w) => {
      const { shape, f32 } = written.get(`logits.${w}`)!
      const logits = f32()
      for (let position = 8; position < 15; position++) {
        const row = [...logits.subarray(position * shape[1]!, (position + 1) * shape[1]!)]
        sum += Math.log(row.reduce((a, x) => a + Math.exp(x), 0)) - row[window[position + 1]!]!
      }
    })
    expect(ppl).toBeCloseTo(Math.exp(sum / tokens), 3)
  })

  const real = defaultModelPath()
  test.skipIf(!existsSync(real))(
    "the default model is within half a percent of the float reference",
    async () => {
      const { perplexity } = JSON.parse(
        readFileSync(golden("real", "smollm2-135m.json"), "utf8"),
      ) as {
        perplexity: { f32: { ppl: number; chunks: number } }
      }
      const argv = [
        "perplexity",
        real,
        "--file",
        golden("real", "ppl.txt"),
        "--precision",
        "f32",
        "--json",
      ]
      const { out } = await kt(argv)
      const { ppl, tokens } = JSON.parse(out) as { ppl: number; tokens: number }
      expect(tokens).toBe(perplexity.f32.chunks * 255)
      expect(Math.abs(ppl / perplexity.f32.ppl - 1)).toBeLessThan(0.005)
    },
    300_000,
  )
})

interface Row {
  readonly test: string
  readonly threads: number
  readonly median: number
  readonly min: number
  readonly max: number
  readonly limit: number
  readonly share: number
  readonly peers?: { program: string; flags: string[]; median: number; ratio: number }[]
  readonly ratio?: number
}

describe("kt bench", () => {
  const model = golden("gguf", "llama-f16.gguf")
  const small = ["-p", "16", "-n", "8", "-r", "3", "--json"]

  test("rows of exactly the promised form, for each thread count", async () => {
    const result = await kt(["bench", model, ...small, "-t", "1,2"])
    expect(result).toMatchObject({ status: 0, err: "" })
    const { rows } = JSON.parse(result.out) as { rows: Row[] }
    expect(rows.map(({ test: name, threads }) => [name, threads])).toEqual([
      ["pp16", 1],
      ["tg8", 1],
      ["pp16", 2],
      ["tg8", 2],
    ])
    for (const row of rows) {
      expect(Object.keys(row)).toEqual([
        "test",
        "threads",
        "median",
        "min",
        "max",
        "limit",
        "share",
      ])
      expect(row.min).toBeGreaterThan(0)
      expect(row.median).toBeGreaterThanOrEqual(row.min)
      expect(row.max).toBeGreaterThanOrEqual(row.median)
      expect(row.share).toBeCloseTo(row.median / row.limit, 10)
    }
  }, 60_000)

  test("a peer runs once a case and repetition, with llama-bench's flags; one that fails is named", async () => {
    const log = at("peer.log")
    const script = (help: string, rate: string): string => `#!/bin/sh
[ "$1" = --help ] && { echo "${help}"; exit 0; }
echo "$@" >> ${log}
while [ $# -gt 0 ]; do case $1 in -p) p=$2;; -n) n=$2;; -fa) fa=$2;; esac; shift; done
echo "[{\\"n_prompt\\": $p, \\"n_gen\\": $n, \\"avg_ts\\": ${rate}}]"
`
    writeFileSync(at("peer"), script("-m, --model", "100.0"), { mode: 0o755 })
    const peer = ["--peer", at("peer"), "--peer-args", "-x 1"]
    const result = await kt(["bench", model, ...small, "-t", "1", ...peer, "--verbose"])
    expect(result.status).toBe(0)
    const { rows } = JSON.parse(result.out) as { rows: Row[] }
    for (const row of rows) {
      expect(row.peers).toMatchObject([{ program: at("peer"), flags: ["-x", "1"], median: 100 }])
      expect(row.ratio!).toBeCloseTo(row.median / 100, 6)
    }
    const calls = readFileSync(log, "utf8").trim().split("\n")
    expect(calls).toHaveLength(6)
    expect(calls[0]).toBe(`-m ${model} -p 16 -n 0 -t 1 -r 1 -o json -x 1`)
    expect(calls[3]).toBe(`-m ${model} -p 0 -n 8 -t 1 -r 1 -o json -x 1`)
    writeFileSync(at("failing"), "#!/bin/sh\necho no such flag >&2\nexit 3\n", { mode: 0o755 })
    const failed = await kt(["bench", model, ...small, "-t", "1", "--peer", at("failing")])
    expect(failed).toMatchObject({ status: 1, out: "" })
    expect(failed.err).toContain("ended with status 3: no such flag")
    // with flash attention the second is faster, and better than the first
    writeFileSync(at("quick"), script("-fa <0|1>  flash attention", "$((100 + 100 * fa)).0"), {
      mode: 0o755,
    })
    const both = ["--peer", at("peer"), "--peer", at("quick")]
    const two = await kt([
      "bench",
      model,
      "-p",
      "0",
      "-n",
      "8",
      "-r",
      "1",
      "-t",
      "1",
      ...both,
      "--json",
    ])
    const [row] = (JSON.parse(two.out) as { rows: Row[] }).rows
    expect(row!.peers).toMatchObject([{ median: 100 }, { flags: ["-fa", "1"], median: 200 }])
    expect(row!.ratio!).toBeCloseTo(row!.median / 200, 6)
  }, 60_000)

  test("several sequences at once are one row", async () => {
    const argv = ["bench", model, "-p", "0", "-n", "8", "-s", "1,4", "-r", "2", "-t", "1", "--json"]
    const { rows } = JSON.parse((await kt(argv)).out) as { rows: Row[] }
    expect(rows.map((row) => row.test)).toEqual(["tg8", "tg8 x4"])
  }, 30_000)

  test("sweep: each length of context, whose pages the prefix cache holds", async () => {
    const argv = [
      "bench",
      "sweep",
      model,
      "-c",
      "64,128",
      "-p",
      "32",
      "-n",
      "8",
      "-r",
      "2",
      "-t",
      "1",
    ]
    const result = await kt([...argv, "--json"])
    expect(result).toMatchObject({ status: 0, err: "" })
    const { rows } = JSON.parse(result.out) as { rows: Row[] }
    expect(rows.map((row) => row.test)).toEqual(["pp32 @64", "tg8 @64", "pp32 @128", "tg8 @128"])
    for (const row of rows) expect(row.share).toBeGreaterThan(0)
  }, 30_000)

  test("limits: the machine's rates, and what a step takes of them", async () => {
    const model = golden("gguf", "llama-f16.gguf")
    const argv = ["bench", "limits", model, "-t", "1"]
    const { limits, work } = JSON.parse((await kt([...argv, "--json"])).out) as {
      limits: { readBytes: number; rates: Record<string, number> }
      work: { bytes: number; perToken: Record<string, number> }
    }
    expect(limits.readBytes).toBeGreaterThan(1e6)
    for (const kind of Object.keys(work.perToken)) expect(limits.rates[kind]).toBeGreaterThan(1e6)
    expect(work.bytes).toBeGreaterThan(1e4)
    const { out } = await kt([...argv, "-s", "1,4"])
    expect(out).toMatch(/^tg +[\d.]+ tokens\/s$/m)
    expect(out).toMatch(/^tg x4 +[\d.]+ tokens\/s$/m)
  }, 60_000)

  test("roofline", async () => {
    const argv = ["bench", "roofline", "-t", "1", "--seconds", "0.05", "--json"]
    const { limits } = JSON.parse((await kt(argv)).out) as { limits: Record<string, number>[] }
    expect(limits.length).toBeGreaterThan(0)
    for (const row of limits)
      for (const key of ["readBytes", "int4Dot", "intDot", "bf16Dot", "fma"])
        expect(row[key]).toBeGreaterThan(1e6)
  }, 30_000)
})

describe("kt rules explain", () => {
  test("modules, operators and the rule that decides", async () => {
    const model = golden("gguf", "llama-f16.gguf")
    const result = await kt(["rules", "explain", model, "--json"])
    const { rows } = JSON.parse(result.out) as {
      rows: { path: string; replacement: string; rule: string }[]
    }
    const mlp = rows.find(({ path }) => path === "model.layers.0.mlp")
    expect(mlp?.rule).toContain("rules/default-cpu.yaml:")
    const plain = await kt(["rules", "explain", model, "--no-fuse", "--all", "--json"])
    const all = (
      JSON.parse(plain.out) as { rows: { path: string; original: string; replacement: string }[] }
    ).rows
    expect(all.find(({ path }) => path === "model.layers.0.mlp")).toMatchObject({
      original: "LlamaMLP",
      replacement: "LlamaMLP",
    })
  })
})

describe("kt doctor", () => {
  test("findings with a state, and advice for each missing thing", async () => {
    const result = await kt(["doctor", "--json"], { env: { KT_HOME: folder.path } })
    const { findings } = JSON.parse(result.out) as { findings: Record<string, string>[] }
    const names = findings.map(({ section, name }) => `${section}/${name}`)
    for (const name of [
      "CPU/levels",
      "CPU/level in use",
      "Memory/RAM",
      "Memory/huge pages",
      "Libraries/cpu",
      "Libraries/cuda",
      "Models/folder",
    ])
      expect(names).toContain(name)
    for (const f of findings) if (f["state"] !== "ok") expect(f["advice"]).toBeTruthy()
    expect(result.status).toBe(0)
    const forced = await kt(["doctor"], { env: { KT_CPU_ISA: "scalar", KT_HOME: folder.path } })
    expect(forced.out).toMatch(/level in use +scalar \(KT_CPU_ISA says so\)/)
  })
})

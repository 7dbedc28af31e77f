import { afterAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { FILE_TYPES, fileType, tensorType } from "../../src/convert/file-types.ts"
import { planQuantization } from "../../src/convert/quantize-plan.ts"
import { F32, Q6_K, Q8_0 } from "../../src/tensor/dtype.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import { f32, type FixtureTensor, writeGguf } from "../fixtures/gguf.ts"
import { readWhole } from "../fixtures/sources.ts"
import { llamaCpp, missingProgram } from "./llama-cpp.ts"

const folder = mkdtempSync(join(tmpdir(), "kt-plan-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Shape {
  readonly architecture: "llama" | "phi3"
  readonly layers: number
  readonly kvHeads: number
  readonly experts?: number
  readonly tied?: true
  readonly hidden?: number
  readonly inner?: number
}

const SHAPES: Readonly<Record<string, Shape>> = {
  grouped: { architecture: "llama", layers: 20, kvHeads: 1 },
  ungrouped: { architecture: "llama", layers: 9, kvHeads: 4, tied: true },
  fused: { architecture: "phi3", layers: 16, kvHeads: 4 },
  eight: { architecture: "llama", layers: 10, kvHeads: 1, experts: 8 },
  many: { architecture: "llama", layers: 8, kvHeads: 4, experts: 16 },
  narrow: { architecture: "llama", layers: 8, kvHeads: 4, hidden: 96, inner: 256 },
  odd: { architecture: "llama", layers: 2, kvHeads: 4, hidden: 256, inner: 200 },
}

/** A model of zeros whose tensors have the kinds and shapes of a real one, layers in the order of text. */
function model(name: string): string {
  const {
    architecture,
    layers,
    kvHeads,
    experts = 0,
    tied,
    hidden = 256,
    inner = 256,
  } = SHAPES[name]!
  const path = join(folder, `${name}.gguf`)
  const tensors: FixtureTensor[] = []
  const add = (tensor: string, ...shape: number[]): void =>
    void tensors.push({ name: tensor, dtype: F32, shape })
  add("token_embd.weight", 32, hidden)
  add("output_norm.weight", hidden)
  if (tied !== true) add("output.weight", 32, hidden)
  const kv = (hidden / 4) * kvHeads
  for (let i = 0; i < layers; i++) {
    const blk = `blk.${i}`
    add(`${blk}.attn_norm.weight`, hidden)
    if (architecture === "phi3") add(`${blk}.attn_qkv.weight`, hidden + 2 * kv, hidden)
    else {
      add(`${blk}.attn_q.weight`, hidden, hidden)
      add(`${blk}.attn_k.weight`, kv, hidden)
      add(`${blk}.attn_v.weight`, kv, hidden)
    }
    add(`${blk}.attn_output.weight`, hidden, hidden)
    add(`${blk}.ffn_norm.weight`, hidden)
    if (experts > 0) {
      add(`${blk}.ffn_gate_inp.weight`, experts, hidden)
      add(`${blk}.ffn_gate_exps.weight`, experts, inner, hidden)
      add(`${blk}.ffn_up_exps.weight`, experts, inner, hidden)
      add(`${blk}.ffn_down_exps.weight`, experts, hidden, inner)
    } else {
      add(`${blk}.ffn_up.weight`, architecture === "phi3" ? 2 * inner : inner, hidden)
      if (architecture !== "phi3") add(`${blk}.ffn_gate.weight`, inner, hidden)
      add(`${blk}.ffn_down.weight`, hidden, inner)
    }
  }
  writeGguf(
    path,
    {
      "general.architecture": architecture,
      [`${architecture}.block_count`]: layers,
      [`${architecture}.context_length`]: 64,
      [`${architecture}.embedding_length`]: hidden,
      [`${architecture}.feed_forward_length`]: inner,
      [`${architecture}.attention.head_count`]: 4,
      [`${architecture}.attention.head_count_kv`]: kvHeads,
      [`${architecture}.attention.layer_norm_rms_epsilon`]: f32(1e-5),
      [`${architecture}.vocab_size`]: 32,
      ...(experts > 0
        ? { [`${architecture}.expert_count`]: experts, [`${architecture}.expert_used_count`]: 2 }
        : {}),
    },
    tensors,
  )
  return path
}

function planned(gguf: GgufFile, name: string, pure = false): Map<string, string> {
  const plan = planQuantization(gguf, { fileType: fileType(name), hasImatrix: false, pure })
  return new Map(plan.map(({ entry, dtype }) => [entry.name, dtype.name]))
}

describe("types of a file type", () => {
  test("Q4_K_M keeps some of the values and down projections in six bits, the output too", () => {
    const types = planned(openGguf(model("grouped"), readWhole), "Q4_K_M")
    const layersOf = (kind: string): number[] =>
      Array.from({ length: 20 }, (_, i) => i).filter(
        (i) => types.get(`blk.${i}.${kind}.weight`) === "Q6_K",
      )
    expect(layersOf("attn_v")).toEqual([0, 1, 4, 7, 10, 13, 16, 17, 18, 19])
    expect(layersOf("ffn_down")).toEqual(layersOf("attn_v"))
    expect(types.get("output.weight")).toBe("Q6_K")
    expect(types.get("token_embd.weight")).toBe("Q4_K")
    expect(types.get("blk.3.attn_norm.weight")).toBe("F32")
  })

  test("rows that do not fit get the type that does", () => {
    const narrow = planned(openGguf(model("narrow"), readWhole), "Q4_K_M")
    expect(narrow.get("blk.3.attn_q.weight")).toBe("Q5_0")
    expect(narrow.get("blk.0.attn_v.weight")).toBe("Q8_0")
    expect(narrow.get("blk.2.ffn_down.weight")).toBe("Q4_K")
    const odd = planned(openGguf(model("odd"), readWhole), "Q4_K_S")
    expect(odd.get("blk.1.ffn_down.weight")).toBe("F16")
  })

  test("overrides, a pure file, and types of the output and the embedding", () => {
    const gguf = openGguf(model("grouped"), readWhole)
    const plan = planQuantization(gguf, {
      fileType: fileType("q4_k_m"),
      hasImatrix: false,
      overrides: [
        { pattern: /blk\.1\.ffn/, type: Q8_0 },
        { pattern: /ffn_up/, type: Q6_K },
      ],
      embeddingType: Q8_0,
      outputType: tensorType("f16"),
    })
    const types = new Map(plan.map(({ entry, dtype }) => [entry.name, dtype.name]))
    expect(types.get("blk.1.ffn_up.weight")).toBe("Q8_0")
    expect(types.get("blk.2.ffn_up.weight")).toBe("Q6_K")
    expect(types.get("token_embd.weight")).toBe("Q8_0")
    expect(types.get("output.weight")).toBe("F16")
    expect(new Set(planned(gguf, "Q3_K_L", true).values())).toEqual(new Set(["Q3_K", "F32"]))
  })

  test("an unknown name is an error that lists the known ones", () => {
    expect(() => fileType("Q9")).toThrow(/"Q9" is no file type: expected F32, F16/)
    expect(() => tensorType("Q9")).toThrow(/"Q9" is no tensor type/)
  })
})

const reason = missingProgram("llama-quantize")
describe.skipIf(reason !== undefined)(
  `as llama-quantize chooses them [${reason ?? "found"}]`,
  () => {
    for (const shape of Object.keys(SHAPES)) {
      test(shape, () => {
        const path = model(shape)
        const gguf = openGguf(path, readWhole)
        for (const { name } of FILE_TYPES) {
          if (name === "NVFP4") continue // no file type of its own there
          const { text } = llamaCpp("llama-quantize", [
            "--dry-run",
            path,
            join(folder, "o.gguf"),
            name,
          ])
          if (text.includes("no tensor type fallback is defined")) continue // it gives up there
          const theirs = new Map<string, string>()
          for (const line of text.split("\n")) {
            const match = /^\[ *\d+\/ *\d+\] +(\S+) .*type = +(\w+), .*?(?:\((\w+)\))?$/.exec(line)
            if (match !== null) theirs.set(match[1]!, (match[3] ?? match[2]!).toUpperCase())
          }
          expect(theirs.size).toBeGreaterThan(10)
          const ours = planned(gguf, name)
          const differences = [...theirs].filter(([tensor, type]) => ours.get(tensor) !== type)
          expect([name, differences.map(([t, type]) => [t, type, ours.get(t)])]).toEqual([name, []])
        }
      })
    }
  },
)

import { describe, expect, test } from "bun:test"

import { FormatError } from "../../src/errors.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { createModel } from "../../src/models/registry.ts"
import { type GgufFile, openGguf } from "../../src/weights/gguf.ts"
import type { GgufValue } from "../../src/weights/metadata.ts"
import { golden } from "../setup.ts"
import { GGUF_GOLDENS } from "./goldens.ts"

/** Whole numbers that every architecture with them needs, and that are positive. */
const SIZES =
  /^\w[\w-]*\.(block_count|embedding_length|feed_forward_length|context_length|attention\.head_count|expert_feed_forward_length|ssm\.\w+|full_attention_interval|attention\.kv_lora_rank|rope\.dimension_count|expert_used_count)$/
const FLOATS =
  /\.(attention\.layer_norm_rms_epsilon|rope\.freq_base|rope\.scaling\.(factor|yarn_beta_fast|yarn_beta_slow|yarn_log_multiplier)|expert_weights_scale|attention\.scale)$/
const TOKENS = /^tokenizer\.ggml\.(bos|eos|eot|eom)_token_id$/

function withValue(gguf: GgufFile, key: string, value: GgufValue | undefined): GgufFile {
  const metadata = new Map(gguf.metadata)
  if (value === undefined) metadata.delete(key)
  else metadata.set(key, value)
  return { ...gguf, get: (name) => gguf.get(name), metadata }
}

async function complaint(gguf: GgufFile): Promise<string | undefined> {
  try {
    await createModel(configFromGguf(gguf))
    return undefined
  } catch (error) {
    expect(error).toBeInstanceOf(FormatError)
    return (error as FormatError).message
  }
}

describe("impossible metadata", () => {
  test.each([...GGUF_GOLDENS])("%s", async (file) => {
    const gguf = openGguf(golden("gguf", `${file}.gguf`))
    let checked = 0
    for (const key of gguf.metadata.keys()) {
      const values: GgufValue[] = ["x", NaN, -1, Infinity, 2n ** 63n, 1e30, true]
      if (SIZES.test(key)) values.push(0, 0.5)
      else if (TOKENS.test(key)) values.push(0.5, 1e9)
      else if (!FLOATS.test(key)) continue
      for (const value of values) {
        const said = await complaint(withValue(gguf, key, value))
        const label = `${key} = ${String(value)}`
        expect(said, label).toStartWith(`${gguf.path}: `)
        // zero passes as a number and fails as what it is: those messages go by the configuration's name
        if (value !== 0) expect(said, label).toContain(key)
        checked += 1
      }
    }
    gguf.close()
    expect(checked).toBeGreaterThan(60)
  })

  test.each([...GGUF_GOLDENS])("%s: no key, or lists in place of numbers", async (file) => {
    const gguf = openGguf(golden("gguf", `${file}.gguf`))
    const types = new Set(["number", "bigint", "boolean"])
    for (const [key, old] of gguf.metadata) {
      if (!types.has(typeof old)) continue
      for (const value of [undefined, new Int32Array([1, 2]), new Int32Array(0), ["a"]]) {
        // default or FormatError: `complaint` fails for anything else
        const said = await complaint(withValue(gguf, key, value))
        if (said !== undefined) expect(said).toContain(gguf.path)
      }
    }
    gguf.close()
  })
})

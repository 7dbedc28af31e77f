import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"

import { FormatError } from "../../src/errors.ts"
import { configFromJson } from "../../src/models/config-hf.ts"
import { createModel } from "../../src/models/registry.ts"
import { golden } from "../setup.ts"
import { ERNIE } from "./ernie.ts"
import { HF_GOLDENS } from "./goldens.ts"

type Json = Record<string, unknown>

/** Keys of training and of other programs, which nothing here reads. */
const UNREAD =
  /^(attention_dropout|initializer_range|pretraining_tp|aux_loss_alpha|ep_size|num_nextn_predict_layers|pad_token_id|qk_head_dim|embd_pdrop|resid_pdrop|router_aux_loss_coef|router_jitter_noise|experts_per_token|initial_context_length|moe_num_shared_experts|moe_layer_end_index)$/
/** Keys for which none is a number like any other. */
const MAY_BE_ZERO =
  /^(bos_token_id|eos_token_id|mscale|mscale_all_dim|first_k_dense_replace|n_shared_experts|max_window_layers|attn_scale|shared_intermediate_size|moe_layer_start_index)$/
/** Keys for which a thousand million is a number like any other. */
const MAY_BE_LARGE =
  /^(max_position_embeddings|original_max_position_embeddings|sliding_window|sliding_window_size|attention_chunk_size|rope_theta|rope_local_base_freq|factor|high_freq_factor|beta_fast|beta_slow|query_pre_attn_scalar|routed_scaling_factor|floor_scale|first_k_dense_replace|max_window_layers|moe_layer_start_index)$/

function configs(): [string, Json][] {
  const folders = HF_GOLDENS.map((name): [string, Json] => [
    name,
    JSON.parse(readFileSync(join(golden("hf", name), "config.json"), "utf8")) as Json,
  ])
  return [...folders, ["ernie4_5_moe", structuredClone(ERNIE) as Json]]
}

/** Dotted paths of every number in a configuration. */
function numbers(json: Json, at: readonly string[] = []): string[][] {
  return Object.entries(json).flatMap(([key, value]) => {
    if (typeof value === "number") return [[...at, key]]
    const isNested = typeof value === "object" && value !== null && !Array.isArray(value)
    return isNested ? numbers(value as Json, [...at, key]) : []
  })
}

function changed(json: Json, path: readonly string[], value: unknown): Json {
  const copy = structuredClone(json)
  let at = copy
  for (const key of path.slice(0, -1)) at = at[key] as Json
  const last = path.at(-1) ?? ""
  if (value === undefined) delete at[last]
  else at[last] = value
  return copy
}

/** What reading and building say: nothing, or the message of a FormatError; anything else is a failure. */
async function complaint(json: Json): Promise<string | undefined> {
  try {
    await createModel(configFromJson("folder/config.json", json))
    return undefined
  } catch (error) {
    expect(error).toBeInstanceOf(FormatError)
    return (error as FormatError).message
  }
}

describe("impossible values of a key", () => {
  for (const [family, json] of configs()) {
    const paths = numbers(json).filter((path) => !UNREAD.test(path.at(-1) ?? ""))

    test(`${family}: every number is checked, the message names file and key`, async () => {
      expect(paths.length).toBeGreaterThan(7)
      for (const path of paths) {
        const key = path.at(-1) ?? ""
        const values: unknown[] = [-1, "x", {}, 1e300]
        if (!MAY_BE_ZERO.test(key)) values.push(0)
        if (!MAY_BE_LARGE.test(key)) values.push(1e9)
        for (const value of values) {
          const said = await complaint(changed(json, path, value))
          const label = `${path.join(".")} = ${JSON.stringify(value)}`
          expect(said, label).toStartWith("folder/config.json: ")
          expect(said, label).toContain(path[0] ?? "")
          if (!MAY_BE_LARGE.test(key)) expect(said, label).toContain(key)
        }
      }
    })

    test(`${family}: a key that is not there has its default or is named`, async () => {
      for (const path of paths) {
        const key = path.at(-1) ?? ""
        for (const value of [undefined, null]) {
          const said = await complaint(changed(json, path, value))
          if (said !== undefined) expect(said).toContain(path.length > 1 ? (path[0] ?? "") : key)
        }
      }
    })

    test(`${family}: a rope of an unknown type`, async () => {
      for (const at of ["rope_scaling", "rope_parameters"]) {
        const rope = { rope_type: "spiral", rope_theta: 10_000, factor: 2 }
        const others = { rope_scaling: undefined, rope_parameters: undefined, [at]: rope }
        const said = await complaint({ ...json, ...others })
        expect(said).toMatch(
          /^folder\/config\.json: rope_\w+\.rope_type: "spiral" is unknown; known/,
        )
      }
    })

    test(`${family}: a quantisation of an unknown kind`, async () => {
      const said = await complaint({ ...json, quantization_config: { quant_method: "wavelet" } })
      expect(said).toMatch(/^folder\/config\.json: quantization_config\S* .*wavelet/)
    })
  }

  test.each(["model_type", "hidden_act", "layer_types"])("%s of another world", async (key) => {
    const [, json] = configs().find(([name]) => name === "qwen3") ?? ["", {}]
    const said = await complaint({ ...json, [key]: "q'" })
    expect(said).toStartWith(`folder/config.json: ${key}`)
  })

  test.each([null, [], 7, "x"])("a file that holds %j", async (content) => {
    expect(await complaint(content as unknown as Json)).toStartWith("folder/config.json: content")
  })
})

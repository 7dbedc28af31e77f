import { existsSync, readFileSync } from "node:fs"

import { z } from "zod"

import { FormatError } from "../errors.ts"

/** What `quantization_config` says about tensors that the tensors themselves do not. */
export interface Quantization {
  readonly method: "none" | "fp8" | "compressed-tensors" | "gptq" | "awq" | "mxfp4"
  /** File of the configuration, for messages. */
  readonly file: string
  /** Rows and columns that share a scale of an FP8 weight. */
  readonly block: readonly [rows: number, columns: number]
  /** Of GPTQ and AWQ. */
  readonly bits: number
  /** Columns that share a scale, of GPTQ and AWQ; -1: all. */
  readonly groupSize: number
  /** GPTQ's zero points are all in the middle of the codes' range. */
  readonly isSymmetric: boolean
  /** GPTQ may have put the columns in an order of its own, matrix by matrix. */
  readonly isOrdered: boolean
  /** GPTQ's older files store zero points less one. */
  readonly zeroOffset: 0 | 1
}

const METHODS = ["fp8", "compressed-tensors", "gptq", "awq", "mxfp4"] as const
const positive = z.int().positive()
const Config = z.object({
  quant_method: z.enum(METHODS),
  weight_block_size: z.tuple([positive, positive]).nullish(),
  fmt: z.literal("e4m3").nullish(),
  bits: z.literal([4, 8]).nullish(),
  w_bit: z.literal([4, 8]).nullish(),
  group_size: z.union([positive, z.literal(-1)]).nullish(),
  q_group_size: z.union([positive, z.literal(-1)]).nullish(),
  sym: z.boolean().nullish(),
  desc_act: z.boolean().nullish(),
  checkpoint_format: z.enum(["gptq", "gptq_v2"]).nullish(),
  version: z.string().nullish(),
})

/**
 * The `quantization_config` of a config.json (or compressed-tensors' older `compression_config`); a
 * folder without one is unquantized.
 * @throws FormatError that names the key and what was expected
 */
export function readQuantization(file: string): Quantization {
  const plain: Quantization = {
    method: "none",
    file,
    block: [128, 128],
    bits: 4,
    groupSize: -1,
    isSymmetric: false,
    isOrdered: false,
    zeroOffset: 1,
  }
  if (!existsSync(file)) return plain
  const json = z.looseObject({}).safeParse(parse(file)).data ?? {}
  const text = z.looseObject({}).safeParse(json["text_config"]).data ?? {}
  const given =
    json["quantization_config"] ??
    text["quantization_config"] ??
    json["compression_config"] ??
    undefined
  if (given === undefined) return plain
  const result = Config.safeParse(given)
  if (!result.success) {
    const [issue] = result.error.issues
    const key = ["quantization_config", ...(issue?.path ?? [])].join(".")
    const value = (issue?.path ?? []).reduce<unknown>(
      (at, step) => (at as Record<PropertyKey, unknown> | undefined)?.[step],
      given,
    )
    throw new FormatError(file, `${key}: ${JSON.stringify(value)}, ${issue?.message}`, {
      hint: `read are ${METHODS.join(", ")}; else use the model's GGUF or its unquantized checkpoint`,
    })
  }
  const c = result.data
  if (c.quant_method === "awq" && c.version != null && c.version.toLowerCase() !== "gemm")
    throw new FormatError(file, `quantization_config.version: "${c.version}", expected "gemm"`)
  return {
    method: c.quant_method,
    file,
    block: c.weight_block_size ?? [128, 128],
    bits: c.bits ?? c.w_bit ?? 4,
    groupSize: c.group_size ?? c.q_group_size ?? -1,
    isSymmetric: c.sym === true,
    isOrdered: c.desc_act === true,
    zeroOffset: c.checkpoint_format === "gptq_v2" ? 0 : 1,
  }
}

function parse(file: string): unknown {
  try {
    return JSON.parse(readFileSync(file, "utf8"))
  } catch {
    // the configuration's own reader says what is wrong
    return {}
  }
}

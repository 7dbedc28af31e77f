import { ConfigError } from "../errors.ts"
import { type DTypeInfo, F16, F32, Q8_0 } from "../tensor/dtype.ts"
import type { GgufFile } from "../weights/gguf.ts"
import type { WeightEntry } from "../weights/source.ts"
import { chosen, type FileType, type Kind, type Place, tensorType } from "./file-types.ts"

export interface QuantizePlanOptions {
  readonly fileType: FileType
  /** Expressions on tensor names and the types that win over the file type's; the first that matches. */
  readonly overrides?: readonly { readonly pattern: RegExp; readonly type: DTypeInfo }[]
  readonly outputType?: DTypeInfo
  readonly embeddingType?: DTypeInfo
  /** The file type's own type for every tensor. */
  readonly pure?: boolean
  readonly hasImatrix: boolean
}

export interface PlannedTensor {
  readonly entry: WeightEntry
  readonly dtype: DTypeInfo
  /** The type that was wanted, where the rows do not fit its blocks. */
  readonly instead?: DTypeInfo
}

/** Types of a name's end that stay as they are: small, and read as floats. */
const KEPT =
  /_norm\.weight$|ffn_gate_inp\.weight|ssm_conv1d|shortconv\.conv|time_mix_|attn_rel_b|position_embd|token_types/

/** What fits where rows are no multiple of a block of 256 (or 64, or 128). */
const FALLBACKS: Readonly<Record<string, string>> = {
  ...{ IQ1_S: "IQ4_NL", IQ1_M: "IQ4_NL", IQ2_XXS: "IQ4_NL", IQ2_XS: "IQ4_NL", IQ2_S: "IQ4_NL" },
  ...{ IQ3_XXS: "IQ4_NL", IQ3_S: "IQ4_NL", IQ4_XS: "IQ4_NL" },
  ...{ Q2_0: "Q4_0", Q2_K: "Q4_0", Q3_K: "Q4_0", TQ1_0: "Q4_0", TQ2_0: "Q4_0", Q1_0: "Q4_0" },
  ...{ Q4_K: "Q5_0", Q5_K: "Q5_1", Q6_K: "Q8_0", NVFP4: "MXFP4" },
}

/** Which tensor of a file gets which type, in the file's order. */
export function planQuantization(gguf: GgufFile, options: QuantizePlanOptions): PlannedTensor[] {
  const entries = [...gguf.names()].map((name) => gguf.get(name) as WeightEntry)
  const places = placesOf(gguf, entries, options.hasImatrix)
  return entries.map((entry) => {
    if (!isQuantizable(entry)) return { entry, dtype: entry.dtype }
    const wanted = wantedType(entry, places.get(entry.name) as Located, options)
    const dtype = fitting(entry, wanted)
    return dtype === wanted ? { entry, dtype } : { entry, dtype, instead: wanted }
  })
}

/** Matrices and stacks of them, but for those that are small or delicate. */
export function isQuantizable({ name, shape }: WeightEntry): boolean {
  const dims = shape.filter((size) => size > 1).length
  return dims >= 2 && name.endsWith("weight") && !KEPT.test(name)
}

function fitting({ name, shape }: WeightEntry, wanted: DTypeInfo): DTypeInfo {
  const columns = shape.at(-1) as number
  if (columns % wanted.blockSize === 0) return wanted
  const other = tensorType(FALLBACKS[wanted.name] ?? "F16")
  if (columns % other.blockSize === 0) return other
  if (wanted === F32) throw new ConfigError(`tensor "${name}": rows of ${columns} values`)
  return F16
}

function wantedType(entry: WeightEntry, located: Located, options: QuantizePlanOptions): DTypeInfo {
  const { fileType, outputType, embeddingType, overrides = [] } = options
  const { kind, place, is70b } = located
  if (embeddingType !== undefined && entry.name === "token_embd.weight") return embeddingType
  if (outputType !== undefined && entry.name === "output.weight") return outputType
  const base = tensorType(fileType.base)
  if (base.blockSize === 1) return base
  const override = overrides.find(({ pattern }) => pattern.test(entry.name))
  if (override !== undefined) return override.type
  if (options.pure === true) return base
  if (kind === "output") return outputType ?? outputOf(entry, fileType, base)
  const own = chosen(kind === undefined ? undefined : fileType.kinds?.[kind], place)
  const isStack = entry.shape.length === 3 && entry.name.includes("_exps")
  const stacked = isStack ? chosen(fileType.kinds?.experts, place) : undefined
  let name = stacked ?? own ?? fileType.base
  const isValue = kind === "attnV"
  if (is70b && isValue && (name === "Q3_K" || name === "Q4_K")) name = "Q5_K"
  // models of eight experts have small attention beside them
  if (place.experts === 8 && fileType.low !== true && fileType.kinds?.experts === undefined) {
    if (isValue || kind === "attnK") name = "Q8_0"
  }
  return tensorType(name)
}

/** The output matrix, or the embedding that is it, is kept better than the rest. */
function outputOf(entry: WeightEntry, fileType: FileType, base: DTypeInfo): DTypeInfo {
  if (fileType.kinds?.experts !== undefined) return Q8_0
  if ((entry.shape.at(-1) as number) % base.blockSize !== 0 || base === Q8_0) return Q8_0
  const own = fileType.kinds?.output
  return tensorType(typeof own === "string" ? own : "Q6_K")
}

interface Located {
  readonly kind: Kind | undefined
  readonly place: Place
  readonly is70b: boolean
}

function kindOf(name: string, isTied: boolean): Kind | undefined {
  if (name === "output.weight") return "output"
  if (name === "token_embd.weight") return isTied ? "output" : "embedding"
  if (/attn_(v|qkv|kv_b)\.weight/.test(name)) return "attnV"
  if (name.includes("attn_k.weight")) return "attnK"
  if (name.includes("attn_q.weight")) return "attnQ"
  if (name.includes("attn_output.weight")) return "attnOutput"
  if (name.includes("ffn_up")) return "ffnUp"
  if (name.includes("ffn_gate")) return "ffnGate"
  return name.includes("ffn_down") ? "ffnDown" : undefined
}

/** Every tensor's kind and number among its kind, counted by layers whatever the file's order is. */
function placesOf(
  gguf: GgufFile,
  entries: readonly WeightEntry[],
  hasImatrix: boolean,
): Map<string, Located> {
  const number = (key: string): number =>
    firstNumber(gguf.metadata.get(`${gguf.architecture}.${key}`))
  const layers = number("block_count")
  const heads = number("attention.head_count")
  const kvHeads = number("attention.head_count_kv") || heads
  const gqa = kvHeads === 0 ? 1 : heads / kvHeads
  const experts = number("expert_count")
  const is70b = layers === 80 && gqa > 1 && /^(llama|qwen2)$/.test(gguf.architecture)
  const isTied = gguf.get("output.weight") === undefined
  const seen = new Map<string, number>()
  const values = entries.filter(({ name }) => kindOf(name, isTied) === "attnV").length
  const located = new Map<string, Located>()
  const ordered = entries.toSorted((a, b) => layerOf(a.name) - layerOf(b.name))
  for (const { name } of ordered) {
    const kind = kindOf(name, isTied)
    const counter = kind ?? ""
    const rank = seen.get(counter) ?? 0
    seen.set(counter, rank + 1)
    const isFeedForward = kind === "ffnDown" || kind === "ffnUp" || kind === "ffnGate"
    const index = isFeedForward && experts > 1 ? layerOf(name) : rank
    const count = kind === "attnV" ? values : layers
    located.set(name, { kind, place: { index, count, gqa, experts, hasImatrix }, is70b })
  }
  return located
}

function layerOf(name: string): number {
  const match = /^blk\.(\d+)\./.exec(name)
  return match === null ? -1 : Number(match[1])
}

/** Some models store one number per layer. */
function firstNumber(value: unknown): number {
  const one = ArrayBuffer.isView(value) ? (value as Uint32Array)[0] : value
  return typeof one === "number" ? one : typeof one === "bigint" ? Number(one) : 0
}

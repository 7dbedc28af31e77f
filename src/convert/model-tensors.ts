import { FormatError } from "../errors.ts"
import type { ModelConfig } from "../models/config.ts"
import { RMSNorm } from "../nn/layers.ts"
import { type Module, namedModules, type RowGroups } from "../nn/module.ts"
import { dtypeById, type DTypeInfo, F32 } from "../tensor/dtype.ts"
import { byteLength } from "../tensor/tensor.ts"
import { resolveWeights, type WeightRequest } from "../weights/load.ts"
import { repackMxfp4 } from "../weights/mxfp4.ts"
import { ggufName } from "../weights/names.ts"
import type { SafetensorsFile } from "../weights/safetensors.ts"
import type { WeightEntry } from "../weights/source.ts"
import { transposeStack } from "../weights/transposed.ts"

const MXFP4 = dtypeById(39) as DTypeInfo

/** Rows of a tensor to write, in order: of one stored tensor, or computed ones. */
export type RowSource =
  | {
      readonly kind: "stored"
      readonly entry: WeightEntry
      readonly first: number
      readonly count: number
    }
  /** Bytes of `dtype` made when they are needed: all of one matrix. */
  | {
      readonly kind: "made"
      readonly dtype: DTypeInfo
      readonly rows: number
      readonly bytes: () => Uint8Array
    }

/** A tensor of the GGUF and where its values come from. */
export interface ModelTensor {
  readonly name: string
  readonly shape: readonly number[]
  readonly sources: readonly RowSource[]
  /** Rows come in groups of `size`, of which `order[i]` is written as number i. */
  readonly permutation?: { readonly size: number; readonly order: readonly number[] }
  /** What each value becomes. */
  readonly map?: (value: number) => number
  /** Stored blocks of this type are written as they are. */
  readonly raw?: DTypeInfo
  /** Source tensors whose pages are not needed any more afterwards. */
  readonly entries: readonly WeightEntry[]
}

/**
 * The tensors of a model as GGUF has them: the model's own parameters, found in the checkpoint as the loader finds them,
 * under the architecture's names, and rearranged where the two layouts differ.
 */
export function modelTensors(
  root: Module,
  config: ModelConfig,
  weights: SafetensorsFile,
  architecture: string,
  interleaved: boolean,
): ModelTensor[] {
  const norms = offsetNorms(root)
  const tensors = new Map<string, ModelTensor>()
  for (const request of resolveWeights(root, weights)) {
    for (const tensor of tensorsOf(request, config, weights, architecture)) {
      if (tensors.has(tensor.name)) continue // several parameters are rows of it
      const permutation = interleaved ? ropePermutation(request, config) : undefined
      const map = norms.has(request.path) ? plusOne : valueMap(request.path)
      tensors.set(tensor.name, {
        ...tensor,
        ...(permutation === undefined ? {} : { permutation }),
        ...(map === undefined ? {} : { map }),
      })
    }
  }
  return [...tensors.values()].toSorted((a, b) => layerOf(a.name) - layerOf(b.name))
}

/** The embedding first, then layer by layer, then the output. */
function layerOf(name: string): number {
  const layer = /^blk\.(\d+)\./.exec(name)
  if (layer !== null) return Number(layer[1])
  return name.startsWith("token_embd") ? -1 : 1e9
}

function tensorsOf(
  request: WeightRequest,
  config: ModelConfig,
  weights: SafetensorsFile,
  architecture: string,
): ModelTensor[] {
  const { path, parameter, entries, transposed } = request
  const first = entries[0] as WeightEntry
  // a tied head has no tensor of its own
  if (parameter.fallback !== undefined && !weightIsOwn(request)) return []
  if (/\.kv_b_proj\.weight$/.test(path)) return splitLatent(request, config, weights, architecture)
  const name = ggufName(architecture, path)
  if (name === undefined)
    throw new FormatError(
      first.file,
      `tensor "${first.name}": ${architecture} has no name for ${path}`,
    )
  if (transposed !== undefined) return [{ ...turned(request, weights), name, entries }]
  if (request.grouped !== undefined) {
    const { shape } = parameter
    return [{ name, shape, sources: gathered(asMatrix(first), request.grouped), entries }]
  }
  const whole = entries.map((stored): RowSource => {
    const entry = asMatrix(stored)
    const count = entry.shape.slice(0, -1).reduce((a, b) => a * b, 1)
    return { kind: "stored", entry, first: 0, count }
  })
  const shape = entries.length > 1 ? parameter.shape : squeezed(first.shape)
  return [{ name, shape, sources: whole, entries }]
}

/** A vector's values as rows of one. */
function asMatrix(entry: WeightEntry): WeightEntry {
  return entry.shape.length === 1 ? { ...entry, shape: [entry.shape[0] as number, 1] } : entry
}

function weightIsOwn({ path, entries: [entry], parameter }: WeightRequest): boolean {
  const tail = (name: string | undefined): string => (name ?? "").split(".").slice(-2).join(".")
  return tail(entry?.name) === tail(path) || tail(entry?.name) !== tail(parameter.fallback)
}

/** Convolutions are stored with a dimension of one channel. */
function squeezed(shape: readonly number[]): readonly number[] {
  return shape.length === 3 && shape[1] === 1 ? [shape[0] as number, shape[2] as number] : shape
}

/** A part's rows of a fused projection, group by group. */
function gathered(entry: WeightEntry, { groups, size, start, count }: RowGroups): RowSource[] {
  return Array.from({ length: groups }, (_, g) => ({
    kind: "stored",
    entry,
    first: g * size + start,
    count,
  }))
}

/** A stack that is laid out the other way, one expert at a time. */
function turned(
  { parameter, entries, transposed }: WeightRequest,
  weights: SafetensorsFile,
): Omit<ModelTensor, "name" | "entries"> {
  const { shape } = parameter
  const [first, scales] = entries as [WeightEntry, WeightEntry | undefined]
  const part = transposed as NonNullable<typeof transposed>
  const [experts = 1, rows = 1] = shape
  const one = [1, ...shape.slice(1)]
  const slice = (entry: WeightEntry, expert: number): Uint8Array => {
    const size = entry.byteLength / experts
    return weights.bytes(entry.name).subarray(expert * size, (expert + 1) * size)
  }
  const dtype = scales === undefined ? first.dtype : MXFP4
  const isVector = shape.length === 2
  const sources = Array.from({ length: experts }, (_, expert): RowSource => ({
    kind: "made",
    dtype,
    rows: isVector ? 1 : rows,
    bytes: () => {
      const out = new Uint8Array(byteLength(dtype, one))
      if (scales !== undefined)
        repackMxfp4(slice(first, expert), slice(scales, expert), out, one, part)
      // a row of values is a matrix of one column
      else
        transposeStack(slice(first, expert), out, isVector ? [1, rows, 1] : one, {
          width: rows,
          ...part,
        })
      return out
    },
  }))
  return { shape, sources, ...(scales === undefined ? {} : { raw: MXFP4 }) }
}

/** Per head: keys' rows [nope, rank], which GGUF has transposed, then values' rows [v, rank]. */
function splitLatent(
  { path, entries }: WeightRequest,
  config: ModelConfig,
  weights: SafetensorsFile,
  architecture: string,
): ModelTensor[] {
  const entry = entries[0] as WeightEntry
  const { mla, num_attention_heads: heads } = config
  if (mla === undefined)
    throw new FormatError(entry.file, `tensor "${entry.name}": no latent attention`)
  const { qk_nope_head_dim: nope, v_head_dim: value, kv_lora_rank: rank } = mla
  const named = (part: string): string =>
    ggufName(architecture, path.replace("kv_b_proj", part)) as string
  const rowBytes = entry.byteLength / (entry.shape[0] as number)
  const headRow = (head: number): number => head * (nope + value)
  const keys = Array.from({ length: heads }, (_, head): RowSource => ({
    kind: "made",
    dtype: entry.dtype,
    rows: rank,
    bytes: () => {
      const from = headRow(head) * rowBytes
      const stored = weights.bytes(entry.name).subarray(from, from + nope * rowBytes)
      const out = new Uint8Array(stored.length)
      transposeStack(stored, out, [1, rank, nope], { name: "", start: 0, step: 1, width: rank })
      return out
    },
  }))
  const values = Array.from({ length: heads }, (_, head): RowSource => ({
    kind: "stored",
    entry,
    first: headRow(head) + nope,
    count: value,
  }))
  return [
    { name: named("k_b_proj"), shape: [heads, rank, nope], sources: keys, entries: [] },
    { name: named("v_b_proj"), shape: [heads, value, rank], sources: values, entries },
  ]
}

const ROTATED = /\.self_attn\.(q_proj|k_proj)\.(weight|bias)$/

/** Halves (i, i + n) of each head as pairs (2i, 2i + 1). */
function ropePermutation(
  { path }: WeightRequest,
  { head_dim: size, rope }: ModelConfig,
): ModelTensor["permutation"] {
  if (rope.interleaved || !ROTATED.test(path)) return undefined
  const half = rope.rotary_dim / 2
  const order = Array.from({ length: size }, (_, i) =>
    i < 2 * half ? Math.floor(i / 2) + (i % 2) * half : i,
  )
  return { size, order }
}

/** Paths of norms that are stored as w of (1 + w). */
function offsetNorms(root: Module): Set<string> {
  const paths = new Set<string>()
  for (const [path, module] of namedModules(root))
    if (module instanceof RMSNorm && module.offset === 1) paths.add(`${path}.weight`)
  return paths
}

function plusOne(value: number): number {
  return value + 1
}

/** A delta net's decay is stored as the logarithm of its negative. */
function valueMap(path: string): ((value: number) => number) | undefined {
  return path.endsWith(".A_log") ? (value) => -Math.exp(value) : undefined
}

/** The type of tensors that stay floats: norms, biases, and everything of one dimension. */
export const VECTOR_DTYPE: DTypeInfo = F32

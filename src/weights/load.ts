import { FormatError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import {
  type Module,
  namedModules,
  type Parameter,
  type RowGroups,
  type TransposedStack,
} from "../nn/module.ts"
import {
  BF16,
  type DTypeInfo,
  F16,
  F32,
  F64,
  I8,
  I16,
  I32,
  I64,
  isComputable,
  MXFP4,
} from "../tensor/dtype.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import type { GgufFile } from "./gguf.ts"
import { gatherRows } from "./grouped.ts"
import { repackMxfp4 } from "./mxfp4.ts"
import { type CheckpointNames, checkpointNames, CONFIG_TENSORS } from "./names.ts"
import type { SafetensorsFile } from "./safetensors.ts"
import type { WeightEntry } from "./source.ts"
import { columnsOf, transposeStack } from "./transposed.ts"
import { toFloat32, VECTOR_TYPES } from "./vector.ts"

export interface LoadOptions {
  /** Where modules compute that have no device of their own. */
  readonly backend: Backend
  /** The CPU, where the file is mapped and stacks are made before they go to `backend`; by default `backend` itself. */
  readonly host?: Backend
  /** Rearranges a weight for the kernels, or null where they read it as it is; undefined: nothing is rearranged. */
  readonly pack?: (weight: Tensor) => Tensor | null
  /** Bytes taken over so far, of all. */
  readonly onProgress?: (done: number, total: number) => void
  /** What a user should know about what is not loaded. */
  readonly onNote?: (note: string) => void
}

/** Where the weights of a loaded model lie. Dispose of it, then close the checkpoint, when the model is done. */
export interface LoadedWeights extends Disposable {
  /** Read where the file is mapped. */
  readonly mappedBytes: number
  /** Rearranged or stacked, in memory of their own. */
  readonly packedBytes: number
  /** Norms and biases, as F32. */
  readonly vectorBytes: number
}

/** Problems listed in one message; more are counted. */
const MAX_LISTED = 12
/** Vectors start on cache lines. */
const VECTOR_ALIGN = 16

const TRANSPOSABLE: ReadonlySet<DTypeInfo> = new Set([F32, F16, BF16])
const NOT_WEIGHTS: ReadonlySet<DTypeInfo> = new Set([I8, I16, I32, I64, F64])

/**
 * Gives every parameter of the tree its tensor. Large weights stay in the mapped file or are rearranged (`pack`), experts
 * stored one by one are stacked, norms and biases become F32.
 * @throws FormatError that names every tensor that is missing, of another shape, of a type that no kernel reads, or unused
 */
export function loadWeights(
  root: Module,
  weights: GgufFile | SafetensorsFile,
  options: LoadOptions,
): LoadedWeights {
  const requests = resolveAll(root, weights)
  const { isOther } = checkpointNames(weights)
  const vision = [...weights.names()].filter(isOther).length
  if (vision > 0)
    options.onNote?.(
      `${vision} tensors of the vision part are passed over: the text model runs alone`,
    )
  const widened = requests.flatMap(({ entries }) =>
    entries.filter(({ build, dtype }) => build !== undefined && dtype === F32),
  )
  if (widened.length > 0)
    options.onNote?.(
      `${widened.length} quantised tensors are widened to F32, ${gib(bytesOf(widened))} GiB: no type of the kernels holds their scales`,
    )
  const binder = new Binder(weights, requests, options)
  try {
    binder.bindAll()
    for (const [, module] of namedModules(root))
      module.materialize(module.backend ?? options.backend)
  } catch (error) {
    binder[Symbol.dispose]()
    throw error
  }
  return binder
}

export { resolveAll as resolveWeights, type Request as WeightRequest }

/** A parameter and the stored tensors it is made of: one, or one per expert. */
interface Request {
  readonly path: string
  readonly module: Module
  readonly parameter: Parameter
  readonly entries: readonly WeightEntry[]
  /** The entry is laid out like this; two entries are MXFP4 codes and scales, whose rows are not transposed. */
  readonly transposed?: TransposedStack
  /** The parameter's rows are these of the entry. */
  readonly grouped?: RowGroups
}

/** Finds and checks all tensors before anything is allocated. */
function resolveAll(root: Module, weights: GgufFile | SafetensorsFile): Request[] {
  const names = checkpointNames(weights)
  const problems: string[] = []
  const used = new Set<string>()
  const requests: Request[] = []
  let layers = 0
  for (const [modulePath, module] of namedModules(root)) {
    const layer = /^(?:model\.layers|encoder\.layers?)\.(\d+)$/.exec(modulePath)
    if (layer !== null) layers = Math.max(layers, Number(layer[1]) + 1)
    for (const parameter of module.parameters()) {
      const path = parameterPath(modulePath, parameter.name)
      const { transposed } = parameter
      // looked for first: the stack may have the parameter's own name
      if (transposed !== undefined && weights.kind === "safetensors") {
        const entries = findStack(sibling(path, transposed.name), weights, names)
        if (entries.length > 0) {
          for (const { name } of entries) used.add(name)
          problems.push(...checkStack(entries, parameter, transposed))
          requests.push({ path, module, parameter, entries, transposed })
          continue
        }
      }
      const { grouped } = parameter
      const fused = grouped && weights.get(names.stored(besides(path, grouped.of)) ?? "")
      if (grouped !== undefined && fused !== undefined) {
        used.add(fused.name)
        const shape = [grouped.groups * grouped.size, ...parameter.shape.slice(1)]
        const problem = checkEntry(fused, { ...parameter, shape }, 1)
        if (problem !== undefined) problems.push(problem)
        requests.push({ path, module, parameter, entries: [fused], grouped })
        continue
      }
      const entries = find(path, parameter, weights, names)
      if (entries === undefined) {
        const stored = names.stored(path)
        problems.push(
          `missing ${stored ?? path}${stored === undefined ? " (no name for it in this format)" : ""}`,
        )
        continue
      }
      for (const entry of entries) {
        used.add(entry.name)
        const problem = checkEntry(entry, parameter, entries.length)
        if (problem !== undefined) problems.push(problem)
      }
      requests.push({ path, module, parameter, entries })
    }
  }
  for (const name of weights.names()) {
    if (used.has(name) || names.isOther(name) || isTolerated(name, layers, used)) continue
    problems.push(`unused ${name}`)
  }
  if (problems.length > 0) {
    const listed = problems.slice(0, MAX_LISTED).join("; ")
    const more = problems.length > MAX_LISTED ? `; and ${problems.length - MAX_LISTED} more` : ""
    throw new FormatError(weights.path, `does not fit the model: ${listed}${more}`)
  }
  return requests
}

/** "….experts.gate_proj.bias", "gate_up_proj_bias" → "….experts.gate_up_proj_bias" */
function sibling(path: string, name: string): string {
  const whole = path.replace(/\.(weight|bias)$/, "")
  return `${whole.slice(0, whole.lastIndexOf(".") + 1)}${name}`
}

/** "….self_attn.q_proj.weight", "wqkv" → "….self_attn.wqkv.weight" */
function besides(path: string, module: string): string {
  return path.replace(/[^.]+(\.[^.]+)$/, `${module}$1`)
}

/** Where a module's parameter is in the tree. */
export function parameterPath(modulePath: string, name: string): string {
  if (!name.startsWith("../")) return modulePath === "" ? name : `${modulePath}.${name}`
  const parent = modulePath.slice(0, Math.max(modulePath.lastIndexOf("."), 0))
  return parameterPath(parent, name.slice(3))
}

function find(
  path: string,
  parameter: Parameter,
  weights: GgufFile | SafetensorsFile,
  names: CheckpointNames,
): WeightEntry[] | undefined {
  for (const candidate of [path, parameter.fallback]) {
    const stored = candidate === undefined ? undefined : names.stored(candidate)
    const entry = stored === undefined ? undefined : weights.get(stored)
    if (entry !== undefined) return [entry]
  }
  if (parameter.kind !== "experts") return undefined
  const experts: WeightEntry[] = []
  for (let i = 0; i < (parameter.shape[0] as number); i++) {
    const stored = names.storedExpert(path, i)
    const entry = stored === undefined ? undefined : weights.get(stored)
    if (entry === undefined) return undefined
    experts.push(entry)
  }
  return experts
}

function checkEntry(entry: WeightEntry, parameter: Parameter, count: number): string | undefined {
  const { kind } = parameter
  const expected = kind === "experts" && count > 1 ? parameter.shape.slice(1) : parameter.shape
  const { dtype, shape, name } = entry
  if (!(entry.isFlat ? isSameSize(entry, expected) : isSameShape(shape, expected))) {
    return `${name} has shape [${shape.join(", ")}], expected [${expected.join(", ")}]`
  }
  const readable =
    kind === "vector" ? VECTOR_TYPES.has(dtype) : isComputable(dtype) && !NOT_WEIGHTS.has(dtype)
  return readable ? undefined : `${name} is of type ${dtype.name}, which no kernel reads here`
}

/** Where only bytes are stored: rows must be whole blocks. */
function isSameSize({ dtype, shape }: WeightEntry, expected: readonly number[]): boolean {
  return product(shape) === product(expected) && (expected.at(-1) ?? 0) % dtype.blockSize === 0
}

/** Dimensions of 1 do not change where values lie: converters leave them out. */
function isSameShape(shape: readonly number[], expected: readonly number[]): boolean {
  const [a, b] = [shape, expected].map((sizes) => sizes.filter((size) => size !== 1))
  return a?.length === b?.length && a?.every((size, i) => size === b?.[i]) === true
}

/** A stack as one tensor, or as MXFP4 codes and scales. */
function findStack(path: string, weights: SafetensorsFile, names: CheckpointNames): WeightEntry[] {
  const entryOf = (name: string): WeightEntry | undefined => weights.get(names.stored(name) ?? "")
  const plain = entryOf(path)
  if (plain !== undefined) return [plain]
  const codes = entryOf(`${path}_blocks`)
  const scales = entryOf(`${path}_scales`)
  return codes === undefined || scales === undefined ? [] : [codes, scales]
}

function checkStack(
  entries: readonly WeightEntry[],
  { shape: wanted, kind }: Parameter,
  { width = wanted[1] as number }: TransposedStack,
): string[] {
  const [experts = 0, , columns] = wanted
  const problems: string[] = []
  const expectShape = ({ name, shape }: WeightEntry, expected: readonly number[]): void => {
    if (shape.length === expected.length && shape.every((size, i) => size === expected[i])) return
    problems.push(`${name} has shape [${shape.join(", ")}], expected [${expected.join(", ")}]`)
  }
  const expectType = ({ name, dtype }: WeightEntry, isFit: boolean): void => {
    if (!isFit) problems.push(`${name} is of type ${dtype.name}, which no kernel reads here`)
  }
  const [first, scales] = entries as [WeightEntry, WeightEntry | undefined]
  if (scales === undefined) {
    expectShape(first, columns === undefined ? [experts, width] : [experts, columns, width])
    expectType(first, (kind === "vector" ? VECTOR_TYPES : TRANSPOSABLE).has(first.dtype))
    return problems
  }
  const blocks = Math.ceil((columns ?? 0) / 32)
  expectShape(first, [experts, width, blocks, 16])
  expectShape(scales, [experts, width, blocks])
  expectType(first, first.dtype.name === "U8")
  expectType(scales, scales.dtype.name === "U8")
  return problems
}

/** Tensors that files hold and models of this kind do without. */
function isTolerated(name: string, layers: number, used: ReadonlySet<string>): boolean {
  if (CONFIG_TENSORS.has(name)) return true
  // buffers that old exports stored: angles are computed here
  if (/(^|\.)rotary_emb(_local)?\.inv_freq$|\.attn_rot_embd\.weight$|\.masked_bias$/.test(name))
    return true
  // layers behind the last are for predicting several tokens at once (MTP)
  const layer =
    /^(?:model\.(?:language_model\.)?layers|language_model\.model\.layers|blk)\.(\d+)\./.exec(name)
  if (layer !== null && Number(layer[1]) >= layers) return true
  if (/^(mtp\.|model\.mtp_)/.test(name)) return true
  // what BERT was trained with beside its states
  if (
    /^(bert\.)?(embeddings\.position_ids$|pooler\.)|^cls\.(predictions|seq_relationship)\./.test(
      name,
    )
  )
    return true
  // a tied head stored once more
  return (
    /(^|\.)lm_head\.weight$/.test(name) && [...used].some((n) => n.endsWith("embed_tokens.weight"))
  )
}

/** Carries out the requests and owns what it allocates. */
class Binder implements LoadedWeights {
  mappedBytes = 0
  packedBytes = 0
  vectorBytes = 0
  readonly #weights: GgufFile | SafetensorsFile
  readonly #requests: readonly Request[]
  readonly #options: LoadOptions
  readonly #owned: Tensor[] = []
  readonly #mapped = new Map<string, Tensor>()
  /** What lies on devices as the file has it, by the device and the file's name of it. */
  readonly #uploaded = new Map<string, Tensor>()
  readonly #host: Backend

  constructor(
    weights: GgufFile | SafetensorsFile,
    requests: readonly Request[],
    options: LoadOptions,
  ) {
    this.#weights = weights
    this.#requests = requests
    this.#options = options
    this.#host = options.host ?? options.backend
  }

  bindAll(): void {
    const { onProgress } = this.#options
    const total = this.#requests.reduce((sum, { entries }) => sum + bytesOf(entries), 0)
    const vectors = this.#requests.filter(({ parameter }) => parameter.kind === "vector")
    const devices = new Set(vectors.map((request) => this.#deviceOf(request)))
    for (const device of devices)
      this.#bindVectors(
        vectors.filter((request) => this.#deviceOf(request) === device),
        device,
      )
    let done = vectors.reduce((sum, { entries }) => sum + bytesOf(entries), 0)
    onProgress?.(done, total)
    for (const request of this.#requests) {
      const { parameter, entries } = request
      if (parameter.kind === "vector") continue
      parameter.bind(this.#matrix(request))
      done += bytesOf(entries)
      onProgress?.(done, total)
    }
  }

  #deviceOf({ module }: Request): Backend {
    return module.backend ?? this.#options.backend
  }

  /** All vectors of a device lie in one allocation: they are many and small. */
  #bindVectors(requests: readonly Request[], device: Backend): void {
    const sizes = requests.map(
      ({ parameter: { rows, shape } }) =>
        Math.ceil((rows?.count ?? product(shape)) / VECTOR_ALIGN) * VECTOR_ALIGN,
    )
    const total = sizes.reduce((a, b) => a + b, 0)
    if (total === 0) return
    const all = this.#own(Tensor.allocate(device, F32, [total]))
    const values = new Float32Array(total)
    let start = 0
    requests.forEach(({ parameter, entries, transposed, grouped }, i) => {
      const entry = entries[0] as WeightEntry
      const stored = toFloat32(entry.dtype, this.#weights.bytes(entry.name))
      const { shape } = parameter
      const whole =
        transposed !== undefined
          ? columnsOf(stored, shape, transposed)
          : grouped !== undefined
            ? gatherRows(stored, new Float32Array(product(shape)), grouped)
            : stored
      const { start: first, count } = parameter.rows ?? { start: 0, count: whole.length }
      values.set(whole.subarray(first, first + count), start)
      const vector = all.narrow(0, start, count)
      parameter.bind(shape.length === 1 ? vector : vector.unflatten(0, shape))
      start += sizes[i] as number
    })
    all.write(values)
    this.vectorBytes += total * 4
  }

  #matrix(request: Request): Tensor {
    const { parameter, entries, transposed, grouped } = request
    const device = this.#deviceOf(request)
    const { kind, shape, rows } = parameter
    const isBuilt = entries[0]?.build !== undefined
    const isStacked =
      isBuilt || entries.length > 1 || transposed !== undefined || grouped !== undefined
    const whole =
      transposed !== undefined
        ? this.#transpose(entries, shape, transposed)
        : grouped !== undefined
          ? this.#gather(entries[0] as WeightEntry, shape, grouped)
          : entries.length > 1
            ? this.#stack(entries, shape)
            : isBuilt
              ? this.#build(entries[0] as WeightEntry, shape, rows)
              : this.#mapping(entries[0] as WeightEntry, shape)
    const isPlain = transposed === undefined && grouped === undefined && entries.length === 1
    const isCut = rows === undefined || (isBuilt && isPlain)
    const stored = isCut ? whole : whole.narrow(0, rows.start, rows.count)
    parameter.look?.(stored)
    if (this.#host !== device) {
      const name = !isStacked && isCut ? `${device.label} ${entries[0]?.name}` : undefined
      const placed = this.#upload(stored, device, kind === "table", name)
      if (isStacked) whole[Symbol.dispose]()
      return placed
    }
    const converted = parameter.convert?.(stored) ?? null
    const tensor = converted ?? stored
    const packed = kind === "table" ? null : (this.#options.pack?.(tensor) ?? null)
    if (packed !== null || converted !== null) {
      if (isStacked) whole[Symbol.dispose]()
      else for (const entry of entries) this.#weights.drop(entry.name)
      this.packedBytes += byteLength(tensor.dtype, tensor.shape)
      if (packed !== null) converted?.[Symbol.dispose]()
      return this.#own(packed ?? tensor)
    }
    if (isStacked) {
      this.packedBytes += byteLength(tensor.dtype, tensor.shape)
      return this.#own(tensor)
    }
    this.mappedBytes += byteLength(tensor.dtype, tensor.shape)
    return tensor
  }

  /** A copy of a weight of the host on the device, rearranged where that is asked for. */
  #upload(weight: Tensor, backend: Backend, isTable: boolean, name: string | undefined): Tensor {
    const known = name === undefined ? undefined : this.#uploaded.get(name)
    if (known !== undefined && isTable) return known
    const { pack } = this.#options
    const bytes = byteLength(weight.dtype, weight.shape)
    const copy = known ?? Tensor.allocate(backend, weight.dtype, weight.shape)
    if (known === undefined) backend.copy(copy.data, weight.data, bytes)
    const packed = isTable ? null : (pack?.(copy) ?? null)
    if (packed !== null) {
      if (known === undefined) copy[Symbol.dispose]()
      this.packedBytes += bytes
      return this.#own(packed)
    }
    if (known !== undefined) return known
    if (name !== undefined) this.#uploaded.set(name, copy)
    this.packedBytes += bytes
    return this.#own(copy)
  }

  /** The tensor where the file is mapped; the mapping stays reachable through it. */
  #mapping(entry: WeightEntry, shape: readonly number[]): Tensor {
    let tensor = this.#mapped.get(entry.name)
    if (tensor === undefined) {
      tensor = new Tensor(this.#host, entry.dtype, shape, entry.address, {
        owner: this.#weights,
        persistent: true,
      })
      this.#mapped.set(entry.name, tensor)
    }
    return tensor
  }

  /** A weight whose values are made of other tensors'. */
  #build(entry: WeightEntry, shape: readonly number[], rows: Parameter["rows"]): Tensor {
    const kept = rows === undefined ? shape : [rows.count, ...shape.slice(1)]
    const out = Tensor.allocate(this.#host, entry.dtype, kept)
    if (rows === undefined) entry.build?.(out.bytes())
    else {
      const row = byteLength(entry.dtype, [1, ...shape.slice(1)])
      const bytes = this.#weights.bytes(entry.name)
      out.bytes().set(bytes.subarray(rows.start * row, (rows.start + rows.count) * row))
    }
    this.#weights.drop(entry.name)
    return out
  }

  /** [experts, out, in] from matrices [out, in] of one type. */
  #stack(entries: readonly WeightEntry[], shape: readonly number[]): Tensor {
    const { dtype } = entries[0] as WeightEntry
    const other = entries.find((entry) => entry.dtype !== dtype)
    if (other !== undefined) {
      throw new FormatError(
        other.file,
        `tensor "${other.name}": is ${other.dtype.name}, expert 0 of its layer is ${dtype.name}`,
      )
    }
    const stack = Tensor.allocate(this.#host, dtype, shape)
    entries.forEach((entry, i) => {
      const to = stack.select(i).bytes()
      if (entry.build === undefined) to.set(this.#weights.bytes(entry.name))
      else entry.build(to)
      this.#weights.drop(entry.name)
    })
    return stack
  }

  /** [experts, out, in] from a stack that is laid out the other way, or from MXFP4 codes and scales. */
  #transpose(
    entries: readonly WeightEntry[],
    shape: readonly number[],
    part: TransposedStack,
  ): Tensor {
    const [first, scales] = entries as [WeightEntry, WeightEntry | undefined]
    const dtype = scales === undefined ? first.dtype : MXFP4
    const stack = Tensor.allocate(this.#host, dtype, shape)
    const bytes = this.#weights.bytes(first.name)
    if (scales === undefined) transposeStack(bytes, stack.bytes(), shape, part)
    else repackMxfp4(bytes, this.#weights.bytes(scales.name), stack.bytes(), shape, part)
    for (const { name } of entries) this.#weights.drop(name)
    return stack
  }

  /** [out, in] from the rows of a fused projection. */
  #gather(entry: WeightEntry, shape: readonly number[], part: RowGroups): Tensor {
    const out = Tensor.allocate(this.#host, entry.dtype, shape)
    gatherRows(this.#weights.bytes(entry.name), out.bytes(), part)
    this.#weights.drop(entry.name)
    return out
  }

  #own(tensor: Tensor): Tensor {
    this.#owned.push(tensor)
    return tensor
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#owned.splice(0)) tensor[Symbol.dispose]()
  }
}

function gib(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(1)
}

function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1)
}

function bytesOf(entries: readonly WeightEntry[]): number {
  return entries.reduce((sum, entry) => sum + entry.byteLength, 0)
}

import { KtError } from "../errors.ts"
import { KT_TENSOR_PACKED, layouts } from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"
import type { Address } from "../native/library.ts"
import { nativeView } from "../native/memory.ts"
import { BF16, type DTypeInfo, F16, F32, I32, rowBytes } from "./dtype.ts"

const FIELDS = layouts.kt_tensor.fields
const DATA_WORD = FIELDS.data / 4
const SHAPE_WORD = FIELDS.shape / 4
const STRIDE_WORD = FIELDS.stride / 4
const DTYPE_WORD = FIELDS.dtype / 4
const NDIM_WORD = FIELDS.ndim / 4
const DEVICE_WORD = FIELDS.device / 4
const FLAGS_WORD = FIELDS.flags / 4
const MAX_DIMS = 4

export interface TensorOptions {
  /** Bytes between neighbours of each dimension; default: contiguous. */
  readonly strides?: readonly number[]
  /** Data is in the kernels' packed weight layout. */
  readonly packed?: boolean
  /** Keeps what the data lies in reachable. */
  readonly owner?: unknown
  /** The descriptor outlives the step (weights, caches); default: false. */
  readonly persistent?: boolean
}

/** A native tensor: address, shape, byte strides and type, with its descriptor in native memory. Views share the data. */
export class Tensor {
  readonly backend: Backend
  readonly dtype: DTypeInfo
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly data: Address
  /** Address of the kt_tensor_t. */
  readonly desc: Address
  readonly packed: boolean
  readonly owner: unknown
  readonly persistent: boolean

  constructor(
    backend: Backend,
    dtype: DTypeInfo,
    shape: readonly number[],
    data: Address,
    options: TensorOptions = {},
  ) {
    if (shape.length < 1 || shape.length > MAX_DIMS)
      throw new KtError(`a tensor has 1 to ${MAX_DIMS} dimensions, not ${shape.length}`)
    this.backend = backend
    this.dtype = dtype
    this.shape = shape
    this.data = data
    this.packed = options.packed ?? false
    this.owner = options.owner
    this.persistent = options.persistent ?? false
    this.strides = options.strides ?? contiguousStrides(dtype, shape)
    const pool = this.persistent ? backend.descriptors : backend.stepDescriptors
    this.desc = pool.next()
    const { words, word } = pool
    const { length } = shape
    put64(words, word + DATA_WORD, data)
    for (let i = 0; i < MAX_DIMS; i++) {
      const isUsed = i < length
      put64(words, word + SHAPE_WORD + 2 * i, isUsed ? (shape[i] as number) : 1)
      put64(words, word + STRIDE_WORD + 2 * i, isUsed ? (this.strides[i] as number) : 0)
    }
    words[word + DTYPE_WORD] = dtype.id
    words[word + NDIM_WORD] = length
    words[word + DEVICE_WORD] = backend.device
    words[word + FLAGS_WORD] = this.packed ? KT_TENSOR_PACKED : 0
  }

  /** Uninitialised, in the step arena: dead after the step. */
  static empty(backend: Backend, dtype: DTypeInfo, shape: readonly number[]): Tensor {
    return new Tensor(backend, dtype, shape, backend.arena.alloc(byteLength(dtype, shape)))
  }

  /** Uninitialised, and read by the host after the step, also where the step is recorded; as dead after it as others. */
  static kept(backend: Backend, dtype: DTypeInfo, shape: readonly number[]): Tensor {
    if (backend.recording === undefined) return Tensor.empty(backend, dtype, shape)
    return new Tensor(backend, dtype, shape, backend.kept.alloc(byteLength(dtype, shape)))
  }

  /** Zeroed, in memory of its own that lives as long as the tensor's owner is reachable and not disposed. */
  static allocate(
    backend: Backend,
    dtype: DTypeInfo,
    shape: readonly number[],
    options: { packed?: boolean; bytes?: number } = {},
  ): Tensor {
    const bytes = options.bytes ?? byteLength(dtype, shape)
    const memory = backend.allocate(Math.max(bytes, 1))
    return new Tensor(backend, dtype, shape, memory.address, {
      owner: new Owned(memory),
      persistent: true,
      packed: options.packed ?? false,
    })
  }

  /** A copy of the values, in the step arena (or in memory of its own with `persistent`). */
  static from(
    backend: Backend,
    values: Float32Array | Int32Array,
    shape: readonly number[] = [values.length],
    options: { persistent?: boolean } = {},
  ): Tensor {
    const dtype = values instanceof Float32Array ? F32 : I32
    const out = options.persistent
      ? Tensor.allocate(backend, dtype, shape)
      : Tensor.empty(backend, dtype, shape)
    if (out.numel !== values.length)
      throw new KtError(`${values.length} values do not fill shape [${shape.join(", ")}]`)
    out.write(values)
    return out
  }

  /** Fills a contiguous tensor with the bytes of a view, which may be packed data too. */
  write(values: ArrayBufferView): void {
    const { byteLength: bytes } = values
    if (bytes === 0) return
    if (this.backend.recording !== undefined)
      throw new KtError("the host writes values into a step that is recorded")
    if (!this.backend.isHost) {
      this.backend.copy(this.data, values, bytes)
      return
    }
    const from = new Uint8Array(values.buffer, values.byteOffset, bytes)
    new Uint8Array(nativeView(this.data, bytes)).set(from)
  }

  get ndim(): number {
    return this.shape.length
  }

  get numel(): number {
    let n = 1
    for (const size of this.shape) n *= size
    return n
  }

  /** Size of a dimension; negative counts from the end. */
  dim(index: number): number {
    const size = this.shape[index < 0 ? this.shape.length + index : index]
    if (size === undefined)
      throw new KtError(`dimension ${index} of a tensor of ${this.shape.length}`)
    return size
  }

  get isContiguous(): boolean {
    const dense = contiguousStrides(this.dtype, this.shape)
    return this.strides.every((stride, i) => stride === dense[i] || this.shape[i] === 1)
  }

  /** The same data under another shape; the tensor must be contiguous. */
  reshape(shape: readonly number[]): Tensor {
    if (!this.isContiguous)
      throw new KtError(`reshape of a strided tensor [${this.shape.join(", ")}]`)
    const view = this.#view(shape, contiguousStrides(this.dtype, shape), this.data)
    if (view.numel !== this.numel)
      throw new KtError(`reshape [${this.shape.join(", ")}] to [${shape.join(", ")}]`)
    return view
  }

  /** Splits one dimension: [T, H*D].unflatten(-1, [H, D]) = [T, H, D]; rows may be strided. */
  unflatten(dim: number, sizes: readonly number[]): Tensor {
    const axis = dim < 0 ? this.ndim + dim : dim
    if (sizes.reduce((a, b) => a * b, 1) !== this.dim(axis))
      throw new KtError(`unflatten ${this.dim(axis)} into [${sizes.join(", ")}]`)
    let stride = (this.strides[axis] as number) * this.dim(axis)
    const strides = sizes.map((size) => (stride /= size))
    return this.#view(
      this.shape.toSpliced(axis, 1, ...sizes),
      this.strides.toSpliced(axis, 1, ...strides),
      this.data,
    )
  }

  /** Joins the dimensions from `start` on: [T, H, D].flatten(1) = [T, H*D]. */
  flatten(start: number): Tensor {
    const { shape, strides } = this
    const innermost = strides[shape.length - 1] as number
    let size = 1
    for (let i = shape.length - 1; i >= start; i--) {
      if (strides[i] !== innermost * size && shape[i] !== 1)
        throw new KtError("flatten of strided dimensions")
      size *= shape[i] as number
    }
    const outer = shape.slice(0, start)
    const outerStrides = strides.slice(0, start)
    outer.push(size)
    outerStrides.push(innermost)
    return this.#view(outer, outerStrides, this.data)
  }

  /** Rows start .. start+length of one dimension, as a view. On the innermost dimension, whole blocks only. */
  narrow(dim: number, start: number, length: number): Tensor {
    const axis = dim < 0 ? this.ndim + dim : dim
    if (start < 0 || length < 1 || start + length > this.dim(axis))
      throw new KtError(`narrow ${start}+${length} of ${this.dim(axis)}`)
    if (this.packed) throw new KtError("narrow of a packed weight")
    const block = axis === this.ndim - 1 ? this.dtype.blockSize : 1
    if (start % block !== 0 || length % block !== 0)
      throw new KtError(`narrow ${start}+${length} splits blocks of ${block}`)
    const shape = this.shape.with(axis, length)
    return this.#view(
      shape,
      this.strides,
      this.data + (start / block) * (this.strides[axis] as number),
    )
  }

  /** One entry of the first dimension, as a view without it. */
  select(index: number): Tensor {
    if (this.ndim < 2) throw new KtError("select needs two dimensions")
    const row = this.narrow(0, index, 1)
    return this.#view(row.shape.slice(1), row.strides.slice(1), row.data)
  }

  #view(shape: readonly number[], strides: readonly number[], data: Address): Tensor {
    return new Tensor(this.backend, this.dtype, shape, data, {
      strides,
      owner: this.owner,
      persistent: this.persistent,
      packed: this.packed,
    })
  }

  /** Bytes of a contiguous tensor: a view of the memory where the host sees it, else a copy. */
  bytes(): Uint8Array {
    if (!this.isContiguous || this.packed)
      throw new KtError("bytes() of a strided or packed tensor")
    if (this.backend.recording !== undefined)
      throw new KtError("the host reads values of a step that is recorded")
    const length = byteLength(this.dtype, this.shape)
    if (length === 0) return new Uint8Array(0)
    if (this.backend.isHost) return new Uint8Array(nativeView(this.data, length))
    const out = new Uint8Array(new ArrayBuffer(length))
    this.backend.copy(out, this.data, length)
    return out
  }

  /** A copy of a contiguous F32, F16 or BF16 tensor's values. */
  toFloat32Array(): Float32Array {
    const raw = this.bytes().slice()
    if (this.dtype === F32) return new Float32Array(raw.buffer)
    if (this.dtype === F16) return Float32Array.from(new Float16Array(raw.buffer))
    if (this.dtype !== BF16) throw new KtError(`toFloat32Array of ${this.dtype.name}`)
    const halves = new Uint16Array(raw.buffer)
    const wide = new Uint32Array(halves.length)
    for (let i = 0; i < halves.length; i++) wide[i] = (halves[i] as number) * 65536
    return new Float32Array(wide.buffer)
  }

  /** A copy of a contiguous I32 tensor's values. */
  toInt32Array(): Int32Array {
    if (this.dtype !== I32) throw new KtError(`toInt32Array of ${this.dtype.name}`)
    return new Int32Array(this.bytes().slice().buffer)
  }

  /** Frees the memory of a tensor made by allocate(); its views are dead too. */
  [Symbol.dispose](): void {
    if (this.owner instanceof Owned) this.owner.memory[Symbol.dispose]()
  }
}

/** Memory of an allocated tensor, told from other owners that views keep reachable. */
class Owned {
  readonly memory: Disposable

  constructor(memory: Disposable) {
    this.memory = memory
  }
}

/** Bytes between neighbours of each dimension when rows follow each other without gaps. */
export function contiguousStrides(dtype: DTypeInfo, shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length)
  const last = shape.length - 1
  strides[last] = dtype.blockBytes
  let stride = rowBytes(dtype, shape[last] as number)
  for (let i = last - 1; i >= 0; i--) {
    strides[i] = stride
    stride *= shape[i] as number
  }
  return strides
}

export function byteLength(dtype: DTypeInfo, shape: readonly number[]): number {
  let rows = 1
  for (let i = 0; i < shape.length - 1; i++) rows *= shape[i] as number
  return rows * rowBytes(dtype, shape[shape.length - 1] as number)
}

function put64(words: Uint32Array, index: number, value: number): void {
  // sizes are small; a remainder of doubles, which addresses are, is a division in a library
  const high = value >= 0 && value < 4294967296 ? 0 : Math.floor(value / 4294967296)
  words[index] = value - high * 4294967296
  words[index + 1] = high
}

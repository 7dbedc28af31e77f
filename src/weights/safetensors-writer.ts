import { ConfigError } from "../errors.ts"
import { OutputFile } from "./output-file.ts"
import { SAFETENSORS_DTYPES } from "./safetensors-dtypes.ts"

/** A tensor to write, its type by safetensors' name. */
export interface SafetensorsPlan {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
}

/**
 * Writes a safetensors file, header first and then the tensors' bytes in the order of `tensors`,
 * which come in pieces. The file has its name from `finish` on.
 */
export class SafetensorsWriter implements Disposable {
  /** In the order of writing: widest elements first keeps every tensor aligned to its elements. */
  readonly tensors: readonly SafetensorsPlan[]
  readonly #file: OutputFile
  #index = 0
  #written = 0

  constructor(
    path: string,
    tensors: readonly SafetensorsPlan[],
    metadata: Readonly<Record<string, string>> = {},
  ) {
    for (const { name, dtype } of tensors) {
      if (!SAFETENSORS_DTYPES.has(dtype))
        throw new ConfigError(`tensor "${name}": unknown dtype ${dtype}`)
    }
    this.tensors = tensors.toSorted((a, b) => elementBytes(b.dtype) - elementBytes(a.dtype))
    const header: Record<string, unknown> =
      Object.keys(metadata).length > 0 ? { __metadata__: metadata } : {}
    let offset = 0
    for (const tensor of this.tensors) {
      const { name, dtype, shape } = tensor
      const end = offset + tensorBytes(tensor)
      header[name] = { dtype, shape, data_offsets: [offset, end] }
      offset = end
    }
    const text = new TextEncoder().encode(JSON.stringify(header))
    const padded = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20)
    padded.set(new Uint8Array(new BigUint64Array([BigInt(padded.length - 8)]).buffer))
    padded.set(text, 8)
    this.#file = new OutputFile(path)
    this.#file.write(padded)
  }

  /** Appends bytes to the tensor `name`: the one begun last, or the next in order. */
  write(name: string, bytes: Uint8Array): void {
    while (this.#current !== undefined && this.#current.name !== name && this.#isWhole())
      this.#advance()
    const tensor = this.#current
    if (tensor?.name !== name)
      throw new ConfigError(`tensor "${name}" is written where "${tensor?.name}" is next`)
    if (this.#written + bytes.length > tensorBytes(tensor))
      throw new ConfigError(`tensor "${name}": more bytes than its shape takes`)
    this.#file.write(bytes)
    this.#written += bytes.length
  }

  finish(): void {
    while (this.#current !== undefined && this.#isWhole()) this.#advance()
    if (this.#current !== undefined)
      throw new ConfigError(`tensor "${this.#current.name}" is not written to its end`)
    this.#file.close()
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]()
  }

  get #current(): SafetensorsPlan | undefined {
    return this.tensors[this.#index]
  }

  #isWhole(): boolean {
    return this.#current !== undefined && this.#written === tensorBytes(this.#current)
  }

  #advance(): void {
    this.#index++
    this.#written = 0
  }
}

/** Arrays whose element type says the dtype. */
type PlainArray =
  Float32Array | Float64Array | Int8Array | Int16Array | Int32Array | BigInt64Array | Uint8Array

/**
 * A tensor to write. `dtype` is needed where the array's type does not say it (F16 and BF16 in a
 * Uint16Array).
 */
export interface TensorData {
  readonly shape: readonly number[]
  readonly data: PlainArray | Uint16Array
  readonly dtype?: string
}

/** Writes a safetensors file whose tensors are all in memory. */
export function writeSafetensors(
  path: string,
  tensors: Readonly<Record<string, TensorData>>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const plans = Object.entries(tensors).map(([name, tensor]) => {
    const plan = { name, dtype: dtypeName(name, tensor), shape: tensor.shape }
    const expected = tensorBytes(plan)
    if (tensor.data.byteLength !== expected) {
      throw new ConfigError(
        `tensor "${name}": ${tensor.data.byteLength} bytes, but [${plan.shape.join(", ")}] of ${plan.dtype} takes ${expected}`,
      )
    }
    return plan
  })
  using writer = new SafetensorsWriter(path, plans, metadata)
  for (const { name } of writer.tensors) {
    const { data } = tensors[name] as TensorData
    writer.write(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
  }
  writer.finish()
}

function tensorBytes({ dtype, shape }: Omit<SafetensorsPlan, "name">): number {
  return shape.reduce((a, b) => a * b, 1) * elementBytes(dtype)
}

function elementBytes(dtype: string): number {
  return SAFETENSORS_DTYPES.get(dtype)?.blockBytes ?? 1
}

function dtypeName(name: string, { data, dtype }: TensorData): string {
  if (dtype !== undefined) {
    if (!SAFETENSORS_DTYPES.has(dtype))
      throw new ConfigError(`tensor "${name}": unknown dtype ${dtype}`)
    return dtype
  }
  if (data instanceof Float32Array) return "F32"
  if (data instanceof Float64Array) return "F64"
  if (data instanceof Int32Array) return "I32"
  if (data instanceof BigInt64Array) return "I64"
  if (data instanceof Int16Array) return "I16"
  if (data instanceof Int8Array) return "I8"
  if (data instanceof Uint8Array) return "U8"
  throw new ConfigError(`tensor "${name}": a Uint16Array needs a dtype (F16, BF16 or U16)`)
}

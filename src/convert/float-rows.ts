import { FormatError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import { dequantize } from "../ops/index.ts"
import { type DTypeInfo, F32, F64, I64, isComputable, rowBytes } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import type { WeightEntry } from "../weights/source.ts"

/** Float bytes of one piece: large enough to keep every thread busy, small against any model. */
const PIECE_BYTES = 32 * 2 ** 20

/** A stored tensor as a matrix: everything but the innermost dimension is rows. */
export function matrixShape(shape: readonly number[]): { rows: number; columns: number } {
  const columns = shape.at(-1) ?? 1
  return { rows: shape.slice(0, -1).reduce((a, b) => a * b, 1), columns }
}

/** Whether `FloatRows` reads this type. */
export function isReadable(dtype: DTypeInfo): boolean {
  return isComputable(dtype) && dtype !== F64 && dtype !== I64
}

/** Turns rows of stored tensors into F32, a bounded piece at a time, in one buffer of its own. */
export class FloatRows implements Disposable {
  readonly #backend: Backend
  #buffer: Tensor | undefined
  #whole: { readonly entry: WeightEntry; readonly tensor: Tensor } | undefined

  constructor(backend: Backend) {
    this.#backend = backend
  }

  /** Rows that one piece holds. */
  pieceRows(columns: number): number {
    return Math.max(1, Math.floor(PIECE_BYTES / (columns * 4)))
  }

  /**
   * Calls `onPiece` with consecutive rows [count, columns] F32, from `first` on; the tensor and what
   * is derived from it live as long as the call.
   * @throws FormatError for a type that no kernel reads
   */
  forEach(
    entry: WeightEntry,
    onPiece: (piece: Tensor, first: number) => void,
    range?: { readonly first: number; readonly count: number },
  ): void {
    const { rows, columns } = matrixShape(entry.shape)
    const { first, count } = range ?? { first: 0, count: rows }
    const step = this.pieceRows(columns)
    for (let at = first; at < first + count; at += step) {
      const piece = this.#piece(entry, at, Math.min(step, first + count - at), columns)
      onPiece(piece, at - first)
      this.#backend.resetStep()
    }
  }

  [Symbol.dispose](): void {
    this.#buffer?.[Symbol.dispose]()
    this.#whole?.tensor[Symbol.dispose]()
  }

  #piece(entry: WeightEntry, first: number, count: number, columns: number): Tensor {
    const { dtype, name, file } = entry
    if (!isReadable(dtype))
      throw new FormatError(
        file,
        `tensor "${name}": is of type ${dtype.name}, which no kernel reads`,
      )
    const owner = this.#built(entry) ?? entry
    const address = owner instanceof Tensor ? owner.data : entry.address
    const stored = new Tensor(
      this.#backend,
      dtype,
      [count, columns],
      address + first * rowBytes(dtype, columns),
      { owner },
    )
    return dequantize(stored, this.#scratch(count, columns))
  }

  /** A tensor whose values are made of others', until the next one. */
  #built(entry: WeightEntry): Tensor | undefined {
    if (entry.build === undefined) return undefined
    if (this.#whole?.entry !== entry) {
      this.#whole?.tensor[Symbol.dispose]()
      const tensor = Tensor.allocate(this.#backend, entry.dtype, entry.shape)
      this.#whole = { entry, tensor }
      entry.build(tensor.bytes())
    }
    return this.#whole.tensor
  }

  #scratch(count: number, columns: number): Tensor {
    if (this.#buffer === undefined || this.#buffer.numel < count * columns) {
      this.#buffer?.[Symbol.dispose]()
      this.#buffer = Tensor.allocate(this.#backend, F32, [count * columns])
    }
    const { data } = this.#buffer
    return new Tensor(this.#backend, F32, [count, columns], data, { owner: this.#buffer })
  }
}

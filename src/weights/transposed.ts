import type { TransposedStack } from "../nn/module.ts"

/** Rows and columns of a tile whose both sides stay in cache. */
const TILE = 32

/** The columns of [experts, columns] that are a parameter [experts, rows]. */
export function columnsOf(
  stored: Float32Array,
  shape: readonly number[],
  part: TransposedStack,
): Float32Array {
  const [experts = 1, rows = 1] = shape
  const { start, step, width = rows } = part
  const out = new Float32Array(experts * rows)
  for (let e = 0; e < experts; e++) {
    for (let r = 0; r < rows; r++)
      out[e * rows + r] = stored[e * width + start + step * r] as number
  }
  return out
}

/** Fills [experts, rows, cols] from [experts, cols, width] of values of 2 or 4 bytes. */
export function transposeStack(
  from: Uint8Array,
  to: Uint8Array,
  shape: readonly number[],
  part: TransposedStack,
): void {
  const [experts = 1, rows = 1, cols = 1] = shape
  const { start, step, width = rows } = part
  const count = experts * rows * cols
  const size = to.byteLength / count
  const view = (bytes: Uint8Array): Uint16Array | Uint32Array => {
    const length = bytes.byteLength / size
    // stored tensors start anywhere; values that lie across their own size must be moved first
    const { buffer, byteOffset } = bytes.byteOffset % size === 0 ? bytes : bytes.slice()
    return size === 2
      ? new Uint16Array(buffer, byteOffset, length)
      : new Uint32Array(buffer, byteOffset, length)
  }
  const source = view(from)
  const target = view(to)
  for (let e = 0; e < experts; e++) {
    const base = e * cols * width + start
    const out = e * rows * cols
    for (let r0 = 0; r0 < rows; r0 += TILE) {
      const r1 = Math.min(rows, r0 + TILE)
      for (let c0 = 0; c0 < cols; c0 += TILE) {
        const c1 = Math.min(cols, c0 + TILE)
        for (let c = c0; c < c1; c++) {
          const line = base + c * width
          for (let r = r0; r < r1; r++)
            target[out + r * cols + c] = source[line + r * step] as number
        }
      }
    }
  }
}

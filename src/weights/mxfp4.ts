import type { TransposedStack } from "../nn/module.ts"

/** Values that share a scale (OCP Microscaling Formats 1.0). */
const BLOCK = 32

/**
 * Fills GGML blocks [experts, rows, cols / 32] (a scale, then the 4-bit codes of values j and j + 16 in byte j) from the form
 * in which gpt-oss is published: codes [experts, width, cols / 32, 16] with values 2j and 2j + 1 in byte j, scales
 * [experts, width, cols / 32]. Row r is stored row start + step * r.
 */
export function repackMxfp4(
  codes: Uint8Array,
  scales: Uint8Array,
  to: Uint8Array,
  shape: readonly number[],
  part: TransposedStack,
): void {
  const [experts = 1, rows = 1, cols = 1] = shape
  const { start, step, width = rows } = part
  const blocks = cols / BLOCK
  let out = 0
  for (let e = 0; e < experts; e++) {
    for (let r = 0; r < rows; r++) {
      const row = (e * width + start + step * r) * blocks
      for (let b = row; b < row + blocks; b++) {
        to[out++] = scales[b] as number
        const first = b * 16
        for (let j = 0; j < 8; j++) {
          const low = codes[first + j] as number
          const high = codes[first + 8 + j] as number
          to[out++] = (low & 15) | ((high & 15) << 4)
          to[out++] = (low >> 4) | (high & 0xf0)
        }
      }
    }
  }
}

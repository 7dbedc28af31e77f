import type { RowGroups } from "../nn/module.ts"

/** Copies a part's rows of a fused projection, group by group. Both are whole matrices or vectors, `to` has groups · count rows. */
export function gatherRows<T extends Uint8Array | Float32Array>(
  from: T,
  to: T,
  { groups, size, start, count }: RowGroups,
): T {
  const width = from.length / (groups * size)
  for (let g = 0; g < groups; g++) {
    const first = (g * size + start) * width
    to.set(from.subarray(first, first + count * width), g * count * width)
  }
  return to
}

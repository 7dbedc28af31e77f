import { BF16, type DTypeInfo, F16, F32, I4_BF16, I4_ZERO, Q4_0, Q8_0 } from "../tensor/dtype.ts"

/** A matrix of whole numbers with a scale and a zero point for each group of columns of a row. */
export interface GroupedInts {
  readonly rows: number
  readonly columns: number
  readonly bits: number
  readonly groups: number
  /** Codes [rows, columns], a byte each. */
  codes(): Uint8Array
  /** Codes of 4 bits [rows, columns / 2], two neighbours a byte, where they are stored like this. */
  readonly pairs?: () => Uint8Array
  /** Scale of group g of row r at `r * rowStride + g * groupStride`, as stored and as f32. */
  scales(): { stored: Uint8Array; values: Float32Array; rowStride: number; groupStride: number }
  /** Zero points [rows, groups]; undefined: all are half of the codes' range. */
  readonly zeros?: (() => ArrayLike<number>) | undefined
  /** Group of each column; undefined: columns / groups at a time. */
  readonly groupOf?: Int32Array | undefined
}

/**
 * The type that holds the values exactly: blocks of 32 columns where groups consist of them and a
 * block's scale holds the stored one, else F32.
 */
export function intType(
  ints: Pick<GroupedInts, "columns" | "bits" | "groups" | "groupOf">,
  scale: DTypeInfo,
  isSymmetric: boolean,
): DTypeInfo {
  const size = ints.columns / ints.groups
  if (ints.groupOf !== undefined || size % 32 !== 0) return F32
  if (ints.bits === 8) return isSymmetric && scale === F16 ? Q8_0 : F32
  if (scale === F16) return isSymmetric ? Q4_0 : I4_ZERO
  return scale === BF16 && isSymmetric ? I4_BF16 : F32
}

/** Fills a matrix of `intType`. */
export function buildInts(ints: GroupedInts, dtype: DTypeInfo, to: Uint8Array): void {
  const { rows, columns, groups, bits, groupOf } = ints
  if (dtype !== F32 && bits === 4 && ints.pairs !== undefined)
    return buildFromPairs(ints, ints.pairs(), dtype, to)
  const codes = ints.codes()
  const { stored, values, rowStride, groupStride } = ints.scales()
  const zeros = ints.zeros?.()
  const middle = 1 << (bits - 1)
  const size = columns / groups
  if (dtype === F32) {
    const wide = new Float32Array(columns)
    const raw = new Uint8Array(wide.buffer)
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const g = groupOf === undefined ? Math.floor(c / size) : (groupOf[c] as number)
        const zero = zeros === undefined ? middle : (zeros[r * groups + g] as number)
        const scale = values[r * rowStride + g * groupStride] as number
        wide[c] = ((codes[r * columns + c] as number) - zero) * scale
      }
      to.set(raw, r * columns * 4)
    }
    return
  }
  let out = 0
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c += 32) {
      const g = Math.floor(c / size)
      const scale = 2 * (r * rowStride + g * groupStride)
      to[out++] = stored[scale] as number
      to[out++] = stored[scale + 1] as number
      if (dtype === I4_ZERO) to[out++] = zeros?.[r * groups + g] ?? middle
      const from = r * columns + c
      if (dtype === Q8_0) {
        for (let i = 0; i < 32; i++) to[out++] = (codes[from + i] as number) - middle
      } else {
        for (let i = 0; i < 16; i++)
          to[out++] = (codes[from + i] as number) | ((codes[from + 16 + i] as number) << 4)
      }
    }
  }
}

/** As `buildInts`, without taking the codes apart. */
function buildFromPairs(
  ints: GroupedInts,
  pairs: Uint8Array,
  dtype: DTypeInfo,
  to: Uint8Array,
): void {
  const { rows, columns, groups } = ints
  const { stored, rowStride, groupStride } = ints.scales()
  const zeros = ints.zeros?.()
  const size = columns / groups
  let out = 0
  let from = 0
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c += 32, from += 16) {
      const g = Math.floor(c / size)
      const scale = 2 * (r * rowStride + g * groupStride)
      to[out++] = stored[scale] as number
      to[out++] = stored[scale + 1] as number
      if (dtype === I4_ZERO) to[out++] = zeros?.[r * groups + g] ?? 8
      for (let j = from; j < from + 8; j++) {
        const low = pairs[j] as number
        const high = pairs[j + 8] as number
        to[out++] = (low & 15) | ((high & 15) << 4)
        to[out++] = (low >> 4) | (high & 0xf0)
      }
    }
  }
}

/** Codes of rows of little-endian words, lowest bits first: [rows, words * 32 / bits] cut to `columns`. */
export function unpackRows(
  packed: Uint8Array,
  rows: number,
  columns: number,
  bits: number,
): Uint8Array {
  const out = new Uint8Array(rows * columns)
  const rowBytes = Math.ceil((columns * bits) / 32) * 4
  for (let r = 0; r < rows; r++) {
    const from = r * rowBytes
    const line = r * columns
    if (bits === 8) {
      out.set(packed.subarray(from, from + columns), line)
      continue
    }
    for (let c = 0; c < columns; c++) {
      const byte = packed[from + (c >> 1)] as number
      out[line + c] = c & 1 ? byte >> 4 : byte & 15
    }
  }
  return out
}

/** Output channel that AWQ keeps in each nibble of a word, lowest first. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7] as const

/** [lines, words * 8] in natural order from AWQ's words. */
export function unpackAwq(packed: Uint8Array, lines: number, columns: number): Uint8Array {
  const out = new Uint8Array(lines * columns)
  for (let at = 0; at < out.length; at += 8) {
    for (let j = 0; j < 8; j++) {
      const byte = packed[(at >> 1) + (j >> 1)] as number
      out[at + (AWQ_ORDER[j] as number)] = j & 1 ? byte >> 4 : byte & 15
    }
  }
  return out
}

/** [columns, lines] from [lines, columns]. */
export function transposed(values: Uint8Array, lines: number, columns: number): Uint8Array {
  const out = new Uint8Array(values.length)
  const tile = 64
  for (let l0 = 0; l0 < lines; l0 += tile)
    for (let c0 = 0; c0 < columns; c0 += tile)
      for (let l = l0; l < Math.min(lines, l0 + tile); l++)
        for (let c = c0; c < Math.min(columns, c0 + tile); c++)
          out[c * lines + l] = values[l * columns + c] as number
  return out
}

/** GPTQ packs the inputs of a word: [words, rows] of words as codes [rows, words * 32 / bits]. */
export function unpackColumns(
  packed: Uint8Array,
  words: number,
  rows: number,
  bits: number,
): Uint8Array {
  const per = 32 / bits
  const columns = words * per
  const out = new Uint8Array(rows * columns)
  const mask = (1 << bits) - 1
  const perByte = 8 / bits
  for (let r = 0; r < rows; r++) {
    for (let w = 0; w < words; w++) {
      const from = (w * rows + r) * 4
      const line = r * columns + w * per
      for (let i = 0; i < per; i++) {
        const byte = packed[from + Math.floor(i / perByte)] as number
        out[line + i] = (byte >> ((i % perByte) * bits)) & mask
      }
    }
  }
  return out
}

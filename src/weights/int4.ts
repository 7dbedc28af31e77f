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

/** Rows and columns that are moved together, so that both sides stay in cache. */
const TILE = 32

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

/**
 * [lines, columns] in natural order from AWQ's words, whose lower four numbers are the channels 0, 2, 4, 6
 * and whose upper four 1, 3, 5, 7.
 */
export function unpackAwq(packed: Uint8Array, lines: number, columns: number): Uint8Array {
  const source = words(packed)
  const out = new Uint32Array((lines * columns) / 4)
  for (let i = 0; i < source.length; i++) {
    const word = source[i] as number
    out[2 * i] = twoApart(word & 0xff) | (twoApart((word >>> 16) & 0xff) << 8)
    out[2 * i + 1] = twoApart((word >>> 8) & 0xff) | (twoApart(word >>> 24) << 8)
  }
  return new Uint8Array(out.buffer)
}

/** Two numbers of 4 bits as bytes 0 and 2. */
function twoApart(pair: number): number {
  return (pair | (pair << 12)) & 0x000f000f
}

/** Four numbers of 4 bits as bytes. */
function fourApart(half: number): number {
  const pairs = (half | (half << 8)) & 0x00ff00ff
  return (pairs | (pairs << 4)) & 0x0f0f0f0f
}

/** Stored bytes start anywhere. */
function words(bytes: Uint8Array): Uint32Array {
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice()
  return new Uint32Array(buffer, byteOffset, byteLength / 4)
}

/** [columns, lines] from [lines, columns]. */
export function transposed(values: Uint8Array, lines: number, columns: number): Uint8Array {
  const out = new Uint8Array(values.length)
  for (let l0 = 0; l0 < lines; l0 += TILE) {
    const l1 = Math.min(lines, l0 + TILE)
    for (let c0 = 0; c0 < columns; c0 += TILE) {
      const c1 = Math.min(columns, c0 + TILE)
      for (let c = c0; c < c1; c++)
        for (let l = l0; l < l1; l++) out[c * lines + l] = values[l * columns + c] as number
    }
  }
  return out
}

/** GPTQ packs the inputs of a word: `count` x `rows` words as codes [rows, count * 32 / bits]. */
export function unpackColumns(
  packed: Uint8Array,
  count: number,
  rows: number,
  bits: number,
): Uint8Array {
  const source = words(packed)
  // words of four codes: two of a stored word with 4 bits, as many as stored with 8
  const per = 8 / bits
  const out = new Uint32Array(rows * count * per)
  for (let r0 = 0; r0 < rows; r0 += TILE) {
    const r1 = Math.min(rows, r0 + TILE)
    for (let w = 0; w < count; w++) {
      for (let r = r0; r < r1; r++) {
        const word = source[w * rows + r] as number
        const at = (r * count + w) * per
        if (bits === 8) out[at] = word
        else {
          out[at] = fourApart(word & 0xffff)
          out[at + 1] = fourApart(word >>> 16)
        }
      }
    }
  }
  return new Uint8Array(out.buffer)
}

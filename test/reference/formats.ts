/** Values of formats that are quantised to, read byte by byte as their specifications say, in float64. */

type Decoder = (block: DataView, out: number[]) => void

const IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6]

function half(view: DataView, at: number): number {
  return new Float16Array(Uint16Array.of(view.getUint16(at, true)).buffer)[0] as number
}

/** Column i of 2n values: low nibbles of n bytes first, then their high ones. */
function nibble(view: DataView, at: number, n: number, i: number): number {
  const byte = view.getUint8(at + (i % n))
  return i < n ? byte % 16 : byte >> 4
}

/** Digit `index` of a byte that is five base-3 digits as a fraction of 256. */
function digit(byte: number, index: number): number {
  return ((((byte * 3 ** index) & 255) * 3) >> 8) - 1
}

function ue4m3(code: number): number {
  if (code === 0 || code === 127) return 0
  const exponent = code >> 3
  const mantissa = code & 7
  return exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7)
}

function e4m3(code: number): number {
  const exponent = code >> 3
  const mantissa = code & 7
  return exponent === 0 ? mantissa * 2 ** -9 : (1 + mantissa / 8) * 2 ** (exponent - 7)
}

/** By GGML's number. */
const DECODERS: Readonly<Record<number, Decoder>> = {
  20: (b, out) => {
    for (let i = 0; i < 32; i++) out.push(half(b, 0) * IQ4[nibble(b, 2, 16, i)]!)
  },
  23: (b, out) => {
    const high = b.getUint16(2, true)
    for (let i = 0; i < 256; i++) {
      const sub = i >> 5
      const low = (b.getUint8(4 + (sub >> 1)) >> (4 * (sub & 1))) & 15
      const scale = low + 16 * ((high >> (2 * sub)) & 3) - 32
      out.push(half(b, 0) * scale * IQ4[nibble(b, 8 + sub * 16, 16, i % 32)]!)
    }
  },
  34: (b, out) => {
    const d = half(b, 52)
    for (let i = 0; i < 160; i++) out.push(d * digit(b.getUint8(i % 32), i >> 5))
    for (let i = 0; i < 80; i++) out.push(d * digit(b.getUint8(32 + (i % 16)), i >> 4))
    for (let i = 0; i < 16; i++) out.push(d * digit(b.getUint8(48 + (i % 4)), i >> 2))
  },
  35: (b, out) => {
    for (let i = 0; i < 256; i++) {
      const code = (b.getUint8((i >> 7) * 32 + (i % 32)) >> (2 * ((i >> 5) & 3))) & 3
      out.push(half(b, 64) * (code - 1))
    }
  },
  39: (b, out) => {
    for (let i = 0; i < 32; i++) out.push(2 ** (b.getUint8(0) - 127) * FP4[nibble(b, 1, 16, i)]!)
  },
  40: (b, out) => {
    for (let i = 0; i < 64; i++) {
      const sub = i >> 4
      out.push(ue4m3(b.getUint8(sub)) * FP4[nibble(b, 4 + sub * 8, 8, i % 16)]!)
    }
  },
  1001: (b, out) => {
    for (let i = 0; i < 128; i++) {
      const code = b.getUint8(4 + i)
      const size = (code & 127) === 127 ? Number.NaN : (code & 127) === 0 ? 0 : e4m3(code & 127)
      out.push(b.getFloat32(0, true) * (code > 127 ? -size : size))
    }
  },
  1002: (b, out) => {
    const d = new Float32Array(Uint32Array.of(b.getUint16(0, true) << 16).buffer)[0]!
    for (let i = 0; i < 32; i++) out.push(d * (nibble(b, 2, 16, i) - 8))
  },
  1003: (b, out) => {
    for (let i = 0; i < 32; i++) out.push(half(b, 0) * (nibble(b, 3, 16, i) - b.getUint8(2)))
  },
  41: (b, out) => {
    for (let i = 0; i < 128; i++)
      out.push(half(b, 0) * (((b.getUint8(2 + (i >> 3)) >> (i & 7)) & 1) * 2 - 1))
  },
  42: (b, out) => {
    for (let i = 0; i < 64; i++)
      out.push(half(b, 0) * (((b.getUint8(2 + (i >> 2)) >> (2 * (i & 3))) & 3) - 1))
  },
}

/** Whether `decodeBlocks` knows a type; kernels dequantise the others. */
export function hasDecoder(id: number): boolean {
  return id in DECODERS
}

/** All blocks of `bytes`. */
export function decodeBlocks(id: number, blockBytes: number, bytes: Uint8Array): Float64Array {
  const out: number[] = []
  for (let at = 0; at < bytes.length; at += blockBytes)
    DECODERS[id]!(new DataView(bytes.buffer, bytes.byteOffset + at, blockBytes), out)
  return Float64Array.from(out)
}

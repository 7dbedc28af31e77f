import { FormatError } from "../errors.ts"

const LEAF = 0x100
const WIDE = 0x200
const LABEL = 0x800000ff
/** Graphemes of this many bytes or more are replaced by character (the Rust tokenizers' rule). */
const GRAPHEME_BYTES = 6

const utf8 = new TextEncoder()
const text = new TextDecoder("utf-8", { ignoreBOM: true })

/**
 * SentencePiece's `precompiled_charsmap`: the length of a table in bytes (u32), a double array of u32 units (Darts' layout:
 * label and sign in bits 0-7 and 31, "has a leaf" in bit 8, offset from bit 10, times 256 with bit 9), then the replacement
 * texts, each ended by a zero byte, which the leaves number by offset.
 */
export class Charsmap {
  readonly #units: Uint32Array
  readonly #replacements: Uint8Array
  readonly #segmenter = new Intl.Segmenter("en", { granularity: "grapheme" })
  /** No entry lies within printable ASCII, as in all maps but those that fold case. */
  readonly #keepsAscii: boolean

  /** @throws FormatError naming `where` where the table does not fit its bytes. */
  constructor(bytes: Uint8Array, file: string, where: string) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const size = bytes.length < 4 ? 0 : view.getUint32(0, true)
    if (size === 0 || size % 4 !== 0 || size + 4 > bytes.length)
      throw new FormatError(
        file,
        `${where} has ${bytes.length} bytes, which do not hold its table of ${size}`,
      )
    this.#units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + i * 4, true))
    this.#replacements = bytes.subarray(4 + size)
    if (this.#replacements.length > 0 && this.#replacements.at(-1) !== 0)
      throw new FormatError(file, `${where} ends inside a replacement text`)
    const ascii = Array.from({ length: 95 }, (_, i) => i + 32)
    this.#keepsAscii = !ascii.some((first) =>
      ascii.some((second) => this.#find(Uint8Array.of(first, second), 0, false).length > 0),
    )
  }

  /** SentencePiece's own rule: at each place the longest entry. */
  normalize(input: string): string {
    if (this.#isKept(input)) return input
    const bytes = utf8.encode(input)
    const pieces: string[] = []
    let kept = 0
    for (let at = 0; at < bytes.length;) {
      const { length, offset } = this.#find(bytes, at, true)
      if (length === 0) {
        at += sequenceLength(bytes[at]!)
        continue
      }
      pieces.push(text.decode(bytes.subarray(kept, at)), this.#replacement(offset))
      at += length
      kept = at
    }
    pieces.push(text.decode(bytes.subarray(kept)))
    return pieces.join("")
  }

  /** The rule of the Rust tokenizers' `Precompiled`: short graphemes, else characters, by the shortest entry. */
  normalizeGraphemes(input: string): string {
    if (this.#isKept(input)) return input
    let output = ""
    for (const { segment } of this.#segmenter.segment(input)) {
      const bytes = utf8.encode(segment)
      const whole = bytes.length < GRAPHEME_BYTES ? this.#find(bytes, 0, false) : NOTHING
      if (whole.length > 0) output += this.#replacement(whole.offset)
      else
        for (const char of segment) {
          const { length, offset } = this.#find(utf8.encode(char), 0, false)
          output += length > 0 ? this.#replacement(offset) : char
        }
    }
    return output
  }

  #isKept(input: string): boolean {
    return this.#keepsAscii && /^[\x20-\x7e]*$/.test(input)
  }

  #find(bytes: Uint8Array, start: number, longest: boolean): { length: number; offset: number } {
    const units = this.#units
    let node = offsetOf(units[0]!)
    let found = NOTHING
    for (let at = start; at < bytes.length; at++) {
      const byte = bytes[at]!
      if (byte === 0) break
      node ^= byte
      const unit = units[node]
      if (unit === undefined || (unit & LABEL) >>> 0 !== byte) break
      node ^= offsetOf(unit)
      if ((unit & LEAF) === 0) continue
      found = { length: at - start + 1, offset: (units[node] ?? 0) & 0x7fffffff }
      if (!longest) break
    }
    return found
  }

  #replacement(offset: number): string {
    const end = this.#replacements.indexOf(0, offset)
    return end < 0 ? "" : text.decode(this.#replacements.subarray(offset, end))
  }
}

const NOTHING = { length: 0, offset: 0 }

function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & WIDE) >>> 6)
}

function sequenceLength(lead: number): number {
  return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4
}

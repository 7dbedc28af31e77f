import { FormatError } from "../errors.ts"

/** A field's value: a number for varints, the bytes of everything else. */
export type FieldValue = number | Uint8Array

/**
 * The fields of one protocol-buffers message in order (protobuf.dev, "Encoding").
 * @throws FormatError naming the byte where the message breaks off.
 */
export function* fieldsOf(
  bytes: Uint8Array,
  file: string,
): Generator<readonly [number: number, value: FieldValue]> {
  let at = 0
  const varint = (): number => {
    let value = 0
    for (let shift = 0; shift < 70; shift += 7) {
      const byte = bytes[at++]
      if (byte === undefined) break
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
    throw new FormatError(file, `is broken at byte ${at}: a number does not end`)
  }
  while (at < bytes.length) {
    const key = varint()
    const number = Math.floor(key / 8)
    const wire = key % 8
    if (wire === 0) {
      yield [number, varint()]
      continue
    }
    const length = wire === 2 ? varint() : wire === 5 ? 4 : wire === 1 ? 8 : -1
    if (length < 0 || at + length > bytes.length)
      throw new FormatError(file, `is broken at byte ${at}: field ${number} does not fit`)
    yield [number, bytes.subarray(at, at + length)]
    at += length
  }
}

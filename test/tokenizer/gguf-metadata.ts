import { readFileSync } from "node:fs"

import type { GgufMetadata, GgufValue } from "../../src/weights/metadata.ts"

/** Reads only the key-value section of a GGUF file; kept apart from the product's reader so that tokenizer tests judge the tokenizer alone. */
export function readGgufMetadata(path: string): GgufMetadata {
  const bytes = readFileSync(path)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let at = 4
  const u32 = () => view.getUint32((at += 4) - 4, true)
  const u64 = () => Number(view.getBigUint64((at += 8) - 8, true))
  const text = () => {
    const length = u64()
    at += length
    return bytes.toString("utf8", at - length, at)
  }
  const scalar = (type: number): number | bigint | boolean | string => {
    switch (type) {
      case 0:
        return view.getUint8(at++)
      case 1:
        return view.getInt8(at++)
      case 2:
        return view.getUint16((at += 2) - 2, true)
      case 3:
        return view.getInt16((at += 2) - 2, true)
      case 4:
        return u32()
      case 5:
        return view.getInt32((at += 4) - 4, true)
      case 6:
        return view.getFloat32((at += 4) - 4, true)
      case 7:
        return view.getUint8(at++) !== 0
      case 8:
        return text()
      case 10:
        return view.getBigUint64((at += 8) - 8, true)
      case 11:
        return view.getBigInt64((at += 8) - 8, true)
      case 12:
        return view.getFloat64((at += 8) - 8, true)
      default:
        throw new Error(`${path}: metadata type ${type}`)
    }
  }
  const array = (): GgufValue => {
    const type = u32()
    const length = u64()
    const values = Array.from({ length }, () => scalar(type))
    if (type === 8) return values as string[]
    if (type === 7) return values as boolean[]
    if (type === 6 || type === 12) return Float32Array.from(values as number[])
    return Int32Array.from(values, Number)
  }
  u32()
  u64()
  const count = u64()
  const metadata = new Map<string, GgufValue>()
  for (let i = 0; i < count; i++) {
    const key = text()
    const type = u32()
    metadata.set(key, type === 9 ? array() : scalar(type))
  }
  return metadata
}

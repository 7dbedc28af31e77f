import {
  digestOf,
  headerBytes,
  KV,
  recordBytes,
  writeHeader,
} from "../../src/kvcache/block-record.ts"

/** A chain of blocks for tests of the disk: each one's bytes follow from its number. */
export const FINGERPRINT = "00112233445566778899aabbccddeeff"
export const PAGE = 8
export const PAYLOAD = 1000
export const HEADER = headerBytes(PAGE)
export const RECORD = recordBytes(HEADER, PAYLOAD)

/** Block `i` of a chain; its bytes follow from its tokens. */
export function record(i: number): Uint8Array {
  const tokens = tokensOf(i)
  const bytes = new Uint8Array(RECORD)
  const parent = i === 0 ? FINGERPRINT : digestOfBlock(i - 1)
  writeHeader(bytes, {
    kind: KV,
    headerBytes: HEADER,
    payloadBytes: PAYLOAD,
    digest: digestOfBlock(i),
    parent,
    tokens,
    ropeKeys: undefined,
  })
  bytes.set(payload(i), HEADER)
  return bytes
}

export const tokensOf = (i: number): Int32Array =>
  Int32Array.from({ length: PAGE }, (_, k) => i * 31 + k)
export const payload = (i: number): Uint8Array =>
  Uint8Array.from({ length: PAYLOAD }, (_, k) => (i * 7 + k * 13 + (k >> 3)) % 256)
const digests: string[] = []

/** The number of the block with this name, of those that were made; or -1. */
export const numberOf = (digest: string): number => digests.indexOf(digest)

export function digestOfBlock(i: number): string {
  for (let n = digests.length; n <= i; n++)
    digests.push(
      digestOf(n === 0 ? FINGERPRINT : (digests[n - 1] as string), tokensOf(n), undefined),
    )
  return digests[i] as string
}

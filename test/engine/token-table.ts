import type { TokenTable } from "../../src/worker/protocol.ts"

/** A vocabulary of these texts. */
export function tableOf(texts: readonly string[]): TokenTable {
  const pieces = texts.map((text) => new TextEncoder().encode(text))
  let length = 0
  const ends = Uint32Array.from(pieces, (piece) => (length += piece.length))
  const bytes = new Uint8Array(length)
  for (const [id, piece] of pieces.entries()) bytes.set(piece, (ends[id] as number) - piece.length)
  return { bytes, ends }
}

import { byteToken } from "../../src/tokenizer/vocabulary.ts"
import type { GgufMetadata, GgufValue } from "../../src/weights/metadata.ts"

/** The 256 tokens of byte fallback. */
export const BYTE_TOKENS: readonly string[] = Array.from({ length: 256 }, (_, n) => byteToken(n))

/** A token as tests write it: text, score and kind (normal without one). */
export type Entry = readonly [text: string, score: number, kind?: number]

/** GGUF metadata of a small vocabulary; keys without `tokenizer.ggml.`. */
export function ggufVocabulary(
  model: string,
  entries: readonly Entry[],
  more: Readonly<Record<string, GgufValue>> = {},
): GgufMetadata {
  const fields: Record<string, GgufValue> = {
    model,
    tokens: entries.map(([text]) => text),
    scores: Float32Array.from(entries, ([, score]) => score),
    token_type: Int32Array.from(entries, ([, , kind]) => kind ?? 1),
    ...more,
  }
  return new Map(Object.entries(fields).map(([key, value]) => [`tokenizer.ggml.${key}`, value]))
}

/**
 * A `precompiled_charsmap` with the entries given, which must not be prefixes of each other: a double array laid out by
 * brute force, each node's children at the first offset where all of them fit.
 */
export function charsmapOf(entries: Readonly<Record<string, string>>): Uint8Array {
  interface Node {
    readonly children: Map<number, Node>
    value: number
  }
  const encoder = new TextEncoder()
  const replacements: number[] = []
  const root: Node = { children: new Map(), value: -1 }
  for (const [from, to] of Object.entries(entries)) {
    let node = root
    for (const byte of encoder.encode(from)) {
      const next: Node = node.children.get(byte) ?? { children: new Map(), value: -1 }
      node.children.set(byte, next)
      node = next
    }
    node.value = replacements.length
    replacements.push(...encoder.encode(to), 0)
  }
  const units = new Uint32Array(1 << 16)
  const used = new Set([0])
  const place = (node: Node, at: number, label: number): void => {
    const slots = [...node.children.keys(), ...(node.value >= 0 ? [0] : [])]
    let base = 1
    while (slots.some((slot) => used.has(base ^ slot))) base++
    for (const slot of slots) used.add(base ^ slot)
    units[at] = (((base ^ at) << 10) | (node.value >= 0 ? 0x100 : 0) | label) >>> 0
    if (node.value >= 0) units[base] = (node.value | 0x80000000) >>> 0
    for (const [byte, child] of node.children) place(child, base ^ byte, byte)
  }
  place(root, 0, 0)
  const table = units.subarray(0, (Math.max(...used) | 255) + 1)
  const bytes = new Uint8Array(4 + table.length * 4 + replacements.length)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, table.length * 4, true)
  table.forEach((unit, i) => view.setUint32(4 + i * 4, unit, true))
  bytes.set(replacements, 4 + table.length * 4)
  return bytes
}

import type { GgufMetadata } from "../weights/metadata.ts"
import type { WeightSource } from "../weights/source.ts"

/** The type that most of the bytes have. */
export function mainType(weights: WeightSource): string {
  const bytes = new Map<string, number>()
  for (const name of weights.names()) {
    const entry = weights.get(name)
    if (entry !== undefined)
      bytes.set(entry.dtype.name, (bytes.get(entry.dtype.name) ?? 0) + entry.byteLength)
  }
  return [...bytes].toSorted((a, b) => b[1] - a[1])[0]?.[0] ?? "vocabulary only"
}

/** Metadata that can be shown: scalars, and the lengths of arrays. */
export function shownMetadata(metadata: GgufMetadata): Record<string, unknown> {
  const shown: Record<string, unknown> = {}
  for (const [key, value] of metadata) {
    if (typeof value === "bigint") shown[key] = Number(value)
    else if (typeof value !== "object") shown[key] = value
    else shown[key] = null
  }
  return shown
}

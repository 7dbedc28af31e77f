import type { ModelConfig } from "../models/config.ts"
import type { RopeConfig } from "../nn/rope.ts"
import type { RopeKey } from "./sequence.ts"

/** The rope choice of a model per length, as part of what makes two KV pages equal; undefined if it makes none. */
export function ropeKeyOf(config: Pick<ModelConfig, "rope" | "rope_local">): RopeKey | undefined {
  const keys = [config.rope, config.rope_local].map(keyOf).filter((key) => key !== undefined)
  // two choices at once: the length itself tells every one of them apart
  return keys.length > 1 ? (length) => length : keys[0]
}

function keyOf(rope: RopeConfig | undefined): RopeKey | undefined {
  const original = rope?.original_max_position_embeddings ?? 0
  if (rope?.type === "dynamic") return (length) => Math.max(length, original)
  if (rope?.type === "longrope") return (length) => (length > original ? 1 : 0)
  return undefined
}

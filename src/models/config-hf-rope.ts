import { FormatError } from "../errors.ts"
import { ROPE_TYPES, type RopeConfig, type RopeType } from "../nn/rope.ts"
import type { HfConfig, Rope } from "./config-hf-schema.ts"
import type { Traits } from "./config-hf-traits.ts"
import { shown } from "./config-json.ts"
import { ropeConfig } from "./rope-config.ts"

/**
 * Both forms of rope settings: rope_theta and rope_scaling beside each other, or everything in
 * rope_parameters.
 */
export function ropes(
  file: string,
  c: HfConfig,
  traits: Traits,
  headDim: number,
): { rope: RopeConfig; rope_local: RopeConfig | undefined } {
  const parameters = c.rope_parameters ?? undefined
  const make = (key: string, rope: Rope | undefined, theta: number): RopeConfig => {
    const type = ropeType(file, key, rope)
    const partial = rope?.partial_rotary_factor ?? c.partial_rotary_factor ?? 1
    const original =
      rope?.original_max_position_embeddings ?? c.original_max_position_embeddings ?? undefined
    return ropeConfig(file, key, {
      type,
      theta: rope?.rope_theta ?? theta,
      rotary_dim: c.rotary_dim ?? Math.floor(headDim * partial),
      interleaved: traits.interleaved === true && c.rope_interleave !== false,
      max_position_embeddings: c.max_position_embeddings,
      original_max_position_embeddings: original,
      // Where both contexts are known, longrope's factor is their ratio and no other.
      factor:
        type === "longrope" && original !== undefined ? undefined : (rope?.factor ?? undefined),
      attention_factor:
        type === "yarn" || type === "longrope" ? (rope?.attention_factor ?? undefined) : 1,
      beta_fast: rope?.beta_fast ?? undefined,
      beta_slow: rope?.beta_slow ?? undefined,
      mscale: rope?.mscale ?? undefined,
      mscale_all_dim: rope?.mscale_all_dim ?? undefined,
      truncate: rope?.truncate ?? undefined,
      low_freq_factor: rope?.low_freq_factor ?? undefined,
      high_freq_factor: rope?.high_freq_factor ?? undefined,
      short_factor: type === "longrope" ? (rope?.short_factor ?? undefined) : undefined,
      long_factor: type === "longrope" ? (rope?.long_factor ?? undefined) : undefined,
    })
  }
  const theta = c.rope_theta ?? 10_000
  const isPerType =
    parameters?.full_attention !== undefined || parameters?.sliding_attention !== undefined
  if (parameters !== undefined && isPerType) {
    const { full_attention: full, sliding_attention: sliding } = parameters
    const local = c.rope_local_base_freq ?? theta
    const rope_local = sliding
      ? make("rope_parameters.sliding_attention", sliding, local)
      : undefined
    return { rope: make("rope_parameters.full_attention", full ?? undefined, theta), rope_local }
  }
  const rope = make(
    parameters === undefined ? "rope_scaling" : "rope_parameters",
    parameters ?? c.rope_scaling ?? undefined,
    theta,
  )
  // Gemma's local layers have a base of their own and no scaling.
  const rope_local = traits.gemma
    ? make("rope_local_base_freq", undefined, c.rope_local_base_freq ?? 10_000)
    : undefined
  return { rope, rope_local }
}

function ropeType(file: string, key: string, rope: Rope | undefined): RopeType {
  if (rope === undefined) return "default"
  const name = rope.rope_type ?? rope.type
  // "su" is longrope's first name, in early Phi-3 checkpoints.
  const found = ROPE_TYPES.find((t) => t === (name === "su" ? "longrope" : name))
  if (found === undefined) {
    throw new FormatError(
      file,
      `${key}.rope_type: ${shown(name)} is unknown; known are ${ROPE_TYPES.join(", ")}`,
    )
  }
  return found
}

import { FormatError } from "../errors.ts"
import type { RopeConfig, RopeType } from "../nn/rope.ts"

/** What files say about the rope, in one shape; undefined = not said. */
export interface RopeSpec {
  readonly type: RopeType
  readonly theta: number
  readonly rotary_dim: number
  readonly interleaved: boolean
  readonly max_position_embeddings: number
  readonly factor?: number | undefined
  readonly original_max_position_embeddings?: number | undefined
  readonly attention_factor?: number | undefined
  readonly beta_fast?: number | undefined
  readonly beta_slow?: number | undefined
  readonly mscale?: number | undefined
  readonly mscale_all_dim?: number | undefined
  readonly truncate?: boolean | undefined
  readonly low_freq_factor?: number | undefined
  readonly high_freq_factor?: number | undefined
  readonly short_factor?: readonly number[] | undefined
  readonly long_factor?: readonly number[] | undefined
  readonly freq_factors?: readonly number[] | undefined
}

/**
 * Fills in defaults as transformers' rope utilities do and checks what each type needs. `where` is
 * the key that messages name.
 */
export function ropeConfig(file: string, where: string, spec: RopeSpec): RopeConfig {
  const fail = (detail: string): never => {
    throw new FormatError(file, `${where}: ${detail}`)
  }
  const { type, max_position_embeddings: longest } = spec
  const original = spec.original_max_position_embeddings ?? longest
  const implied = type === "yarn" || type === "longrope" ? longest / original : undefined
  const factor =
    type === "default" ? 1 : (spec.factor ?? implied ?? fail(`type ${type} needs a factor`))
  if (!(factor >= 1)) fail(`factor ${factor} is below 1`)
  const { low_freq_factor: low, high_freq_factor: high } = spec
  if (type === "llama3") {
    if (
      low === undefined ||
      high === undefined ||
      spec.original_max_position_embeddings === undefined
    ) {
      fail(
        "type llama3 needs low_freq_factor, high_freq_factor and original_max_position_embeddings",
      )
    } else if (low > high) fail(`low_freq_factor ${low} is above high_freq_factor ${high}`)
  }
  if (type === "longrope" && (spec.short_factor === undefined || spec.long_factor === undefined)) {
    fail("type longrope needs short_factor and long_factor")
  }
  for (const key of ["short_factor", "long_factor", "freq_factors"] as const) {
    const list = spec[key]
    if (list === undefined) continue
    const expected = spec.rotary_dim / 2
    if (list.length !== expected)
      fail(`${key} has ${list.length} values, expected ${expected} (half the rotary dimension)`)
    const bad = list.find((value) => !(value > 0 && Number.isFinite(value)))
    if (bad !== undefined) fail(`${key} holds ${bad}, expected positive numbers`)
  }
  return Object.freeze({
    type,
    theta: spec.theta,
    rotary_dim: spec.rotary_dim,
    interleaved: spec.interleaved,
    factor,
    original_max_position_embeddings: original,
    attention_factor: spec.attention_factor ?? defaultAttentionFactor(spec, factor, original),
    beta_fast: spec.beta_fast ?? 32,
    beta_slow: spec.beta_slow ?? 1,
    truncate: spec.truncate ?? true,
    low_freq_factor: low ?? 1,
    high_freq_factor: high ?? 4,
    short_factor: spec.short_factor,
    long_factor: spec.long_factor,
    freq_factors: spec.freq_factors,
  })
}

/** YaRN's magnitude scale (arXiv 2309.00071, section 3.4). */
export function yarnMscale(factor: number, mscale = 1): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1
}

function defaultAttentionFactor(spec: RopeSpec, factor: number, original: number): number {
  if (spec.type === "yarn") {
    const { mscale = 0, mscale_all_dim: allDim = 0 } = spec
    return mscale > 0 && allDim > 0
      ? yarnMscale(factor, mscale) / yarnMscale(factor, allDim)
      : yarnMscale(factor)
  }
  if (spec.type !== "longrope" || factor <= 1) return 1
  return Math.sqrt(1 + Math.log(factor) / Math.log(original))
}

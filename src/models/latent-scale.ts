import type { RopeConfig } from "../nn/rope.ts"
import type { MlaConfig } from "./config.ts"
import { yarnMscale } from "./rope-config.ts"

/**
 * What multiplies q · k of latent attention: 1 / sqrt(head dimension), and the square of YaRN's magnitude at
 * `mscale_all_dim`, which DeepSeek applies to whole heads and not to their rotating part alone.
 */
export function latentScale(
  { qk_nope_head_dim, qk_rope_head_dim }: MlaConfig,
  { type, factor }: RopeConfig,
  mscaleAllDim: number | null | undefined,
): number {
  const magnitude = type === "yarn" && mscaleAllDim ? yarnMscale(factor, mscaleAllDim) : 1
  return magnitude ** 2 / Math.sqrt(qk_nope_head_dim + qk_rope_head_dim)
}

import { FormatError } from "../errors.ts"
import type { HfConfig } from "./config-hf-schema.ts"
import type { Traits } from "./config-hf-traits.ts"
import { shown } from "./config-json.ts"
import type { ModelConfig } from "./config.ts"

/** Experts, their router, and which layers have them. */
export function experts(
  file: string,
  c: HfConfig,
  traits: Traits,
): Pick<
  ModelConfig,
  | "num_experts"
  | "num_experts_per_tok"
  | "moe_intermediate_size"
  | "shared_expert_intermediate_size"
  | "norm_topk_prob"
  | "scoring_func"
  | "topk_method"
  | "n_group"
  | "topk_group"
  | "routed_scaling_factor"
  | "n_shared_experts"
  | "moe_enable_early_router"
  | "decoder_sparse_step"
  | "mlp_only_layers"
> {
  const needed = (key: "num_experts" | "num_experts_per_tok" | "moe_intermediate_size"): number => {
    const value = c[key]
    if (!traits.moe) return 0
    if (typeof value !== "number")
      throw new FormatError(
        file,
        `${traits.aliases?.[key] ?? key}: ${shown(value)}, expected a number`,
      )
    return value
  }
  const topk_method = c.use_routing_bias === false ? "greedy" : (c.topk_method ?? "greedy")
  const grouped = topk_method !== "greedy"
  return {
    num_experts: needed("num_experts"),
    num_experts_per_tok: needed("num_experts_per_tok"),
    moe_intermediate_size: needed("moe_intermediate_size"),
    shared_expert_intermediate_size: c.shared_expert_intermediate_size ?? 0,
    norm_topk_prob: c.norm_topk_prob ?? false,
    scoring_func:
      traits.sigmoid || c.moe_primary_router_apply_softmax === false
        ? "sigmoid"
        : (c.scoring_func ?? "softmax"),
    topk_method,
    n_group: grouped ? (c.n_group ?? 1) : 1,
    topk_group: grouped ? (c.topk_group ?? c.n_group ?? 1) : 1,
    routed_scaling_factor: c.routed_scaling_factor ?? 1,
    n_shared_experts: c.n_shared_experts ?? 0,
    moe_enable_early_router: c.moe_enable_early_router ?? false,
    ...sparseLayers(c),
  }
}

/** Which layers have experts: by step and exceptions, or by a list of either kind. */
function sparseLayers(c: HfConfig): Pick<ModelConfig, "decoder_sparse_step" | "mlp_only_layers"> {
  const { num_hidden_layers: layers, moe_layers, moe_layer_layout: flags } = c
  const { first_k_dense_replace: dense, moe_layer_freq: step } = c
  const late =
    typeof dense === "number"
      ? Array.from({ length: layers }, (_, i) => i).filter(
          (i) => i >= dense && i % (step ?? 1) === 0,
        )
      : undefined
  const sparse =
    moe_layers ?? flags?.flatMap((flag, i) => (flag ? [i] : [])) ?? late ?? spannedLayers(c)
  if (sparse === undefined) {
    const { decoder_sparse_step, mlp_only_layers } = c
    return { decoder_sparse_step: decoder_sparse_step ?? 1, mlp_only_layers: mlp_only_layers ?? [] }
  }
  const all = Array.from({ length: layers }, (_, i) => i)
  return { decoder_sparse_step: 1, mlp_only_layers: all.filter((i) => !sparse.includes(i)) }
}

/** ERNIE's: every n-th layer from a first to a last one. */
function spannedLayers(c: HfConfig): number[] | undefined {
  const { moe_layer_start_index: first, moe_layer_end_index: end, moe_layer_interval } = c
  if (typeof first !== "number") return undefined
  const last = end === undefined || end === null || end === -1 ? c.num_hidden_layers - 1 : end
  return Array.from({ length: c.num_hidden_layers }, (_, i) => i).filter(
    (i) => i >= first && i <= last && (i + 1) % (moe_layer_interval ?? 1) === 0,
  )
}

import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { writeSafetensors } from "../../src/weights/safetensors.ts"
import { type ErnieConfig, type Weights } from "../reference/ernie.ts"

/** A tiny ERNIE 4.5: a dense layer, then two with experts. */
export const ERNIE = {
  architectures: ["Ernie4_5_MoeForCausalLM"],
  model_type: "ernie4_5_moe",
  vocab_size: 256,
  hidden_size: 48,
  intermediate_size: 64,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  hidden_act: "silu",
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  rope_theta: 500_000,
  use_bias: false,
  tie_word_embeddings: true,
  moe_num_experts: 6,
  moe_k: 3,
  moe_num_shared_experts: 2,
  moe_intermediate_size: 32,
  moe_layer_start_index: 1,
  moe_layer_end_index: -1,
  moe_layer_interval: 1,
  num_nextn_predict_layers: 1,
  bos_token_id: 1,
  eos_token_id: 2,
} satisfies ErnieConfig & Record<string, unknown>

/** Random weights, the same each time, large enough that routers, norms and biases matter. */
export function ernieWeights(): Weights {
  let state = 20_250_630
  // a linear congruential generator, and a bell from twelve of its numbers
  const uniform = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
  const normal = (): number => Array.from({ length: 12 }, uniform).reduce((a, b) => a + b) - 6
  const weights = new Map<string, { shape: readonly number[]; data: Float32Array }>()
  const add = (name: string, shape: readonly number[], mean: number, deviation: number): void => {
    const size = shape.reduce((a, b) => a * b, 1)
    const data = Float32Array.from({ length: size }, () => mean + deviation * normal())
    weights.set(name, { shape, data })
  }
  const { hidden_size: n, head_dim, moe_intermediate_size: inner, moe_num_experts: experts } = ERNIE
  const matrix = (name: string, rows: number, columns: number, gain = 1): void =>
    add(`${name}.weight`, [rows, columns], 0, gain / Math.sqrt(columns))
  const mlp = (name: string, width: number): void => {
    matrix(`${name}.gate_proj`, width, n, 2)
    matrix(`${name}.up_proj`, width, n, 2)
    matrix(`${name}.down_proj`, n, width)
  }
  add("model.embed_tokens.weight", [ERNIE.vocab_size, n], 0, 0.5)
  for (let i = 0; i < ERNIE.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`
    add(`${layer}.input_layernorm.weight`, [n], 1, 0.2)
    add(`${layer}.post_attention_layernorm.weight`, [n], 1, 0.2)
    matrix(`${layer}.self_attn.q_proj`, ERNIE.num_attention_heads * head_dim, n, 2)
    matrix(`${layer}.self_attn.k_proj`, ERNIE.num_key_value_heads * head_dim, n, 2)
    matrix(`${layer}.self_attn.v_proj`, ERNIE.num_key_value_heads * head_dim, n)
    matrix(`${layer}.self_attn.o_proj`, n, ERNIE.num_attention_heads * head_dim)
    if (i < ERNIE.moe_layer_start_index) {
      mlp(`${layer}.mlp`, ERNIE.intermediate_size)
      continue
    }
    matrix(`${layer}.mlp.gate`, experts, n)
    add(`${layer}.mlp.moe_statics.e_score_correction_bias`, [1, experts], 0, 0.1)
    for (let e = 0; e < experts; e++) mlp(`${layer}.mlp.experts.${e}`, inner)
    mlp(`${layer}.mlp.shared_experts`, inner * ERNIE.moe_num_shared_experts)
  }
  add("model.norm.weight", [n], 1, 0.2)
  return weights
}

/** The tiny model as a Hugging Face folder, with tensors for predicting a further token. */
export function writeErnie(folder: string, weights: Weights): void {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, "config.json"), JSON.stringify(ERNIE))
  const further = ["model.mtp_emb_norm.0.weight", "model.mtp_block.0.input_layernorm.weight"]
  const extra = further.map((name) => [name, { shape: [2], data: new Float32Array(2) }] as const)
  writeSafetensors(join(folder, "model.safetensors"), Object.fromEntries([...weights, ...extra]))
}

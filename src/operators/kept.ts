import { z } from "zod"

import { ConfigError } from "../errors.ts"
import type { Module } from "../nn/module.ts"
import { expertRouter } from "../nn/moe.ts"
import type { OperatorRegistry } from "./registry.ts"

/**
 * KTransformers' operators whose work the plain modules do here: rules that name them keep the
 * module. What they are for (one module per model family, CUDA graphs, rope tables that PyTorch
 * loses on the meta device) does not arise.
 */
const KEPT = [
  // attention
  "KDeepseekV2Attention",
  "KLlamaAttention",
  "KQwen2MoeAttention",
  "KQwen3MoeAttention",
  "KSmallthinkerAttention",
  "KLlama4Attention",
  "KGlm4MoeAttention",
  "KQwen3NextAttention",
  "KQwen3NextGatedDeltaNet",
  "KQwen3MoeAttentionIPEXLLM",
  "KDeepseekV2AttentionIPEXLLM",
  "KDeepseekV2AttentionW8A8A2",
  "KDeepseekV2AttentionW8A8A2Serve",
  "KQwen3MoeAttentionW8A8A2Serve",
  "flashinfer_attn",
  "deepseek_torch_attn",
  // rope
  "RotaryEmbedding",
  "RotaryEmbeddingV2",
  "RotaryEmbeddingV3",
  "RotaryEmbeddingV4",
  "YarnRotaryEmbedding",
  "YarnRotaryEmbeddingV3",
  "DynamicNTKScalingRotaryEmbedding",
  "KQwen3MoeRotaryEmbedding",
  "KSmallthinkerRotaryEmbedding",
  "KLlama4RotaryEmbedding",
  "KGlm4MoeRotaryEmbedding",
  // norms
  "RMSNorm",
  "KQwen2MoeRMSNorm",
  "KQwen3MoeRMSNorm",
  "KQwen3NextRMSNorm",
  "KSmallthinkerRMSNorm",
  "KLlama4RMSNorm",
  "KGlm4MoeRMSNorm",
  "DeepseekV3RMSNormTorch",
  "KDeepseekRMSNormIPEXLLM",
  "KDeepseekV3RMSNormW8A8",
  "KQwen3MoeRMSNormW8A8",
  "KQwen3FinalRMSNormNPU",
  // dense feed-forward blocks
  "kDeepseekV3MLP",
  "KQwen2MoeMLP",
  "KSmallthinkerDenseMlpBlock",
  "KLlama4MLP",
  "KGlm4MoeMLP",
  "KDeepseekV3MLPW8A8A2V1",
  "KDeepseekV3MLPW8A8A2V2",
  "KQwen3MoeMLPW8A8A2",
  // whole models
  "KDeepseekV2Model",
  "KQwen2MoeModel",
  "KQwen3MoeModel",
  "KLlamaModel",
  "KLlama4Model",
] as const

/** Blocks of experts and their routers; KSparseMoeBlock is no name of KTransformers' and stands for those of any model. */
const MOE = [
  "KSparseMoeBlock",
  "KLlama4Moe",
  "KQwen2MoeSparseMoeBlock",
  "KQwen2MoeSparseMoeBlockV2",
  "KQwen3MoeSparseMoeBlock",
  "KQwen3MoeSparseMoeBlockV2",
  "KQwen3MoeSparseMoeBlockW8A8",
  "KQwen3NextSparseMoeBlockV2",
  "KDeepseekV2MoE",
  "KDeepseekV3MoE",
  "KDeepseekV3MoEV2",
  "KDeepseekV3MoEW8A8",
  "KMistralSparseMoEBlock",
  "KSmallthinkerMoeBlock",
  "KGlm4MoeMoE",
  "KMoEGate",
  "KMoEGateQwen2Moe",
  "KMoEGateIPEXLLM",
  "KDeepseekV3GateA2",
] as const

/** Their kwargs, misspelt as upstream has them, and spelt right. */
const schema = z.object({
  chunck_size: z.number().int().optional(),
  chunk_size: z.number().int().optional(),
  absorb_for_prefill: z.boolean().optional(),
  per_layer_prefill_intput_threshold: z.number().int().nullable().optional(),
  per_layer_prefill_input_threshold: z.number().int().nullable().optional(),
  transfer_map: z
    .union([z.record(z.string(), z.string()), z.literal("None")])
    .nullable()
    .optional(),
  use_quant: z.boolean().optional(),
  dump_enable: z.boolean().optional(),
  dump_dir: z.string().optional(),
  device: z.string().optional(),
  backend: z.string().optional(),
  prefill_op: z.string().nullable().optional(),
  generate_op: z.string().nullable().optional(),
})

const moeSchema = schema.extend({ num_experts_per_tok: z.number().int().min(1).optional() })

export function registerKept(registry: OperatorRegistry): void {
  registry.register("default", { schema: z.object({}), create: (original) => original })
  const notesOf = (name: string, { transfer_map: map }: { transfer_map?: unknown }): string[] => [
    `${name}: the model's own module stands in`,
    ...(map instanceof Object ? ["transfer_map: all layers are on one device"] : []),
  ]
  for (const name of KEPT) {
    registry.register(name, {
      schema,
      notes: (kwargs) => notesOf(name, kwargs),
      create: (original) => original,
    })
  }
  for (const name of MOE) {
    registry.register(name, {
      schema: moeSchema,
      notes: (kwargs) => (name === "KSparseMoeBlock" ? [] : notesOf(name, kwargs)),
      create: (original, { num_experts_per_tok: count }, { path }) => {
        if (count !== undefined) chooseFewer(original, count, path)
        return original
      },
    })
  }
}

/** Lets a block's router choose `count` experts for each token and not the model's own number. */
function chooseFewer(block: Module, count: number, path: string): void {
  const router = expertRouter(block)
  if (router === undefined) {
    throw new ConfigError(`num_experts_per_tok ${count}: ${path} has no experts to choose from`, {
      hint: "match the class of the blocks that have experts",
    })
  }
  if (count > router.topK) {
    throw new ConfigError(
      `num_experts_per_tok ${count}: expected 1 to ${router.topK}, as many as ${path} chooses by itself`,
    )
  }
  router.topK = count
}

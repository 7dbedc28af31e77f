import { z } from "zod"

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
  // dense and sparse feed-forward blocks, routers
  "kDeepseekV3MLP",
  "KQwen2MoeMLP",
  "KSmallthinkerDenseMlpBlock",
  "KLlama4MLP",
  "KGlm4MoeMLP",
  "KDeepseekV3MLPW8A8A2V1",
  "KDeepseekV3MLPW8A8A2V2",
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
  "KLlama4Moe",
  "KGlm4MoeMoE",
  "KMoEGate",
  "KMoEGateQwen2Moe",
  "KMoEGateIPEXLLM",
  "KDeepseekV3GateA2",
  // whole models
  "KDeepseekV2Model",
  "KQwen2MoeModel",
  "KLlamaModel",
  "KLlama4Model",
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

export function registerKept(registry: OperatorRegistry): void {
  registry.register("default", { schema: z.object({}), create: (original) => original })
  for (const name of KEPT) {
    registry.register(name, {
      schema,
      notes: (kwargs) => [
        `${name}: the model's own module stands in`,
        ...(kwargs.transfer_map instanceof Object
          ? ["transfer_map: all layers are on one device"]
          : []),
      ],
      create: (original) => original,
    })
  }
}

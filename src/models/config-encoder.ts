import { z } from "zod"

import { FormatError } from "../errors.ts"
import type { RopeConfig } from "../nn/rope.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { Keys } from "./config-gguf-keys.ts"
import { parsed, shown } from "./config-json.ts"
import { classifierOf, poolingOfGguf } from "./config-pooling.ts"
import {
  type Activation,
  ACTIVATIONS,
  checkedConfig,
  defaultHeadDim,
  type EncoderConfig,
  type EncoderType,
  type ModelConfig,
  type Pooling,
} from "./config.ts"
import { ropeConfig } from "./rope-config.ts"

const size = z.int().min(1).max(16_777_216)
const layers = z.int().min(1).max(4096)
const heads = z.int().min(1).max(65_536)
const context = z.int().min(1).max(1_073_741_824)
const eps = z.number().positive().max(1)
const types = z.int().min(0).max(65_536)

const Bert = z.object({
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  intermediate_size: size,
  max_position_embeddings: context,
  type_vocab_size: types.nullish(),
  layer_norm_eps: eps.nullish(),
  hidden_act: z.string().nullish(),
  position_embedding_type: z.literal("absolute").nullish(),
  is_decoder: z.literal(false).nullish(),
})

/** The hub's names are those of GPT-2; transformers 5 has BERT's. */
const Nomic = z.object({
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  intermediate_size: size,
  max_position_embeddings: context,
  max_trained_positions: context.nullish(),
  type_vocab_size: types.nullish(),
  layer_norm_eps: eps.nullish(),
  hidden_act: z.enum(["silu", "swiglu"]).nullish(),
  rope_theta: z.number().positive().max(1e12).nullish(),
  rope_parameters: z.object({ rope_theta: z.number().positive().max(1e12).nullish() }).nullish(),
  // of other models of the same code
  prenorm: z.literal(false).nullish(),
  causal: z.literal(false).nullish(),
  use_rms_norm: z.literal(false).nullish(),
  parallel_block: z.literal(false).nullish(),
  qkv_proj_bias: z.literal(false).nullish(),
  mlp_fc1_bias: z.literal(false).nullish(),
  mlp_fc2_bias: z.literal(false).nullish(),
  rotary_emb_fraction: z.literal(1).nullish(),
  rotary_emb_interleaved: z.literal(false).nullish(),
  moe_every_n_layers: z.literal(0).nullish(),
})

const NOMIC_NAMES: Readonly<Record<string, string>> = {
  hidden_size: "n_embd",
  num_hidden_layers: "n_layer",
  num_attention_heads: "n_head",
  intermediate_size: "n_inner",
  max_position_embeddings: "n_positions",
  layer_norm_eps: "layer_norm_epsilon",
  hidden_act: "activation_function",
  rope_theta: "rotary_emb_base",
}

/** The configuration of an encoder's config.json; `pooling` is what the folder says of it. */
export function encoderFromJson(
  file: string,
  type: EncoderType,
  json: Readonly<Record<string, unknown>>,
  pooling: Pooling | undefined,
): ModelConfig {
  if (type === "nomic_bert") return nomicFromJson(file, json, pooling)
  const c = parsed(file, "", json, Bert)
  const classifier = classifierOf(file, json)
  return encoderConfig(file, {
    model_type: type,
    layout: "huggingface",
    ...c,
    head_dim: defaultHeadDim(file, c.hidden_size, c.num_attention_heads),
    hidden_act: activation(file, c.hidden_act ?? "gelu"),
    encoder: {
      layer_norm_eps: c.layer_norm_eps ?? 1e-12,
      type_vocab_size: c.type_vocab_size ?? 2,
      num_positions: c.max_position_embeddings,
      classifier_dense: true,
    },
    pooling: classifier === undefined ? (pooling ?? "mean") : "rank",
    classifier,
  })
}

function nomicFromJson(
  file: string,
  json: Readonly<Record<string, unknown>>,
  pooling: Pooling | undefined,
): ModelConfig {
  const names = Object.entries(NOMIC_NAMES).filter(([, old]) => json[old] !== undefined)
  const renamed = Object.fromEntries(names.map(([name, old]) => [name, json[old]]))
  const c = parsed(file, "", { ...json, ...renamed }, Nomic, Object.fromEntries(names))
  const head_dim = defaultHeadDim(file, c.hidden_size, c.num_attention_heads)
  // beyond what they were trained with, texts need a rope that grows
  const trained = c.max_trained_positions ?? c.max_position_embeddings
  return encoderConfig(file, {
    model_type: "nomic_bert",
    layout: "huggingface",
    ...c,
    max_position_embeddings: Math.min(c.max_position_embeddings, trained),
    head_dim,
    hidden_act: "silu",
    rope: plainRope(file, head_dim, c, c.rope_theta ?? c.rope_parameters?.rope_theta ?? 1000),
    encoder: {
      layer_norm_eps: c.layer_norm_eps ?? 1e-12,
      type_vocab_size: c.type_vocab_size ?? 2,
      num_positions: 0,
      classifier_dense: false,
    },
    pooling: pooling ?? "mean",
  })
}

/** Of `general.architecture`. */
export const GGUF_ENCODERS: Readonly<Record<string, EncoderType>> = {
  bert: "bert",
  "nomic-bert": "nomic_bert",
}

/** The configuration of an encoder's GGUF. */
export function encoderFromGguf(gguf: GgufFile, type: EncoderType): ModelConfig {
  const { path } = gguf
  const keys = new Keys(gguf)
  const rows = (name: string): number => gguf.get(name)?.shape[0] ?? 0
  const vocab_size = rows("token_embd.weight")
  if (vocab_size === 0)
    throw new FormatError(path, "has no tensor token_embd.weight; a vocabulary alone is no model")
  if (keys.flag("attention.causal") === true)
    throw new FormatError(path, `${gguf.architecture}.attention.causal: true, expected false`)
  const hidden_size = keys.size("embedding_length")
  const num_attention_heads = keys.size("attention.head_count", 65_536)
  const head_dim = keys.size("attention.key_length", 65_536, () =>
    defaultHeadDim(path, hidden_size, num_attention_heads),
  )
  const max_position_embeddings = keys.size("context_length", 1_073_741_824)
  const isBert = type === "bert"
  const found = poolingOfGguf(gguf)
  return encoderConfig(path, {
    model_type: type,
    layout: "gguf",
    vocab_size,
    hidden_size,
    intermediate_size: keys.size("feed_forward_length"),
    num_hidden_layers: keys.size("block_count", 4096),
    num_attention_heads,
    head_dim,
    max_position_embeddings,
    hidden_act: isBert ? "gelu" : "silu",
    ...(isBert
      ? {}
      : {
          rope: plainRope(
            path,
            head_dim,
            { max_position_embeddings },
            keys.float("rope.freq_base") ?? 1000,
          ),
        }),
    encoder: {
      layer_norm_eps: keys.float("attention.layer_norm_epsilon", 1) ?? 1e-12,
      type_vocab_size: rows("token_types.weight"),
      num_positions: isBert ? rows("position_embd.weight") : 0,
      // converters leave it out, and so do those who compute with their files
      classifier_dense: gguf.get("cls.weight") !== undefined,
    },
    ...found,
    pooling: found.pooling ?? "mean",
  })
}

function plainRope(
  file: string,
  rotary_dim: number,
  { max_position_embeddings }: { max_position_embeddings: number },
  theta: number,
): RopeConfig {
  return ropeConfig(file, "rope", {
    type: "default",
    theta,
    rotary_dim,
    interleaved: false,
    max_position_embeddings,
  })
}

function activation(file: string, name: string): Activation {
  const found = ACTIVATIONS.find(
    (known) => known === (name === "gelu_new" ? "gelu_pytorch_tanh" : name),
  )
  if (found === undefined || found === "swiglu_oai")
    throw new FormatError(file, `hidden_act: ${shown(name)} is unknown; known are gelu, relu, silu`)
  return found
}

type Known =
  | "model_type"
  | "layout"
  | "vocab_size"
  | "hidden_size"
  | "intermediate_size"
  | "num_hidden_layers"
  | "num_attention_heads"
  | "head_dim"
  | "max_position_embeddings"
  | "hidden_act"

/** A whole configuration: decoders' parts are those of a model that has none of them. */
function encoderConfig(
  file: string,
  known: Pick<ModelConfig, Known | "classifier" | "pooling"> & {
    readonly encoder: EncoderConfig
    readonly rope?: RopeConfig
  },
): ModelConfig {
  const { head_dim, num_hidden_layers: count, encoder, max_position_embeddings: longest } = known
  if (encoder.num_positions > 0 && encoder.num_positions < longest)
    throw new FormatError(
      file,
      `max_position_embeddings: ${longest}, the table has ${encoder.num_positions}`,
    )
  return checkedConfig(file, {
    model_type: known.model_type,
    layout: known.layout,
    vocab_size: known.vocab_size,
    hidden_size: known.hidden_size,
    intermediate_size: known.intermediate_size,
    num_hidden_layers: count,
    num_attention_heads: known.num_attention_heads,
    num_key_value_heads: known.num_attention_heads,
    head_dim,
    max_position_embeddings: longest,
    rms_norm_eps: encoder.layer_norm_eps,
    hidden_act: known.hidden_act,
    tie_word_embeddings: false,
    attention_bias: known.model_type === "bert",
    attention_output_bias: known.model_type === "bert",
    mlp_bias: known.model_type === "bert",
    qk_norm: false,
    norm_offset: 0,
    embedding_scale: 1,
    attention_scale: 1 / Math.sqrt(head_dim),
    attn_logit_softcapping: undefined,
    final_logit_softcapping: undefined,
    sliding_window: undefined,
    attention_chunk_size: undefined,
    layer_types: Array.from({ length: count }, () => "full_attention" as const),
    linear_attention: undefined,
    rope_layers: Array.from({ length: count }, () => known.rope !== undefined),
    attn_temperature: undefined,
    mla: undefined,
    rope: known.rope ?? plainRope(file, head_dim, known, 10_000),
    rope_local: undefined,
    num_experts: 0,
    num_experts_per_tok: 0,
    moe_intermediate_size: 0,
    shared_expert_intermediate_size: 0,
    norm_topk_prob: false,
    scoring_func: "softmax",
    topk_method: "greedy",
    n_group: 1,
    topk_group: 1,
    routed_scaling_factor: 1,
    n_shared_experts: 0,
    moe_enable_early_router: false,
    decoder_sparse_step: 1,
    mlp_only_layers: [],
    bos_token_id: undefined,
    eos_token_id: [],
    encoder: Object.freeze(encoder),
    pooling: known.pooling,
    classifier: known.classifier && Object.freeze(known.classifier),
  })
}

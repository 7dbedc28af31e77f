import { FormatError } from "../errors.ts"
import type { GgufFile } from "./gguf.ts"
import type { SafetensorsFile } from "./safetensors.ts"

/**
 * How one GGUF architecture names what the model tree names as Hugging Face checkpoints do. Keys
 * are module paths, values GGUF base names; `.weight` and `.bias` follow both. A new architecture
 * is one entry of `TABLES`.
 */
interface NameTable {
  /** Modules outside the layers. */
  readonly root: Readonly<Record<string, string>>
  /** Path of the list of layers; default `model.layers`. */
  readonly layers?: string
  /** Modules below `model.layers.N.`, as `blk.N.` names them. */
  readonly layer: Readonly<Record<string, string>>
  /** Tensors below `model.layers.N.` that are no weight or bias of a module, with their whole names. */
  readonly values?: Readonly<Record<string, string>>
  /** Path below the layer whose children are the experts. */
  readonly experts?: string
  /**
   * An expert's projections; GGUF has them stacked (`ffn_gate_exps`), old files one by one
   * (`ffn_gate.N`).
   */
  readonly expert?: Readonly<Record<string, string>>
}

const ROOT = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  lm_head: "output",
  score: "cls.output",
}
const NORMS = { input_layernorm: "attn_norm", post_attention_layernorm: "ffn_norm" }
const ATTENTION = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
}
const QK_NORM = { "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm" }
const GATED_PROJECTIONS = { gate_proj: "ffn_gate", up_proj: "ffn_up", down_proj: "ffn_down" }
const MIXTRAL_PROJECTIONS = { w1: "ffn_gate", w3: "ffn_up", w2: "ffn_down" }
const SHARED_EXPERTS = {
  "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
  "mlp.shared_experts.up_proj": "ffn_up_shexp",
  "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
const MLP = { "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down" }

/** Keyed by `general.architecture`; Mistral models have the architecture llama. */
const TABLES: Readonly<Record<string, NameTable>> = {
  llama: {
    root: ROOT,
    layer: { ...NORMS, ...ATTENTION, ...MLP, "block_sparse_moe.gate": "ffn_gate_inp" },
    experts: "block_sparse_moe.experts",
    expert: MIXTRAL_PROJECTIONS,
  },
  qwen2: { root: ROOT, layer: { ...NORMS, ...ATTENTION, ...MLP } },
  qwen3: { root: ROOT, layer: { ...NORMS, ...ATTENTION, ...QK_NORM, ...MLP } },
  smollm3: { root: ROOT, layer: { ...NORMS, ...ATTENTION, ...MLP } },
  internlm2: { root: ROOT, layer: { ...NORMS, ...ATTENTION, ...MLP } },
  gemma3: {
    root: ROOT,
    layer: {
      input_layernorm: "attn_norm",
      post_attention_layernorm: "post_attention_norm",
      pre_feedforward_layernorm: "ffn_norm",
      post_feedforward_layernorm: "post_ffw_norm",
      ...ATTENTION,
      ...QK_NORM,
      ...MLP,
    },
  },
  phi3: {
    root: ROOT,
    layer: {
      ...NORMS,
      "self_attn.qkv_proj": "attn_qkv",
      "self_attn.o_proj": "attn_output",
      "mlp.gate_up_proj": "ffn_up",
      "mlp.down_proj": "ffn_down",
    },
  },
  qwen3moe: {
    root: ROOT,
    layer: { ...NORMS, ...ATTENTION, ...QK_NORM, ...MLP, "mlp.gate": "ffn_gate_inp" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  qwen2moe: {
    root: ROOT,
    layer: {
      ...NORMS,
      ...ATTENTION,
      ...MLP,
      "mlp.gate": "ffn_gate_inp",
      "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
      "mlp.shared_expert.up_proj": "ffn_up_shexp",
      "mlp.shared_expert.down_proj": "ffn_down_shexp",
      "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  glm4moe: {
    root: ROOT,
    layer: {
      input_layernorm: "attn_norm",
      post_attention_layernorm: "post_attention_norm",
      ...ATTENTION,
      ...QK_NORM,
      ...MLP,
      "mlp.gate": "ffn_gate_inp",
      ...SHARED_EXPERTS,
    },
    values: { "mlp.gate.e_score_correction_bias": "exp_probs_b.bias" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  "ernie4_5-moe": {
    root: ROOT,
    layer: { ...NORMS, ...ATTENTION, ...MLP, "mlp.gate": "ffn_gate_inp", ...SHARED_EXPERTS },
    values: { "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  "minimax-m2": {
    root: ROOT,
    layer: { ...NORMS, ...ATTENTION, ...QK_NORM, "block_sparse_moe.gate": "ffn_gate_inp" },
    values: { "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias" },
    experts: "block_sparse_moe.experts",
    expert: MIXTRAL_PROJECTIONS,
  },
  smallthinker: {
    root: ROOT,
    layer: {
      ...NORMS,
      ...ATTENTION,
      "block_sparse_moe.primary_router": "ffn_gate_inp",
      "block_sparse_moe.gate": "ffn_gate",
      "block_sparse_moe.up": "ffn_up",
      "block_sparse_moe.down": "ffn_down",
    },
    experts: "block_sparse_moe.experts",
    expert: { gate: "ffn_gate", up: "ffn_up", down: "ffn_down" },
  },
  llama4: {
    root: ROOT,
    layer: {
      ...NORMS,
      ...ATTENTION,
      "feed_forward.gate_proj": "ffn_gate",
      "feed_forward.up_proj": "ffn_up",
      "feed_forward.down_proj": "ffn_down",
      "feed_forward.router": "ffn_gate_inp",
      "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
      "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
      "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
    },
    experts: "feed_forward.experts",
    expert: GATED_PROJECTIONS,
  },
  "gpt-oss": {
    root: ROOT,
    layer: {
      input_layernorm: "attn_norm",
      post_attention_layernorm: "post_attention_norm",
      ...ATTENTION,
      "mlp.router": "ffn_gate_inp",
    },
    values: { "self_attn.sinks": "attn_sinks.weight" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  qwen3next: {
    root: ROOT,
    layer: {
      input_layernorm: "attn_norm",
      post_attention_layernorm: "post_attention_norm",
      ...ATTENTION,
      ...QK_NORM,
      ...MLP,
      "linear_attn.in_proj_qkvz": "ssm_in",
      "linear_attn.in_proj_qkv": "attn_qkv",
      "linear_attn.in_proj_z": "attn_gate",
      "linear_attn.in_proj_ba": "ssm_ba",
      "linear_attn.conv1d": "ssm_conv1d",
      "linear_attn.norm": "ssm_norm",
      "linear_attn.out_proj": "ssm_out",
      "mlp.gate": "ffn_gate_inp",
      "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
      "mlp.shared_expert.up_proj": "ffn_up_shexp",
      "mlp.shared_expert.down_proj": "ffn_down_shexp",
      "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    },
    values: { "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
  deepseek2: {
    root: ROOT,
    layer: {
      ...NORMS,
      "self_attn.q_proj": "attn_q",
      "self_attn.q_a_proj": "attn_q_a",
      "self_attn.q_a_layernorm": "attn_q_a_norm",
      "self_attn.q_b_proj": "attn_q_b",
      "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
      "self_attn.kv_a_layernorm": "attn_kv_a_norm",
      "self_attn.kv_b_proj": "attn_kv_b",
      "self_attn.k_b_proj": "attn_k_b",
      "self_attn.v_b_proj": "attn_v_b",
      "self_attn.o_proj": "attn_output",
      ...MLP,
      "mlp.gate": "ffn_gate_inp",
      "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
      "mlp.shared_experts.up_proj": "ffn_up_shexp",
      "mlp.shared_experts.down_proj": "ffn_down_shexp",
    },
    values: { "mlp.gate.e_score_correction_bias": "exp_probs_b.bias" },
    experts: "mlp.experts",
    expert: GATED_PROJECTIONS,
  },
}

/** Text encoders. */
const ENCODER_TABLES: Readonly<Record<string, NameTable>> = {
  bert: {
    root: {
      "embeddings.word_embeddings": "token_embd",
      "embeddings.position_embeddings": "position_embd",
      "embeddings.token_type_embeddings": "token_types",
      "embeddings.LayerNorm": "token_embd_norm",
      "pooler.dense": "cls",
      classifier: "cls.output",
    },
    layers: "encoder.layer",
    layer: {
      "attention.self.query": "attn_q",
      "attention.self.key": "attn_k",
      "attention.self.value": "attn_v",
      "attention.output.dense": "attn_output",
      "attention.output.LayerNorm": "attn_output_norm",
      "intermediate.dense": "ffn_up",
      "output.dense": "ffn_down",
      "output.LayerNorm": "layer_output_norm",
    },
  },
  "nomic-bert": {
    root: {
      "embeddings.word_embeddings": "token_embd",
      "embeddings.token_type_embeddings": "token_types",
      emb_ln: "token_embd_norm",
    },
    layers: "encoder.layers",
    layer: {
      "attn.Wqkv": "attn_qkv",
      "attn.out_proj": "attn_output",
      norm1: "attn_output_norm",
      "mlp.fc11": "ffn_up",
      "mlp.fc12": "ffn_gate",
      "mlp.fc2": "ffn_down",
      norm2: "layer_output_norm",
    },
  },
}

/** Tensors that configure the rope and belong to no module; `configFromGguf` has read them. */
export const CONFIG_TENSORS: ReadonlySet<string> = new Set([
  "rope_freqs.weight",
  "rope_factors_long.weight",
  "rope_factors_short.weight",
])

/** GGUF architectures whose names are known. */
export const GGUF_ARCHITECTURES: readonly string[] = [
  ...Object.keys(TABLES),
  ...Object.keys(ENCODER_TABLES),
]

/** Lookups in both directions, made once per architecture. */
interface Names {
  readonly table: NameTable
  /** Number of the layer, and the path below it. */
  readonly inLayer: RegExp
  readonly rootBack: ReadonlyMap<string, string>
  readonly layerBack: ReadonlyMap<string, string>
  readonly valueBack: ReadonlyMap<string, string>
  readonly expertBack: ReadonlyMap<string, string>
}

const known = new Map<string, Names>()

function namesOf(architecture: string): Names | undefined {
  const cached = known.get(architecture)
  if (cached !== undefined) return cached
  const tables = Object.hasOwn(ENCODER_TABLES, architecture) ? ENCODER_TABLES : TABLES
  const table = Object.hasOwn(tables, architecture) ? tables[architecture] : undefined
  if (table === undefined) return undefined
  const back = (record: Readonly<Record<string, string>>): Map<string, string> =>
    new Map(Object.entries(record).map(([hf, gguf]) => [gguf, hf]))
  const names = {
    table,
    inLayer: layerPattern(table),
    rootBack: back(table.root),
    layerBack: back(table.layer),
    valueBack: back(table.values ?? {}),
    expertBack: back(table.expert ?? {}),
  }
  known.set(architecture, names)
  return names
}

function own(record: Readonly<Record<string, string>>, key: string): string | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined
}

/**
 * The GGUF name of a parameter of the model tree, or undefined where the architecture has none. A
 * stack of experts is `model.layers.3.mlp.experts.gate_proj` (with or without `.weight`), one
 * expert of a file that keeps them apart `model.layers.3.mlp.experts.7.gate_proj.weight`.
 */
export function ggufName(architecture: string, path: string): string | undefined {
  const names = namesOf(architecture)
  if (names === undefined) return undefined
  const { table } = names
  const [module, suffix] = splitSuffix(path)
  const inLayer = names.inLayer.exec(module)
  if (inLayer === null) {
    const base = own(table.root, module)
    return base === undefined || suffix === "" ? undefined : `${base}.${suffix}`
  }
  const [, layer = "", rest = ""] = inLayer
  const value = own(table.values ?? {}, suffix === "" ? rest : `${rest}.${suffix}`)
  if (value !== undefined) return `blk.${layer}.${value}`
  const base = own(table.layer, rest)
  if (base !== undefined) return suffix === "" ? undefined : `blk.${layer}.${base}.${suffix}`
  if (table.experts === undefined || !rest.startsWith(`${table.experts}.`)) return undefined
  const [, expert, projection = ""] =
    /^(?:(\d+)\.)?(.+)$/.exec(rest.slice(table.experts.length + 1)) ?? []
  const stem = own(table.expert ?? {}, projection)
  if (stem === undefined || (expert !== undefined && suffix === "")) return undefined
  const stored = expert === undefined ? `${stem}_exps` : `${stem}.${expert}`
  return `blk.${layer}.${stored}.${suffix === "" ? "weight" : suffix}`
}

function layerPattern({ layers = "model.layers" }: NameTable): RegExp {
  return new RegExp(`^${layers.replaceAll(".", "\\.")}\\.(\\d+)\\.(.+)$`)
}

/** The inverse of `ggufName`; stacks come back without `.weight`. */
export function hfName(architecture: string, name: string): string | undefined {
  const names = namesOf(architecture)
  if (names === undefined) return undefined
  const [base, suffix] = splitSuffix(name)
  const inLayer = /^blk\.(\d+)\.(.+)$/.exec(base)
  if (inLayer === null) {
    const module = names.rootBack.get(base)
    return module === undefined || suffix === "" ? undefined : `${module}.${suffix}`
  }
  const [, layer = "", rest = ""] = inLayer
  const prefix = `${names.table.layers ?? "model.layers"}.${layer}`
  const value = names.valueBack.get(suffix === "" ? rest : `${rest}.${suffix}`)
  if (value !== undefined) return `${prefix}.${value}`
  if (suffix === "") return undefined
  const module = names.layerBack.get(rest)
  if (module !== undefined) return `${prefix}.${module}.${suffix}`
  const [, stem = "", expert] = /^(.+?)(?:_exps|\.(\d+))$/.exec(rest) ?? []
  const projection = names.expertBack.get(stem)
  if (projection === undefined || names.table.experts === undefined) return undefined
  const experts = `${prefix}.${names.table.experts}`
  if (expert !== undefined) return `${experts}.${expert}.${projection}.${suffix}`
  return suffix === "weight" ? `${experts}.${projection}` : `${experts}.${projection}.${suffix}`
}

function splitSuffix(path: string): [module: string, suffix: "" | "weight" | "bias"] {
  if (path.endsWith(".weight")) return [path.slice(0, -7), "weight"]
  if (path.endsWith(".bias")) return [path.slice(0, -5), "bias"]
  return [path, ""]
}

/** How one open checkpoint names the parameters of the model tree. */
export interface CheckpointNames {
  /**
   * Stored name of a parameter or of a stack of experts; undefined where the format has no name for
   * it.
   */
  stored(path: string): string | undefined
  /** Stored name of one expert of the stack `path`, for checkpoints that keep experts apart. */
  storedExpert(path: string, expert: number): string | undefined
  /** Whether a tensor belongs to a part that is no language model: eyes, ears and what joins them to it. */
  isOther(name: string): boolean
}

/**
 * Names of an open checkpoint; a GGUF of an unknown architecture is an error that lists the known
 * ones.
 */
export function checkpointNames(weights: GgufFile | SafetensorsFile): CheckpointNames {
  if (weights.kind === "safetensors") return safetensorsNames(weights)
  const { architecture } = weights
  if (namesOf(architecture) === undefined) {
    const list = GGUF_ARCHITECTURES.join(", ")
    throw new FormatError(
      weights.path,
      `general.architecture: "${architecture}" is unknown; known are ${list}`,
    )
  }
  return {
    stored: (path) => ggufName(architecture, path),
    storedExpert: (path, expert) => ggufName(architecture, oneExpert(path, expert)),
    isOther: (name) => /^(v|a|mm)\./.test(name),
  }
}

/** "….experts.gate_proj" → "….experts.7.gate_proj.weight" */
function oneExpert(stack: string, expert: number): string {
  const [module, suffix] = splitSuffix(stack)
  const dot = module.lastIndexOf(".")
  return `${module.slice(0, dot)}.${expert}${module.slice(dot)}.${suffix === "" ? "weight" : suffix}`
}

/** What InternLM2's own checkpoints call Llama's modules. */
const INTERNLM2: ReadonlyMap<string, string> = new Map([
  ["model.embed_tokens", "model.tok_embeddings"],
  ["lm_head", "output"],
  ["input_layernorm", "attention_norm"],
  ["post_attention_layernorm", "ffn_norm"],
  ["self_attn.wqkv", "attention.wqkv"],
  ["self_attn.o_proj", "attention.wo"],
  ["mlp.gate_proj", "feed_forward.w1"],
  ["mlp.up_proj", "feed_forward.w3"],
  ["mlp.down_proj", "feed_forward.w2"],
])

function internlm2Name(path: string): string {
  const [, prefix = "", module = "", suffix = ""] =
    /^(model\.layers\.\d+\.)?(.+)(\.weight|\.bias)$/.exec(path) ?? []
  const name = INTERNLM2.get(module)
  return name === undefined ? path : `${prefix}${name}${suffix}`
}

/** Vision towers and what joins them to the language model, in checkpoints without a prefix for the latter. */
const VISION =
  /^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|mm_projector|mm|mlp1)\./

interface Place {
  /** Where the language model has the tensor that it calls `path`. */
  readonly place: (path: string) => string
  /** Whether a tensor belongs to another part of the checkpoint. */
  readonly isOther: (name: string) => boolean
}

/** Multimodal checkpoints keep their language model under a prefix, in one of two places. */
const PLACES: readonly Place[] = [
  { place: (path) => path, isOther: (name) => VISION.test(name) },
  {
    place: (path) => `language_model.${path}`,
    isOther: (name) => !/^(language_model|lm_head)\./.test(name),
  },
  {
    place: (path) => path.replace(/^model\./, "model.language_model."),
    isOther: (name) => !/^(model\.language_model|lm_head|mtp)\./.test(name),
  },
]

/**
 * Encoders: with a prefix where the file was written for a task that BERT is a part of, norms of early files with the names
 * that they had in TensorFlow. Undefined where this is none.
 */
function encoderNames(has: (name: string) => boolean): CheckpointNames | undefined {
  const word = "embeddings.word_embeddings.weight"
  const prefix = ["", "bert.", "nomic_bert."].find((each) => has(each + word))
  if (prefix === undefined) return undefined
  const isOld = has(`${prefix}embeddings.LayerNorm.gamma`)
  const stored = (path: string): string => {
    const name = path.startsWith("classifier.") ? path : prefix + path
    if (!isOld) return name
    return name.replace(/(LayerNorm\.)weight$/, "$1gamma").replace(/(LayerNorm\.)bias$/, "$1beta")
  }
  return { stored, storedExpert: () => undefined, isOther: () => false }
}

/** Decoders that were saved without their head leave out the prefix of what is under it. */
const BARE: Place = {
  place: (path) => path.replace(/^model\./, ""),
  isOther: (name) => VISION.test(name),
}

function safetensorsNames(weights: SafetensorsFile): CheckpointNames {
  const has = (name: string): boolean => weights.get(name) !== undefined
  const encoder = encoderNames(has)
  if (encoder !== undefined) return encoder
  const holds = (path: string): Place | undefined => PLACES.find(({ place }) => has(place(path)))
  const own = holds("model.tok_embeddings.weight")
  const bare = has("embed_tokens.weight") ? BARE : undefined
  const { place, isOther } =
    own ?? holds("model.embed_tokens.weight") ?? bare ?? (PLACES[0] as Place)
  const stored = (path: string): string => place(own === undefined ? path : internlm2Name(path))
  return { stored, storedExpert: (path, expert) => stored(oneExpert(path, expert)), isOther }
}

import { KtError } from "../errors.ts"
import { Attention } from "../nn/attention.ts"
import { batchOn, type ForwardBatch, StepMemory } from "../nn/forward-batch.ts"
import { Embedding, Linear, RMSNorm, selectLogitsRows } from "../nn/layers.ts"
import { Module, ModuleList, registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings, RotaryEmbedding } from "../nn/rope.ts"
import { type Activation, actMul, add, copy, onDevice } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { layerRope, layerWindow, type ModelConfig } from "./config.ts"

/** Debugging: receives [T, hidden] of each layer's input and, last, of the last layer's output. */
export type HiddenStates = Float32Array[]

/** A layer of a decoder: the residual stream in, the residual stream out (it may be changed in place). */
export interface DecoderLayer extends Module {
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor
}

export class LlamaMLP extends Module {
  gate_proj
  up_proj
  down_proj
  readonly act: Activation

  constructor(config: ModelConfig, intermediateSize = config.intermediate_size) {
    super()
    const { hidden_size, mlp_bias: bias } = config
    this.gate_proj = new Linear(hidden_size, intermediateSize, { bias })
    this.up_proj = new Linear(hidden_size, intermediateSize, { bias })
    this.down_proj = new Linear(intermediateSize, hidden_size, { bias })
    this.act = config.hidden_act
  }

  forward(x: Tensor, _batch: ForwardBatch): Tensor {
    return this.down_proj.forward(
      actMul(this.gate_proj.forward(x), this.up_proj.forward(x), this.act),
    )
  }
}

export class LlamaAttention extends Module {
  q_proj
  k_proj
  v_proj
  o_proj
  attn
  readonly headDim: number

  constructor(config: ModelConfig, layerIdx: number) {
    super()
    const { hidden_size, num_attention_heads, num_key_value_heads, head_dim } = config
    const bias = config.attention_bias
    this.headDim = head_dim
    this.q_proj = new Linear(hidden_size, num_attention_heads * head_dim, { bias })
    this.k_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.v_proj = new Linear(hidden_size, num_key_value_heads * head_dim, { bias })
    this.o_proj = new Linear(num_attention_heads * head_dim, hidden_size, {
      bias: config.attention_output_bias,
    })
    this.attn = new Attention({
      layerIdx,
      numHeads: num_attention_heads,
      numKVHeads: num_key_value_heads,
      headDim: head_dim,
      scale: config.attention_scale,
      slidingWindow: layerWindow(config, layerIdx),
      softCap: config.attn_logit_softcapping ?? 0,
    })
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const q = this.q_proj.forward(x).unflatten(-1, [this.attn.numHeads, this.headDim])
    const k = this.k_proj.forward(x).unflatten(-1, [this.attn.numKVHeads, this.headDim])
    const v = this.v_proj.forward(x).unflatten(-1, [this.attn.numKVHeads, this.headDim])
    applyRotary(q, k, positions)
    return this.o_proj.forward(this.attn.forward(q, k, v, batch).flatten(1))
  }
}

/** What a decoder layer is made of; model types differ in these two. */
export interface DecoderLayerParts {
  readonly self_attn: Module & {
    forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor
  }
  readonly mlp: Module & { forward(x: Tensor, batch: ForwardBatch): Tensor }
}

export class LlamaDecoderLayer extends Module implements DecoderLayer {
  self_attn
  mlp
  input_layernorm
  post_attention_layernorm

  constructor(
    config: ModelConfig,
    layerIdx: number,
    parts: DecoderLayerParts = {
      self_attn: new LlamaAttention(config, layerIdx),
      mlp: new LlamaMLP(config),
    },
  ) {
    super()
    const { hidden_size, rms_norm_eps, norm_offset } = config
    this.self_attn = parts.self_attn
    this.mlp = parts.mlp
    this.input_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.post_attention_layernorm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    x = add(x, this.self_attn.forward(this.input_layernorm.forward(x), positions, batch))
    return add(x, this.mlp.forward(this.post_attention_layernorm.forward(x), batch))
  }
}

export type DecoderLayerClass = new (config: ModelConfig, layerIdx: number) => DecoderLayer

export class LlamaModel extends Module {
  embed_tokens
  layers
  norm
  rotary_emb
  /** The sliding layers' own rope (Gemma 3); only where it differs. */
  rotary_emb_local: RotaryEmbedding | undefined
  readonly #usesLocal: readonly boolean[]

  constructor(config: ModelConfig, Layer: DecoderLayerClass = LlamaDecoderLayer) {
    super()
    const { hidden_size, num_hidden_layers, rms_norm_eps, norm_offset } = config
    this.embed_tokens = new Embedding(config.vocab_size, hidden_size, config.embedding_scale)
    this.layers = new ModuleList(
      Array.from({ length: num_hidden_layers }, (_, i) => new Layer(config, i)),
    )
    this.norm = new RMSNorm(hidden_size, rms_norm_eps, norm_offset)
    this.rotary_emb = new RotaryEmbedding(config.rope)
    const local = config.rope_local
    if (local !== undefined) this.rotary_emb_local = new RotaryEmbedding(local)
    this.#usesLocal = this.layers.items.map((_, i) => layerRope(config, i) === local)
  }

  /** Normed hidden states of the tokens whose logits are wanted, [R, hidden]. */
  forward(batch: ForwardBatch, hiddenStates?: HiddenStates): Tensor {
    return this.norm.forward(this.states(batch, hiddenStates))
  }

  /** The last layer's output, before the norm, of the tokens whose logits are wanted, [R, hidden]. */
  states(batch: ForwardBatch, hiddenStates?: HiddenStates): Tensor {
    let x = this.embed_tokens.forward(batchOn(batch, this.embed_tokens.backend).inputIds)
    const { items } = this.layers
    const memory = new StepMemory(batch)
    let here: ForwardBatch | undefined
    let positions: PositionEmbeddings | undefined
    let local: PositionEmbeddings | undefined
    for (let i = 0; i < items.length; i++) {
      const layer = items[i] as DecoderLayer
      const { backend = x.backend } = layer
      if (here?.positions.backend !== backend || positions === undefined) {
        x = onDevice(x, backend)
        here = batchOn(batch, backend)
        positions = this.rotary_emb.forward(here)
        local = this.rotary_emb_local?.forward(here)
      }
      hiddenStates?.push(x.toFloat32Array())
      memory.mark()
      const embeddings = (this.#usesLocal[i] ? local : undefined) ?? positions
      const out = layer.forward(x, embeddings, here)
      // the residual stream stays where it is, so that the layer's temporaries can be taken back
      if (out !== x) copy(out, x)
      memory.release()
    }
    hiddenStates?.push(x.toFloat32Array())
    x = onDevice(x, this.backend ?? x.backend)
    return selectLogitsRows(x, batchOn(batch, x.backend))
  }
}

/** Ids in, logits out: the root of a model tree. */
export class LlamaForCausalLM extends Module {
  readonly config: ModelConfig
  model
  lm_head
  /** Ranks texts by their last token's state, in checkpoints that were made for it. */
  score: Linear | undefined

  constructor(config: ModelConfig, model: LlamaModel = new LlamaModel(config)) {
    super()
    this.config = config
    this.model = model
    this.lm_head = new Linear(
      config.hidden_size,
      config.vocab_size,
      config.tie_word_embeddings || config.classifier !== undefined
        ? { tiedTo: "model.embed_tokens.weight" }
        : {},
    )
    const { classifier } = config
    if (classifier !== undefined)
      this.score = new Linear(config.hidden_size, classifier.num_labels, { bias: classifier.bias })
  }

  /** Logits [R, vocab] F32 of `batch.logitsRows`. */
  forward(batch: ForwardBatch, hiddenStates?: HiddenStates): Tensor {
    return this.lm_head.forward(this.model.forward(batch, hiddenStates))
  }

  /** The last layer's output of `batch.logitsRows`, [R, hidden]; the other methods go on from it. */
  states(batch: ForwardBatch): Tensor {
    return this.model.states(batch)
  }

  normed(states: Tensor): Tensor {
    return this.model.norm.normalize(states)
  }

  /** [R, hidden] → [R, vocab] */
  logits(states: Tensor): Tensor {
    return this.lm_head.forward(this.model.norm.forward(states))
  }

  /** Logits of the classification head: [R, hidden] → [R, labels]. */
  classify(states: Tensor): Tensor {
    if (this.score === undefined) throw new KtError("the model has no classification head")
    return this.score.forward(this.normed(states))
  }
}

registerModules({ LlamaMLP, LlamaAttention, LlamaDecoderLayer, LlamaModel, LlamaForCausalLM })

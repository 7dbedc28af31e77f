import { KtError } from "../errors.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Embedding, LayerNorm, Linear } from "../nn/layers.ts"
import { Module, ModuleList, registerModules } from "../nn/module.ts"
import { applyRotary, type PositionEmbeddings, RotaryEmbedding } from "../nn/rope.ts"
import { actMul, add } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import { addTokenTypes, encoderAttention, encoderOf } from "./bert.ts"
import type { ModelConfig } from "./config.ts"
import { encode, EncoderModel } from "./encoder.ts"

/** One matrix makes q, k and v, in this order. */
export class NomicBertAttention extends Module {
  Wqkv
  out_proj
  attn

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, num_attention_heads, head_dim } = config
    const width = num_attention_heads * head_dim
    this.Wqkv = new Linear(hidden_size, 3 * width)
    this.out_proj = new Linear(width, hidden_size)
    this.attn = encoderAttention(config)
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const { numHeads, headDim } = this.attn
    const width = numHeads * headDim
    const qkv = this.Wqkv.forward(x)
    const part = (i: number): Tensor =>
      qkv.narrow(-1, i * width, width).unflatten(-1, [numHeads, headDim])
    const [q, k, v] = [part(0), part(1), part(2)]
    applyRotary(q, k, positions)
    return this.out_proj.forward(this.attn.forward(q, k, v, batch).flatten(1))
  }
}

/** SwiGLU; fc12 is the gate. */
export class NomicBertMLP extends Module {
  fc11
  fc12
  fc2

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, intermediate_size } = config
    this.fc11 = new Linear(hidden_size, intermediate_size)
    this.fc12 = new Linear(hidden_size, intermediate_size)
    this.fc2 = new Linear(intermediate_size, hidden_size)
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(actMul(this.fc12.forward(x), this.fc11.forward(x), "silu"))
  }
}

export class NomicBertLayer extends Module {
  attn
  mlp
  norm1
  norm2

  constructor(config: ModelConfig) {
    super()
    const { layer_norm_eps } = encoderOf(config)
    this.attn = new NomicBertAttention(config)
    this.mlp = new NomicBertMLP(config)
    this.norm1 = new LayerNorm(config.hidden_size, layer_norm_eps)
    this.norm2 = new LayerNorm(config.hidden_size, layer_norm_eps)
  }

  forward(x: Tensor, positions: PositionEmbeddings, batch: ForwardBatch): Tensor {
    const attended = this.attn.forward(x, positions, batch)
    const middle = this.norm1.forward(add(attended, x, attended), attended)
    const fed = this.mlp.forward(middle)
    return this.norm2.forward(add(fed, middle, fed), fed)
  }
}

export class NomicBertEmbeddings extends Module {
  word_embeddings
  token_type_embeddings: Embedding | undefined

  constructor(config: ModelConfig) {
    super()
    const { type_vocab_size } = encoderOf(config)
    this.word_embeddings = new Embedding(config.vocab_size, config.hidden_size)
    if (type_vocab_size > 0)
      this.token_type_embeddings = new Embedding(type_vocab_size, config.hidden_size)
  }

  /** → [T, hidden] */
  forward(batch: ForwardBatch): Tensor {
    const x = this.word_embeddings.forward(batch.inputIds)
    addTokenTypes(x, this.token_type_embeddings, batch)
    return x
  }
}

export class NomicBertEncoder extends Module {
  layers

  constructor(config: ModelConfig) {
    super()
    const { num_hidden_layers } = config
    this.layers = new ModuleList(
      Array.from({ length: num_hidden_layers }, () => new NomicBertLayer(config)),
    )
  }
}

/** Nomic's BERT (arXiv 2402.01613): rope, SwiGLU, no biases but those of its norms. */
export class NomicBertModel extends EncoderModel {
  embeddings
  emb_ln
  encoder
  rotary_emb

  constructor(config: ModelConfig) {
    super(config)
    this.embeddings = new NomicBertEmbeddings(config)
    this.emb_ln = new LayerNorm(config.hidden_size, encoderOf(config).layer_norm_eps)
    this.encoder = new NomicBertEncoder(config)
    this.rotary_emb = new RotaryEmbedding(config.rope)
  }

  states(batch: ForwardBatch): Tensor {
    const x = this.embeddings.forward(batch)
    const positions = this.rotary_emb.forward(batch)
    const layers = this.encoder.layers.items.map((layer) => ({
      forward: (y: Tensor) => layer.forward(y, positions, batch),
    }))
    return encode(this.emb_ln.forward(x, x), layers, batch)
  }

  classify(): Tensor {
    throw new KtError("nomic_bert models have no classification head")
  }
}

registerModules({
  NomicBertAttention,
  NomicBertMLP,
  NomicBertLayer,
  NomicBertEmbeddings,
  NomicBertEncoder,
  NomicBertModel,
})

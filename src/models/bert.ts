import { KtError } from "../errors.ts"
import { Attention } from "../nn/attention.ts"
import type { ForwardBatch } from "../nn/forward-batch.ts"
import { Embedding, LayerNorm, Linear } from "../nn/layers.ts"
import { Module, ModuleList, registerModules } from "../nn/module.ts"
import { act, type Activation, add } from "../ops/index.ts"
import type { Tensor } from "../tensor/tensor.ts"
import type { EncoderConfig, ModelConfig } from "./config.ts"
import { encode, EncoderModel } from "./encoder.ts"

/** The configuration of an encoder's own parts; every config of these model types has it. */
export function encoderOf({ encoder, model_type }: ModelConfig): EncoderConfig {
  if (encoder === undefined) throw new KtError(`a ${model_type} config without encoder`)
  return encoder
}

/** x += the rows of a table for each token's type. */
export function addTokenTypes(x: Tensor, table: Embedding | undefined, batch: ForwardBatch): void {
  if (table === undefined) return
  if (batch.tokenTypes === undefined) throw new KtError("the batch has no token types")
  add(x, table.forward(batch.tokenTypes), x)
}

export class BertEmbeddings extends Module {
  word_embeddings
  position_embeddings
  token_type_embeddings: Embedding | undefined
  LayerNorm

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, vocab_size } = config
    const { num_positions, type_vocab_size, layer_norm_eps } = encoderOf(config)
    this.word_embeddings = new Embedding(vocab_size, hidden_size)
    this.position_embeddings = new Embedding(num_positions, hidden_size)
    if (type_vocab_size > 0)
      this.token_type_embeddings = new Embedding(type_vocab_size, hidden_size)
    this.LayerNorm = new LayerNorm(hidden_size, layer_norm_eps)
  }

  /** → [T, hidden] */
  forward(batch: ForwardBatch): Tensor {
    const x = this.word_embeddings.forward(batch.inputIds)
    add(x, this.position_embeddings.forward(batch.positions), x)
    addTokenTypes(x, this.token_type_embeddings, batch)
    return this.LayerNorm.forward(x, x)
  }
}

export class BertSelfAttention extends Module {
  query
  key
  value
  attn

  constructor(config: ModelConfig) {
    super()
    const { hidden_size, num_attention_heads: heads, head_dim } = config
    this.query = new Linear(hidden_size, heads * head_dim, { bias: true })
    this.key = new Linear(hidden_size, heads * head_dim, { bias: true })
    this.value = new Linear(hidden_size, heads * head_dim, { bias: true })
    this.attn = encoderAttention(config)
  }

  /** x [T, hidden] → [T, hidden] */
  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const shape = [this.attn.numHeads, this.attn.headDim]
    const q = this.query.forward(x).unflatten(-1, shape)
    const k = this.key.forward(x).unflatten(-1, shape)
    const v = this.value.forward(x).unflatten(-1, shape)
    return this.attn.forward(q, k, v, batch).flatten(1)
  }
}

/** Layers are computed one after the other and texts as a whole, so that one layer's keys and values do for all. */
export function encoderAttention(config: ModelConfig): Attention {
  const { num_attention_heads: heads, head_dim: headDim, attention_scale: scale } = config
  return new Attention({
    layerIdx: 0,
    numHeads: heads,
    numKVHeads: heads,
    headDim,
    scale,
    bidirectional: true,
  })
}

/** A projection, the residual and the norm over their sum: after the attention and after the feed-forward part. */
export class BertOutput extends Module {
  dense
  LayerNorm

  constructor(inFeatures: number, config: ModelConfig) {
    super()
    this.dense = new Linear(inFeatures, config.hidden_size, { bias: true })
    this.LayerNorm = new LayerNorm(config.hidden_size, encoderOf(config).layer_norm_eps)
  }

  forward(x: Tensor, residual: Tensor): Tensor {
    const y = this.dense.forward(x)
    return this.LayerNorm.forward(add(y, residual, y), y)
  }
}

export class BertAttention extends Module {
  self
  output

  constructor(config: ModelConfig) {
    super()
    this.self = new BertSelfAttention(config)
    this.output = new BertOutput(config.num_attention_heads * config.head_dim, config)
  }

  forward(x: Tensor, batch: ForwardBatch): Tensor {
    return this.output.forward(this.self.forward(x, batch), x)
  }
}

export class BertIntermediate extends Module {
  dense
  readonly act: Exclude<Activation, "swiglu_oai">

  constructor(config: ModelConfig) {
    super()
    const { hidden_act } = config
    if (hidden_act === "swiglu_oai") throw new KtError("hidden_act: swiglu_oai needs two operands")
    this.dense = new Linear(config.hidden_size, config.intermediate_size, { bias: true })
    this.act = hidden_act
  }

  forward(x: Tensor): Tensor {
    const y = this.dense.forward(x)
    return act(y, this.act, y)
  }
}

export class BertLayer extends Module {
  attention
  intermediate
  output

  constructor(config: ModelConfig) {
    super()
    this.attention = new BertAttention(config)
    this.intermediate = new BertIntermediate(config)
    this.output = new BertOutput(config.intermediate_size, config)
  }

  forward(x: Tensor, batch: ForwardBatch): Tensor {
    const attended = this.attention.forward(x, batch)
    return this.output.forward(this.intermediate.forward(attended), attended)
  }
}

export class BertEncoder extends Module {
  layer

  constructor(config: ModelConfig) {
    super()
    const layers = Array.from({ length: config.num_hidden_layers }, () => new BertLayer(config))
    this.layer = new ModuleList(layers)
  }
}

/** What a classifier looks at: a dense layer and tanh over the first token's state. */
export class BertPooler extends Module {
  dense

  constructor(config: ModelConfig) {
    super()
    this.dense = new Linear(config.hidden_size, config.hidden_size, { bias: true })
  }

  forward(x: Tensor): Tensor {
    const y = this.dense.forward(x)
    return act(y, "tanh", y)
  }
}

/** BertModel, and with a classifier BertForSequenceClassification. */
export class BertModel extends EncoderModel {
  embeddings
  encoder
  pooler: BertPooler | undefined
  classifier: Linear | undefined

  constructor(config: ModelConfig) {
    super(config)
    this.embeddings = new BertEmbeddings(config)
    this.encoder = new BertEncoder(config)
    const { classifier } = config
    if (classifier === undefined) return
    if (encoderOf(config).classifier_dense) this.pooler = new BertPooler(config)
    const { num_labels, bias } = classifier
    this.classifier = new Linear(config.hidden_size, num_labels, { bias })
  }

  states(batch: ForwardBatch): Tensor {
    const { items } = this.encoder.layer
    return encode(this.embeddings.forward(batch), items, batch)
  }

  classify(states: Tensor): Tensor {
    if (this.classifier === undefined) throw new KtError("the model has no classification head")
    return this.classifier.forward(this.pooler?.forward(states) ?? states)
  }
}

registerModules({
  BertEmbeddings,
  BertSelfAttention,
  BertOutput,
  BertAttention,
  BertIntermediate,
  BertLayer,
  BertEncoder,
  BertPooler,
  BertModel,
})

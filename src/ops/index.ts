/** The op vocabulary of the engine. */
export {
  ACTIVATIONS,
  type Activation,
  gateUpAct,
  linear,
  linearResidual,
  normLinear,
  packWeight,
} from "./linear.ts"
export { addRmsNorm, rmsNorm } from "./rms-norm.ts"
export { actMul, add, cast, copy, dequantize } from "./elementwise.ts"
export { embedding } from "./embedding.ts"
export { rope, ropeTable } from "./rope.ts"
export { type AttentionOptions, pagedAttention, storeKv } from "./attention.ts"
export { measure, type Measurement } from "./measure.ts"
export { fusedExperts, type Routing, topkSoftmax } from "./moe.ts"
export { argmax, type Logprobs, logprobs, SamplingBatch, SamplingState } from "./sampling.ts"

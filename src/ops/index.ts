/** The op vocabulary of the engine. */
export { gateUpAct, type QkvOperands, qkvRopeStore } from "./fused.ts"
export { linear, linearResidual, normLinear, packedBytes, packWeight } from "./linear.ts"
export { addRmsNorm, rmsNorm } from "./rms-norm.ts"
export { layerNorm } from "./layer-norm.ts"
export {
  act,
  ACTIVATIONS,
  type Activation,
  actMul,
  add,
  cast,
  copy,
  dequantize,
} from "./elementwise.ts"
export { headLinear } from "./head-linear.ts"
export { embedding } from "./embedding.ts"
export { quantize } from "./quantize.ts"
export { rope, ropeTable } from "./rope.ts"
export { type AttentionOptions, pagedAttention, storeKv } from "./attention.ts"
export { measure, type Measurement } from "./measure.ts"
export {
  type ExpertsOperands,
  fusedExperts,
  type GroupScore,
  normRouter,
  routeExperts,
  type RouterOptions,
  type RouterScore,
  type Routing,
} from "./moe.ts"
export {
  argmax,
  changesLogits,
  type Draw,
  isSamplerName,
  type Logprobs,
  logprobs,
  maskLogits,
  SamplingBatch,
  SamplingState,
} from "./sampling.ts"
export {
  causalConv1d,
  type DeltaRuleOperands,
  gatedDeltaRule,
  type StateSegments,
} from "./delta-rule.ts"
export { gatedRmsNorm, sigmoidMul } from "./gates.ts"
export { onDevice, refuseRecording } from "./transfer.ts"

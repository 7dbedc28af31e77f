/** What an operator's own file imports from "ktransformers": the part of the public API below the engine. */
export { ConfigError, FormatError, KtError } from "../errors.ts"
export { Attention } from "../nn/attention.ts"
export type { ForwardBatch } from "../nn/forward-batch.ts"
export { Embedding, Linear, RMSNorm } from "../nn/layers.ts"
export { Module, ModuleList, type Parameter, registerModules } from "../nn/module.ts"
export { Experts } from "../nn/moe.ts"
export { type PositionEmbeddings, RotaryEmbedding } from "../nn/rope.ts"
export * as ops from "../ops/index.ts"
export { Tensor } from "../tensor/tensor.ts"
export {
  type DeviceKwargs,
  type OperatorContext,
  type OperatorSpec,
  registerOperator,
} from "./registry.ts"

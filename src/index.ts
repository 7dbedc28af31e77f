/** The public API. */
export { type EngineConfig, engineConfig } from "./config.ts"
export {
  ConfigError,
  DeviceError,
  FormatError,
  KtError,
  MemoryError,
  NativeError,
} from "./errors.ts"
export type { ModelConfig } from "./models/config.ts"
export type { ForwardBatch } from "./nn/forward-batch.ts"
export { Embedding, Linear, RMSNorm } from "./nn/layers.ts"
export { Module, ModuleList, type Parameter, registerModules } from "./nn/module.ts"
export { Experts } from "./nn/moe.ts"
export type { PositionEmbeddings } from "./nn/rope.ts"
export {
  type DeviceKwargs,
  type OperatorContext,
  type OperatorSpec,
  registerOperator,
} from "./operators/registry.ts"
export * as ops from "./ops/index.ts"
export { AutoConfig, AutoModelForCausalLM, AutoTokenizer } from "./pretrained/auto.ts"
export {
  type GenerateOptions,
  type Generation,
  type LoadOptions,
  optimizeAndLoadGguf,
  prefillAndGenerate,
  PretrainedModel,
} from "./pretrained/model.ts"
export { Tensor } from "./tensor/tensor.ts"
export { Tokenizer } from "./tokenizer/tokenizer.ts"

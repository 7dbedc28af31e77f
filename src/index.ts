/** The public API. */
export { type EngineConfig, engineConfig } from "./config.ts"
export { DeviceError, MemoryError, NativeError } from "./errors.ts"
export type { ModelConfig } from "./models/config.ts"
export * from "./operators/authoring.ts"
export { AutoConfig, AutoModelForCausalLM, AutoTokenizer } from "./pretrained/auto.ts"
export {
  type GenerateOptions,
  type Generation,
  type LoadOptions,
  optimizeAndLoadGguf,
  prefillAndGenerate,
  PretrainedModel,
} from "./pretrained/model.ts"
export { Tokenizer } from "./tokenizer/tokenizer.ts"

/** The op vocabulary of the engine. */
export { addRmsNorm, rmsNorm } from "./rms-norm.ts"
export { cast, copy, dequantize } from "./elementwise.ts"
export { embedding } from "./embedding.ts"

/** The op vocabulary of the engine. */
export { addRmsNorm, rmsNorm } from "./rms-norm.ts"

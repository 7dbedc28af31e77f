/** Element types. Ids are GGML's type numbers (ggml.h), so that GGUF files need no translation. */
export interface DTypeInfo {
  readonly id: number
  readonly name: string
  /** Values per block; 1 for plain types. */
  readonly blockSize: number
  readonly blockBytes: number
}

function type(id: number, name: string, blockSize: number, blockBytes: number): DTypeInfo {
  return { id, name, blockSize, blockBytes }
}

export const F32 = type(0, "F32", 1, 4)
export const F16 = type(1, "F16", 1, 2)
export const Q4_0 = type(2, "Q4_0", 32, 18)
export const Q4_1 = type(3, "Q4_1", 32, 20)
export const Q5_0 = type(6, "Q5_0", 32, 22)
export const Q5_1 = type(7, "Q5_1", 32, 24)
export const Q8_0 = type(8, "Q8_0", 32, 34)
export const Q2_K = type(10, "Q2_K", 256, 84)
export const Q3_K = type(11, "Q3_K", 256, 110)
export const Q4_K = type(12, "Q4_K", 256, 144)
export const Q5_K = type(13, "Q5_K", 256, 176)
export const Q6_K = type(14, "Q6_K", 256, 210)
export const Q8_K = type(15, "Q8_K", 256, 292)
export const IQ2_XXS = type(16, "IQ2_XXS", 256, 66)
export const IQ2_XS = type(17, "IQ2_XS", 256, 74)
export const IQ3_XXS = type(18, "IQ3_XXS", 256, 98)
export const IQ1_S = type(19, "IQ1_S", 256, 50)
export const IQ4_NL = type(20, "IQ4_NL", 32, 18)
export const IQ3_S = type(21, "IQ3_S", 256, 110)
export const IQ2_S = type(22, "IQ2_S", 256, 82)
export const IQ4_XS = type(23, "IQ4_XS", 256, 136)
export const I8 = type(24, "I8", 1, 1)
export const I16 = type(25, "I16", 1, 2)
export const I32 = type(26, "I32", 1, 4)
export const I64 = type(27, "I64", 1, 8)
export const F64 = type(28, "F64", 1, 8)
export const IQ1_M = type(29, "IQ1_M", 256, 56)
export const BF16 = type(30, "BF16", 1, 2)
export const TQ1_0 = type(34, "TQ1_0", 256, 54)
export const TQ2_0 = type(35, "TQ2_0", 256, 66)
export const MXFP4 = type(39, "MXFP4", 32, 17)
export const NVFP4 = type(40, "NVFP4", 64, 36)
export const Q1_0 = type(41, "Q1_0", 128, 18)
export const Q2_0 = type(42, "Q2_0", 64, 18)

/** What quantised weights of safetensors become; no GGUF holds them. */
export const F8_E4M3 = type(1001, "F8_E4M3", 128, 132)
export const I4_BF16 = type(1002, "I4_BF16", 32, 18)
export const I4_ZERO = type(1003, "I4_ZERO", 32, 19)

/** Types that GGUF files may hold but that no kernel reads yet: known by name, so that errors can say so. */
const UNSUPPORTED: readonly DTypeInfo[] = [type(9, "Q8_1", 32, 36)]

/** Types that the kernels compute with. */
export const DTYPES: readonly DTypeInfo[] = [
  F32,
  F16,
  BF16,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,
  Q8_K,
  IQ2_XXS,
  IQ2_XS,
  IQ3_XXS,
  IQ1_S,
  IQ4_NL,
  IQ3_S,
  IQ2_S,
  IQ4_XS,
  IQ1_M,
  TQ1_0,
  TQ2_0,
  MXFP4,
  NVFP4,
  Q1_0,
  Q2_0,
  I8,
  I16,
  I32,
  I64,
  F64,
]

const byId = new Map<number, DTypeInfo>([...DTYPES, ...UNSUPPORTED].map((t) => [t.id, t]))
const computable = new Set([...DTYPES, F8_E4M3, I4_BF16, I4_ZERO].map((t) => t.id))

/** The type with this GGML number, or undefined. */
export function dtypeById(id: number): DTypeInfo | undefined {
  return byId.get(id)
}

/** Whether kernels read this type (a GGUF may hold others). */
export function isComputable(dtype: DTypeInfo): boolean {
  return computable.has(dtype.id)
}

/** Bytes of `count` values along the innermost dimension; `count` must be a multiple of the block size. */
export function rowBytes(dtype: DTypeInfo, count: number): number {
  return (count / dtype.blockSize) * dtype.blockBytes
}

import { BF16, type DTypeInfo, F16, F32, F64, I8, I16, I32, I64 } from "../tensor/dtype.ts"

/**
 * Types that have no GGML number: known by name and size, refused where something would compute
 * with them.
 */
function named(name: string, blockBytes: number, id: number): DTypeInfo {
  return { id, name, blockSize: 1, blockBytes }
}

/** By their names in a safetensors header. */
export const SAFETENSORS_DTYPES: ReadonlyMap<string, DTypeInfo> = new Map(
  [
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    named("U8", 1, -1),
    named("BOOL", 1, -2),
    named("U16", 2, -3),
    named("U32", 4, -4),
    named("U64", 8, -5),
    named("F8_E4M3", 1, -6),
    named("F8_E5M2", 1, -7),
    named("F8_E8M0", 1, -8),
    named("C64", 8, -9),
  ].map((dtype) => [dtype.name, dtype]),
)

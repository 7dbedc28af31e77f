import {
  KT_MEASURE_BF16_DOT,
  KT_MEASURE_FMA,
  KT_MEASURE_INT4_DOT,
  KT_MEASURE_INT_DOT,
  KT_MEASURE_READ,
} from "../native/abi.generated.ts"
import type { Backend } from "../native/backend.ts"

const KINDS = {
  read: KT_MEASURE_READ,
  intDot: KT_MEASURE_INT_DOT,
  int4Dot: KT_MEASURE_INT4_DOT,
  bf16Dot: KT_MEASURE_BF16_DOT,
  fma: KT_MEASURE_FMA,
} as const

/**
 * `read`: bytes/s; the others operations/s on registers, two a multiply-add: int8 activations by weights of 8 (`intDot`)
 * and 4 bits (`int4Dot`), bf16, f32.
 */
export type Measurement = keyof typeof KINDS

/** 512 MiB: beyond any last-level cache, so that `read` is memory's own rate. */
const READ_BYTES = 512 * 1024 * 1024

/**
 * The best rate that all threads of the backend reach together, at its ISA level, in repetitions over `seconds`.
 * `bytes` is what `read` reads in one repetition.
 */
export function measure(
  backend: Backend,
  what: Measurement,
  options: { readonly seconds?: number; readonly bytes?: number } = {},
): number {
  const out = new Float64Array(new ArrayBuffer(8))
  const status = backend.library.kt_measure(
    backend.ctx,
    KINDS[what],
    options.bytes ?? READ_BYTES,
    options.seconds ?? 0.5,
    out,
  )
  backend.check(status, "measure")
  return out[0] as number
}

import { afterAll, describe, expect } from "bun:test"

import { ARCH_ISAS, Backend, queryCpu } from "../../src/native/backend.ts"
import { probeLibrary } from "../../src/native/library.ts"

/** Runs a suite once per ISA level of the CPU library that this machine has; the others are reported as skipped. */
export function describeBackends(name: string, suite: (backend: Backend) => void): void {
  const probe = probeLibrary("cpu")
  if (!probe.available) throw new Error(`the CPU library must be built first: ${probe.reason}`)
  const present = new Set(queryCpu(probe.library).isas)
  for (const isa of ARCH_ISAS) {
    if (!present.has(isa)) {
      describe.skip(`${name} [cpu ${isa}: this machine lacks it]`, () => {})
      continue
    }
    describe(`${name} [cpu ${isa}]`, () => {
      const backend = new Backend({ isa, threads: 2 }, probe.library)
      afterAll(() => backend[Symbol.dispose]())
      suite(backend)
    })
  }
}

/** Deterministic normal-ish values. */
export function randomArray(length: number, seed: number, scale = 1): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 4294967296
  }
  const out = new Float32Array(length)
  for (let i = 0; i < length; i++) out[i] = scale * (next() + next() + next() + next() - 2)
  return out
}

/** Relative RMS error. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let error = 0
  let norm = 0
  for (let i = 0; i < want.length; i++) {
    error += ((got[i] as number) - (want[i] as number)) ** 2
    norm += (want[i] as number) ** 2
  }
  return norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm)
}

/**
 * Tolerance of a product against one with activations rounded to int8. Where there are tiles they may take it, from however
 * many tokens on they are faster: they round to bf16 instead, so what int8 rounds off is a difference.
 */
export function int8Tolerance(backend: Backend, tokens: number, exact: number): number {
  const tiles = backend.isa === "amx" && tokens >= Number(process.env["KT_AMX_TOKENS"] ?? 8)
  return tiles ? Math.max(exact, INT8_ROUNDING) : exact
}

/** Half a unit in the last of 8 bits for each activation, and as much again where a row's few values are all near half. */
const INT8_ROUNDING = 2e-2

/** Fails unless the relative RMS error is at most `tolerance` and every value is finite where the reference is. */
export function expectClose(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: number,
): void {
  expect(got.length).toBe(want.length)
  const error = relativeError(got, want)
  if (!(error <= tolerance))
    throw new Error(
      `relative error ${error.toExponential(2)} exceeds ${tolerance.toExponential(2)}`,
    )
}

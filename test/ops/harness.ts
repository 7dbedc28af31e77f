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
 * Tolerance of a product with int8 activations. Tiles round weights and activations once more, to one scale per 256 columns;
 * where KT_AMX_TOKENS asks for them they may take products of 8 tokens and more.
 */
export function int8Tolerance(backend: Backend, tokens: number, exact: number): number {
  const tiles = backend.isa === "amx" && process.env["KT_AMX_TOKENS"] !== undefined
  return tiles && tokens >= 8 ? Math.max(exact, TILE_ROUNDING) : exact
}

// a few results of one row may be off by more than the percent that many are
const TILE_ROUNDING = 4e-2

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

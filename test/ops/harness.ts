import { afterAll, describe, expect } from "bun:test"

import {
  ARCH_ISAS,
  Backend,
  deviceProblem,
  openDevice,
  queryCpu,
} from "../../src/native/backend.ts"
import { type FunctionName, lacksOp, probeLibrary } from "../../src/native/library.ts"

/** A suite of ops that not every backend has. */
interface Needing {
  readonly name: string
  readonly needs: readonly FunctionName[]
}

/** Devices besides the CPU that have backends. */
export const DEVICES = ["cuda:0", "sycl:0"] as const

/**
 * Runs a suite once per ISA level of the CPU library that this machine has and once per device of another backend; what is
 * not there is reported as skipped. `only` is for suites of the CPU's own.
 */
export function describeBackends(
  named: string | Needing,
  suite: (backend: Backend) => void,
  only?: "cpu",
): void {
  const { name, needs } = typeof named === "string" ? { name: named, needs: [] } : named
  describeLevels(name, suite)
  for (const device of only === "cpu" ? [] : DEVICES) {
    const problem = deviceProblem(device) ?? opProblem(device, needs)
    if (problem !== undefined) {
      describe.skip(`${name} [${device}: ${problem}]`, () => {})
      continue
    }
    describe(`${name} [${device}]`, () => {
      const { library, index } = openDevice(device)
      const backend = new Backend({ device: index }, library)
      afterAll(() => backend[Symbol.dispose]())
      suite(backend)
    })
  }
}

/** Why a device cannot run a suite of these ops. */
function opProblem(device: string, needs: readonly FunctionName[]): string | undefined {
  const { library } = openDevice(device)
  const lacking = needs.find((name) => lacksOp(library, name))
  return lacking === undefined ? undefined : `it has no ${lacking}`
}

function describeLevels(name: string, suite: (backend: Backend) => void): void {
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
  // a device rounds to int8 or to bf16, by type and number of tokens
  if (!backend.isHost) return Math.max(exact, DEVICE_ROUNDING)
  const tiles = backend.isa === "amx" && tokens >= Number(process.env["KT_AMX_TOKENS"] ?? 8)
  return tiles ? Math.max(exact, INT8_ROUNDING) : exact
}

/** Half a unit in the last of 8 bits for each activation, and as much again where a row's few values are all near half. */
const INT8_ROUNDING = 2e-2
/** Of bf16, where a row's few values nearly cancel. */
const DEVICE_ROUNDING = 3e-2

/** The one of some definitions that values are nearest to: kernels of devices choose how activations are rounded. */
export function nearest<T extends ArrayLike<number>>(
  got: ArrayLike<number>,
  wants: readonly [T, ...T[]],
): T {
  return wants.reduce((a, b) => (relativeError(got, b) < relativeError(got, a) ? b : a))
}

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

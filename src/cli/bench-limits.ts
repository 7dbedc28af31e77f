import { kvLayers } from "../engine/kv-layers.ts"
import { isLinearLayer, layerWindow, type ModelConfig } from "../models/config.ts"
import { Backend, openDevice, queryCpu } from "../native/backend.ts"
import { measure, type Measurement } from "../ops/index.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import type { WeightSource } from "../weights/source.ts"

/** What products of a weight's type are made of: the rate that bounds them. */
export type Arithmetic = Exclude<Measurement, "read">

/** What the machine can do with so many threads at one ISA level. */
export interface Limits {
  readonly threads: number
  readonly isa: string
  /** Bytes/s. */
  readonly readBytes: number
  /** Operations/s, two a multiply-add; what was not asked for is missing. */
  readonly rates: Readonly<Partial<Record<Arithmetic, number>>>
}

export interface LimitOptions {
  readonly threads: number
  readonly seconds: number
  readonly kinds: readonly Arithmetic[]
  readonly isa?: string
  /** A device other than the CPU: its own memory is read, its own units compute. */
  readonly device?: string
  /** Bytes that are read again and again: what fits into a cache is read faster. */
  readonly workingSet?: number
}

/** More than any last-level cache holds. */
export function memorySet(l3Bytes: number): number {
  return Math.max(2 ** 29, 4 * l3Bytes)
}

export function measureLimits(options: LimitOptions): Limits {
  const { threads, seconds, kinds, isa, workingSet } = options
  if (options.device !== undefined && options.device !== "cpu")
    return deviceLimits(options.device, seconds)
  const { l3Bytes } = queryCpu()
  using backend = new Backend({ threads, pinThreads: true, ...(isa === undefined ? {} : { isa }) })
  const fits = workingSet !== undefined && workingSet < l3Bytes
  const least = 2048 * backend.threads
  const bytes = fits ? Math.max(least, Math.floor(workingSet)) : memorySet(l3Bytes)
  const readBytes = measure(backend, "read", { seconds, bytes })
  const rates: Partial<Record<Arithmetic, number>> = {}
  for (const kind of kinds) rates[kind] = measure(backend, kind, { seconds })
  return { threads: backend.threads, isa: backend.isa, readBytes, rates }
}

/** Read from more than a device's second-level cache holds. */
const DEVICE_BYTES = 2 ** 31

/** A device's tensor cores compute products of all types; F32 weights go by its float units. */
function deviceLimits(device: string, seconds: number): Limits {
  const { library, index } = openDevice(device)
  using backend = new Backend({ device: index }, library)
  const tensor = measure(backend, "bf16Dot", { seconds })
  return {
    threads: backend.threads,
    isa: device,
    readBytes: measure(backend, "read", { seconds, bytes: DEVICE_BYTES }),
    rates: {
      bf16Dot: tensor,
      intDot: tensor,
      int4Dot: tensor,
      fma: measure(backend, "fma", { seconds }),
    },
  }
}

/** The best of several measurements: a machine that others use too is slow at times, never fast. */
export function bestLimits(all: readonly Limits[]): Limits {
  const [first] = all as [Limits]
  const rates: Partial<Record<Arithmetic, number>> = {}
  for (const kind of Object.keys(first.rates) as Arithmetic[])
    rates[kind] = Math.max(...all.map((limits) => limits.rates[kind] ?? 0))
  return { ...first, readBytes: Math.max(...all.map((l) => l.readBytes)), rates }
}

type Operations = Readonly<Partial<Record<Arithmetic, number>>>

/** What a model's step reads and computes. */
export interface ModelWork {
  /** Bytes of weights that every step reads. */
  readonly bytes: number
  /** Bytes of all routed experts, and the part of them that one token goes to. */
  readonly expertBytes: number
  readonly expertShare: number
  /** Operations of a token by arithmetic, without the output matrix, and those of a row of logits. */
  readonly perToken: Operations
  readonly perLogits: Operations
  /** Operations of a token's attention to one position: with cached latents, and in a prompt, where they are expanded. */
  readonly attention: { readonly step: number; readonly prompt: number }
  /** Sliding windows of the layers that keep keys and values; 0: all positions. */
  readonly windows: readonly number[]
}

const EMBEDDING = /^(token_embd|model\.embed_tokens)\.weight$/
const OUTPUT = /^(output|lm_head)\.weight$/
const EXPERT = /(_exps\.|\.experts\.)/
/** Types whose codes are so narrow that pair sums of products by bytes can be added as 16 bits. */
const NARROW =
  /^(Q1_0|Q2_0|Q4_0|Q4_1|Q5_0|Q5_1|Q2_K|Q3_K|Q4_K|Q5_K|TQ1_0|TQ2_0|MXFP4|NVFP4|I4_BF16|I4_ZERO)$/

/** By what a weight of this type is multiplied fastest without more rounding than its mode of precision allows. */
export function arithmeticOf(dtype: DTypeInfo, precision: "fast" | "f32"): Arithmetic {
  if (precision === "f32" || dtype.name === "F32" || dtype.name === "F8_E4M3") return "fma"
  if (dtype.blockSize === 1) return dtype.name === "BF16" ? "bf16Dot" : "fma"
  return NARROW.test(dtype.name) ? "int4Dot" : "intDot"
}

/** The work of a model with these weights: of the embedding a token reads a row, unless it is the output matrix too. */
export function modelWork(
  config: ModelConfig,
  weights: WeightSource,
  precision: "fast" | "f32",
): ModelWork {
  const names = [...weights.names()]
  const hasOutput = names.some((name) => OUTPUT.test(name))
  const expertShare = config.num_experts > 0 ? config.num_experts_per_tok / config.num_experts : 1
  let bytes = 0
  let expertBytes = 0
  const perToken: Partial<Record<Arithmetic, number>> = {}
  const perLogits: Partial<Record<Arithmetic, number>> = {}
  for (const name of names) {
    const entry = weights.get(name)
    if (entry === undefined) continue
    const isExpert = EXPERT.test(name)
    const isOutput = OUTPUT.test(name) || (!hasOutput && EMBEDDING.test(name))
    if (EMBEDDING.test(name) && !isOutput) continue
    if (isExpert) expertBytes += entry.byteLength
    else bytes += entry.byteLength
    if (entry.shape.length < 2) continue
    const kind = arithmeticOf(entry.dtype, precision)
    const operations = 2 * entry.shape.reduce((a, b) => a * b, 1) * (isExpert ? expertShare : 1)
    const into = isOutput ? perLogits : perToken
    into[kind] = (into[kind] ?? 0) + operations
  }
  const { num_attention_heads: heads, head_dim, mla } = config
  const layers = kvLayers(config)
  const cached = layers.reduce((sum, { kDim, vDim }) => sum + 2 * heads * (kDim + vDim), 0)
  const expanded = 2 * heads * (head_dim + (mla?.v_head_dim ?? head_dim)) * layers.length
  return {
    bytes,
    expertBytes,
    expertShare,
    perToken,
    perLogits,
    attention: { step: cached, prompt: expanded },
    windows: config.layer_types.flatMap((_, i) =>
      isLinearLayer(config, i) ? [] : [layerWindow(config, i)],
    ),
  }
}

/** The kinds of arithmetic that a model needs measured. */
export function kindsOf({ perToken, perLogits }: ModelWork): Arithmetic[] {
  return [
    ...new Set([...Object.keys(perToken), ...Object.keys(perLogits), "bf16Dot"]),
  ] as Arithmetic[]
}

/** One step of a model. */
export interface StepShape {
  /** Sequences, the tokens that each computes, and the positions before them. */
  readonly sequences: number
  readonly tokens: number
  readonly depth: number
  /** Bytes of keys and values of one position in all layers. */
  readonly kvBytes: number
}

/**
 * Seconds that a step takes at least: the longer of reading and computing. Of experts it reads those that some token goes
 * to, with routers that choose evenly; a prompt's attention sees half of its own tokens.
 */
export function leastSeconds(work: ModelWork, limits: Limits, step: StepShape): number {
  const { sequences, tokens, depth, kvBytes } = step
  const all = sequences * tokens
  const touched = 1 - (1 - work.expertShare) ** all
  const seen = (context: number): number =>
    mean(work.windows.map((window) => (window > 0 ? Math.min(window, context) : context)))
  const reading =
    work.bytes + work.expertBytes * touched + sequences * kvBytes * seen(depth + tokens)
  const attention =
    (tokens > 1 ? work.attention.prompt : work.attention.step) * seen(depth + (tokens + 1) / 2)
  const computing =
    all * secondsOf(work.perToken, limits) +
    sequences * secondsOf(work.perLogits, limits) +
    (all * attention) / rateOf("bf16Dot", limits)
  return Math.max(reading / limits.readBytes, computing)
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((a, b) => a + b, 0) / values.length
}

function rateOf(kind: Arithmetic, limits: Limits): number {
  return limits.rates[kind] ?? Number.NaN
}

function secondsOf(operations: Operations, limits: Limits): number {
  let seconds = 0
  for (const [kind, count] of Object.entries(operations))
    seconds += count / rateOf(kind as Arithmetic, limits)
  return seconds
}

import { ConfigError } from "../errors.ts"
import type { PoolParams } from "../worker/protocol.ts"

/** What the parameters are checked against. */
export interface PoolingLimits {
  readonly hiddenSize: number
  readonly vocabSize: number
  readonly hasClassifier: boolean
  /** The model has logits: it can be asked for a verdict. */
  readonly generates: boolean
  /** Ranking looks at the first token, not at the last. */
  readonly isEncoder: boolean
}

/** @throws ConfigError naming the first parameter that does not fit the model */
export function checkPoolParams(params: PoolParams, length: number, limits: PoolingLimits): void {
  const { pooling, dimensions, verdict, secondFrom } = params
  const { hiddenSize, vocabSize, hasClassifier, generates } = limits
  if (dimensions !== undefined && !(dimensions >= 1 && dimensions <= hiddenSize))
    throw new ConfigError(`dimensions ${dimensions}: the model's vectors have ${hiddenSize}`)
  if (dimensions !== undefined && !Number.isInteger(dimensions))
    throw new ConfigError(`dimensions ${dimensions}: expected an integer`)
  if (secondFrom !== undefined && !(secondFrom > 0 && secondFrom <= length))
    throw new ConfigError(`secondFrom ${secondFrom}: expected a position in 1..${length}`)
  if (pooling !== "rank" || hasClassifier) return
  if (!generates || verdict === undefined)
    throw new ConfigError("the model has no classification head and cannot rank texts")
  for (const token of verdict)
    if (!(token >= 0 && token < vocabSize))
      throw new ConfigError(`verdict token ${token}: the model has 0..${vocabSize - 1}`)
}

/** Gathers the states of one text, step by step. */
export class Pooler {
  readonly params: PoolParams
  /** What the text's vectors are made of: sums of all its tokens', or one vector after the other. */
  #vectors: Float64Array[] = []
  #count = 0
  #score = Number.NaN
  readonly #at: "all" | "first" | "last"

  constructor(params: PoolParams, isEncoder: boolean) {
    this.params = params
    const { pooling } = params
    if (pooling === "mean" || pooling === "none") this.#at = "all"
    else this.#at = pooling === "cls" || (pooling === "rank" && isEncoder) ? "first" : "last"
  }

  /** States of tokens that are known already would be missed. */
  get needsAll(): boolean {
    return this.#at !== "last"
  }

  /** Of a step that computes tokens `start` to `end` of `length`: those whose states are wanted. */
  wanted(start: number, end: number, length: number): readonly [from: number, to: number] {
    if (this.#at === "all") return [start, end]
    if (this.#at === "first") return [0, start === 0 ? 1 : 0]
    return [length - 1, end === length ? length : length - 1]
  }

  /** The text is computed from its start, perhaps again after it lost its pages. */
  restart(): void {
    this.#vectors = []
    this.#count = 0
  }

  /** States of further tokens, `dim` values each. */
  add(states: Float32Array, dim: number): void {
    for (let start = 0; start < states.length; start += dim) {
      const row = states.subarray(start, start + dim)
      const [sum] = this.#vectors
      this.#count++
      if (this.params.pooling !== "mean" || sum === undefined)
        this.#vectors.push(Float64Array.from(row))
      else for (let i = 0; i < dim; i++) sum[i] = (sum[i] as number) + (row[i] as number)
    }
  }

  setScore(score: number): void {
    this.#score = score
  }

  /** The vector (of "none": all, one after the other), or the score. */
  result(): Float32Array {
    const { pooling, normalize, dimensions } = this.params
    if (pooling === "rank") return Float32Array.of(this.#score)
    const divisor = pooling === "mean" ? this.#count : 1
    const values = this.#vectors.flatMap((vector) => {
      const kept = vector.subarray(0, dimensions)
      const length = normalize ? Math.hypot(...kept) : divisor
      // a vector of zeros has no direction
      return [...kept].map((x) => (length > 0 ? x / length : 0))
    })
    return Float32Array.from(values)
  }
}

/** The score that logits of a classification head, or of verdicts, stand for. */
export function scoreOf(
  logits: ArrayLike<number>,
  label: number,
  kind: "sigmoid" | "softmax" | "none",
): number {
  const x = logits[label] as number
  if (kind === "none") return x
  if (kind === "sigmoid") return 1 / (1 + Math.exp(-x))
  const most = Math.max(...Array.from(logits))
  const sum = Array.from(logits).reduce((total, y) => total + Math.exp(y - most), 0)
  return Math.exp(x - most) / sum
}

import type { EngineConfig } from "../config.ts"
import { engineConfig } from "../config.ts"
import { buildModel } from "../engine/build.ts"
import { Engine } from "../engine/engine.ts"
import { KtError } from "../errors.ts"
import type { ModelConfig } from "../models/config.ts"
import type { WeightSource } from "../weights/source.ts"
import { type PeerProgram, runPeer } from "./bench-peer.ts"
import { measureLimits } from "./roofline.ts"

export interface BenchCase {
  /** pp: prompt processing; tg: token generation. */
  readonly kind: "pp" | "tg"
  readonly tokens: number
}

export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

/** A line of the result; rates are tokens/s. */
export interface BenchRow extends Spread {
  readonly test: string
  readonly threads: number
  /** What the machine's own limit would give. */
  readonly limit: number
  readonly share: number
  readonly peer?: Spread
  /** Median over repetitions of our rate divided by the peer's. */
  readonly ratio?: number
}

export interface BenchOptions {
  readonly cases: readonly BenchCase[]
  readonly repetitions: number
  readonly peer: PeerProgram | undefined
  readonly log: (line: string) => void
}

/** Measures one model at one thread count. */
export async function benchModel(options: EngineConfig, bench: BenchOptions): Promise<BenchRow[]> {
  const { cases, repetitions, peer, log } = bench
  const work = await workOf(options)
  const longest = Math.max(...cases.map(({ tokens }) => tokens)) + 1
  const config = engineConfig({
    ...options,
    contextLength: longest,
    maxBatchSize: 1,
    // every prompt is computed
    prefixCache: false,
  })
  const limits = [measureLimits(config.threads)]
  const samples = cases.map(() => ({ ours: [] as number[], peers: [] as number[] }))
  let threads: number
  {
    using engine = await Engine.create(config)
    threads = engine.info.threads
    for (const { kind, tokens } of cases) runOnce(engine, kind, tokens)
    for (let r = 0; r < repetitions; r++) {
      for (const [i, { kind, tokens }] of cases.entries()) {
        const { ours, peers } = samples[i]!
        const we = (): void => void ours.push(runOnce(engine, kind, tokens))
        const they = async (): Promise<void> => {
          if (peer === undefined) return
          peers.push(await runPeer(peer, { model: options.model, kind, tokens, threads }))
        }
        if (r % 2 === 0) {
          we()
          await they()
        } else {
          await they()
          we()
        }
        const theirs = peers.at(-1) === undefined ? "" : `, peer ${peers.at(-1)!.toFixed(1)}`
        log(
          `${kind}${tokens} -t ${threads}, repetition ${r + 1}: ${ours.at(-1)!.toFixed(1)} tokens/s${theirs}`,
        )
      }
    }
  }
  limits.push(measureLimits(config.threads))
  const read = Math.max(...limits.map((l) => l.readBytes))
  const dot = Math.max(...limits.map((l) => l.intDot))
  return cases.map(({ kind, tokens }, i) => {
    const { ours, peers } = samples[i]!
    const limit = kind === "tg" ? read / work.bytesPerToken : dot / work.operationsPerToken
    const spread = spreadOf(ours)
    const row = {
      test: `${kind}${tokens}`,
      threads,
      ...spread,
      limit,
      share: spread.median / limit,
    }
    if (peers.length === 0) return row
    return { ...row, peer: spreadOf(peers), ratio: median(ours.map((rate, r) => rate / peers[r]!)) }
  })
}

/** Tokens/s of a prompt until its first token is there, or of tokens after a prompt of one, as llama-bench counts. */
function runOnce(engine: Engine, kind: "pp" | "tg", tokens: number): number {
  const { vocabSize } = engine.info
  const ids = new Int32Array(kind === "pp" ? tokens : 1)
  for (let i = 0; i < ids.length; i++) ids[i] = Math.floor(Math.random() * vocabSize)
  const started = performance.now()
  engine.add(1, ids, {
    maxTokens: kind === "pp" ? 1 : tokens,
    stopTokens: [],
    ignoreEos: true,
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
  })
  while (engine.hasWork)
    for (const event of engine.step())
      if (event.finish === "error") throw new KtError(event.error ?? "the step failed")
  return tokens / ((performance.now() - started) / 1000)
}

/** What a token costs: the bytes of weights read for it, and the multiply-adds of its matrices (2 operations each). */
interface TokenWork {
  readonly bytesPerToken: number
  readonly operationsPerToken: number
}

async function workOf(options: EngineConfig): Promise<TokenWork> {
  const { config, weights } = await buildModel(options)
  try {
    return tokenWork(config, weights)
  } finally {
    weights.close()
  }
}

const EMBEDDING = /^(token_embd|model\.embed_tokens)\.weight$/
const OUTPUT = /^(output|lm_head)\.weight$/
const EXPERT = /(_exps\.|\.experts\.)/

/** Of experts, a token touches those that its router picks; of the embedding a row, unless it is the output matrix too. */
export function tokenWork(config: ModelConfig, weights: WeightSource): TokenWork {
  const names = [...weights.names()]
  const hasOutput = names.some((name) => OUTPUT.test(name))
  const active = config.num_experts > 0 ? config.num_experts_per_tok / config.num_experts : 1
  let bytesPerToken = 0
  let parameters = 0
  for (const name of names) {
    const entry = weights.get(name)
    if (entry === undefined) continue
    const share = EXPERT.test(name) ? active : 1
    const isEmbedding = EMBEDDING.test(name)
    if (!isEmbedding || !hasOutput) bytesPerToken += entry.byteLength * share
    // the output matrix is computed for a prompt's last token only
    if (!isEmbedding && !OUTPUT.test(name) && entry.shape.length > 1)
      parameters += entry.shape.reduce((a, b) => a * b, 1) * share
  }
  return { bytesPerToken, operationsPerToken: 2 * parameters }
}

function spreadOf(values: readonly number[]): Spread {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1
    ? sorted[Math.floor(middle)]!
    : (sorted[middle - 1]! + sorted[middle]!) / 2
}

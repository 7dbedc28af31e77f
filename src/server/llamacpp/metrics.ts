import { Counter, Gauge, type Registry } from "prom-client"

import type { EngineStats } from "../../worker/protocol.ts"

type Sum = Readonly<Record<"prompt" | "cached" | "generated" | "steps", number>> &
  Readonly<Record<"prefillSeconds" | "decodeSeconds" | "drafted" | "accepted", number>> &
  Readonly<Record<"running" | "waiting", number>>

type Row = readonly [name: string, help: string, value: (sum: Sum) => number]

const COUNTERS: readonly Row[] = [
  ["prompt_tokens_total", "prompt tokens computed", (s) => s.prompt - s.cached],
  ["prompt_tokens_cached_total", "prompt tokens that were known", (s) => s.cached],
  ["prompt_seconds_total", "seconds in steps with a part of a prompt", (s) => s.prefillSeconds],
  ["tokens_predicted_total", "tokens generated", (s) => s.generated],
  ["tokens_predicted_seconds_total", "seconds in other steps", (s) => s.decodeSeconds],
  ["n_decode_total", "engine steps", (s) => s.steps],
  [
    "spec_decode_num_draft_tokens_total",
    "tokens guessed by speculative decoding",
    (s) => s.drafted,
  ],
  ["spec_decode_num_accepted_tokens_total", "guessed tokens that were right", (s) => s.accepted],
]
const GAUGES: readonly Row[] = [
  [
    "prompt_tokens_seconds",
    "prompt tokens computed a second of their steps",
    (s) => rate(s.prompt - s.cached, s.prefillSeconds),
  ],
  [
    "predicted_tokens_seconds",
    "tokens generated a second of all steps but those with prompts",
    (s) => rate(s.generated, s.decodeSeconds),
  ],
  ["requests_processing", "sequences running", (s) => s.running],
  ["requests_deferred", "sequences waiting", (s) => s.waiting],
  ["n_busy_slots_per_decode", "tokens generated an engine step", (s) => rate(s.generated, s.steps)],
]

/** llama.cpp's names, which know no models: sums over all that are loaded. */
export class LlamaMetrics {
  readonly #rows: readonly (readonly [Row[2], Counter | Gauge])[]
  readonly #longest: Counter
  #mostTokens = 0

  constructor(registry: Registry) {
    const registers = [registry]
    this.#rows = [
      ...COUNTERS.map(
        ([name, help, value]) =>
          [value, new Counter({ name: `llamacpp:${name}`, help, registers })] as const,
      ),
      ...GAUGES.map(
        ([name, help, value]) =>
          [value, new Gauge({ name: `llamacpp:${name}`, help, registers })] as const,
      ),
    ]
    this.#longest = new Counter({
      name: "llamacpp:n_tokens_max",
      help: "tokens of the longest sequence so far",
      registers,
    })
  }

  /** A sequence has ended with as many tokens. */
  finished(tokens: number): void {
    if (tokens <= this.#mostTokens) return
    this.#longest.inc(tokens - this.#mostTokens)
    this.#mostTokens = tokens
  }

  set(engines: readonly EngineStats[]): void {
    const total = (pick: (stats: EngineStats) => number): number =>
      engines.reduce((sum, stats) => sum + pick(stats), 0)
    const sum: Sum = {
      prompt: total((s) => s.promptTokensTotal),
      cached: total((s) => s.cachedTokensTotal),
      generated: total((s) => s.generatedTokensTotal),
      steps: total((s) => s.stepsTotal),
      prefillSeconds: total((s) => s.prefillSecondsTotal),
      decodeSeconds: total((s) => s.decodeSecondsTotal),
      drafted: total((s) => s.draftedTokensTotal),
      accepted: total((s) => s.acceptedTokensTotal),
      running: total((s) => s.running),
      waiting: total((s) => s.waiting),
    }
    for (const [value, metric] of this.#rows) {
      metric.reset()
      metric.inc(value(sum))
    }
  }
}

function rate(count: number, by: number): number {
  return by > 0 ? count / by : 0
}

import { Counter, Gauge, Histogram, Registry } from "prom-client"

import type { EngineStats, TokenEvent } from "../worker/protocol.ts"
import type { Admission } from "./admission.ts"

/** Seconds; from a small model on an idle machine to a long prompt on a slow one. */
const TTFT_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
/** Seconds per token; from 1000 to half a token a second. */
const TPOT_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2]
const DURATION_BUCKETS = [0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

/** Engine totals (counters) and levels (gauges) shown at /metrics. */
const ENGINE_METRICS: readonly [keyof EngineStats, "counter" | "gauge", string, string][] = [
  ["waiting", "gauge", "kt_engine_waiting", "sequences waiting in the engine"],
  ["running", "gauge", "kt_engine_running", "sequences running in the engine"],
  ["kvPagesTotal", "gauge", "kt_kv_pages", "KV cache pages"],
  ["kvPagesFree", "gauge", "kt_kv_pages_free", "KV cache pages that are free"],
  ["prefixCachePages", "gauge", "kt_prefix_cache_pages", "KV pages kept for prefix reuse"],
  [
    "promptTokensTotal",
    "counter",
    "kt_engine_prompt_tokens_total",
    "prompt tokens computed or reused",
  ],
  [
    "cachedTokensTotal",
    "counter",
    "kt_engine_cached_tokens_total",
    "prompt tokens reused from the prefix cache",
  ],
  ["generatedTokensTotal", "counter", "kt_engine_generated_tokens_total", "tokens generated"],
  ["stepsTotal", "counter", "kt_engine_steps_total", "engine steps"],
  [
    "preemptionsTotal",
    "counter",
    "kt_engine_preemptions_total",
    "sequences preempted for lack of KV pages",
  ],
  ["stepSecondsTotal", "counter", "kt_engine_step_seconds_total", "seconds spent in engine steps"],
  ["residentBytes", "gauge", "kt_resident_bytes", "resident memory of the process"],
]

/** The server's Prometheus metrics. */
export class ServerMetrics {
  readonly registry: Registry
  readonly #requests: Counter<"route" | "method" | "status">
  readonly #duration: Histogram<"route">
  readonly #ttft: Histogram
  readonly #tpot: Histogram
  readonly #promptTokens: Counter
  readonly #cachedTokens: Counter
  readonly #generatedTokens: Counter
  readonly #engineUp: Gauge
  readonly #engine: readonly [keyof EngineStats, Counter | Gauge][]

  constructor(admission: Admission, registry: Registry = new Registry()) {
    this.registry = registry
    const registers = [registry]
    this.#requests = new Counter({
      name: "kt_http_requests_total",
      help: "HTTP requests by route, method and status",
      labelNames: ["route", "method", "status"],
      registers,
    })
    this.#duration = new Histogram({
      name: "kt_http_request_duration_seconds",
      help: "time until the response headers are ready",
      labelNames: ["route"],
      buckets: DURATION_BUCKETS,
      registers,
    })
    this.#ttft = new Histogram({
      name: "kt_time_to_first_token_seconds",
      help: "from a request's arrival to its first token",
      buckets: TTFT_BUCKETS,
      registers,
    })
    this.#tpot = new Histogram({
      name: "kt_time_per_output_token_seconds",
      help: "mean time between the tokens of one sequence",
      buckets: TPOT_BUCKETS,
      registers,
    })
    const counter = (name: string, help: string): Counter => new Counter({ name, help, registers })
    this.#promptTokens = counter("kt_prompt_tokens_total", "prompt tokens of started sequences")
    this.#cachedTokens = counter("kt_cached_tokens_total", "prompt tokens that were not computed")
    this.#generatedTokens = counter("kt_generated_tokens_total", "tokens of finished sequences")
    new Gauge({
      name: "kt_queue_sequences",
      help: "sequences admitted beyond those that can run at once",
      registers,
      collect() {
        this.set(admission.waiting)
      },
    })
    new Gauge({
      name: "kt_active_sequences",
      help: "sequences admitted and not finished",
      registers,
      collect() {
        this.set(admission.active)
      },
    })
    this.#engineUp = new Gauge({
      name: "kt_engine_up",
      help: "1 while the engine lives",
      registers,
    })
    this.#engine = ENGINE_METRICS.map(([key, kind, name, help]) => [
      key,
      kind === "counter" ? counter(name, help) : new Gauge({ name, help, registers }),
    ])
  }

  request(route: string, method: string, status: number, seconds: number): void {
    this.#requests.inc({ route, method, status: String(status) })
    this.#duration.observe({ route }, seconds)
  }

  firstToken(first: TokenEvent["first"], ttftSeconds: number): void {
    this.#ttft.observe(ttftSeconds)
    if (first === undefined) return
    this.#promptTokens.inc(first.promptTokens)
    this.#cachedTokens.inc(first.cachedTokens)
  }

  finished(tokens: number, decodeSeconds: number): void {
    this.#generatedTokens.inc(tokens)
    if (tokens > 1) this.#tpot.observe(decodeSeconds / (tokens - 1))
  }

  engineUp(up: boolean): void {
    this.#engineUp.set(up ? 1 : 0)
  }

  engine(stats: EngineStats): void {
    for (const [key, metric] of this.#engine) {
      metric.reset()
      metric.inc(stats[key])
    }
  }
}

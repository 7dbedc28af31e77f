import { Counter, Gauge, Histogram, Registry } from "prom-client"

import type { EngineStats, TokenEvent } from "../worker/protocol.ts"
import type { Workload } from "./admission.ts"

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
    "cacheDeviceBytes",
    "gauge",
    "kt_prefix_cache_device_bytes",
    "bytes of known prefixes in the KV cache",
  ],
  [
    "cacheHostBytes",
    "gauge",
    "kt_prefix_cache_host_bytes",
    "bytes of known prefixes in host memory",
  ],
  [
    "cacheHostLimitBytes",
    "gauge",
    "kt_prefix_cache_host_limit_bytes",
    "bytes that prefixes in host memory may take",
  ],
  ["cacheDiskBytes", "gauge", "kt_prefix_cache_disk_bytes", "bytes of known prefixes on disk"],
  [
    "cacheDiskLimitBytes",
    "gauge",
    "kt_prefix_cache_disk_limit_bytes",
    "bytes that prefixes on disk may take",
  ],
  [
    "cacheHostTokensTotal",
    "counter",
    "kt_prefix_cache_host_tokens_total",
    "prompt tokens brought back from host memory",
  ],
  [
    "cacheDiskTokensTotal",
    "counter",
    "kt_prefix_cache_disk_tokens_total",
    "prompt tokens brought back from disk",
  ],
  [
    "cacheDiskWritesTotal",
    "counter",
    "kt_prefix_cache_disk_writes_total",
    "blocks written to disk",
  ],
  [
    "cacheDiskDropsTotal",
    "counter",
    "kt_prefix_cache_disk_drops_total",
    "blocks not written because too many waited",
  ],
  [
    "cacheDiskFailuresTotal",
    "counter",
    "kt_prefix_cache_disk_failures_total",
    "blocks on disk that were damaged or gone when they were read",
  ],
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
]

/** What one model's sequences tell. */
export interface ModelMetrics {
  firstToken(first: TokenEvent["first"], ttftSeconds: number): void
  finished(tokens: number, decodeSeconds: number): void
}

/** The server's Prometheus metrics; those of a model have its name as vLLM's do. */
export class ServerMetrics {
  readonly registry: Registry
  readonly #requests: Counter<"route" | "method" | "status">
  readonly #duration: Histogram<"route">
  readonly #ttft: Histogram<"model_name">
  readonly #tpot: Histogram<"model_name">
  readonly #promptTokens: Counter<"model_name">
  readonly #cachedTokens: Counter<"model_name">
  readonly #generatedTokens: Counter<"model_name">
  readonly #loads: Counter<"model_name" | "outcome">
  readonly #engineUp: Gauge<"model_name">
  readonly #engine: readonly [keyof EngineStats, Counter<"model_name"> | Gauge<"model_name">][]

  constructor(workload: Workload, registry: Registry = new Registry()) {
    this.registry = registry
    const registers = [registry]
    const labelNames = ["model_name"] as const
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
      labelNames,
      buckets: TTFT_BUCKETS,
      registers,
    })
    this.#tpot = new Histogram({
      name: "kt_time_per_output_token_seconds",
      help: "mean time between the tokens of one sequence",
      labelNames,
      buckets: TPOT_BUCKETS,
      registers,
    })
    const counter = (name: string, help: string): Counter<"model_name"> =>
      new Counter({ name, help, labelNames, registers })
    this.#promptTokens = counter("kt_prompt_tokens_total", "prompt tokens of started sequences")
    this.#cachedTokens = counter("kt_cached_tokens_total", "prompt tokens that were not computed")
    this.#generatedTokens = counter("kt_generated_tokens_total", "tokens of finished sequences")
    new Gauge({
      name: "kt_queue_sequences",
      help: "sequences admitted beyond those that can run at once",
      registers,
      collect() {
        this.set(workload.waiting)
      },
    })
    new Gauge({
      name: "kt_active_sequences",
      help: "sequences admitted and not finished",
      registers,
      collect() {
        this.set(workload.active)
      },
    })
    new Gauge({
      name: "kt_resident_bytes",
      help: "resident memory of the process",
      registers,
      collect() {
        this.set(process.memoryUsage.rss())
      },
    })
    this.#engineUp = new Gauge({
      name: "kt_engine_up",
      help: "1 while the engine lives; models that are not loaded have no value",
      labelNames,
      registers,
    })
    this.#engine = ENGINE_METRICS.map(([key, kind, name, help]) => [
      key,
      kind === "counter" ? counter(name, help) : new Gauge({ name, help, labelNames, registers }),
    ])
    this.#loads = new Counter({
      name: "kt_model_loads_total",
      help: "models loaded, and loads that failed",
      labelNames: ["model_name", "outcome"],
      registers,
    })
  }

  request(route: string, method: string, status: number, seconds: number): void {
    this.#requests.inc({ route, method, status: String(status) })
    this.#duration.observe({ route }, seconds)
  }

  /** The part that one model's sequences write to. */
  forModel(name: string): ModelMetrics {
    const labels = { model_name: name }
    return {
      firstToken: (first, ttftSeconds) => {
        this.#ttft.observe(labels, ttftSeconds)
        if (first === undefined) return
        this.#promptTokens.inc(labels, first.promptTokens)
        this.#cachedTokens.inc(labels, first.cachedTokens)
      },
      finished: (tokens, decodeSeconds) => {
        this.#generatedTokens.inc(labels, tokens)
        if (tokens > 1) this.#tpot.observe(labels, decodeSeconds / (tokens - 1))
      },
    }
  }

  loaded(name: string, outcome: "loaded" | "failed"): void {
    this.#loads.inc({ model_name: name, outcome })
  }

  /** The engines there are now; undefined for one that is busy, and keeps its values. */
  engines(all: ReadonlyMap<string, EngineStats | "failed" | undefined>): void {
    this.#engineUp.reset()
    if (![...all.values()].includes(undefined))
      for (const [, metric] of this.#engine) metric.reset()
    for (const [name, stats] of all) {
      const labels = { model_name: name }
      this.#engineUp.set(labels, stats === "failed" ? 0 : 1)
      if (stats === undefined || stats === "failed") continue
      for (const [key, metric] of this.#engine) {
        metric.remove(labels)
        metric.inc(labels, stats[key])
      }
    }
  }
}

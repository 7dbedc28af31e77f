import { Counter, Gauge, Histogram, Registry } from "prom-client"

import type { EngineStats, TokenEvent } from "../worker/protocol.ts"
import type { Workload } from "./admission.ts"
import { LlamaMetrics } from "./llamacpp/metrics.ts"
import { TokenTimes } from "./token-times.ts"

/** Seconds; from a small model on an idle machine to a long prompt on a slow one. */
const TTFT_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
/** Seconds per token; from 1000 to half a token a second. */
const TPOT_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2]
const LENGTH_BUCKETS = [1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072]
const DURATION_BUCKETS = [0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

type Levels = readonly [name: string, help: string, value: (stats: EngineStats) => number]

/** What an engine is at, and what it has done, shown at /metrics: under vLLM's names where vLLM has the same. */
const ENGINE_GAUGES: readonly Levels[] = [
  ["vllm:num_requests_waiting", "sequences waiting in the engine", (s) => s.waiting],
  ["vllm:num_requests_running", "sequences running in the engine", (s) => s.running],
  [
    "vllm:kv_cache_usage_perc",
    "share of the KV cache that sequences use; 1 is all",
    (s) => (s.kvPagesTotal === 0 ? 0 : 1 - s.kvPagesFree / s.kvPagesTotal),
  ],
  ["kt_kv_pages", "KV cache pages", (s) => s.kvPagesTotal],
  ["kt_kv_pages_free", "KV cache pages that are free", (s) => s.kvPagesFree],
  ["kt_prefix_cache_pages", "KV pages kept for prefix reuse", (s) => s.prefixCachePages],
  [
    "kt_prefix_cache_device_bytes",
    "bytes of known prefixes in the KV cache",
    (s) => s.cacheDeviceBytes,
  ],
  ["kt_prefix_cache_host_bytes", "bytes of known prefixes in host memory", (s) => s.cacheHostBytes],
  [
    "kt_prefix_cache_host_limit_bytes",
    "bytes that prefixes in host memory may take",
    (s) => s.cacheHostLimitBytes,
  ],
  ["kt_prefix_cache_disk_bytes", "bytes of known prefixes on disk", (s) => s.cacheDiskBytes],
  [
    "kt_prefix_cache_disk_limit_bytes",
    "bytes that prefixes on disk may take",
    (s) => s.cacheDiskLimitBytes,
  ],
]
const ENGINE_COUNTERS: readonly Levels[] = [
  ["vllm:prompt_tokens_total", "prompt tokens computed or reused", (s) => s.promptTokensTotal],
  ["vllm:generation_tokens_total", "tokens generated", (s) => s.generatedTokensTotal],
  ["vllm:prefix_cache_queries_total", "prompt tokens looked for", (s) => s.promptTokensTotal],
  ["vllm:prefix_cache_hits_total", "prompt tokens found", (s) => s.cachedTokensTotal],
  [
    "vllm:num_preemptions_total",
    "sequences preempted for lack of KV pages",
    (s) => s.preemptionsTotal,
  ],
  ["kt_engine_steps_total", "engine steps", (s) => s.stepsTotal],
  [
    "kt_engine_prefill_seconds_total",
    "seconds in steps with a part of a prompt",
    (s) => s.prefillSecondsTotal,
  ],
  ["kt_engine_decode_seconds_total", "seconds in other steps", (s) => s.decodeSecondsTotal],
  ["kt_step_launches_total", "recorded steps that were launched", (s) => s.stepTimes.steps],
  ["kt_step_gpu_seconds_total", "seconds of them on GPUs", (s) => s.stepTimes.gpuSeconds],
  ["kt_step_cpu_seconds_total", "seconds of them in CPU kernels", (s) => s.stepTimes.cpuSeconds],
  [
    "kt_step_sync_seconds_total",
    "seconds of them in which GPU and CPU waited for each other",
    (s) => s.stepTimes.syncSeconds,
  ],
  [
    "kt_step_host_seconds_total",
    "seconds of them for inputs, sampling and results",
    (s) => s.stepTimes.hostSeconds,
  ],
  [
    "kt_prefix_cache_host_tokens_total",
    "prompt tokens brought back from host memory",
    (s) => s.cacheHostTokensTotal,
  ],
  [
    "kt_prefix_cache_disk_tokens_total",
    "prompt tokens brought back from disk",
    (s) => s.cacheDiskTokensTotal,
  ],
  ["kt_prefix_cache_disk_writes_total", "blocks written to disk", (s) => s.cacheDiskWritesTotal],
  [
    "kt_prefix_cache_disk_drops_total",
    "blocks not written because too many waited",
    (s) => s.cacheDiskDropsTotal,
  ],
  [
    "kt_prefix_cache_disk_failures_total",
    "blocks on disk that were damaged or gone when they were read",
    (s) => s.cacheDiskFailuresTotal,
  ],
  [
    "vllm:spec_decode_num_draft_tokens_total",
    "tokens guessed by speculative decoding",
    (s) => s.draftedTokensTotal,
  ],
  [
    "vllm:spec_decode_num_accepted_tokens_total",
    "guessed tokens that were right",
    (s) => s.acceptedTokensTotal,
  ],
]

/** What one model's sequences tell. */
export interface ModelMetrics {
  firstToken(first: TokenEvent["first"], ttftSeconds: number): void
  /** Tokens that came together, so long after those before them. */
  tokens(count: number, seconds: number): void
  finished(done: FinishedSequence): void
}

export interface FinishedSequence {
  readonly reason: "stop" | "length"
  readonly promptTokens: number
  readonly generatedTokens: number
  /** From its arrival to its last token. */
  readonly seconds: number
  readonly queueSeconds: number
  readonly prefillSeconds: number
  readonly decodeSeconds: number
}

/** The server's Prometheus metrics; those of a model have its name as vLLM's do. */
export class ServerMetrics {
  readonly registry: Registry
  readonly #requests: Counter<"route" | "method" | "status">
  readonly #duration: Histogram<"route">
  readonly #ttft: Histogram<"model_name">
  readonly #itl: TokenTimes
  readonly #tpot: Histogram<"model_name">
  readonly #seconds: Readonly<
    Record<"e2e" | "queue" | "prefill" | "decode", Histogram<"model_name">>
  >
  readonly #success: Counter<"model_name" | "finished_reason">
  readonly #lengths: Readonly<Record<"prompt" | "generation", Histogram<"model_name">>>
  readonly #loads: Counter<"model_name" | "outcome">
  readonly #llama: LlamaMetrics
  readonly #engineUp: Gauge<"model_name">
  readonly #engine: readonly (readonly [Levels[2], Counter<"model_name"> | Gauge<"model_name">])[]

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
    const histogram = (name: string, help: string, buckets: number[]): Histogram<"model_name"> =>
      new Histogram({ name, help, labelNames, buckets, registers })
    this.#ttft = histogram(
      "vllm:time_to_first_token_seconds",
      "from a request's arrival to its first token",
      TTFT_BUCKETS,
    )
    this.#itl = new TokenTimes({
      name: "vllm:inter_token_latency_seconds",
      help: "time between the tokens of one sequence",
      buckets: TPOT_BUCKETS,
      registers,
    })
    this.#tpot = histogram(
      "vllm:request_time_per_output_token_seconds",
      "mean time between the tokens of one sequence",
      TPOT_BUCKETS,
    )
    const seconds = (name: string, help: string): Histogram<"model_name"> =>
      histogram(`vllm:${name}_seconds`, help, DURATION_BUCKETS)
    this.#seconds = {
      e2e: seconds("e2e_request_latency", "from a request's arrival to its last token"),
      queue: seconds("request_queue_time", "waiting until a request's first step"),
      prefill: seconds("request_prefill_time", "from the first step to the first token"),
      decode: seconds("request_decode_time", "from the first token to the last"),
    }
    this.#lengths = {
      prompt: histogram("vllm:request_prompt_tokens", "tokens of prompts", LENGTH_BUCKETS),
      generation: histogram(
        "vllm:request_generation_tokens",
        "tokens generated for a request",
        LENGTH_BUCKETS,
      ),
    }
    this.#success = new Counter({
      name: "vllm:request_success_total",
      help: "sequences that came to their end",
      labelNames: ["model_name", "finished_reason"],
      registers,
    })
    const counter = (name: string, help: string): Counter<"model_name"> =>
      new Counter({ name, help, labelNames, registers })
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
    this.#engine = [
      ...ENGINE_GAUGES.map(
        ([name, help, value]) => [value, new Gauge({ name, help, labelNames, registers })] as const,
      ),
      ...ENGINE_COUNTERS.map(([name, help, value]) => [value, counter(name, help)] as const),
    ]
    this.#llama = new LlamaMetrics(registry)
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
    const betweenTokens = this.#itl.of(name)
    return {
      firstToken: (first, ttftSeconds) => {
        this.#ttft.observe(labels, ttftSeconds)
        if (first !== undefined) this.#lengths.prompt.observe(labels, first.promptTokens)
      },
      tokens: (count, seconds) => this.#itl.add(betweenTokens, count, seconds / count),
      finished: (done) => {
        const { generatedTokens, decodeSeconds } = done
        this.#llama.finished(done.promptTokens + generatedTokens)
        this.#success.inc({ ...labels, finished_reason: done.reason })
        this.#lengths.generation.observe(labels, generatedTokens)
        this.#seconds.e2e.observe(labels, done.seconds)
        this.#seconds.queue.observe(labels, done.queueSeconds)
        this.#seconds.prefill.observe(labels, done.prefillSeconds)
        this.#seconds.decode.observe(labels, decodeSeconds)
        if (generatedTokens > 1) this.#tpot.observe(labels, decodeSeconds / (generatedTokens - 1))
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
    const known = [...all.values()].filter((stats) => stats !== "failed")
    if (!known.includes(undefined)) this.#llama.set(known.filter((stats) => stats !== undefined))
    for (const [name, stats] of all) {
      const labels = { model_name: name }
      this.#engineUp.set(labels, stats === "failed" ? 0 : 1)
      if (stats === undefined || stats === "failed") continue
      for (const [value, metric] of this.#engine) {
        metric.remove(labels)
        metric.inc(labels, value(stats))
      }
    }
  }
}

import type { ForeignFlag } from "./args/spec.ts"

const SAME = "there is one engine, and it serves many at once"
const PLACED = "what fits is placed on GPUs by itself; --device cpu and rules say otherwise"
const PREFIX =
  "known beginnings of prompts are reused; --cache-ram and --cache-dir keep more of them"
const LOG = "the log goes to stderr; --verbose and --quiet say how much of it"
const THERE = "that is always there"
const TOLD = "the model's chat template shows it"
const MAPPED = "weights are mapped from the file"
const OWN_TYPE = "weights are computed in their own types; --precision says how"

/** Flags with a value that do nothing here: KTransformers', llama.cpp's, vLLM's. */
const VALUES: Readonly<Record<string, string>> = {
  backend_type: SAME,
  sched_strategy: SAME,
  tp: PLACED,
  architectures: "the model's files say what it is",
  web: "--no-ui leaves the web page out",
  web_cross_domain: "--cors-origin says which pages may call",
  memory_gpu_only: PREFIX,
  utilization_percentage: PREFIX,
  cpu_memory_size_GB: PREFIX,
  kvc2_config_dir: PREFIX,
  log_dir: LOG,
  log_file: LOG,
  log_level: LOG,
  backup_count: LOG,

  "-ngl": PLACED,
  "gpu-layers": PLACED,
  "n-gpu-layers": PLACED,
  "-ts": PLACED,
  "tensor-split": PLACED,
  "-sm": PLACED,
  "split-mode": PLACED,
  "-mg": PLACED,
  "main-gpu": PLACED,
  "-ncmoe": PLACED,
  "n-cpu-moe": PLACED,
  "-fa": "attention is computed in one way",
  "flash-attn": "attention is computed in one way",
  "-tb": "--threads is for prompts too",
  "threads-batch": "--threads is for prompts too",
  "threads-http": "requests are read by a thread of their own",
  "-ub": "a step is computed in one piece; --chunk-size bounds it",
  "ubatch-size": "a step is computed in one piece; --chunk-size bounds it",
  "-lm": MAPPED,
  "load-mode": MAPPED,
  "cache-reuse": PREFIX,
  "-sps": PREFIX,
  "slot-prompt-similarity": PREFIX,
  "-ctxcp": PREFIX,
  "ctx-checkpoints": PREFIX,
  poll: "threads wait in the way that this machine likes best",
  prio: "the system's nice says that",
  "-to": "--request-timeout bounds a whole request",
  timeout: "--request-timeout bounds a whole request",
  pooling: "checkpoints say it, and a request's pooling says otherwise",
  "-lv": LOG,
  verbosity: LOG,
  "log-verbosity": LOG,
  "log-colors": LOG,
  "sleep-idle-seconds": "an idle server sleeps by itself; --keep-alive unloads models",

  "gpu-memory-utilization": "--gpu-memory bounds what a model takes of each GPU",
  "tensor-parallel-size": PLACED,
  "-tp": PLACED,
  "pipeline-parallel-size": PLACED,
  "-pp": PLACED,
  "data-parallel-size": PLACED,
  "swap-space": PREFIX,
  "cpu-offload-gb": PLACED,
  dtype: OWN_TYPE,
  quantization: OWN_TYPE,
  "-q": OWN_TYPE,
  "load-format": "the model's files say it",
  "tokenizer-mode": "the model's files say it",
  "tool-call-parser": TOLD,
  "reasoning-parser": TOLD,
  "chat-template-content-format": TOLD,
  "response-role": "answers are the assistant's",
  "generation-config": "generation_config.json beside the weights is read",
  "uvicorn-log-level": LOG,
}

/** Flags without a value that do nothing here. */
const SWITCHES: Readonly<Record<string, string>> = {
  "-cb": SAME,
  "cont-batching": SAME,
  "-kvu": "sequences share one KV cache",
  "kv-unified": "sequences share one KV cache",
  jinja: "chat templates are always rendered",
  metrics: THERE,
  props: THERE,
  slots: THERE,
  "-cmoe": PLACED,
  "cpu-moe": PLACED,
  mlock: MAPPED,
  mmap: MAPPED,
  warmup: "the first step is computed while the model is loaded",
  "-bs": "samplers always run on the native side",
  "backend-sampling": "samplers always run on the native side",
  perf: "each answer has its timings",
  embedding: "models say what they can do, and one server does all of it",
  embeddings: "models say what they can do, and one server does all of it",
  rerank: "models say what they can do, and one server does all of it",
  reranking: "models say what they can do, and one server does all of it",
  offline: "nothing is fetched unless it is asked for",
  "cache-idle-slots": PREFIX,
  "swa-full": "the cache holds all positions",
  "context-shift": "an answer ends where the context does",
  "log-disable": LOG,
  "log-prefix": LOG,
  "log-timestamps": LOG,

  "enable-auto-tool-choice": "tools are always there",
  "enable-reasoning": TOLD,
  "trust-remote-code": "no code of a checkpoint is run",
  "enforce-eager": "--no-step-graph calls op by op",
  "enable-chunked-prefill": "prompts are always computed in chunks; --chunk-size says of what size",
  "disable-log-requests": LOG,
  "enable-log-requests": LOG,
  "disable-log-stats": LOG,
  "enable-prompt-tokens-details": THERE,
}

/** Flags that ask for what others do here, or for what is not there. */
const REFUSED: Readonly<Record<string, string>> = {
  "-hf": "`kt pull USER/REPO:QUANT` fetches a model, `kt serve NAME` serves it",
  "-hfr": "`kt pull USER/REPO:QUANT` fetches a model, `kt serve NAME` serves it",
  "hf-repo": "`kt pull USER/REPO:QUANT` fetches a model, `kt serve NAME` serves it",
  "hf-file": "`kt pull USER/REPO:QUANT` fetches a model, `kt serve NAME` serves it",
  "-mu": "`kt pull` fetches models",
  "model-url": "`kt pull` fetches models",
  "-dev": "--device cuda:N computes all of a model there, rules place single modules",
  "-ot": "rules (--rules FILE) place single modules",
  "override-tensor": "rules (--rules FILE) place single modules",
  lora: "adapters are not supported",
  "lora-scaled": "adapters are not supported",
  "enable-lora": "adapters are not supported",
  "-mm": "models read text only",
  mmproj: "models read text only",
  "rope-scaling": "the model's files say how positions are scaled",
  "rope-scale": "the model's files say how positions are scaled",
  "rope-freq-base": "the model's files say how positions are scaled",
  "rope-freq-scale": "the model's files say how positions are scaled",
  "override-kv": "`kt convert` writes metadata anew",
  "spec-type": "--spec ngram or --draft FILE",
  "speculative-config": "--spec ngram or --draft FILE",
  "allowed-origins": "--cors-origin ORIGIN, once for each",
  "api-prefix": "a proxy can add a prefix",
  rpc: "there is one machine",
  revision: "`kt pull` fetches a revision",
}

/** What other servers' flags come to here. */
export const FOREIGN_FLAGS: Readonly<Record<string, ForeignFlag>> = Object.fromEntries([
  ...each(VALUES, "value"),
  ...each(SWITCHES, "switch"),
  ...each(REFUSED, "refused"),
])

/** Of programs that open no port. */
export const PORT_FLAGS: Readonly<Record<string, ForeignFlag>> = Object.fromEntries(
  each(
    Object.fromEntries(["port", "host", "api_key"].map((name) => [name, "no port is opened"])),
    "value",
  ),
)

function each(
  flags: Readonly<Record<string, string>>,
  kind: ForeignFlag["kind"],
): [name: string, ForeignFlag][] {
  return Object.entries(flags).map(([name, says]) => [name, { kind, says }])
}

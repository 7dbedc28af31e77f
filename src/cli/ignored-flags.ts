const SAME = "there is one engine, and it serves many at once"
const RULES = "rules place modules on devices"
const PREFIX = "the prefix cache lives in the KV cache's memory"

/** KTransformers' flags that do nothing here, with the reason. */
export const IGNORED_FLAGS: Readonly<Record<string, string>> = {
  backend_type: SAME,
  sched_strategy: SAME,
  tp: RULES,
  architectures: "the model's files say what it is",
  web: "--no-ui leaves the web page out",
  web_cross_domain: "--cors-origin says which pages may call",
  memory_gpu_only: PREFIX,
  utilization_percentage: PREFIX,
  cpu_memory_size_GB: PREFIX,
  kvc2_config_dir: PREFIX,
  log_dir: "the log goes to stderr",
  log_file: "the log goes to stderr",
  log_level: "--verbose and --quiet say how much is logged",
  backup_count: "the log goes to stderr",
}

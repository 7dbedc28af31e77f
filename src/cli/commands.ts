import type { Command } from "./args/spec.ts"

/** Commands by name; a command's file is read when it is asked for. */
export const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  serve: async () => (await import("./serve.ts")).serve,
  chat: async () => (await import("./chat.ts")).chat,
  run: async () => (await import("./run.ts")).run,
  embed: async () => (await import("./embed.ts")).embed,
  bench: async () => (await import("./bench.ts")).bench,
  experts: async () => (await import("./experts.ts")).experts,
  plan: async () => (await import("./plan.ts")).plan,
  pull: async () => (await import("./pull.ts")).pull,
  create: async () => (await import("./own-models.ts")).create,
  cp: async () => (await import("./own-models.ts")).copy,
  rm: async () => (await import("./own-models.ts")).remove,
  list: async () => (await import("./list.ts")).list,
  doctor: async () => (await import("./doctor.ts")).doctor,
  tokenize: async () => (await import("./tokenize.ts")).tokenize,
  template: async () => (await import("./template.ts")).template,
  logits: async () => (await import("./logits.ts")).logits,
  perplexity: async () => (await import("./perplexity.ts")).perplexity,
  inspect: async () => (await import("./inspect.ts")).inspect,
  tensor: async () => (await import("./tensor.ts")).tensor,
  convert: async () => (await import("./convert.ts")).convert,
  merge: async () => (await import("./merge.ts")).merge,
  quantize: async () => (await import("./quantize.ts")).quantize,
  cache: async () => (await import("./cache.ts")).cache,
  rules: async () => (await import("./rules.ts")).rules,
}

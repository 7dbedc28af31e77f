import { buildModel } from "../engine/build.ts"
import { explainPlan } from "../inject/inject.ts"
import { createModel } from "../models/registry.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { logger } from "./log.ts"
import { table, write, writeJson } from "./output.ts"

export const explain = defineCommand({
  name: "rules explain",
  summary: "Show what a rule file makes of a model's modules",
  details: `Nothing is loaded but the model's headers. Each line is a module: its class, the operator that
replaces it, and the rule (file and line) that says so.`,
  positionals: [MODEL_POSITIONAL],
  engine: ["model", "modelPath", "rules", "operators", "expertsPerToken", "fuse"],
  flags: {
    all: { type: "boolean", help: "show modules that no rule matches too" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt rules explain model.gguf", says: "the default rules" },
    {
      command: "kt rules explain model.gguf --rules my.yaml --all",
      says: "rules of your own, every module",
    },
  ],
  async run(invocation) {
    const { all, json } = invocation.flags
    const options = engineOptions(invocation)
    const { config, plan, weights } = await buildModel(options)
    weights.close()
    // the built model has its operators in place already; the table is about what was there before
    const plain = await createModel(config)
    const rows = explainPlan(plain, plan).filter(({ rule }) => all || rule !== "")
    const { warnings } = plan
    if (json) return writeJson({ model: options.model, rows, warnings })
    for (const warning of warnings) logger("rules").warn(warning)
    const cells = rows.map((row) => [
      row.path,
      row.original,
      row.replacement,
      Object.entries(row.kwargs)
        .map(([k, v]) => `${k}=${String(v)}`)
        .join(" "),
      row.rule,
    ])
    await write(table(["MODULE", "CLASS", "REPLACED BY", "KWARGS", "RULE"], cells))
  },
})

export const rules = defineCommand({
  name: "rules",
  summary: "Work with rule files",
  flags: {},
  examples: [
    { command: "kt rules explain model.gguf --rules my.yaml", says: "what a file does to a model" },
  ],
  subCommands: { explain: async () => explain },
  run: async () => {},
})

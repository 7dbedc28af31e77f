import { writeFileSync } from "node:fs"

import type { EngineConfig } from "../config.ts"
import { describedModel } from "../convert/described-model.ts"
import { fileType } from "../convert/file-types.ts"
import { type DeviceBudget, gpus } from "../engine/auto-place.ts"
import { buildModel, type BuiltModel } from "../engine/build.ts"
import { withChunk } from "../engine/chunk.ts"
import { kvLayers, kvType } from "../engine/kv-layers.ts"
import {
  crossingLayers,
  estimateLine,
  estimateStep,
  memoryRate,
  type PlanRow,
  planRows,
  type StepEstimate,
} from "../engine/plan-report.ts"
import { planDevices } from "../engine/plan.ts"
import { draftFor, draftRequest } from "../engine/speculation-setup.ts"
import { UsageError } from "../errors.ts"
import { Backend, queryCpu } from "../native/backend.ts"
import { measure } from "../ops/index.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { parseSize } from "./file-size.ts"
import { logger } from "./log.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"

/** Of a GPU's memory where nothing says which one it is: an RTX 4090's. */
const USUAL_RATE = 1008e9

export const plan = defineCommand({
  name: "plan",
  summary: "Show where a model would compute and what of each device's memory it takes",
  details: `Nothing is loaded but the model's headers. Without --rules the model is placed automatically, as \`kt serve\` does it:
attention and what else every token needs on the GPU, then the experts of as many layers as there is room for, with the
caches of --ctx tokens; the rest on the CPU. --vram plans for GPUs that need not be here, one size each. The predicted rate
is that of one sequence: the bytes of weights that a token reads by 0.7 of the memories' rates, a fixed time for each op's launch and
for each layer's way to experts elsewhere; a long context takes more. Sizes such as 24G are powers of 1000.
With --type a folder's config.json is enough, whose model is planned as a GGUF of that type.
A model that does not fit is an error that says what is needed and what there is.`,
  positionals: [MODEL_POSITIONAL],
  engine: [
    "model",
    "modelPath",
    "rules",
    "operators",
    "device",
    "precision",
    "contextLength",
    "kvCacheTokens",
    "kvDtype",
    "pageSize",
    "maxBatchSize",
    "maxBatchTokens",
    "expertsPerToken",
    "streamExperts",
    "expertStats",
    "draft",
    "prefixCache",
    "fuse",
  ],
  flags: {
    vram: {
      type: "string",
      hint: "size,…",
      help: "memory of each GPU; default: what is free on those here",
    },
    ram: { type: "string", hint: "size", help: "main memory; default: what is free here" },
    "gpu-bandwidth": {
      type: "number",
      hint: "GB/s",
      min: 1,
      help: "rate of the GPUs' memory; default: by their names, else 1008",
    },
    "ram-bandwidth": {
      type: "number",
      hint: "GB/s",
      min: 1,
      help: "rate of main memory; default: measured here",
    },
    type: {
      type: "string",
      hint: "type",
      help: "plan MODEL, a folder with config.json, as a GGUF of this type (Q4_K_M …)",
    },
    yaml: { type: "string", hint: "file", help: "write the automatic placement as a rule file" },
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt plan model.gguf", says: "on the GPUs of this machine" },
    {
      command: "kt plan model.gguf --vram 24G --ram 128G --ctx 32768",
      says: "on one that is not here",
    },
    {
      command: "kt plan model.gguf --vram 24G,24G --yaml two.yaml",
      says: "rules for two, to be edited",
    },
    {
      command: "kt plan folder --type Q4_K_M --vram 24G --ram 512G --ctx 139000",
      says: "before the weights are downloaded",
    },
    {
      command: "kt plan model.gguf --rules qwen3-moe-gpu --vram 16G",
      says: "what given rules need",
    },
  ],
  async run(invocation) {
    const { flags } = invocation
    const { type } = flags
    const options = engineOptions(
      invocation,
      undefined,
      {},
      type === undefined ? undefined : (folder) => folder,
    )
    const weights =
      type === undefined ? undefined : await describedModel(options.model, fileType(type))
    const here = gpus()
    const budgets =
      flags.vram === undefined
        ? here.map(({ name, memoryFreeBytes }) => ({ device: name, freeBytes: memoryFreeBytes }))
        : sizes(flags.vram)
    const ram = flags.ram === undefined ? queryCpu().memoryFreeBytes : parseSize("--ram", flags.ram)
    const areAssumed = flags.vram !== undefined
    const built = await buildModel(options, undefined, {
      budgets,
      areAssumed,
      ...(weights === undefined ? {} : { weights }),
    })
    using resources = new DisposableStack()
    try {
      const { yaml } = flags
      if (yaml !== undefined) writeRules(yaml, built)
      const draft = await draftFor(options, built, resources, {})
      const free = (device: string): number =>
        budgets.find((budget) => budget.device === device)?.freeBytes ?? ram
      const settled = withChunk(options, built, free)
      const request = draft === undefined ? undefined : draftRequest(settled, draft)
      const dtype = kvType(options, kvLayers(built.config))
      const made = planDevices(settled, built, dtype, free, request)
      const rows = planRows(built, made)
      const gpuRate = (device: string): number =>
        flags["gpu-bandwidth"] !== undefined
          ? flags["gpu-bandwidth"] * 1e9
          : ((areAssumed
              ? undefined
              : memoryRate(here.find(({ name }) => name === device)?.model ?? "")) ?? USUAL_RATE)
      const ramRate =
        flags["ram-bandwidth"] === undefined ? measuredRate(rows) : flags["ram-bandwidth"] * 1e9
      const rates = new Map(
        rows.map(({ device }) => [device, device === "cpu" ? ramRate : gpuRate(device)]),
      )
      const step = estimateStep(
        rows,
        crossingLayers(built),
        (device) => rates.get(device) ?? USUAL_RATE,
      ) as StepEstimate
      const { contextLength, kvCacheTokens, draftBytes } = made.memory
      if (flags.json) {
        const devices = rows.map((row) => ({ ...row, bandwidth: rates.get(row.device) }))
        return await writeJson({
          model: options.model,
          contextLength,
          kvCacheTokens,
          devices,
          draftBytes,
          tokensPerSecond: step.tokensPerSecond,
          step,
          warnings: built.plan.warnings,
        })
      }
      for (const warning of built.plan.warnings) logger("plan").warn(warning)
      await write(report(rows, contextLength, step))
      if (draftBytes > 0)
        await write(
          `beside it on ${rows[0]?.device}: ${formatBytes(draftBytes)} for the draft model\n`,
        )
    } finally {
      built.weights.close()
    }
  },
})

function sizes(text: string): DeviceBudget[] {
  return text
    .split(",")
    .map((size, i) => ({ device: `cuda:${i}`, freeBytes: parseSize("--vram", size.trim()) }))
}

function writeRules(file: string, { madeRules }: BuiltModel): void {
  if (madeRules === undefined)
    throw new UsageError(
      `--yaml ${file}: nothing was placed automatically; that needs a GPU, or --vram with room for a layer, and neither --rules nor --device`,
    )
  writeFileSync(file, madeRules)
}

/** Bytes/s that this machine's threads read; where the CPU reads no weights nothing is measured. */
function measuredRate(rows: readonly PlanRow[]): number {
  if (!rows.some(({ device, tokenBytes }) => device === "cpu" && tokenBytes > 0)) return 1
  using backend = new Backend()
  return measure(backend, "read", { seconds: 0.2 })
}

function report(rows: readonly PlanRow[], contextLength: number, step: StepEstimate): string {
  const cells = rows.map((row) => [
    row.device,
    formatBytes(row.weightBytes),
    formatBytes(row.kvBytes + row.stateBytes),
    formatBytes(row.workspaceBytes),
    formatBytes(row.totalBytes),
    formatBytes(row.freeBytes),
    row.what,
  ])
  const head = ["DEVICE", "WEIGHTS", "CACHE", "WORKSPACE", "TOTAL", "OF", "WHAT"]
  return `${table(head, cells)}context ${contextLength} tokens; ${estimateLine(step)}\n`
}

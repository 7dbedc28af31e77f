import { dirname } from "node:path"

import type { EngineConfig } from "../config.ts"
import { DeviceError } from "../errors.ts"
import { applyInjection, type InjectionPlan, planInjection } from "../inject/inject.ts"
import { parseRules, type RuleSet } from "../inject/rules.ts"
import { configFromGguf, withGgufLayout } from "../models/config-gguf.ts"
import { configFromFolder } from "../models/config-hf.ts"
import { type ModelConfig, withExpertsPerToken } from "../models/config.ts"
import { type AnyModel, createAnyModel } from "../models/registry.ts"
import { type DeviceInfo, deviceName, deviceProblem } from "../native/backend.ts"
import { operators } from "../operators/builtin.ts"
import { loadUserOperators } from "../operators/user.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { openWeights } from "../weights/open.ts"
import type { SafetensorsFile } from "../weights/safetensors.ts"
import { chooseLayout, type DeviceBudget, gpus, partSizes } from "./auto-place.ts"
import { rulesOf } from "./auto-rules.ts"
import { type Placement, placeModules, placeOn } from "./placement.ts"
import { loadRules } from "./rule-files.ts"

/** A model tree after injection, and the checkpoint that holds its weights; nothing is loaded yet. */
export interface BuiltModel {
  readonly config: ModelConfig
  readonly model: AnyModel
  readonly weights: GgufFile | SafetensorsFile
  readonly plan: InjectionPlan
  readonly placement: Placement
  /** Where the logits are: "cpu", or a device that can be used. */
  readonly device: string
  /** The rule file that was made, where the model was placed automatically. */
  readonly madeRules: string | undefined
}

/** What there is to place a model on, where no rules and no device are named. */
export interface BuildTargets {
  /** By default the GPUs of this machine. */
  readonly budgets?: readonly DeviceBudget[]
  /** They need not be here: nothing is going to be loaded. */
  readonly areAssumed?: boolean
  /** What the model's file would hold, where there is none. */
  readonly weights?: GgufFile
}

/**
 * Opens the checkpoint, builds the model's modules and replaces what the rules say. Close `weights` after use.
 *
 * @param given The model's configuration where the caller has read it, with a Hugging Face layout or the file's own
 */
export async function buildModel(
  options: EngineConfig,
  given?: ModelConfig,
  targets: BuildTargets = {},
): Promise<BuiltModel> {
  await loadUserOperators(options.operators)
  const weights = targets.weights ?? openWeights(options.model)
  try {
    const { expertsPerToken } = options
    const own = modelConfig(options, weights, given)
    const config = expertsPerToken > 0 ? withExpertsPerToken(own, expertsPerToken) : own
    const model = await createAnyModel(config)
    const asked = options.device === undefined ? undefined : deviceName(options.device)
    const problem = asked === undefined ? undefined : deviceProblem(asked)
    if (problem !== undefined) throw new DeviceError(`--device ${options.device}: ${problem}`)
    const usable = (wanted: string): string | undefined =>
      targets.areAssumed && targets.budgets?.some((known) => known.device === deviceName(wanted))
        ? undefined
        : deviceProblem(wanted)
    const madeRules =
      asked === undefined && options.rules === undefined
        ? automaticRules(options, model, weights, targets)
        : undefined
    const rules =
      madeRules === undefined
        ? loadRules(options.rules)
        : parseRules(madeRules, "automatic placement")
    const plan = planInjection(model, rules, operators, {
      fuse: options.fuse,
      device: (wanted) => standIn(wanted, asked, usable),
    })
    applyInjection(model, plan, (original, entry) =>
      operators.create(entry.operator, original, entry.kwargs, { path: entry.path, root: model }),
    )
    const placement =
      asked === undefined ? placedBy(rules, plan, model, usable) : placeOn(asked, model)
    const [device = "cpu"] = placement.devices
    return { config, model, weights, plan, placement, device, madeRules }
  } catch (error) {
    weights.close()
    throw error
  }
}

/** Rules that place a model by what is free on GPUs; undefined: there is no GPU, or the model is to be on the CPU alone. */
function automaticRules(
  options: EngineConfig,
  model: AnyModel,
  weights: GgufFile | SafetensorsFile,
  targets: BuildTargets,
): string | undefined {
  const free = ({ name, memoryFreeBytes }: DeviceInfo): DeviceBudget => ({
    device: name,
    freeBytes: Math.min(memoryFreeBytes, options.vramBytes || Number.POSITIVE_INFINITY),
  })
  const budgets = targets.budgets ?? gpus().map(free)
  if (budgets.length === 0 || model.config.encoder !== undefined) return undefined
  const layout = chooseLayout(options, model.config, partSizes(model, weights), budgets)
  if (layout.head === "cpu") return undefined
  return rulesOf(layout, [`Where ${weights.path} computes, made by kt plan.`])
}

/** Modules where rules put them; the CPU stands in for devices that cannot be used. */
function placedBy(
  rules: RuleSet,
  plan: InjectionPlan,
  model: AnyModel,
  problemOf: (device: string) => string | undefined,
): Placement {
  const named = rules.rules.flatMap(({ replace: { kwargs } }) =>
    [kwargs["generate_device"], kwargs["prefill_device"]].filter((d) => typeof d === "string"),
  )
  const resolve = (device: string): string =>
    problemOf(device) === undefined ? deviceName(device) : "cpu"
  // as in KTransformers: what no rule reaches is on the first GPU
  const base = named.map(resolve).find((device) => device !== "cpu") ?? "cpu"
  const placed = placeModules(model, plan, resolve, base)
  const rest = new Set([...placed.byPath].flatMap(([path, d]) => (isTable(path) ? [] : [d])))
  const [only = "cpu"] = rest
  // a model that is otherwise on one device has its embeddings there too
  return rest.size === 1 && placed.devices.length > 1 ? placeOn(only, model) : placed
}

function isTable(path: string): boolean {
  return path === "model.embed_tokens"
}

/** Why a rule's device does not compute what the rule says; undefined: it does. */
function standIn(
  wanted: string,
  asked: string | undefined,
  problemOf: (device: string) => string | undefined,
): string | undefined {
  if (asked === undefined) {
    const problem = problemOf(wanted)
    return problem === undefined ? undefined : `${problem}; the CPU stands in`
  }
  return deviceName(wanted) === asked ? undefined : `${asked} computes the whole model`
}

/** From the folder that was named, else from the checkpoint itself. */
function modelConfig(
  options: EngineConfig,
  weights: GgufFile | SafetensorsFile,
  given: ModelConfig | undefined,
): ModelConfig {
  const { modelPath } = options
  // rows of q and k, norms and tied heads are as the GGUF has them, not as the folder says
  if (given !== undefined) return weights.kind === "gguf" ? withGgufLayout(given, weights) : given
  if (weights.kind === "gguf") {
    return modelPath === undefined
      ? configFromGguf(weights)
      : withGgufLayout(configFromFolder(modelPath), weights)
  }
  return configFromFolder(modelPath ?? dirname(weights.files[0] as string))
}

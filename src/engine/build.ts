import { dirname } from "node:path"

import type { EngineConfig } from "../config.ts"
import { DeviceError } from "../errors.ts"
import { applyInjection, type InjectionPlan, planInjection } from "../inject/inject.ts"
import { configFromGguf, withGgufLayout } from "../models/config-gguf.ts"
import { configFromFolder } from "../models/config-hf.ts"
import { type ModelConfig, withExpertsPerToken } from "../models/config.ts"
import { type AnyModel, createAnyModel } from "../models/registry.ts"
import { deviceProblem } from "../native/backend.ts"
import { operators } from "../operators/builtin.ts"
import { loadUserOperators } from "../operators/user.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { openWeights } from "../weights/open.ts"
import type { SafetensorsFile } from "../weights/safetensors.ts"
import { loadRules } from "./rule-files.ts"

/** A model tree after injection, and the checkpoint that holds its weights; nothing is loaded yet. */
export interface BuiltModel {
  readonly config: ModelConfig
  readonly model: AnyModel
  readonly weights: GgufFile | SafetensorsFile
  readonly plan: InjectionPlan
  /** What computes the model: "cpu", or a device that can be used. */
  readonly device: string
}

/**
 * Opens the checkpoint, builds the model's modules and replaces what the rules say. Close `weights` after use.
 *
 * @param given The model's configuration where the caller has read it, with a Hugging Face layout or the file's own
 */
export async function buildModel(options: EngineConfig, given?: ModelConfig): Promise<BuiltModel> {
  await loadUserOperators(options.operators)
  const weights = openWeights(options.model)
  try {
    const { expertsPerToken } = options
    const own = modelConfig(options, weights, given)
    const config = expertsPerToken > 0 ? withExpertsPerToken(own, expertsPerToken) : own
    const model = await createAnyModel(config)
    const device = options.device ?? placedOn(model, options)
    const problem = device === "cpu" ? undefined : deviceProblem(device)
    if (problem !== undefined) throw new DeviceError(`--device ${device}: ${problem}`)
    const plan = planInjection(model, loadRules(options.rules), operators, {
      fuse: options.fuse,
      device: (wanted) => standIn(wanted, device),
    })
    applyInjection(model, plan, (original, entry) =>
      operators.create(entry.operator, original, entry.kwargs, { path: entry.path, root: model }),
    )
    return { config, model, weights, plan, device }
  } catch (error) {
    weights.close()
    throw error
  }
}

/** The one device that rules put everything but the embeddings on, where it can be used; else the CPU. */
function placedOn(model: AnyModel, { rules, fuse }: EngineConfig): string {
  const { entries } = planInjection(model, loadRules(rules), operators, {
    fuse,
    device: () => undefined,
  })
  const devices = new Set<string>()
  for (const { path, kwargs } of entries.values()) {
    if (path.endsWith("embed_tokens")) continue
    for (const key of ["generate_device", "prefill_device"])
      devices.add(typeof kwargs[key] === "string" ? kwargs[key] : "cpu")
  }
  const [only = "cpu"] = devices
  return devices.size === 1 && only !== "cpu" && deviceProblem(only) === undefined ? only : "cpu"
}

/** Why a rule's device does not compute what the rule says; undefined: it does. */
function standIn(wanted: string, device: string): string | undefined {
  const full = (name: string): string => (name.includes(":") || name === "cpu" ? name : `${name}:0`)
  if (full(wanted) === full(device)) return undefined
  if (device !== "cpu") return `${device} computes the whole model`
  const why = deviceProblem(wanted) ?? "rules that put a model on several devices do so not yet"
  return `${why}; the CPU stands in`
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

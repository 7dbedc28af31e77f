import { join } from "node:path"

import { applyInjection, type InjectionPlan, planInjection } from "../../src/inject/inject.ts"
import { readRules, type RuleSet } from "../../src/inject/rules.ts"
import type { ModelConfig } from "../../src/models/config.ts"
import { type CausalLM, createModel } from "../../src/models/registry.ts"
import type { Backend } from "../../src/native/backend.ts"
import { lacksOp, type Library } from "../../src/native/library.ts"
import { namedModules } from "../../src/nn/module.ts"
import { operators } from "../../src/operators/builtin.ts"
import { packWeight } from "../../src/ops/index.ts"
import type { GgufFile } from "../../src/weights/gguf.ts"
import { type LoadedWeights, loadWeights } from "../../src/weights/load.ts"
import type { SafetensorsFile } from "../../src/weights/safetensors.ts"
import { ROOT } from "../setup.ts"

/** The rules that apply where none are given. */
export function defaultRules(): RuleSet {
  return readRules(join(ROOT, "rules", "default-cpu.yaml"))
}

export interface BuildOptions {
  /** undefined: `defaultRules()`. */
  readonly rules?: RuleSet | undefined
  /** false: fused operators are passed over. */
  readonly fuse?: boolean
  readonly unused?: "error" | "warn"
}

/** A model without weights, its operators in place. */
export async function buildModel(
  config: ModelConfig,
  options: BuildOptions = {},
): Promise<{ model: CausalLM; plan: InjectionPlan }> {
  const model = await createModel(config)
  const { rules = defaultRules(), fuse = true, unused = "error" } = options
  const plan = planInjection(model, rules, operators, { fuse, unused })
  applyInjection(model, plan, (original, { path, operator, kwargs }) =>
    operators.create(operator, original, kwargs, { path, root: model }),
  )
  return { model, plan }
}

/** The first op that a model computes with and a library lacks. */
export async function lackingOp(
  config: ModelConfig,
  library: Library,
): Promise<string | undefined> {
  const { model } = await buildModel(config)
  for (const [, module] of namedModules(model)) {
    const lacking = module.requiredOps().find((name) => lacksOp(library, name))
    if (lacking !== undefined) return lacking
  }
  return undefined
}

export interface LoadModelOptions extends BuildOptions {
  readonly backend: Backend
  /** The CPU, where `backend` is a device. */
  readonly host?: Backend
  /** Rearrange weights for the kernels. Only precision "fast" reads rearranged ones. */
  readonly repack?: boolean
  readonly onProgress?: (done: number, total: number) => void
}

/**
 * Builds a model, injects operators by rule and binds the weights of an open checkpoint, which must
 * stay open while the model is in use.
 */
export async function loadModel(
  config: ModelConfig,
  weights: GgufFile | SafetensorsFile,
  options: LoadModelOptions,
): Promise<{ model: CausalLM; plan: InjectionPlan; loaded: LoadedWeights }> {
  const { backend, host, repack = true, onProgress } = options
  const { model, plan } = await buildModel(config, options)
  const loaded = loadWeights(model, weights, {
    backend,
    ...(host === undefined ? {} : { host }),
    ...(repack && backend.precision === "fast" ? { pack: packWeight } : {}),
    ...(onProgress === undefined ? {} : { onProgress }),
  })
  return { model, plan, loaded }
}

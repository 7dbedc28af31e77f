import { z } from "zod"

import { Linear } from "../nn/layers.ts"
import { type Module, type Parameter, registerModules } from "../nn/module.ts"
import { backendNotes, BACKENDS, type CpuBackend, heldAs } from "./cpu-backend.ts"
import type { OperatorRegistry } from "./registry.ts"
import { standIns } from "./stand-ins.ts"

/** Computes from weights as the file has them, or packed for the CPU's vectors. */
const CPU_OP = "KLinearCPU"

/** Names of upstream's implementations, those of its first releases included. */
const LINEAR_OPS = [
  CPU_OP,
  "KLinearTorch",
  "KLinearMarlin",
  "KLinearCPUInfer",
  "KLinearQ8",
  "KLinearFP8",
  "KLinearIPEXLLM",
  "KLinearTorchW8A8A2",
  "VLinearMarlin",
  "QuantizedLinearMarlin",
  "QuantizedLinearTorch",
  "None",
] as const

const Op = z.enum(LINEAR_OPS, `expected one of ${LINEAR_OPS.join(", ")}`).nullable()

const schema = z.object({
  generate_op: Op.optional(),
  prefill_op: Op.optional(),
  // the names these had in the first releases, as KTransformers' README still has them
  generate_linear_type: Op.optional(),
  prefill_linear_type: Op.optional(),
  backend: z.enum(BACKENDS, `expected one of ${BACKENDS.join(", ")}`).optional(),
  // of Marlin, CPUInfer, FP8 and IPEX-LLM: accepted, of no effect on the CPU
  num_bits: z.number().int().optional(),
  group_size: z.number().int().optional(),
  act_order: z.boolean().optional(),
  is_k_full: z.boolean().optional(),
  stride: z.number().int().optional(),
  group_max_len: z.number().int().optional(),
  block_size: z.number().int().optional(),
  precision: z.string().optional(),
})

/**
 * A linear layer placed by rule. One set of weights serves prefill and decode: the CPU computes
 * both.
 */
export class KTransformersLinear extends Linear {
  /** The implementations in use. */
  readonly prefillOp = CPU_OP
  readonly generateOp = CPU_OP

  readonly #backend: CpuBackend | undefined

  constructor(original: Linear, backend?: CpuBackend) {
    super(original.inFeatures, original.outFeatures, original.options)
    this.#backend = backend
  }

  override parameters(): Parameter[] {
    return heldAs(super.parameters(), this.#backend)
  }
}

registerModules({ KTransformersLinear })

export function registerLinear(registry: OperatorRegistry): void {
  const rejects = (original: Module): string | undefined =>
    original instanceof Linear ? undefined : "KTransformersLinear replaces modules of class Linear"
  registry.register("KTransformersLinear", {
    schema,
    aliases: ["KTransformerLinear", "KTransformersLinearW8A8A2", "KLinearCPU"],
    rejects,
    notes: (kwargs) => [
      ...standIns(CPU_OP, [
        kwargs.generate_op ?? kwargs.generate_linear_type,
        kwargs.prefill_op ?? kwargs.prefill_linear_type,
      ]),
      ...backendNotes(kwargs.backend),
    ],
    create: (original, { backend }) =>
      original instanceof Linear ? new KTransformersLinear(original, backend) : original,
  })
}

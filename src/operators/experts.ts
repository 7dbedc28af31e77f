import { z } from "zod"

import { type Module, type Parameter, registerModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { backendNotes, BACKENDS, type CpuBackend, heldAs } from "./cpu-backend.ts"
import type { OperatorRegistry } from "./registry.ts"
import { standIns } from "./stand-ins.ts"

/** Gate, up and activation fused, then down and the weighted sum. */
const CPU_OP = "KExpertsCPU"

const EXPERTS_OPS = [
  CPU_OP,
  "KExpertsTorch",
  "KExpertsMarlin",
  "KExpertsCPUW8A8",
  "KSFTExpertsCPU",
  "None",
] as const

const Op = z.enum(EXPERTS_OPS, `expected one of ${EXPERTS_OPS.join(", ")}`).nullable()

/** Which experts of the CPU's the GPU has too: so many, a part of them, or these. */
const GpuExperts = z.union(
  [
    z.number().int().min(0),
    z.string().regex(/^\d+(\.\d+)?%$/),
    z.array(z.number().int().min(0)).min(1),
  ],
  "expected a number of experts, a share such as 25%, or a list of experts",
)

const schema = z.object({
  prefill_op: Op.optional(),
  generate_op: Op.optional(),
  backend: z.enum(BACKENDS, `expected one of ${BACKENDS.join(", ")}`).optional(),
  num_bits: z.number().int().optional(),
  group_size: z.number().int().optional(),
  gpu_experts: GpuExperts.optional(),
  max_deferred_experts: z.number().int().min(0).optional(),
})

/**
 * Routed experts placed by rule. One set of weights serves prefill and decode: the CPU computes
 * both.
 */
export class KTransformersExperts extends Experts {
  /** The implementations in use. */
  readonly prefillOp = CPU_OP
  readonly generateOp = CPU_OP

  readonly #backend: CpuBackend | undefined

  constructor(original: Experts, backend?: CpuBackend) {
    super(original.options)
    this.#backend = backend
  }

  override parameters(): Parameter[] {
    return heldAs(super.parameters(), this.#backend)
  }
}

registerModules({ KTransformersExperts })

export function registerExperts(registry: OperatorRegistry): void {
  const rejects = (original: Module): string | undefined =>
    original instanceof Experts
      ? undefined
      : "KTransformersExperts replaces modules of class Experts"
  registry.register("KTransformersExperts", {
    schema,
    aliases: [
      "KTransformersExpertsV2",
      "KSmallthinkerExperts",
      "KLlama4Experts",
      "KGlm4Experts",
      "KTransformersExpertsW8A8",
      "KExpertsCPU",
      "KExpertsCPUW8A8",
    ],
    rejects,
    notes: (kwargs, { generate_device, prefill_device }) => [
      // a GPU's own kernels are what its operators of KTransformers' are for
      ...standIns(CPU_OP, [
        generate_device.startsWith("cpu") ? kwargs.generate_op : undefined,
        prefill_device.startsWith("cpu") ? kwargs.prefill_op : undefined,
      ]),
      ...backendNotes(kwargs.backend),
    ],
    create: (original, { backend }) =>
      original instanceof Experts ? new KTransformersExperts(original, backend) : original,
  })
}

import { z } from "zod"

import { ConfigError } from "../errors.ts"
import type { DeviceProbe, OperatorTable, PlannedOperator } from "../inject/inject.ts"
import type { Kwargs } from "../inject/rules.ts"
import type { Module } from "../nn/module.ts"

/** Where an operator is being put. */
export interface OperatorContext {
  /** Dotted path of the module that it replaces. */
  readonly path: string
  /** The whole tree; what lies before this module in a bottom-up walk is final. */
  readonly root: Module
}

/** Devices that rules give: all operators accept them. */
export interface DeviceKwargs {
  readonly prefill_device: string
  readonly generate_device: string
}

/** A replacement for a module, as `registerOperator` takes it. */
export interface OperatorSpec<S extends z.ZodRawShape> {
  /** Kwargs besides the devices; any other is an error. */
  readonly schema: z.ZodObject<S>
  /** Other names that rules may use. */
  readonly aliases?: readonly string[]
  /** A fused form of plain modules: left out with --no-fuse. */
  readonly fused?: boolean
  /** Why this operator cannot replace a module: makes the rule an error. */
  readonly rejects?: (original: Module) => string | undefined
  /** Why a module should rather stay as it is: a line in the plan. */
  readonly declines?: (original: Module) => string | undefined
  /** What kwargs ask for and what is done instead: lines in the plan. */
  readonly notes?: (kwargs: z.output<z.ZodObject<S>>, devices: DeviceKwargs) => readonly string[]
  /** Builds the replacement; it takes over those children of the original that it needs. */
  readonly create: (
    original: Module,
    kwargs: z.output<z.ZodObject<S>> & DeviceKwargs,
    context: OperatorContext,
  ) => Module
}

interface Registered extends PlannedOperator {
  create(original: Module, kwargs: Kwargs, context: OperatorContext): Module
}

/** Devices as PyTorch writes them. */
const DEVICE = /^(cpu|cuda|hip|rocm|xpu|sycl|npu)(:\d{1,3})?$/
const DEVICE_KEYS = ["prefill_device", "generate_device", "out_device"] as const

/** Operators by the names that rules use. */
export class OperatorRegistry implements OperatorTable {
  readonly #operators = new Map<string, Registered>()
  readonly #aliases = new Map<string, string>()

  /** Adds an operator; a name that is taken is an error. */
  register<S extends z.ZodRawShape>(name: string, spec: OperatorSpec<S>): void {
    for (const key of [name, ...(spec.aliases ?? [])]) {
      if (!/^[A-Za-z_]\w*$/.test(key))
        throw new ConfigError(`operator name "${key}" is no identifier`)
      if (this.find(key) !== undefined)
        throw new ConfigError(`operator "${key}" is registered already`)
    }
    const schema = spec.schema.strict()
    this.#operators.set(name, {
      name,
      fused: spec.fused ?? false,
      rejects: (original) => spec.rejects?.(original),
      declines: (original) => spec.declines?.(original),
      check: (kwargs, device) => {
        const problem = badDevice(kwargs)
        if (problem !== undefined) return { ok: false, problem }
        const parsed = schema.safeParse(withoutDevices(kwargs))
        if (!parsed.success)
          return { ok: false, problem: describeIssue(name, schema, parsed.error) }
        const notes = [
          ...deviceNotes(kwargs, device),
          ...(spec.notes?.(parsed.data, devicesOf(kwargs)) ?? []),
        ]
        return { ok: true, kwargs, notes }
      },
      create: (original, kwargs, context) => {
        const own = schema.parse(withoutDevices(kwargs))
        return spec.create(original, { ...own, ...devicesOf(kwargs) }, context)
      },
    })
    for (const alias of spec.aliases ?? []) this.#aliases.set(alias, name)
  }

  find(className: string): Registered | undefined {
    return this.#operators.get(this.#aliases.get(className) ?? className)
  }

  names(): readonly string[] {
    return [...this.#operators.keys()]
  }

  /** Builds an operator that a plan names. */
  create(name: string, original: Module, kwargs: Kwargs, context: OperatorContext): Module {
    const operator = this.find(name)
    if (operator === undefined) throw new ConfigError(`unknown operator "${name}"`)
    return operator.create(original, kwargs, context)
  }
}

function withoutDevices(kwargs: Kwargs): Kwargs {
  const { prefill_device: _p, generate_device: _g, out_device: _o, ...rest } = kwargs
  return rest
}

function devicesOf(kwargs: Kwargs): DeviceKwargs {
  const device = (key: string): string => {
    const value = kwargs[key]
    return typeof value === "string" ? value : "cpu"
  }
  return { prefill_device: device("prefill_device"), generate_device: device("generate_device") }
}

function badDevice(kwargs: Kwargs): string | undefined {
  for (const key of DEVICE_KEYS) {
    const value = kwargs[key]
    if (value === undefined || value === null) continue
    if (typeof value !== "string" || !DEVICE.test(value)) {
      return `${key} ${JSON.stringify(value)} is no device: expected cpu, cuda or cuda:N`
    }
  }
  return undefined
}

function deviceNotes(kwargs: Kwargs, device: DeviceProbe): string[] {
  const reasons = new Map<string, string>()
  for (const key of DEVICE_KEYS) {
    const value = kwargs[key]
    if (typeof value !== "string") continue
    const reason = device(value)
    if (reason !== undefined) reasons.set(value, reason)
  }
  return [...reasons].map(([name, reason]) => `device ${name}: ${reason}`)
}

function describeIssue(name: string, schema: z.ZodObject, error: z.ZodError): string {
  const [issue] = error.issues
  if (issue?.code === "unrecognized_keys") {
    const known = [...Object.keys(schema.shape), ...DEVICE_KEYS].join(", ")
    return `unknown kwarg "${issue.keys[0] ?? ""}" of ${name}; known are ${known}`
  }
  const key = issue?.path.join(".") ?? ""
  return `kwarg "${key}" of ${name}: ${issue?.message ?? "is wrong"}`
}

/** The operators of this process: the built-in ones (builtin.ts adds them) and a user's own. */
export const operators = new OperatorRegistry()

/**
 * Makes an operator of a user's own known to rules, for example
 * `registerOperator("MyMLP", { schema: z.object({}), create: (original) => new MyMLP(original) })`.
 */
export function registerOperator<S extends z.ZodRawShape>(
  name: string,
  spec: OperatorSpec<S>,
): void {
  operators.register(name, spec)
}

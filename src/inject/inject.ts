import { ConfigError } from "../errors.ts"
import { type Module, namedModules } from "../nn/module.ts"
import { classMatches } from "./aliases.ts"
import { type Kwargs, type Rule, ruleLabel, type RuleSet } from "./rules.ts"

/** Whether a device can be used, and why not. */
export type DeviceProbe = (device: string) => string | undefined

/** What planning knows of an operator; the registry (src/operators/registry.ts) implements it. */
export interface OperatorTable {
  /** The operator a rule's class names, aliases resolved; undefined if unknown. */
  find(className: string): PlannedOperator | undefined
  /** Names for the message about an unknown one. */
  names(): readonly string[]
}

export interface PlannedOperator {
  readonly name: string
  /** A fused form of plain modules, left out with --no-fuse. */
  readonly fused: boolean
  /** Why this operator cannot take the place of a module, or undefined. */
  rejects(original: Module): string | undefined
  /** Why a module should rather stay as it is, or undefined. */
  declines(original: Module): string | undefined
  /** Checks kwargs and devices: the values to build with and lines about what stands in for what, or what is wrong. */
  check(kwargs: Kwargs, device: DeviceProbe): CheckedKwargs
}

export type CheckedKwargs =
  | { readonly ok: true; readonly kwargs: Kwargs; readonly notes: readonly string[] }
  | { readonly ok: false; readonly problem: string }

/** What becomes of one module. */
export interface PlanEntry {
  readonly path: string
  /** Class of the module before injection. */
  readonly original: string
  /** Name of the operator. */
  readonly operator: string
  readonly kwargs: Kwargs
  readonly rule: Rule
}

export interface InjectionPlan {
  /** Matched modules in the order of the walk. */
  readonly entries: ReadonlyMap<string, PlanEntry>
  readonly warnings: readonly string[]
}

export interface PlanOptions {
  /** false: rules whose operator is a fused one are passed over. Default true. */
  readonly fuse?: boolean
  /** "warn": rules that match nothing are warnings in every file. */
  readonly unused?: "error" | "warn"
  /** Which devices there are; default: the CPU alone. */
  readonly device?: DeviceProbe
}

const CPU_ONLY: DeviceProbe = (device) =>
  device.startsWith("cpu") ? undefined : "the CPU stands in"

/**
 * Decides for every module of the tree which rule applies: pre-order, the first matching rule wins, nothing is changed.
 * @throws ConfigError naming file, line and rule for an unknown operator or kwarg, a bad device, a module that the operator
 * cannot replace, and a rule that matches nothing
 */
export function planInjection(
  root: Module,
  set: RuleSet,
  operators: OperatorTable,
  options: PlanOptions = {},
): InjectionPlan {
  const { fuse = true, device = CPU_ONLY } = options
  const warnings = new Set<string>()
  const standIns = new Map<string, Set<Rule>>()
  const prepared = set.rules.map((rule) => prepare(rule, operators, device))
  const active = prepared.filter(({ operator }) => fuse || !operator.fused)
  const used = new Set<Rule>()
  const entries = new Map<string, PlanEntry>()

  const walk = (module: Module, path: string): void => {
    let recursive = true
    const hit = path === "" ? undefined : active.find(({ rule }) => matches(rule, path, module))
    if (hit !== undefined) {
      const { rule, operator, kwargs, notes } = hit
      const reason = operator.rejects(module)
      if (reason !== undefined) throw new ConfigError(`${ruleLabel(rule)}: ${path}: ${reason}`)
      for (const note of notes) standIns.set(note, (standIns.get(note) ?? new Set()).add(rule))
      used.add(rule)
      recursive = rule.recursive
      const kept = operator.declines(module)
      if (kept !== undefined) warnings.add(`${ruleLabel(rule)}: ${operator.name}: ${kept}`)
      entries.set(path, {
        path,
        original: className(module),
        operator: kept === undefined ? operator.name : "default",
        kwargs,
        rule,
      })
    }
    if (!recursive) return
    for (const [name, child] of module.children())
      walk(child, path === "" ? name : `${path}.${name}`)
  }
  walk(root, "")

  const shadowed = unusedRules(
    active.filter(({ rule }) => !used.has(rule)),
    root,
  )
  for (const { rule, detail } of shadowed) {
    const relaxed = rule.unused === "warn" || set.isUpstream || options.unused === "warn"
    if (rule.unused === "ignore") continue
    if (!relaxed) {
      throw new ConfigError(`${ruleLabel(rule)}: ${detail}`, {
        hint: "`unused: warn` in the rule makes this a warning",
      })
    }
    warnings.add(`${ruleLabel(rule)}: ${detail}`)
  }
  const notes = [...standIns].map(([note, rules]) => standInLine(note, [...rules]))
  return { entries, warnings: [...notes, ...warnings] }
}

/** A note once, however many rules of a long file ask for the same: with the first of them and the number of others. */
function standInLine(note: string, rules: readonly Rule[]): string {
  const [first] = rules
  const more = rules.length - 1
  const others = more === 0 ? "" : ` (and ${more} more ${more === 1 ? "rule" : "rules"})`
  return `${first === undefined ? "" : `${ruleLabel(first)}: `}${note}${others}`
}

interface Prepared {
  readonly rule: Rule
  readonly operator: PlannedOperator
  readonly kwargs: Kwargs
  readonly notes: readonly string[]
}

function prepare(rule: Rule, operators: OperatorTable, device: DeviceProbe): Prepared {
  const operator = operators.find(rule.replace.className)
  if (operator === undefined) {
    throw new ConfigError(
      `${ruleLabel(rule)}: unknown operator "${rule.replace.className}"; known are ${operators.names().join(", ")}`,
    )
  }
  const checked = operator.check(rule.replace.kwargs, device)
  if (!checked.ok) throw new ConfigError(`${ruleLabel(rule)}: ${checked.problem}`)
  return { rule, operator, kwargs: checked.kwargs, notes: checked.notes }
}

function matches(rule: Rule, path: string, module: Module): boolean {
  const { name, className: wanted } = rule.match
  if (name !== undefined && !name.test(path)) return false
  return wanted === undefined || classMatches(wanted, module.classNames())
}

/** Says of unused rules whether they match nothing or only what earlier rules have taken. */
function unusedRules(unused: readonly Prepared[], root: Module): { rule: Rule; detail: string }[] {
  if (unused.length === 0) return []
  const modules = [...namedModules(root)].filter(([path]) => path !== "")
  return unused.map(({ rule }) => {
    const first = modules.find(([path, module]) => matches(rule, path, module))?.[0]
    const detail =
      first === undefined
        ? `matches no module (${describeMatch(rule)})`
        : `matches nothing that earlier rules have left (${describeMatch(rule)}; the first would be ${first})`
    return { rule, detail }
  })
}

function describeMatch(rule: Rule): string {
  const { name, className: wanted } = rule.match
  const parts = [
    name === undefined ? "" : `name "${name.source}"`,
    wanted === undefined ? "" : `class ${wanted}`,
  ]
  return parts.filter((part) => part !== "").join(", ")
}

function className(module: Module): string {
  return module.classNames()[0] ?? "(unregistered)"
}

/** Builds the operator of one entry in place of `original`, whose children are final. */
export type CreateOperator = (original: Module, entry: PlanEntry) => Module

/** Carries a plan out, bottom-up: an operator's constructor finds the original's children already replaced. */
export function applyInjection(root: Module, plan: InjectionPlan, create: CreateOperator): void {
  const walk = (module: Module, path: string): void => {
    for (const [name, child] of module.children()) {
      const childPath = path === "" ? name : `${path}.${name}`
      walk(child, childPath)
      const entry = plan.entries.get(childPath)
      if (entry === undefined) continue
      const replacement = create(child, entry)
      if (replacement !== child) module.replaceChild(name, replacement)
    }
  }
  walk(root, "")
}

/** One line of `kt rules explain`. */
export interface ExplainRow {
  readonly path: string
  /** Class before injection. */
  readonly original: string
  /** Operator, or the original class where no rule applies. */
  readonly replacement: string
  readonly kwargs: Kwargs
  /** "file:line: rule 3", or "" where no rule applies. */
  readonly rule: string
}

/** Every module of the tree before injection with what the plan makes of it. */
export function explainPlan(root: Module, plan: InjectionPlan): ExplainRow[] {
  const rows: ExplainRow[] = []
  for (const [path, module] of namedModules(root)) {
    if (path === "") continue
    const entry = plan.entries.get(path)
    const original = className(module)
    rows.push({
      path,
      original,
      replacement: entry === undefined || entry.operator === "default" ? original : entry.operator,
      kwargs: entry?.kwargs ?? {},
      rule: entry === undefined ? "" : ruleLabel(entry.rule),
    })
  }
  return rows
}

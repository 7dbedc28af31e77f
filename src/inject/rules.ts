import { readFileSync, statSync } from "node:fs"

import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
} from "yaml"

import { ConfigError } from "../errors.ts"

/** Upstream's largest rule file has some 20 kB; a rule file this large is something else. */
const MAX_FILE_BYTES = 4 * 1024 * 1024
/** Most rules a file may have and the longest regular expression in one: far above any real file, so that neither hangs. */
const MAX_RULES = 10_000
const MAX_PATTERN_LENGTH = 4_096

export type KwargValue =
  string | number | boolean | null | readonly KwargValue[] | { readonly [key: string]: KwargValue }
export type Kwargs = Readonly<Record<string, KwargValue>>

/** What happens when a rule matches no module. */
export type UnusedPolicy = "error" | "warn" | "ignore"

/** One entry of a rule file. */
export interface Rule {
  readonly file: string
  /** Counted from 1, as messages name it. */
  readonly index: number
  readonly line: number
  readonly match: {
    /** Searched (not anchored) in the dotted path of a module. */
    readonly name: RegExp | undefined
    /** Last segment of the dotted class name; matches a module's class and its bases. */
    readonly className: string | undefined
  }
  readonly replace: { readonly className: string; readonly kwargs: Kwargs }
  /** false: modules below a match are left alone. */
  readonly recursive: boolean
  readonly unused: UnusedPolicy
}

export interface RuleSet {
  readonly file: string
  readonly rules: readonly Rule[]
  /** Written for KTransformers' own model classes: rules that match nothing are warnings. */
  readonly isUpstream: boolean
}

/** The name classes go by here: `torch.nn.Linear` is Linear. */
export function classKey(dotted: string): string {
  return dotted.slice(dotted.lastIndexOf(".") + 1)
}

/** Names a rule in messages: "rules/mine.yaml:12: rule 3". */
export function ruleLabel(rule: Pick<Rule, "file" | "line" | "index">): string {
  return `${rule.file}:${rule.line}: rule ${rule.index}`
}

/** Upstream's rule files match the classes of its Python model files; ours never name a Python module of models. */
const UPSTREAM_CLASS = /^(ktransformers\.models\.|transformers\.|transformers_modules\.)/

/** Reads a rule file from disk. @throws ConfigError naming the file when it cannot be read, and as `parseRules` does */
export function readRules(path: string): RuleSet {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) throw new ConfigError(`${path}: no such rule file`)
  if (!stat.isFile()) throw new ConfigError(`${path}: a rule file is a file, this is not`)
  if (stat.size > MAX_FILE_BYTES) {
    throw new ConfigError(
      `${path}: ${stat.size} bytes are more than a rule file's limit of ${MAX_FILE_BYTES}`,
    )
  }
  return parseRules(readFileSync(path, "utf8"), path)
}

/**
 * Reads a rule file in KTransformers' grammar (rules/README.md). `False` and `true` are booleans, `no` and `None` strings.
 * @throws ConfigError with file, line and rule index for everything that is not in the grammar
 */
export function parseRules(text: string, file: string): RuleSet {
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, version: "1.2", prettyErrors: false })
  const lineOf = (node: unknown): number => {
    const range = (node as Node | null | undefined)?.range
    return range ? lines.linePos(range[0]).line : 1
  }
  const [problem] = document.errors
  if (problem !== undefined) {
    throw new ConfigError(`${file}:${lines.linePos(problem.pos[0]).line}: ${problem.message}`)
  }
  const root = document.contents
  if (!isSeq(root)) {
    throw new ConfigError(
      `${file}:${lineOf(root)}: a rule file is a list of rules ("- match: …"), not ${kindOf(root)}`,
    )
  }
  if (root.items.length > MAX_RULES) {
    throw new ConfigError(
      `${file}: ${root.items.length} rules are more than the limit of ${MAX_RULES}`,
    )
  }
  let isUpstream = false
  const rules = root.items.map((item, i) => {
    const node = isAlias(item) ? item.resolve(document) : item
    const reader = new RuleReader(file, i + 1, lineOf(item), lineOf)
    isUpstream ||= reader.namesUpstream(node)
    return reader.read(node)
  })
  return { file, rules, isUpstream }
}

class RuleReader {
  readonly #file: string
  readonly #index: number
  readonly #line: number
  readonly #lineOf: (node: unknown) => number

  constructor(file: string, index: number, line: number, lineOf: (node: unknown) => number) {
    this.#file = file
    this.#index = index
    this.#line = line
    this.#lineOf = lineOf
  }

  #fail(node: unknown, detail: string): never {
    const line = node === undefined || node === null ? this.#line : this.#lineOf(node)
    throw new ConfigError(`${ruleLabel({ file: this.#file, line, index: this.#index })}: ${detail}`)
  }

  namesUpstream(node: unknown): boolean {
    if (!isMap(node)) return false
    const names = [node.getIn(["match", "class"]), node.getIn(["replace", "class"])]
    return names.some((name) => typeof name === "string" && UPSTREAM_CLASS.test(name))
  }

  read(node: unknown): Rule {
    const fields = this.#fields(node, "a rule", ["match", "replace", "recursive", "unused"])
    const match = this.#fields(fields.get("match"), "match", ["name", "class"])
    const name = match.get("name")
    const className = this.#string(match.get("class"), "match.class")
    if (name === undefined && className === undefined) {
      this.#fail(fields.get("match"), "match needs name, class or both")
    }
    const replace = this.#fields(fields.get("replace"), "replace", ["class", "kwargs", "device"])
    const target = this.#string(replace.get("class"), "replace.class")
    const device = this.#string(replace.get("device"), "replace.device")
    const kwargs = this.#kwargs(replace.get("kwargs"))
    if (target === undefined && device === undefined && kwargs === undefined) {
      this.#fail(fields.get("replace"), "replace needs class (an operator's name, or default)")
    }
    return {
      file: this.#file,
      index: this.#index,
      line: this.#line,
      match: {
        name: name === undefined ? undefined : this.#pattern(name),
        className: className === undefined ? undefined : classKey(className),
      },
      replace: {
        className: target === undefined ? "default" : classKey(target),
        // a device beside the class stands for all devices that kwargs leave open
        kwargs: device === undefined ? (kwargs ?? {}) : { ...deviceKwargs(device), ...kwargs },
      },
      recursive: this.#boolean(fields.get("recursive"), "recursive", true),
      unused: this.#unused(fields.get("unused")),
    }
  }

  /** A mapping's values by key; keys that are not `known` are errors. */
  #fields(node: unknown, what: string, known: readonly string[]): Map<string, Node | null> {
    if (node === undefined || node === null) this.#fail(node, `${what} is missing`)
    if (!isMap(node)) this.#fail(node, `${what} is ${kindOf(node)}, expected a mapping`)
    const out = new Map<string, Node | null>()
    for (const pair of node.items as Pair<Node, Node | null>[]) {
      const key = isScalar(pair.key) ? String(pair.key.value) : ""
      if (!known.includes(key)) {
        this.#fail(pair.key, `unknown key "${key}" in ${what}: expected ${known.join(", ")}`)
      }
      out.set(key, pair.value)
    }
    return out
  }

  #string(node: Node | null | undefined, what: string): string | undefined {
    if (node === undefined) return undefined
    if (isScalar(node) && typeof node.value === "string" && node.value !== "") return node.value
    return this.#fail(node, `${what} is ${kindOf(node)}, expected a name`)
  }

  #boolean(node: Node | null | undefined, what: string, fallback: boolean): boolean {
    if (node === undefined) return fallback
    if (isScalar(node) && typeof node.value === "boolean") return node.value
    return this.#fail(node, `${what} is ${kindOf(node)}, expected true or false`)
  }

  #unused(node: Node | null | undefined): UnusedPolicy {
    const value = this.#string(node, "unused") ?? "error"
    if (value === "error" || value === "warn" || value === "ignore") return value
    return this.#fail(node, `unused is "${value}", expected error, warn or ignore`)
  }

  #pattern(node: Node | null): RegExp {
    const source = this.#string(node, "match.name") ?? ""
    if (source.length > MAX_PATTERN_LENGTH) {
      this.#fail(
        node,
        `match.name has ${source.length} characters, more than ${MAX_PATTERN_LENGTH}`,
      )
    }
    const problem = pythonOnly(source)
    if (problem !== undefined) this.#fail(node, `match.name "${source}": ${problem}`)
    try {
      return new RegExp(source)
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error)
      return this.#fail(node, `match.name "${source}" is no regular expression: ${reason}`)
    }
  }

  #kwargs(node: Node | null | undefined): Kwargs | undefined {
    if (node === undefined) return undefined
    if (isScalar(node) && node.value === null) return {}
    if (!isMap(node)) this.#fail(node, `replace.kwargs is ${kindOf(node)}, expected a mapping`)
    return node.toJSON() as Kwargs
  }
}

function deviceKwargs(device: string): Kwargs {
  return { prefill_device: device, generate_device: device }
}

/** What Python's `re` has and JavaScript reads otherwise or not at all. */
function pythonOnly(source: string): string | undefined {
  if (source.includes("(?P"))
    return "named groups of Python, (?P…), are not accepted; use a plain group"
  const inline = /\(\?[aiLmsux-]+[):]/.exec(source)
  if (inline !== null) return `inline flags, ${inline[0]}, are not accepted`
  if (source.includes("(?#")) return "comments, (?#…), are not accepted"
  const anchor = /(?:^|[^\\])(?:\\\\)*\\([AZ])/.exec(source)
  if (anchor !== null)
    return `\\${anchor[1]} is Python's anchor; use ${anchor[1] === "A" ? "^" : "$"}`
  return undefined
}

function kindOf(node: unknown): string {
  if (node === undefined || node === null) return "nothing"
  if (isMap(node)) return "a mapping"
  if (isSeq(node)) return "a list"
  if (isScalar(node)) return node.value === null ? "nothing" : `"${String(node.value)}"`
  return "no value"
}

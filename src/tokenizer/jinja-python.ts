import { type Environment, Interpreter, Template } from "@huggingface/jinja"

import { FILTERS, STRING_METHODS } from "./jinja-filters.ts"
import {
  asNumber,
  compare,
  type Computed,
  computed,
  contains,
  equal,
  escapeHtml,
  isList,
  isNumber,
  isText,
  itemsOf,
  listOf,
  nameOf,
  type Node,
  textOf,
  type Value,
  valueOf,
} from "./jinja-values.ts"

type Program = Template["parsed"]

/** An expression whose text is printed, as Jinja prints it: None too. */
interface Output extends Node {
  readonly type: "Output"
  readonly expression: Node
}

interface Binary extends Node {
  readonly operator: { readonly value: string }
  readonly left: Node
  readonly right: Node
}

interface Filter extends Node {
  readonly operand: Node
  readonly filter: Node & {
    readonly value?: string
    readonly callee?: { readonly value: string }
    readonly args?: readonly Argument[]
  }
}

interface Argument extends Node {
  readonly key?: { readonly value: string }
  readonly value?: Node
}

interface For extends Node {
  readonly iterable: Node & { readonly lhs?: Node }
}

interface Member extends Node {
  readonly object: Node & { readonly value?: unknown; readonly property?: Node }
  readonly property: Node & { readonly value?: unknown }
  readonly computed: boolean
}

const STATEMENTS: ReadonlySet<string> = new Set(
  "Program Set If For Macro CallStatement FilterStatement Break Continue Comment".split(" "),
)
/** Filters that make a string of whatever they are given. */
const STRING_FILTERS: ReadonlySet<string> = new Set(
  "trim upper lower title capitalize replace indent escape e string safe".split(" "),
)
/** Attributes of Python's dict, which `mapping.name` finds before the keys. */
const DICT_METHODS: ReadonlySet<string> = new Set("items keys values get".split(" "))
/** Parses a template for `PythonInterpreter`. */
export function parseTemplate(source: string): Program {
  const program = new Template(source).parsed
  markOutputs(program)
  return program
}

function markOutputs(node: object): void {
  const fields = node as Record<string, unknown>
  for (const name of ["body", "alternate", "defaultBlock"]) {
    const list = fields[name]
    if (!Array.isArray(list)) continue
    const nodes = list as Node[]
    for (const [i, statement] of nodes.entries()) {
      if (STATEMENTS.has(statement.type)) markOutputs(statement)
      else nodes[i] = outputOf(statement)
    }
  }
}

function outputOf(expression: Node): Output {
  return { type: "Output", expression }
}

/**
 * The library's interpreter with the rules of Python that it relaxes: operands must have fitting types, equality is deep and
 * typed, None is printed, an undefined value has no members, `dict.items` is the method even where there is such a key, and
 * text marked as safe escapes what is joined to it (jinja2's Markup).
 */
export class PythonInterpreter extends Interpreter {
  readonly #safe = new WeakSet<object>()

  override evaluate(node: Node | undefined, environment: Environment): Value {
    switch (node?.type) {
      case "Output":
        return valueOf(textOf(this.evaluate((node as Output).expression, environment)))
      case "Computed":
        return (node as Computed).value
      case "BinaryExpression":
        return this.#binary(node as Binary, environment)
      case "FilterExpression":
        return this.#filter(node as Filter, environment)
      case "For":
        return this.#loop(node as For, environment)
      case "MemberExpression":
        return this.#member(node as Member, environment)
      default:
        return super.evaluate(node, environment)
    }
  }

  #binary(node: Binary, environment: Environment): Value {
    const operator = node.operator.value
    const left = this.evaluate(node.left, environment)
    if (operator === "and")
      return left.__bool__().value ? this.evaluate(node.right, environment) : left
    if (operator === "or")
      return left.__bool__().value ? left : this.evaluate(node.right, environment)
    const right = this.evaluate(node.right, environment)
    switch (operator) {
      case "==":
        return valueOf(equal(left, right))
      case "!=":
        return valueOf(!equal(left, right))
      case "in":
        return valueOf(contains(right, left))
      case "not in":
        return valueOf(!contains(right, left))
      case "~":
        return valueOf(textOf(left) + textOf(right))
    }
    for (const operand of [left, right])
      if (operand.type === "UndefinedValue")
        throw new Error(`an undefined value stands beside "${operator}"`)
    const numbers = isNumber(left) && isNumber(right)
    if (operator === "+" && isText(left) && isText(right)) return this.#join(left, right)
    if (operator === "*" && !numbers) return this.#repeat(left, right)
    if (["<", ">", "<=", ">="].includes(operator)) {
      const order = compare(left, right, operator)
      return valueOf(
        operator === "<"
          ? order < 0
          : operator === ">"
            ? order > 0
            : operator === "<="
              ? order <= 0
              : order >= 0,
      )
    }
    if (operator === "%" && numbers) {
      const divisor = Number(right.value)
      const rest = Number(left.value) % divisor
      if (divisor === 0) throw new Error("integer modulo by zero")
      // the sign of the divisor, as in Python
      if (rest !== 0 && rest < 0 !== divisor < 0)
        return this.#numeric("+", rest, right, environment)
    }
    const lists = operator === "+" && isList(left) && left.type === right.type
    if (!numbers && !lists)
      throw new Error(
        `unsupported operand types for ${operator}: ${nameOf(left)} and ${nameOf(right)}`,
      )
    return super.evaluate(
      { ...node, left: computed(asNumber(left)), right: computed(asNumber(right)) } as Node,
      environment,
    )
  }

  #numeric(operator: string, left: number, right: Value, environment: Environment): Value {
    return super.evaluate(
      {
        type: "BinaryExpression",
        operator: { value: operator },
        left: computed(valueOf(left)),
        right: computed(asNumber(right)),
      } as Node,
      environment,
    )
  }

  #join(left: Value, right: Value): Value {
    const isSafe = this.#safe.has(left) || this.#safe.has(right)
    const text = (value: Value): string =>
      isSafe && !this.#safe.has(value) ? escapeHtml(textOf(value)) : textOf(value)
    const joined = valueOf(text(left) + text(right))
    if (isSafe) this.#safe.add(joined)
    return joined
  }

  #repeat(left: Value, right: Value): Value {
    const [sequence, count] = left.type === "IntegerValue" ? [right, left] : [left, right]
    if (count.type !== "IntegerValue" || !(isText(sequence) || isList(sequence)))
      throw new Error(`unsupported operand types for *: ${nameOf(left)} and ${nameOf(right)}`)
    const times = Math.max(0, count.value as number)
    const length = (sequence.value as string | Value[]).length
    if (times * length > MAX_REPEATED)
      throw new Error(`a repetition of ${times * length} is longer than ${MAX_REPEATED}`)
    if (isText(sequence)) return valueOf((sequence.value as string).repeat(times))
    return listOf(Array.from({ length: times }, () => sequence.value as Value[]).flat())
  }

  #filter(node: Filter, environment: Environment): Value {
    const name = node.filter.value ?? node.filter.callee?.value ?? ""
    let operand = this.evaluate(node.operand, environment)
    const wasSafe = this.#safe.has(operand)
    if (name === "tojson" && operand.type === "UndefinedValue")
      throw new Error("an undefined value cannot be written as JSON")
    if (STRING_FILTERS.has(name) && !isText(operand)) {
      if (operand.type !== "NullValue" && operand.type !== "UndefinedValue")
        operand = valueOf(textOf(operand))
    }
    const result =
      this.#own(name, operand, node, environment) ??
      super.evaluate({ ...node, operand: computed(operand) } as Node, environment)
    if (name !== "safe" && !(wasSafe && STRING_FILTERS.has(name) && name !== "string"))
      return result
    // a copy, so that a variable's own text is not marked
    const marked = valueOf(textOf(result))
    this.#safe.add(marked)
    return marked
  }

  /** A filter that the library lacks or has only in part, or undefined. */
  #own(name: string, operand: Value, node: Filter, environment: Environment): Value | undefined {
    const filter = FILTERS.get(name)
    if (filter === undefined) return undefined
    const positional: Value[] = []
    const named = new Map<string, Value>()
    for (const argument of node.filter.args ?? [])
      if (argument.type === "KeywordArgumentExpression")
        named.set(argument.key!.value, this.evaluate(argument.value, environment))
      else positional.push(this.evaluate(argument, environment))
    return filter(operand, positional, named, {
      apply: (other, value, rest) =>
        this.#filter(
          {
            type: "FilterExpression",
            operand: computed(value),
            filter:
              rest.length === 0
                ? { type: "Identifier", value: other }
                : {
                    type: "CallExpression",
                    callee: { type: "Identifier", value: other },
                    args: rest.map(computed),
                  },
          } as unknown as Filter,
          environment,
        ),
      test: (other, value, rest) => {
        const test = environment.tests.get(other)
        if (test === undefined) throw new Error(`there is no test "${other}"`)
        return test(value, ...rest)
      },
    })
  }

  /** Strings give their characters and what is undefined nothing. */
  #loop(node: For, environment: Environment): Value {
    const source = node.iterable.lhs ?? node.iterable
    const over = this.evaluate(source, environment)
    const items = isText(over) || over.type === "UndefinedValue" ? listOf(itemsOf(over)) : over
    const iterable =
      node.iterable.lhs === undefined ? computed(items) : { ...node.iterable, lhs: computed(items) }
    return super.evaluate({ ...node, iterable } as Node, environment)
  }

  #member(node: Member, environment: Environment): Value {
    const object = this.evaluate(node.object, environment)
    if (object.type === "UndefinedValue") {
      const what =
        node.object.type === "Identifier"
          ? `"${String(node.object.value)}"`
          : node.object.type === "MemberExpression"
            ? `the member ${JSON.stringify((node.object.property as { value?: unknown }).value ?? "asked for")}`
            : "a value"
      throw new Error(`${what} is undefined`)
    }
    if (!node.computed && object.type === "ObjectValue") {
      const name = String(node.property.value)
      const method = DICT_METHODS.has(name) ? object.builtins.get(name) : undefined
      if (method !== undefined) return method
    }
    if (isText(object) && !node.computed) {
      const method = STRING_METHODS.get(String(node.property.value))
      if (method !== undefined)
        return valueOf((...args: unknown[]) => method(object.value as string, ...args))
    }
    if (node.object.value === "loop" && node.property.value === "cycle") {
      const index = (object.value as Map<string, Value>).get("index0")?.value as number
      return valueOf((...items: unknown[]) => items[index % items.length])
    }
    return super.evaluate({ ...node, object: computed(object) } as Node, environment)
  }
}

/** Longer repetitions are no template's intention. */
const MAX_REPEATED = 10_000_000

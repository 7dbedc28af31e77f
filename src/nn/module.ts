import { KtError } from "../errors.ts"

export type ModuleClass = abstract new (...args: never[]) => Module

/** Registered names: `constructor.name` does not survive minifying, object keys do. */
const classNames = new Map<ModuleClass, string>()

/** Gives classes the names that rules match (`class: Qwen3MoeAttention`). */
export function registerModules(classes: Readonly<Record<string, ModuleClass>>): void {
  for (const [name, cls] of Object.entries(classes)) classNames.set(cls, name)
}

/** A node of the model tree. Fields that are Modules are its children; their names are the checkpoint's names. */
export abstract class Module {
  /** Names of this module's class and its registered bases, most derived first. */
  classNames(): string[] {
    const names: string[] = []
    for (let cls = this.constructor; typeof cls === "function" && cls !== Module; cls = Object.getPrototypeOf(cls)) {
      const name = classNames.get(cls as unknown as ModuleClass)
      if (name !== undefined) names.push(name)
    }
    return names
  }

  /** Direct children in declaration order. */
  children(): [name: string, child: Module][] {
    const out: [string, Module][] = []
    for (const [name, value] of Object.entries(this)) if (value instanceof Module) out.push([name, value])
    return out
  }

  replaceChild(name: string, child: Module): void {
    const self = this as unknown as Record<string, unknown>
    if (!(self[name] instanceof Module)) throw new KtError(`module has no child "${name}" to replace`)
    self[name] = child
  }
}

/** A list of modules whose children are named by index. */
export class ModuleList<T extends Module> extends Module {
  readonly items: T[]

  constructor(items: T[]) {
    super()
    this.items = items
  }

  override children(): [string, Module][] {
    return this.items.map((item, i) => [String(i), item])
  }

  override replaceChild(name: string, child: Module): void {
    const i = Number(name)
    if (!(i in this.items)) throw new KtError(`module list has no child "${name}" to replace`)
    this.items[i] = child as T
  }

  [Symbol.iterator](): Iterator<T> {
    return this.items[Symbol.iterator]()
  }
}

/** Pre-order walk: the root (path ""), then every descendant with its dotted path. */
export function* namedModules(root: Module, path = ""): Generator<[path: string, module: Module]> {
  yield [path, root]
  for (const [name, child] of root.children()) yield* namedModules(child, path === "" ? name : `${path}.${name}`)
}

registerModules({ ModuleList })

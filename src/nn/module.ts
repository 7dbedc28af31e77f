import { KtError } from "../errors.ts"
import type { Backend } from "../native/backend.ts"
import type { FunctionName } from "../native/library.ts"
import type { Tensor } from "../tensor/tensor.ts"

/** Of ops, as kt.h names them. */
export type OpNames = readonly FunctionName[]

export type ModuleClass = abstract new (...args: never[]) => Module

/** Registered names: `constructor.name` does not survive minifying, object keys do. */
const classNames = new Map<ModuleClass, string>()

/** Gives classes the names that rules match (`class: Qwen3MoeAttention`). */
export function registerModules(classes: Readonly<Record<string, ModuleClass>>): void {
  for (const [name, cls] of Object.entries(classes)) classNames.set(cls, name)
}

/**
 * One stored tensor that a module computes with. Declared, not loaded: weights/load.ts finds it, checks its shape, and calls
 * `bind` once with the tensor to keep.
 */
export interface Parameter {
  /** Below the module's path, as checkpoints name it (`weight`); "../x.weight" is a sibling's. */
  readonly name: string
  /** As PyTorch has it; of the whole stored tensor, also where `rows` takes a part. */
  readonly shape: readonly number[]
  /**
   * weight: a matrix of any type, packed where the kernels have a layout for it; table: a matrix whose rows are looked up,
   * never packed; experts: a stack [experts, out, in], which checkpoints may hold one by one; vector: becomes F32 (a row an expert
   * where experts have biases).
   */
  readonly kind: "weight" | "table" | "experts" | "vector"
  /** Only these rows of the stored matrix. */
  readonly rows?: { readonly start: number; readonly count: number }
  /** Where the rows are in checkpoints that have no tensor of this name but a fused projection (whole `shape` of this one). */
  readonly grouped?: RowGroups
  /** Where the values are in checkpoints that have no tensor of this name but a stack laid out the other way. */
  readonly transposed?: TransposedStack
  /** Whole path of the tensor to take where the checkpoint has none of this name (tied embeddings). */
  readonly fallback?: string
  /** The stored values in another type, in memory of their own, or null: they stay as they are. On the CPU only. */
  readonly convert?: (stored: Tensor) => Tensor | null
  /** Sees the stored values on the host before they are rearranged or leave it. */
  readonly look?: ((stored: Tensor) => void) | undefined
  bind(tensor: Tensor): void
}

/** Rows of a fused projection that consists of groups of `size` rows: `count` of each group from `start` on. */
export interface RowGroups {
  /** Module name of the fused projection, beside the parameter's own module. */
  readonly of: string
  readonly groups: number
  readonly size: number
  readonly start: number
  readonly count: number
}

/**
 * A stored stack [experts, in, columns] (of biases: [experts, columns]) whose columns start, start + step, … are the rows of
 * a parameter [experts, out, in].
 */
export interface TransposedStack {
  /** Beside the parameter's own name. */
  readonly name: string
  readonly start: number
  readonly step: number
  /** Columns of the stack; by default as many as the parameter has rows. */
  readonly width?: number
}

/** A node of the model tree. Fields that are Modules are its children; their names are the checkpoint's names. */
export abstract class Module {
  /** What its tensors are on and where it computes, once that is known; undefined: all of the model is on one device. */
  backend: Backend | undefined

  /** Names of this module's class and its registered bases, most derived first. */
  classNames(): string[] {
    const names: string[] = []
    for (
      let cls = this.constructor;
      typeof cls === "function" && cls !== Module;
      cls = Object.getPrototypeOf(cls)
    ) {
      const name = classNames.get(cls as unknown as ModuleClass)
      if (name !== undefined) names.push(name)
    }
    return names
  }

  /** Direct children in declaration order. */
  children(): [name: string, child: Module][] {
    const out: [string, Module][] = []
    for (const [name, value] of Object.entries(this))
      if (value instanceof Module) out.push([name, value])
    return out
  }

  /** Tensors of this module itself, not of its children. */
  parameters(): Parameter[] {
    return []
  }

  /** Ops that not every backend has and this module itself, not its children, computes with. */
  requiredOps(): OpNames {
    return []
  }

  /** Makes tensors that no checkpoint holds, on the module's device; called once, after the parameters are bound. */
  materialize(_backend: Backend): void {}

  replaceChild(name: string, child: Module): void {
    const self = this as unknown as Record<string, unknown>
    if (!(self[name] instanceof Module))
      throw new KtError(`module has no child "${name}" to replace`)
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
  for (const [name, child] of root.children())
    yield* namedModules(child, path === "" ? name : `${path}.${name}`)
}

registerModules({ ModuleList })

import { KtError, NativeError } from "../errors.ts"
import * as abi from "./abi.generated.ts"
import { type Address, type Library, requireLibrary } from "./library.ts"
import { Arena, outSlot, Slab } from "./memory.ts"

export type Precision = "fast" | "f32"

export interface BackendOptions {
  /** Compute threads, the caller included; 0 = physical cores. */
  readonly threads?: number
  readonly precision?: Precision
  /** Level name (`scalar` … `amx`); undefined honours KT_CPU_ISA and else takes the best. */
  readonly isa?: string
  readonly pinThreads?: boolean
  readonly spinUs?: number
  /** NUMA nodes to divide work and packed weights among: 0 = the machine's, 1 = none told apart. */
  readonly nodes?: number
}

/** Level names by KT_ISA_* number. */
export const ISA_NAMES = [
  "auto",
  "scalar",
  "avx2",
  "avx512",
  "avx512bf16",
  "amx",
  "neon",
  "dotprod",
  "i8mm",
] as const

/** The levels that the CPU library of this architecture holds, weakest first. */
export const ARCH_ISAS: readonly (typeof ISA_NAMES)[number][] =
  process.arch === "arm64"
    ? ["scalar", "neon", "dotprod", "i8mm"]
    : ["scalar", "avx2", "avx512", "avx512bf16", "amx"]

const STEP_BYTES = 4 << 20
/** Address space taken at a time for rearranged weights; only what is written becomes resident. */
const WEIGHT_BYTES = 64 << 20
const DESCRIPTOR_BYTES = abi.layouts.kt_tensor.size
const STEP_DESCRIPTORS = 16_384
const PERSISTENT_DESCRIPTORS = 4_096

/** A pool of tensor descriptors: native memory, one u32 view, handed out in order. */
class DescriptorPool {
  readonly #library: Library
  readonly #capacity: number
  #slabs: { slab: Slab; words: Uint32Array }[] = []
  #slab = 0
  #next = 0

  constructor(library: Library, capacity: number) {
    this.#library = library
    this.#capacity = capacity
  }

  /** The next descriptor's address; `words` and `word` are where its fields are written. */
  words: Uint32Array = new Uint32Array(0)
  word = 0
  next(): Address {
    if (this.#next === this.#capacity || this.#slabs.length === 0) {
      if (this.#slabs.length > 0) this.#slab++
      this.#next = 0
      if (this.#slab === this.#slabs.length) {
        const slab = new Slab(this.#library, this.#capacity * DESCRIPTOR_BYTES)
        this.#slabs.push({ slab, words: new Uint32Array(slab.view()) })
      }
    }
    const current = this.#slabs[this.#slab] as { slab: Slab; words: Uint32Array }
    const offset = this.#next++ * DESCRIPTOR_BYTES
    this.words = current.words
    this.word = offset / 4
    return current.slab.address + offset
  }

  reset(): void {
    this.#slab = 0
    this.#next = 0
  }

  [Symbol.dispose](): void {
    for (const { slab } of this.#slabs) slab[Symbol.dispose]()
    this.#slabs = []
  }
}

/** One library, one context: what ops run on. Used by one thread. */
export class Backend {
  readonly name: string
  readonly device: number
  readonly library: Library
  readonly threads: number
  readonly nodes: number
  readonly isa: string
  /** Step-lived data and descriptors; reset by the owner of the step loop. */
  readonly arena: Arena
  readonly stepDescriptors: DescriptorPool
  readonly descriptors: DescriptorPool
  readonly #params: Slab
  #ctx: Address
  #precision: Precision

  constructor(options: BackendOptions = {}, library: Library = requireLibrary("cpu")) {
    this.library = library
    this.name = library.kt_backend_name()
    this.device = 0
    this.#precision = options.precision ?? "fast"
    const isa =
      options.isa === undefined ? 0 : (ISA_NAMES as readonly string[]).indexOf(options.isa)
    if (isa < 0)
      throw new KtError(
        `unknown ISA level "${options.isa}": expected one of ${ISA_NAMES.slice(1).join(", ")}`,
      )
    const { size, fields } = abi.layouts.kt_ctx_options
    const request = new Uint32Array(new ArrayBuffer(size))
    request[fields.struct_size / 4] = size
    request[fields.abi_version / 4] = abi.KT_ABI_MAJOR * 65536 + abi.KT_ABI_MINOR
    request[fields.num_threads / 4] = options.threads ?? 0
    request[fields.isa / 4] = isa
    request[fields.precision / 4] =
      this.#precision === "f32" ? abi.KT_PRECISION_F32 : abi.KT_PRECISION_FAST
    request[fields.pin_threads / 4] = options.pinThreads ? 1 : 0
    request[fields.spin_us / 4] = options.spinUs ?? 0
    request[fields.numa_nodes / 4] = options.nodes ?? 0
    const out = outSlot()
    this.#ctx = 0
    this.check(library.kt_ctx_create(request, out), "kt_ctx_create")
    this.#ctx = Number(out[0])
    const info = new Uint32Array(new ArrayBuffer(abi.layouts.kt_ctx_info.size))
    this.check(library.kt_ctx_query(this.#ctx, info), "kt_ctx_query")
    this.threads = info[abi.layouts.kt_ctx_info.fields.num_threads / 4] as number
    this.nodes = info[abi.layouts.kt_ctx_info.fields.num_nodes / 4] as number
    this.isa = ISA_NAMES[info[abi.layouts.kt_ctx_info.fields.isa / 4] as number] as string
    this.arena = new Arena(library, STEP_BYTES)
    this.stepDescriptors = new DescriptorPool(library, STEP_DESCRIPTORS)
    this.descriptors = new DescriptorPool(library, PERSISTENT_DESCRIPTORS)
    this.#params = new Slab(library, 4096)
    this.paramsAddress = this.#params.address
    this.params = new DataView(this.#params.view())
  }

  #weights: Arena | undefined

  /** Memory of rearranged weights: side by side in 2 MiB pages, freed with the backend. */
  get weights(): Arena {
    this.#weights ??= new Arena(this.library, WEIGHT_BYTES)
    return this.#weights
  }

  /** Scratch for one call's option struct: written through `params`, passed as `paramsAddress`. */
  readonly params: DataView
  readonly paramsAddress: Address

  /** The context's handle. @throws KtError after dispose */
  get ctx(): Address {
    if (this.#ctx === 0) throw new KtError("backend used after dispose")
    return this.#ctx
  }

  get precision(): Precision {
    return this.#precision
  }

  set precision(value: Precision) {
    this.check(
      this.library.kt_ctx_set_precision(
        this.ctx,
        value === "f32" ? abi.KT_PRECISION_F32 : abi.KT_PRECISION_FAST,
      ),
      "kt_ctx_set_precision",
    )
    this.#precision = value
  }

  /** @throws NativeError with the library's own words when status is negative */
  check(status: number, op: string): void {
    if (status !== 0) throw new NativeError(op, status, this.library.kt_last_error())
  }

  /** Ends a step: its tensors are dead. */
  resetStep(): void {
    this.arena.reset()
    this.stepDescriptors.reset()
  }

  [Symbol.dispose](): void {
    if (this.#ctx === 0) return
    this.library.kt_ctx_destroy(this.#ctx)
    this.#ctx = 0
    this.arena[Symbol.dispose]()
    this.stepDescriptors[Symbol.dispose]()
    this.descriptors[Symbol.dispose]()
    this.#weights?.[Symbol.dispose]()
    this.#params[Symbol.dispose]()
  }
}

export type { DescriptorPool }

/** What the CPU library says of this machine. */
export interface CpuInfo {
  /** Levels this machine runs, weakest first. */
  readonly isas: readonly string[]
  readonly physicalCores: number
  readonly logicalCores: number
  /** CPUs' time that the cgroup grants; undefined: no limit. The counts are cut to it. */
  readonly cpuQuota: number | undefined
  readonly memoryBytes: number
  readonly memoryFreeBytes: number
  readonly l2Bytes: number
  readonly l3Bytes: number
}

export function queryCpu(library: Library = requireLibrary("cpu")): CpuInfo {
  const { size, fields } = abi.layouts.kt_cpu_info
  const view = new DataView(new ArrayBuffer(size))
  const status = library.kt_cpu_query(view)
  if (status !== 0) throw new NativeError("kt_cpu_query", status, library.kt_last_error())
  const mask = view.getUint32(fields.isa_mask, true)
  const quota = view.getUint32(fields.quota_millis, true)
  const i64 = (offset: number): number => Number(view.getBigInt64(offset, true))
  return {
    isas: ISA_NAMES.filter((_, level) => level > 0 && (mask >> level) % 2 === 1),
    physicalCores: view.getUint32(fields.physical_cores, true),
    logicalCores: view.getUint32(fields.logical_cores, true),
    cpuQuota: quota === 0 ? undefined : quota / 1000,
    memoryBytes: i64(fields.memory_bytes),
    memoryFreeBytes: i64(fields.memory_free_bytes),
    l2Bytes: i64(fields.l2_bytes),
    l3Bytes: i64(fields.l3_bytes),
  }
}

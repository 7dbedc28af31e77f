import { ConfigError, DeviceError, KtError, NativeError } from "../errors.ts"
import * as abi from "./abi.generated.ts"
import type { Graph } from "./graph.ts"
import { type Address, type Library, probeLibrary, requireLibrary } from "./library.ts"
import { Arena, DeviceBuffer, type Memory, outSlot, Slab } from "./memory.ts"
import { Turns } from "./turns.ts"

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
  /** Index among the library's devices. */
  readonly device?: number
  /** Index among devices as rules count them; a CPU above 0 is a device whose memory the host reaches by copies only. */
  readonly logical?: number
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
/** Page-locked memory taken at first: what the tokens of a step that generates hand over. */
const SHARED_BYTES = 4 << 20
/** Address space taken at a time for rearranged weights; only what is written becomes resident. */
const WEIGHT_BYTES = 64 << 20
const KEPT_BYTES = 1 << 20
/** From here on memory is asked for in huge pages. */
const HUGE_BYTES = 2 << 20
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

/** A point in the order of a context's ops, which other contexts of its library wait for. */
export class Fence implements Disposable {
  readonly #backend: Backend
  #event: Address
  #recorded = false

  constructor(backend: Backend) {
    const out = outSlot()
    backend.check(backend.library.kt_event_create(backend.ctx, out), "kt_event_create")
    this.#backend = backend
    this.#event = Number(out[0])
  }

  /** The point is here. */
  record(): void {
    const { library, ctx } = this.#backend
    this.#backend.check(library.kt_event_record(ctx, this.#event), "kt_event_record")
    this.#recorded = true
  }

  /** Ops that another context is told from here on come after the point; nothing before it was recorded. */
  holdUp(other: Backend): void {
    if (!this.#recorded) return
    other.check(other.library.kt_event_wait(other.ctx, this.#event), "kt_event_wait")
  }

  /** Milliseconds to a later point, once that is reached. */
  until(later: Fence): number {
    const { library } = this.#backend
    const ms = new Float64Array(1)
    this.#backend.check(library.kt_event_elapsed(this.#event, later.#event, ms), "kt_event_elapsed")
    return ms[0] as number
  }

  [Symbol.dispose](): void {
    if (this.#event !== 0) this.#backend.library.kt_event_destroy(this.#event)
    this.#event = 0
  }
}

/** One library, one context: what ops run on. Used by one thread. */
export class Backend {
  readonly name: string
  /** As rules and messages name it: `cpu`, `cuda:1`. */
  readonly label: string
  /** What descriptors carry: 0 is the CPU, else the device's index and one. */
  readonly device: number
  /** Tensors lie where the host reads and writes them, and ops are done when they return. */
  readonly isHost: boolean
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
    const { device = 0, logical = device } = options
    this.isHost = this.name === "cpu" && logical === 0
    this.label = this.isHost ? "cpu" : `${this.name}:${logical}`
    this.device = this.name === "cpu" ? 0 : device + 1
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
    request[fields.device / 4] = device
    const out = outSlot()
    this.#ctx = 0
    this.check(library.kt_ctx_create(request, out), "kt_ctx_create")
    this.#ctx = Number(out[0])
    const info = new Uint32Array(new ArrayBuffer(abi.layouts.kt_ctx_info.size))
    this.check(library.kt_ctx_query(this.#ctx, info), "kt_ctx_query")
    this.threads = info[abi.layouts.kt_ctx_info.fields.num_threads / 4] as number
    this.nodes = info[abi.layouts.kt_ctx_info.fields.num_nodes / 4] as number
    const level = info[abi.layouts.kt_ctx_info.fields.isa / 4] as number
    this.isa = this.name === "cpu" ? (ISA_NAMES[level] as string) : this.name
    this.arena = new Arena((bytes) => this.allocate(bytes), STEP_BYTES, this.isHost ? 64 : 256)
    this.stepDescriptors = new DescriptorPool(library, STEP_DESCRIPTORS)
    this.descriptors = new DescriptorPool(library, PERSISTENT_DESCRIPTORS)
    this.#params = new Slab(library, 4096)
    this.paramsAddress = this.#params.address
    this.params = new DataView(this.#params.view())
  }

  #weights: Arena | undefined
  #shared: Arena | undefined
  #sharedProblem: string | undefined
  #event: Address = 0

  /** Memory of rearranged weights: side by side in 2 MiB pages, freed with the backend. */
  get weights(): Arena {
    this.#weights ??= new Arena(
      (bytes) => this.allocate(bytes),
      WEIGHT_BYTES,
      this.isHost ? 64 : 256,
    )
    return this.#weights
  }

  #kept: Arena | undefined

  /** The graph that ops are kept in at present, and not computed. */
  recording: Graph | undefined

  #turns: Turns | undefined

  /** Points of recorded steps that the host takes part in; undefined where the device and the host share no memory. */
  get turns(): Turns | undefined {
    return this.#turns
  }

  /** Memory of what is read after a recorded step: not taken back with a layer's temporaries, but by the next recording. */
  get kept(): Arena {
    this.#kept ??= new Arena((bytes) => this.allocate(bytes), KEPT_BYTES, this.isHost ? 64 : 256)
    return this.#kept
  }

  /** Zeroed memory for tensors. @throws NativeError that says what was asked for */
  allocate(bytes: number): Memory {
    return this.isHost
      ? new Slab(this.library, bytes, { hugePages: bytes >= HUGE_BYTES })
      : new DeviceBuffer(this.library, () => this.ctx, bytes)
  }

  /**
   * to = from, each an address of this device or of the host, or a view; in order with the ops. What is copied from or to a
   * view or to memory that is not pinned is done on return.
   */
  copy(to: Address | ArrayBufferView, from: Address | ArrayBufferView, bytes: number): void {
    this.check(this.library.kt_buffer_copy(this.ctx, to, from, bytes), "kt_buffer_copy")
  }

  /** Why there is no memory that this device and the host share; undefined: there is, or none was asked for. */
  get sharedProblem(): string | undefined {
    return this.#sharedProblem
  }

  /**
   * Page-locked memory that this device and the host read and write at one address; it lives as long as the step, or
   * until `shared` is released. Undefined where none can be had.
   */
  allocShared(bytes: number): Address | undefined {
    if (this.#sharedProblem !== undefined) return undefined
    try {
      this.#shared ??= new Arena(
        (size) => new Slab(this.library, size, { pinned: true }),
        SHARED_BYTES,
        256,
      )
      return this.#shared.alloc(bytes)
    } catch (error) {
      if (!(error instanceof NativeError)) throw error
      this.#sharedProblem = error.message
      return undefined
    }
  }

  /** Takes what a recorded step that the host takes part in needs: nothing can be page-locked while one is recorded. */
  prepareSharing(): void {
    if (this.isHost) return
    this.allocShared(1)
    if (this.#turns !== undefined || this.#sharedProblem !== undefined) return
    try {
      this.#turns = new Turns(this.library, this.label)
    } catch (error) {
      if (!(error instanceof NativeError)) throw error
      this.#sharedProblem = error.message
    }
  }

  get shared(): Arena | undefined {
    return this.#shared
  }

  fence(): Fence {
    return new Fence(this)
  }

  /** Remembers this point in the order of ops, for `reachMark()` and `follow()`. */
  mark(): void {
    if (this.isHost) return
    if (this.#event === 0) {
      const out = outSlot()
      this.check(this.library.kt_event_create(this.ctx, out), "kt_event_create")
      this.#event = Number(out[0])
    }
    this.check(this.library.kt_event_record(this.ctx, this.#event), "kt_event_record")
  }

  /** Waits for the ops before the last mark(), not for those after it. */
  reachMark(): void {
    if (this.#event === 0) return
    const status = this.library.kt_event_elapsed(this.#event, this.#event, new Float64Array(1))
    this.check(status, "kt_event_elapsed")
  }

  /** Ops of this context from here on come after all that another one of its library was told so far. */
  follow(other: Backend): void {
    other.mark()
    if (other.isHost) return
    this.check(this.library.kt_event_wait(this.ctx, other.#event), "kt_event_wait")
  }

  /** Waits for all ops; the failure of one that was under way is thrown here. */
  synchronize(): void {
    if (this.isHost) return
    this.check(this.library.kt_ctx_synchronize(this.ctx), "kt_ctx_synchronize")
    this.#turns?.check()
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

  readonly #atStepEnd: (() => void)[] = []

  /** Called when the step's ops are done and its tensors still alive. */
  atStepEnd(read: () => void): void {
    this.#atStepEnd.push(read)
  }

  /** Ends a step, whose ops are done: its tensors are dead. */
  resetStep(): void {
    for (const read of this.#atStepEnd.splice(0)) read()
    this.arena.reset()
    this.#shared?.reset()
    this.stepDescriptors.reset()
  }

  [Symbol.dispose](): void {
    if (this.#ctx === 0) return
    // buffers of a device are given back through its context
    this.arena[Symbol.dispose]()
    this.#weights?.[Symbol.dispose]()
    this.#shared?.[Symbol.dispose]()
    this.#turns?.[Symbol.dispose]()
    if (this.#event !== 0) this.library.kt_event_destroy(this.#event)
    this.#kept?.[Symbol.dispose]()
    this.library.kt_ctx_destroy(this.#ctx)
    this.#ctx = 0
    this.stepDescriptors[Symbol.dispose]()
    this.descriptors[Symbol.dispose]()
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

/** A device of a backend library. */
export interface DeviceInfo {
  /** As rules and `--device` name it: `cuda:0`. */
  readonly name: string
  readonly model: string
  readonly memoryBytes: number
  readonly memoryFreeBytes: number
  readonly computeUnits: number
  /** CUDA: compute capability, `9.0`; else empty. */
  readonly capability: string
  /** CUDA: the newest version that the driver knows, `13.0`; else empty. */
  readonly driver: string
  /** What the link to the host can do in one direction; 0: unknown. */
  readonly linkBytesPerSecond: number
}

/** The devices of a library. @throws NativeError that says why there can be none */
export function queryDevices(library: Library): DeviceInfo[] {
  const count = new Uint32Array(new ArrayBuffer(4))
  const check = (status: number, op: string): void => {
    if (status !== 0) throw new NativeError(op, status, library.kt_last_error())
  }
  check(library.kt_device_count(count), "kt_device_count")
  const { size, fields } = abi.layouts.kt_device_info
  return Array.from({ length: count[0] as number }, (_, index) => {
    const view = new DataView(new ArrayBuffer(size))
    check(library.kt_device_query(index, view), "kt_device_query")
    const text = new Uint8Array(view.buffer, fields.name)
    const capability = view.getUint32(fields.capability, true)
    const driver = view.getUint32(fields.driver_version, true)
    return {
      name: `${library.kt_backend_name()}:${index}`,
      model: new TextDecoder().decode(text.subarray(0, text.indexOf(0))),
      memoryBytes: Number(view.getBigInt64(fields.memory_bytes, true)),
      memoryFreeBytes: Number(view.getBigInt64(fields.memory_free_bytes, true)),
      computeUnits: view.getUint32(fields.compute_units, true),
      capability: capability === 0 ? "" : `${Math.floor(capability / 10)}.${capability % 10}`,
      driver:
        driver === 0 ? "" : `${Math.floor(driver / 1000)}.${Math.floor((driver % 1000) / 10)}`,
      linkBytesPerSecond: view.getUint32(fields.link_mbytes, true) * 1e6,
    }
  })
}

const DEVICE = /^([a-z]+)(?::(\d+))?$/

/** Backends as PyTorch and KTransformers call them. */
const ALSO_CALLED: ReadonlyMap<string, string> = new Map([
  ["xpu", "sycl"],
  ["rocm", "hip"],
])

/** A device's name as it is kept: "xpu" is "sycl:0", the first of its backend's. */
export function deviceName(device: string): string {
  if (device === "cpu" || device === "cpu:0") return "cpu"
  const [backend = "", index = "0"] = device.split(":", 2)
  return `${ALSO_CALLED.get(backend) ?? backend}:${index}`
}

/** As how many devices each one counts: pipelines over several can be tried where there is one. */
const LOGICAL_DEVICES = "KT_LOGICAL_DEVICES"

function logicalDevices(): number {
  const text = process.env[LOGICAL_DEVICES]
  if (!text) return 1
  const count = Number(text)
  if (Number.isInteger(count) && count >= 1 && count <= 16) return count
  throw new ConfigError(`${LOGICAL_DEVICES}=${text}: expected an integer in 1..16`)
}

/** Why a device that `--device` or a rule names cannot be used; undefined: it can. */
export function deviceProblem(device: string): string | undefined {
  if (!DEVICE.test(device)) return `"${device}" is no device: expected cpu, cuda or cuda:N`
  const [backend = "", index = "0"] = deviceName(device).split(":")
  const probe = probeLibrary(backend)
  if (!probe.available) return probe.reason
  try {
    const count = queryDevices(probe.library).length * logicalDevices()
    return Number(index) < count ? undefined : `there are ${count} ${backend} devices`
  } catch (error) {
    return error instanceof NativeError ? error.message : String(error)
  }
}

/** A device that can be used. */
export interface OpenDevice {
  readonly library: Library
  /** Among the library's devices. */
  readonly index: number
  /** As its name says: several may be one device (KT_LOGICAL_DEVICES). */
  readonly logical: number
  /** As how many the device counts. */
  readonly shared: number
}

/** Library and index of a device by its name. @throws DeviceError that says why it cannot be used */
export function openDevice(device: string): OpenDevice {
  const problem = deviceProblem(device)
  if (problem !== undefined) throw new DeviceError(`device ${device}: ${problem}`)
  const [backend = "", index = "0"] = deviceName(device).split(":")
  const logical = Number(index)
  const library = requireLibrary(backend)
  const shared = logicalDevices()
  return { library, index: Math.floor(logical / shared), logical, shared }
}

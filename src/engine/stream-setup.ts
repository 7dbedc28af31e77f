import type { EngineConfig } from "../config.ts"
import { NativeError } from "../errors.ts"
import { Backend, openDevice } from "../native/backend.ts"
import { PinnedPages } from "../native/memory.ts"
import { ExpertStream, type StreamedLayer, type StreamedStack } from "../nn/expert-stream.ts"
import { type Module, namedModules } from "../nn/module.ts"
import { Experts } from "../nn/moe.ts"
import { fusedExperts } from "../ops/index.ts"
import { byteLength, Tensor } from "../tensor/tensor.ts"
import { resolveWeights } from "../weights/load.ts"
import type { WeightEntry } from "../weights/source.ts"
import type { Backends } from "./backends.ts"
import type { BuiltModel } from "./build.ts"

interface Setup {
  readonly backends: Backends
  readonly resources: DisposableStack
  /** Host memory that is free beside everything else. */
  readonly spareBytes: number
  readonly log: (level: "info" | "warning", message: string) => void
}

interface Source {
  readonly path: string
  readonly module: Experts
  readonly layer: StreamedLayer
  readonly files: readonly string[]
}

/**
 * Brings the host's experts to the devices that their rules name for prompts, when a step has so many tokens that the way
 * there takes less time than the host's computing.
 */
export function streamExperts(config: EngineConfig, built: BuiltModel, setup: Setup): void {
  const { streamed, streamThreshold } = built.placement
  if (!config.streamExperts || streamed.size === 0) return
  const { backends, resources, log } = setup
  const sources = sourcesOf(built)
  const without = streamed.size - sources.length
  if (without > 0)
    log(
      "info",
      `experts of ${without} layers are not as a file has them: the CPU computes them for prompts too`,
    )
  if (sources.length === 0) return
  const bytes = sources.reduce((sum, { layer }) => sum + bytesOf(layer), 0)
  if (bytes > setup.spareBytes) {
    const short = Math.ceil((bytes - setup.spareBytes) / 2 ** 20)
    log(
      "warning",
      `the CPU computes experts for prompts too: to keep them page-locked takes ${short} MiB more than is free (--no-repack needs no second copy)`,
    )
    return
  }
  for (const device of new Set(streamed.values())) {
    const main = backends.byDevice.get(device)
    const own = sources.filter(({ path }) => streamed.get(path) === device)
    if (main === undefined || own.length === 0) continue
    lock(main, own, setup)
    const { library, index, logical } = openDevice(device)
    const { precision } = config
    const uploads = resources.use(
      new Backend({ precision, threads: 1, device: index, logical }, library),
    )
    const layers = own.map(({ layer }) => layer)
    const stream = resources.use(new ExpertStream(main, uploads, layers, Number.POSITIVE_INFINITY))
    for (const [layer, { module }] of own.entries())
      module.streamed = { stream, layer, biases: biasesOn(module, main) }
    const ms = stream.measure()
    stream.threshold = streamThreshold ?? crossover(own[0] as Source, ms, backends.host)
    const rate = bytesOf(layers[0] as StreamedLayer) / ms / 1e6
    log(
      "info",
      `prompts of ${stream.threshold} tokens and more take the CPU's experts to ${device}: a layer's in ${ms.toFixed(1)} ms, ${rate.toFixed(1)} GB/s`,
    )
  }
}

/** The experts whose stacks lie in a file as the device's kernels read them. */
function sourcesOf({ model, weights, placement }: BuiltModel): Source[] {
  const stacks = new Map<Module, { stacks: StreamedStack[]; files: string[] }>()
  for (const { module, parameter, entries, transposed } of resolveWeights(model, weights)) {
    const [entry] = entries as [WeightEntry]
    if (parameter.kind !== "experts" || entries.length > 1 || transposed !== undefined) continue
    if (entry.build !== undefined || parameter.rows !== undefined) continue
    const known = stacks.get(module) ?? { stacks: [], files: [] }
    stacks.set(module, known)
    known.stacks.push({ dtype: entry.dtype, shape: parameter.shape, address: entry.address })
    known.files.push(entry.file)
  }
  const sources: Source[] = []
  for (const [path, module] of namedModules(model)) {
    const found = stacks.get(module)
    if (!placement.streamed.has(path) || !(module instanceof Experts)) continue
    const [gate, up, down] = found?.stacks ?? []
    if (gate === undefined || up === undefined || down === undefined) continue
    sources.push({ path, module, layer: [gate, up, down], files: found?.files ?? [] })
  }
  return sources
}

/** Space between stacks of a file that is page-locked along with them. */
const GAP_BYTES = 64 << 20

function lock(device: Backend, sources: readonly Source[], { resources, log }: Setup): void {
  const byFile = new Map<string, { start: number; end: number }[]>()
  for (const { layer, files } of sources)
    for (const [i, { dtype, shape, address }] of layer.entries()) {
      const file = files[i] as string
      const ranges = byFile.get(file) ?? []
      byFile.set(file, ranges)
      ranges.push({ start: address, end: address + byteLength(dtype, shape) })
    }
  try {
    for (const ranges of byFile.values())
      for (const { start, end } of merged(ranges))
        resources.use(new PinnedPages(device.library, start, end - start))
  } catch (error) {
    if (!(error instanceof NativeError)) throw error
    log(
      "warning",
      `the experts' file cannot be page-locked, prompts take them to ${device.label} more slowly: ${error.message}`,
    )
  }
}

function merged(ranges: { start: number; end: number }[]): { start: number; end: number }[] {
  const out: { start: number; end: number }[] = []
  for (const range of ranges.toSorted((a, b) => a.start - b.start)) {
    const last = out.at(-1)
    if (last !== undefined && range.start - last.end < GAP_BYTES)
      last.end = Math.max(last.end, range.end)
    else out.push({ ...range })
  }
  return out
}

function biasesOn(
  { gate_bias, up_bias, down_bias }: Experts,
  device: Backend,
): { gateBias: Tensor | null; upBias: Tensor | null; downBias: Tensor | null } {
  const there = (bias: Tensor | null): Tensor | null =>
    bias === null
      ? null
      : Tensor.from(device, bias.toFloat32Array(), bias.shape, { persistent: true })
  return { gateBias: there(gate_bias), upBias: there(up_bias), downBias: there(down_bias) }
}

/** Tokens that the host's rate is measured with. */
const SAMPLE_TOKENS = 128
/** Fewer tokens are those of steps that generate. */
const MIN_TOKENS = 32

/** From how many tokens on the host needs longer for a layer than its experts for their way to the device. */
function crossover({ module }: Source, uploadMs: number, host: Backend): number {
  const { hiddenSize, numExperts, act, scaleInput = false } = module.options
  const { gate_proj: gate, up_proj: up, down_proj: down } = module
  const { gate_bias: gateBias, up_bias: upBias, down_bias: downBias } = module
  // as many experts a token as spread over all of them
  const k = Math.min(8, numExperts)
  const values = Float32Array.from({ length: SAMPLE_TOKENS * hiddenSize }, (_, i) => Math.sin(i))
  const chosen = Int32Array.from(
    { length: SAMPLE_TOKENS * k },
    (_, i) => (Math.floor(i / k) * 7 + (i % k) * 17) % numExperts,
  )
  const x = Tensor.from(host, values, [SAMPLE_TOKENS, hiddenSize])
  const ids = Tensor.from(host, chosen, [SAMPLE_TOKENS, k])
  const shares = new Float32Array(SAMPLE_TOKENS * k).fill(1 / k)
  const weights = Tensor.from(host, shares, [SAMPLE_TOKENS, k])
  let ms = Number.POSITIVE_INFINITY
  for (let run = 0; run < 3; run++) {
    const start = performance.now()
    fusedExperts({ x, ids, weights, gate, up, down, gateBias, upBias, downBias, act, scaleInput })
    ms = Math.min(ms, performance.now() - start)
  }
  host.resetStep()
  return Math.max(MIN_TOKENS, Math.ceil(uploadMs / (ms / SAMPLE_TOKENS)))
}

function bytesOf(layer: StreamedLayer): number {
  return layer.reduce((sum, { dtype, shape }) => sum + byteLength(dtype, shape), 0)
}

import {
  type Activation,
  add,
  cast,
  copy,
  type ExpertsOperands,
  fusedExperts,
  normRouter,
  onDevice,
  type RouterOptions,
  type Routing,
} from "../ops/index.ts"
import { F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import type { Deferral } from "./deferral.ts"
import type { ExpertStream } from "./expert-stream.ts"
import type { ForwardBatch } from "./forward-batch.ts"
import { Handover } from "./handover.ts"
import { Linear, type RMSNorm } from "./layers.ts"
import { Module, type Parameter, registerModules, type TransposedStack } from "./module.ts"
import type { ResidentExperts } from "./resident-experts.ts"

/** A block of experts that may be asked to choose before attention, from the layer's input [T, hidden]. */
export interface EarlyRouter {
  route(routerInput: Tensor): Routing
}

/** Whether a layer must route before attention. */
export function isEarlyRouter<T extends Module>(block: T): block is T & EarlyRouter {
  return "isEarlyRouter" in block && block.isEarlyRouter === true
}

/** How a block of experts scores its input and chooses: the options of its routeExperts(linear(x, weight, bias)). */
export interface RouterParts {
  readonly weight: Tensor
  readonly bias: Tensor | null
  readonly options: RouterOptions
}

/** A block of experts, chosen by one matrix, and perhaps a part that sees every token: it can add itself to the residual. */
export interface RoutedBlock {
  readonly experts: Experts
  /** undefined where the router is a module of the user's. */
  routerParts(): RouterParts | undefined
  /** The part that sees every token. x [T, hidden] → [T, hidden] */
  sharedPart?(x: Tensor, batch: ForwardBatch): Tensor | undefined
}

/** The router's parts where it is a plain linear layer. */
export function linearRouter(gate: Module, options: RouterOptions): RouterParts | undefined {
  if (!(gate instanceof Linear) || gate.forward !== Linear.prototype.forward) return undefined
  return { weight: gate.weight, bias: gate.bias, options }
}

export function isRoutedBlock<T extends Module>(block: T): block is T & RoutedBlock {
  return "routerParts" in block && typeof block.routerParts === "function"
}

/**
 * x += block(norm(x)) in two launches, norm to choice and the experts, beside the part that sees every token. x [T, hidden] is
 * changed in place. False, and nothing done, where a module of the user's stands in a place that is taken apart here.
 */
export function addRoutedBlock(
  block: RoutedBlock,
  x: Tensor,
  norm: RMSNorm,
  batch: ForwardBatch,
): boolean {
  const { experts } = block
  if (!(experts instanceof Experts) || experts.forward !== Experts.prototype.forward) return false
  const parts = block.routerParts()
  if (parts === undefined) return false
  // the host's experts take the choice from where the router writes it, and compute beside the part that sees every token
  const handover = experts.handover(x, parts.options.topK)
  const { normed, ...routing } = normRouter(
    {
      x,
      normWeight: norm.weight,
      eps: norm.eps,
      normOffset: norm.offset,
      router: parts.weight,
      logitBias: parts.bias,
    },
    parts.options,
    handover?.routing,
  )
  const residents = handover && experts.residents
  handover?.send(normed)
  const shared = block.sharedPart?.(normed, batch)
  if (residents !== undefined) add(x, residents.forward(normed, routing, experts.options), x)
  if (handover === undefined) experts.addTo(x, normed, routing, batch)
  else experts.addFrom(handover, x)
  if (shared !== undefined) add(x, shared, x)
  return true
}

/** A module that chooses experts; fewer than the model's own number may be asked for. */
export interface ExpertRouter {
  /** Experts of a token. */
  topK: number
}

/** The router of a block of experts: the block itself, or a child of it. */
export function expertRouter(block: Module): (Module & ExpertRouter) | undefined {
  return [block, ...block.children().map(([, child]) => child)].find(isExpertRouter)
}

function isExpertRouter(module: Module): module is Module & ExpertRouter {
  return "topK" in module && typeof module.topK === "number"
}

export interface ExpertsOptions {
  readonly numExperts: number
  readonly hiddenSize: number
  readonly intermediateSize: number
  readonly act: Activation
  /** The checkpoint's names of an expert's projections, where they are not gate_proj, up_proj and down_proj. */
  readonly names?: ExpertNames
  /** Each projection has a bias. */
  readonly bias?: boolean
  /** How checkpoints that keep gate and up in one stack arrange its columns. */
  readonly fused?: "halves" | "alternating"
  /** The router's weights multiply the experts' input and not their output. */
  readonly scaleInput?: boolean
}

export interface ExpertNames {
  readonly gate: string
  readonly up: string
  readonly down: string
}

/** A layer's place in a stream, and its biases on the device. */
export interface StreamedExperts {
  readonly stream: ExpertStream
  readonly layer: number
  readonly biases: Pick<ExpertsOperands, "gateBias" | "upBias" | "downBias">
}

/** Of steps that generate every 16th is read: to read each would cost more than what is learned from it. */
export const SAMPLE_STEPS = 16
/** Up to this many tokens are those of a step that generates. */
const MAX_GENERATED = 16

const NAMES: ExpertNames = { gate: "gate_proj", up: "up_proj", down: "down_proj" }

/** The routed experts of one layer: gated feed-forward networks whose matrices are stacked. */
export class Experts extends Module {
  readonly options: ExpertsOptions
  /** [experts, intermediate, hidden] */
  gate_proj!: Tensor
  up_proj!: Tensor
  /** [experts, hidden, intermediate] */
  down_proj!: Tensor
  /** [experts, intermediate] twice, [experts, hidden] F32; with biases only */
  gate_bias: Tensor | null = null
  up_bias: Tensor | null = null
  down_bias: Tensor | null = null
  /** How often each expert was chosen. Of steps of few tokens every 16th counts, for 16. */
  readonly uses: Float64Array
  /** How the host's experts get to the device that their input is on, for steps of many tokens. */
  streamed: StreamedExperts | undefined
  /** Those that a device has in its memory, of a layer whose others the host computes; set before weights are bound. */
  residents: ResidentExperts | undefined
  /** Through which a layer's sum gets what the one before has put off, and of how many experts a token this one does. */
  deferral: Deferral | undefined
  maxDeferred = 0
  #generated = 0
  readonly #lateBiases: (() => void)[] = []

  constructor(options: ExpertsOptions) {
    super()
    this.options = options
    this.uses = new Float64Array(options.numExperts)
  }

  override parameters(): Parameter[] {
    const { numExperts, hiddenSize, intermediateSize, names = NAMES, bias } = this.options
    const wide = [numExperts, intermediateSize, hiddenSize]
    const narrow = [numExperts, hiddenSize, intermediateSize]
    const kind = "experts"
    const weights: Parameter[] = [
      {
        name: names.gate,
        shape: wide,
        kind,
        ...this.#fused(0),
        look: (stored) => this.residents?.take("gate", stored),
        bind: (t) => (this.gate_proj = t),
      },
      {
        name: names.up,
        shape: wide,
        kind,
        ...this.#fused(1),
        look: (stored) => this.residents?.take("up", stored),
        bind: (t) => (this.up_proj = t),
      },
      {
        name: names.down,
        shape: narrow,
        kind,
        ...this.#fused(),
        look: (stored) => this.residents?.take("down", stored),
        bind: (t) => (this.down_proj = t),
      },
    ]
    if (bias !== true) return weights
    const inner = [numExperts, intermediateSize]
    const outer = [numExperts, hiddenSize]
    const bound = (name: string, shape: readonly number[], part?: 0 | 1): Parameter => ({
      name: `${name}.bias`,
      shape,
      kind: "vector",
      ...this.#fused(part, "_bias"),
      bind: (t) => this.#bindBias(name, t),
    })
    return [
      ...weights,
      bound(names.gate, inner, 0),
      bound(names.up, inner, 1),
      bound(names.down, outer),
    ]
  }

  #bindBias(name: string, tensor: Tensor): void {
    const { names = NAMES } = this.options
    const which =
      name === names.gate ? "gateBias" : name === names.up ? "upBias" : ("downBias" as const)
    // vectors have their values once all of them are bound
    this.#lateBiases.push(() => this.residents?.takeBias(which, tensor))
    if (name === names.gate) this.gate_bias = tensor
    else if (name === names.up) this.up_bias = tensor
    else this.down_bias = tensor
  }

  override materialize(): void {
    for (const take of this.#lateBiases.splice(0)) take()
  }

  /** Where checkpoints with stacks [experts, in, out] have a projection: gate is part 0 of gate_up_proj, up part 1. */
  #fused(part?: 0 | 1, suffix = ""): { readonly transposed: TransposedStack } | undefined {
    const { fused, intermediateSize } = this.options
    if (fused === undefined) return undefined
    if (part === undefined) return { transposed: { name: `down_proj${suffix}`, start: 0, step: 1 } }
    const columns =
      fused === "halves" ? { start: part * intermediateSize, step: 1 } : { start: part, step: 2 }
    return {
      transposed: { name: `gate_up_proj${suffix}`, ...columns, width: 2 * intermediateSize },
    }
  }

  /** Σⱼ weights[t][j] · expert ids[t][j] of x. x [tokens, hidden], ids [tokens, k] I32, weights [tokens, k]. */
  forward(x: Tensor, ids: Tensor, weights: Tensor, _batch: ForwardBatch): Tensor {
    const { backend } = this.gate_proj
    if (x.backend === backend) return fusedExperts(this.#operands(x, ids, weights))
    if (this.#streams(x)) return this.#stream(x, { ids, weights })
    const handover = this.handover(x, ids.dim(1))
    if (handover === undefined) {
      const [there, chosen, shares] = [x, ids, weights].map((t) => onDevice(t, backend))
      const sum = fusedExperts(this.#operands(there as Tensor, chosen as Tensor, shares as Tensor))
      return onDevice(sum, x.backend)
    }
    copy(ids, handover.routing.ids)
    copy(weights, handover.routing.weights)
    const { residents } = this
    handover.send(x)
    const own = residents?.forward(x, { ids, weights }, this.options)
    const sum = cast(this.#receive(handover), F32)
    handover.close()
    return own === undefined ? sum : add(sum, own, sum)
  }

  /** target += forward(x, …), in place. target [tokens, hidden] is not x. */
  addTo(target: Tensor, x: Tensor, routing: Routing, batch: ForwardBatch): void {
    const { ids, weights } = routing
    if (x.backend === this.gate_proj.backend)
      fusedExperts({ ...this.#operands(x, ids, weights), add: true }, target)
    else if (this.#streams(x)) this.#stream(x, routing, target)
    else add(target, this.forward(x, ids, weights, batch), target)
  }

  /** What takes x [tokens, hidden] and a routing to experts of the host; undefined where these are none, or x is there. */
  handover(x: Tensor, topK: number): Handover | undefined {
    const { backend } = this.gate_proj
    if (x.backend === backend || this.#streams(x)) return undefined
    const sizes = { tokens: x.dim(0), hidden: x.dim(1), topK }
    // what residents leave to the host is told by JavaScript
    return Handover.open(x.backend, backend, sizes, this.residents !== undefined)
  }

  #streams(x: Tensor): boolean {
    const { streamed } = this
    if (streamed === undefined || streamed.stream.device !== x.backend) return false
    return x.dim(0) >= streamed.stream.threshold && x.backend.recording === undefined
  }

  /** forward() on the device of x, or target += that. */
  #stream(x: Tensor, { ids, weights }: Routing, target?: Tensor): Tensor {
    const { stream, layer, biases } = this.streamed as StreamedExperts
    const operands = { ...this.#operands(x, ids, weights), ...stream.take(layer), ...biases }
    const out =
      target === undefined
        ? fusedExperts(operands)
        : fusedExperts({ ...operands, add: true }, target)
    stream.done(layer)
    return out
  }

  /** target += the experts of what was sent. */
  addFrom(handover: Handover, target: Tensor): void {
    add(target, this.#receive(handover), target)
    handover.close()
  }

  #receive(handover: Handover): Tensor {
    const { x, routing, sum } = handover.host
    const { residents, deferral } = this
    const compute = (): void => {
      const operands = this.#operands(x, routing.ids, routing.weights)
      const rest = residents === undefined ? routing : residents.rest(routing)
      const split = rest && deferral?.split(x, rest, this.maxDeferred)
      if (rest === undefined) sum.bytes().fill(0)
      else fusedExperts({ ...operands, ...(split?.now ?? rest) }, sum)
      deferral?.addTo(sum)
      if (split !== undefined)
        deferral?.putOff(split.x, () => fusedExperts({ ...operands, x: split.x, ...split.later }))
    }
    handover.receive(compute, () => deferral?.run())
    return handover.sum
  }

  #count(ids: Tensor): void {
    const { backend } = ids
    const { recording } = backend
    if (recording !== undefined) recording.onRead(ids, (values) => this.#add(values, SAMPLE_STEPS))
    else if (backend.isHost || ids.dim(0) <= MAX_GENERATED) this.#sample(ids)
    else this.#readLater(ids)
  }

  /** Reading at once would have a prompt's layers wait for the host. */
  #readLater(ids: Tensor): void {
    const { backend } = ids
    const at = backend.allocShared(ids.numel * 4)
    if (at === undefined) return this.#add(ids.toInt32Array(), 1)
    const copied = copy(ids, new Tensor(backend, ids.dtype, ids.shape, at))
    backend.atStepEnd(() => this.#add(copied.toInt32Array(), 1))
  }

  #sample(ids: Tensor): void {
    if (ids.dim(0) > MAX_GENERATED) this.#add(ids.toInt32Array(), 1)
    else if (this.#generated++ % SAMPLE_STEPS === 0) this.#add(ids.toInt32Array(), SAMPLE_STEPS)
  }

  #add(ids: Int32Array, times: number): void {
    for (const id of ids) this.uses[id]! += times
  }

  #operands(x: Tensor, ids: Tensor, weights: Tensor): ExpertsOperands {
    this.#count(ids)
    const { gate_proj: gate, up_proj: up, down_proj: down, options } = this
    const { gate_bias: gateBias, up_bias: upBias, down_bias: downBias } = this
    const { act, scaleInput = false } = options
    return { x, ids, weights, gate, up, down, gateBias, upBias, downBias, act, scaleInput }
  }
}

registerModules({ Experts })

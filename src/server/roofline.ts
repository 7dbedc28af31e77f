import { RequestError } from "../errors.ts"
import type { EngineClient, EngineStats, PhaseWork } from "../worker/protocol.ts"
import type { ServerRoot } from "./context.ts"
import type { StepLimits } from "./models/library.ts"
import type { LoadedEntry } from "./models/manager.ts"

/** How fast a phase went, and how fast the machine could have gone. */
export interface PhaseShare {
  /** Tokens/s while steps of this phase were computed. */
  readonly speed: number
  /** Tokens/s that reading and arithmetic allow for the same steps. */
  readonly limit: number
  readonly share: number
}

export interface Roofline {
  readonly read_bytes: number
  readonly generation: PhaseShare | null
  readonly prompt: PhaseShare | null
}

/** Steps of less than this in all are too few to tell a rate. */
const LEAST_SECONDS = 0.2
/** How often a measurement looks whether somebody has come. */
const WATCH_MS = 25

interface Known {
  limits: StepLimits | undefined
  measuring: Promise<StepLimits> | undefined
  /** What had been computed when each phase's share was last told. */
  last: { decode: EngineStats | undefined; prefill: EngineStats | undefined }
  generation: PhaseShare | null
  prompt: PhaseShare | null
}

/** What engines reach of what the machine can do; limits are measured when somebody asks, and kept. */
export class Rooflines {
  readonly #known = new WeakMap<EngineClient, Known>()

  /** Null where the limits have not been measured. */
  of(client: EngineClient, stats: EngineStats | null): Roofline | null {
    const known = this.#known.get(client)
    if (known?.limits === undefined) return null
    if (stats !== null) look(known, known.limits, stats)
    const { limits, generation, prompt } = known
    return { read_bytes: limits.readBytes, generation, prompt }
  }

  /**
   * Measures; where that was done before, the faster one counts. RequestError 409 while requests run, which a measurement
   * would slow and which would spoil it, and 400 where this server cannot, or the model's parts are on several devices.
   */
  async measure(root: ServerRoot, { model, loaded }: LoadedEntry): Promise<void> {
    const { library } = root.models
    const { client } = loaded
    if (library.limits === undefined)
      throw new RequestError(400, "this server cannot measure the machine", { code: "unsupported" })
    const info = { ...client.info, device: await onlyDevice(client) }
    const known = this.#known.get(client) ?? nothing()
    this.#known.set(client, known)
    known.measuring ??= alone(root, (end) => library.limits!(model, info, end)).finally(
      () => (known.measuring = undefined),
    )
    const found = await known.measuring
    if (known.limits === undefined || found.readBytes > known.limits.readBytes) known.limits = found
    // all that was computed before has its share of the new limit
    known.last = { decode: undefined, prefill: undefined }
  }
}

function nothing(): Known {
  return {
    limits: undefined,
    measuring: undefined,
    last: { decode: undefined, prefill: undefined },
    generation: null,
    prompt: null,
  }
}

/** Where all weights are. RequestError 400 where they are on several devices, whose limits do not add up to one. */
async function onlyDevice(client: EngineClient): Promise<string> {
  const { modules } = await client.details()
  const devices = [...new Set(modules.map(({ device }) => device))]
  if (devices.length > 1)
    throw new RequestError(
      400,
      `the model computes on ${devices.join(" and ")}: only one device's limit can be measured`,
      { code: "unsupported" },
    )
  return devices[0] ?? client.info.device
}

/** A phase that has not computed enough since the last look goes on being summed up. */
function look(known: Known, limits: StepLimits, stats: EngineStats): void {
  const { last } = known
  const generation = shareOf(limits, stats, last.decode, "decode")
  const prompt = shareOf(limits, stats, last.prefill, "prefill")
  if (generation !== undefined) {
    known.generation = generation
    last.decode = stats
  }
  if (prompt !== undefined) {
    known.prompt = prompt
    last.prefill = stats
  }
}

/** Of the steps between two looks, with their mean size; undefined where they are too few. */
function shareOf(
  limits: StepLimits,
  now: EngineStats,
  before: EngineStats | undefined,
  phase: "decode" | "prefill",
): PhaseShare | undefined {
  const seconds = now[`${phase}SecondsTotal`] - (before?.[`${phase}SecondsTotal`] ?? 0)
  const since = (key: keyof PhaseWork): number =>
    now[`${phase}Work`][key] - (before?.[`${phase}Work`][key] ?? 0)
  const steps = since("steps")
  const sequences = since("sequences")
  const tokens = since("tokens")
  if (seconds < LEAST_SECONDS || steps < 1 || sequences < 1) return undefined
  const depth = since("positions") / sequences
  const least = steps * limits.leastSeconds(sequences / steps, tokens / sequences, depth)
  return { speed: tokens / seconds, limit: tokens / least, share: least / seconds }
}

/** Does the work while no request runs; the first that comes ends it. */
async function alone<T>(
  { workload }: ServerRoot,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const busy = (): RequestError =>
    new RequestError(409, "requests run, which a measurement would slow: ask when none does", {
      code: "busy",
      retryAfterSeconds: 5,
    })
  if (workload.active > 0) throw busy()
  const end = new AbortController()
  const watch = setInterval(() => {
    if (workload.active > 0) end.abort(busy())
  }, WATCH_MS)
  try {
    return await work(AbortSignal.any([end.signal, workload.signal]))
  } catch (error) {
    throw end.signal.aborted ? end.signal.reason : error
  } finally {
    clearInterval(watch)
  }
}

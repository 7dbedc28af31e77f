import type { Machine } from "../../src/web/machine/api.ts"
import type { ModelEntry } from "../../src/web/models/api.ts"

/** What the page asks of the server's models and of its machine, as tests set it. */
export class FakeMachine {
  readonly entries: ModelEntry[] = []
  /** Loads and unloads that were asked for, and deletions. */
  readonly asked: string[] = []
  /** While it is set, loading waits for it. */
  loadGate: Promise<void> = Promise.resolve()
  /** Lines of a pull, with a pause before each; without "success" at the end the connection ends early. */
  pullLines: object[] = []
  pullDelayMs = 20
  isPullAborted = false
  machine: Machine = {
    memory: { resident: 734_003_200 },
    queue: { active: 0, waiting: 0 },
    models: [],
    can_measure: true,
  }
  /** What measuring answers with; undefined is the roofline below. */
  refusal: string | undefined
  metrics = ""
  /** Requests for /api/machine. */
  looks = 0

  names(): object[] {
    return this.entries.map(({ name, state }) => ({ id: name, status: { value: state } }))
  }

  async answer(request: Request): Promise<Response> {
    const { pathname } = new URL(request.url)
    const body = request.method === "GET" ? {} : ((await request.json()) as Record<string, unknown>)
    const name = String(body["model"])
    const entry = this.entries.find((each) => each.name === name)
    switch (pathname) {
      case "/api/models":
        return Response.json({
          models: this.entries,
          limits: { models: 2, memory: 17_179_869_184, used: 5_368_709_120 },
          can_change: true,
        })
      case "/api/machine":
        this.looks += 1
        return Response.json(this.machine)
      case "/api/machine/limits": {
        if (this.refusal !== undefined)
          return Response.json({ error: this.refusal }, { status: 409 })
        const model = this.machine.models.find((each) => each.name === name)
        if (model !== undefined) model.roofline = ROOFLINE
        return Response.json(ROOFLINE)
      }
      case "/metrics":
        return new Response(this.metrics)
      case "/api/show":
        return Response.json({ parameters: "temperature 0.7", template: "{{ messages }}" })
      case "/api/generate":
        return this.#generate(entry, body["keep_alive"] === 0)
      case "/api/delete":
        this.asked.push(`delete ${name}`)
        this.entries.splice(this.entries.indexOf(entry as ModelEntry), 1)
        return new Response(null)
      case "/api/pull":
        return this.#pull(request)
      default:
        return new Response("not found", { status: 404 })
    }
  }

  async #generate(entry: ModelEntry | undefined, isUnload: boolean): Promise<Response> {
    if (entry === undefined) return Response.json({ error: "no such model" }, { status: 404 })
    this.asked.push(`${isUnload ? "unload" : "load"} ${entry.name}`)
    if (isUnload) Object.assign(entry, { state: "unloaded", context: null, memory: null })
    else {
      Object.assign(entry, { state: "loading", loading: { done: 25, total: 100 } })
      await this.loadGate
      Object.assign(entry, { state: "loaded", loading: null, context: 4096, memory: 900_000_000 })
    }
    return Response.json({ done: true })
  }

  #pull(request: Request): Response {
    request.signal.addEventListener("abort", () => (this.isPullAborted = true))
    const { pullLines, pullDelayMs } = this
    const encoder = new TextEncoder()
    let next = 0
    return new Response(
      new ReadableStream({
        async pull(controller) {
          await Bun.sleep(pullDelayMs)
          const line = pullLines[next++]
          if (line === undefined) controller.close()
          else controller.enqueue(encoder.encode(`${JSON.stringify(line)}\n`))
        },
      }),
      { headers: { "content-type": "application/x-ndjson" } },
    )
  }
}

export function modelEntry(name: string, more: Partial<ModelEntry> = {}): ModelEntry {
  return {
    name,
    size: 638_000_000,
    state: "unloaded",
    loading: null,
    default: false,
    deletable: false,
    parent: null,
    problem: null,
    family: "qwen3moe",
    parameters: "30.5B",
    quantization: "Q4_K_M",
    capabilities: ["completion", "tools"],
    context: null,
    memory: null,
    active: 0,
    expires: null,
    ...more,
  }
}

const ROOFLINE = {
  read_bytes: 44_000_000_000,
  generation: { speed: 41.5, limit: 60.2, share: 0.69 },
  prompt: null,
}

const LAYERS = 24
const EXPERTS = 64

/** A model of experts on a processor and an accelerator. */
export function machineModel(name: string): Machine["models"][number] {
  const layers = Array.from({ length: LAYERS }, (_, layer) => [
    ...["q_proj", "k_proj", "v_proj", "o_proj"].map((each) =>
      module(`model.layers.${layer}.self_attn.${each}`, "CudaLinear", "cuda:0", {
        q4_k: 9_437_184,
      }),
    ),
    module(`model.layers.${layer}.mlp.experts`, "CpuExperts", "cpu", {
      q4_k: 201_326_592,
      q6_k: 146_800_640,
    }),
  ])
  return {
    name,
    info: {
      architecture: "qwen3moe",
      quantization: "Q4_K_M",
      weightBytes: 9_260_000_000,
      contextLength: 32_768,
      maxBatchSize: 16,
      kvCacheTokens: 65_536,
      kvCacheBytes: 3_221_225_472,
      threads: 16,
      numaNodes: 2,
      isa: "avx512bf16",
      device: "cpu",
      precision: "fast",
      loadMs: 8421,
    },
    stats: {
      running: 3,
      waiting: 1,
      kvPagesTotal: 4096,
      kvPagesFree: 3072,
      cacheDeviceBytes: 805_306_368,
      cacheHostBytes: 2_147_483_648,
      cacheHostLimitBytes: 4_294_967_296,
      cacheDiskBytes: 0,
      cacheDiskLimitBytes: 0,
      cacheHostTokensTotal: 2_000,
      cacheDiskTokensTotal: 0,
      promptTokensTotal: 20_000,
      cachedTokensTotal: 9_000,
      generatedTokensTotal: 5_000,
    },
    modules: [
      module("model.embed_tokens", "Embedding", "cpu", { q6_k: 255_000_000 }),
      ...layers.flat(),
      module("lm_head", "CudaLinear", "cuda:0", { q6_k: 255_000_000 }),
    ],
    experts: layers.map((_, layer) => ({
      path: `model.layers.${layer}.mlp.experts`,
      counts: Array.from({ length: EXPERTS }, (__, expert) => (expert * 37 + layer * 11) % 97),
    })),
    roofline: null,
  }
}

function module(
  path: string,
  operator: string,
  device: string,
  types: Record<string, number>,
): Machine["models"][number]["modules"][number] {
  const rule = operator === "CpuExperts" ? "qwen3_moe.yaml:12: rule 2" : ""
  return { path, operator, device, rule, packed: device === "cpu", types }
}

/** A histogram of vLLM's name, as the server writes it. */
export function histogram(
  name: string,
  model: string,
  buckets: readonly [string, number][],
): string {
  return buckets
    .map(([le, count]) => `${name}_bucket{le="${le}",model_name="${model}"} ${count}`)
    .join("\n")
}

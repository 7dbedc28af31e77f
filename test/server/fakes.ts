import { ConfigError, type KtError } from "../../src/errors.ts"
import { createApp, type ServerApp } from "../../src/server/app.ts"
import type {
  ServerConfig,
  ServerDeps,
  ServerTokenizer,
  TemplateMessage,
} from "../../src/server/types.ts"
import { toolCallFormats } from "../../src/tokenizer/chat-formats.ts"
import type {
  EngineClient,
  EngineDetails,
  EngineInfo,
  EngineStats,
  GenerateParams,
  Pooled,
  PoolParams,
  PrefixAction,
  PrefixAnswer,
  TokenEvent,
  TokenTable,
} from "../../src/worker/protocol.ts"

/** Bytes are tokens 0 to 255; these come after. */
export const BOS = 256
export const EOS = 257
export const VOCAB = 258

const encoder = new TextEncoder()

/** One token a byte; the template is "role:content\n" a message, then "assistant:". */
export const byteTokenizer: ServerTokenizer = {
  vocabSize: VOCAB,
  bosId: BOS,
  eogIds: [EOS],
  stripsLeadingSpace: false,
  encode: (text, { addSpecial = true } = {}) =>
    Int32Array.from([...(addSpecial ? [BOS] : []), ...encoder.encode(text)]),
  encodePrompt: (text) => Int32Array.from([BOS, ...encoder.encode(text)]),
  encodePair: (first, second) => {
    const start = Int32Array.from([BOS, ...encoder.encode(first), EOS])
    return {
      ids: Int32Array.from([...start, ...encoder.encode(second), EOS]),
      secondFrom: start.length,
    }
  },
  truncate: (ids, limit) => ids.slice(0, limit),
  tokenId: () => undefined,
  tokenBytes: (id) => (id < 256 ? Uint8Array.of(id) : encoder.encode(id === BOS ? "<s>" : "</s>")),
  isSpecial: (id) => id >= 256,
  chatFormat: {
    reasoning: undefined,
    toolCalls: toolCallFormats().find(({ name }) => name === "hermes"),
  },
  renderChat(messages, { tools, addGenerationPrompt = true, vars } = {}) {
    if (messages[0]?.role === "assistant") throw new Error("a conversation starts with the user")
    const lines = messages.map((message) => `${message.role}:${contentOf(message)}\n`)
    const head = tools === undefined ? "" : `tools:${JSON.stringify(tools)}\n`
    const extra =
      vars === undefined || Object.keys(vars).length === 0 ? "" : `vars:${JSON.stringify(vars)}\n`
    return head + extra + lines.join("") + (addGenerationPrompt ? "assistant:" : "")
  },
}

/** The same for a model that can fill in the middle; bytes that no UTF-8 has stand for its marks. */
export const fillingTokenizer: ServerTokenizer = {
  ...byteTokenizer,
  fim: {
    prefix: 0xf8,
    suffix: 0xf9,
    middle: 0xfa,
    repository: undefined,
    file: 0xfb,
    suffixFirst: false,
  },
}

function contentOf(message: TemplateMessage): string {
  const calls = message.tool_calls === undefined ? "" : JSON.stringify(message.tool_calls)
  return (message.content ?? "") + calls
}

export interface Script {
  /** Answer of sequence i (in the order of `generate` calls), as text or as token ids. */
  readonly answer?: string | readonly number[] | ((call: number) => string | readonly number[])
  /** Before each token. */
  readonly delayMs?: number
  /** After the answer: "eos" ends it, "endless" repeats it. */
  readonly then?: "eos" | "endless"
  readonly cachedTokens?: number
  /** Tokens delivered at a time; the last at once. */
  readonly together?: number
  /** Of each token of sequence i; -0.5 where absent. */
  readonly logprobOf?: (call: number) => number
  /** What is wrong with every request. */
  readonly refuses?: string
  /** The engine fails at this token. */
  readonly failAt?: number
  readonly contextLength?: number
  readonly maxBatchSize?: number
}

/** What one `generate` call was asked and what became of it. */
export interface Call {
  readonly ids: Int32Array
  readonly params: GenerateParams
  sent: number
  ended: "finished" | "aborted" | undefined
  /** The abort was asked for, whether or not the engine has noticed. */
  signalled: boolean
  /** Tokens computed after the abort was asked for. */
  sentAfterAbort: number
}

/** An engine that says what the script says, obeys `maxTokens` and notices aborts between tokens. */
export class FakeClient implements EngineClient {
  readonly info: EngineInfo
  readonly calls: Call[] = []
  /** Set: the engine has died of this. */
  dead: KtError | undefined
  die: (error: KtError) => void = () => {}
  readonly failed = new Promise<Error>((resolve) => {
    this.die = (error) => {
      this.dead = error
      resolve(error)
    }
  })
  readonly #script: Script

  constructor(script: Script = {}) {
    this.#script = script
    this.info = {
      modelPath: "/models/fake.gguf",
      architecture: "llama",
      parameters: 134_515_008,
      weightBytes: 98_000_000,
      quantization: "Q4_1",
      vocabSize: VOCAB,
      contextLength: script.contextLength ?? 2048,
      trainedContextLength: 8192,
      maxBatchSize: script.maxBatchSize ?? 4,
      kvCacheTokens: 0,
      kvCacheBytes: 1_000_000,
      draftBytes: 0,
      cacheRamBytes: 4000,
      threads: 2,
      numaNodes: 1,
      isa: "avx2",
      device: "cpu",
      precision: "fast",
      loadMs: 12,
    }
  }

  get running(): number {
    return this.calls.filter((call) => call.ended === undefined).length
  }

  /** The prompt of call i as text. */
  prompt(i = 0): string {
    const ids = this.calls[i]?.ids ?? []
    return new TextDecoder().decode(Uint8Array.from([...ids].filter((id) => id < 256)))
  }

  async *generate(
    ids: Int32Array,
    params: GenerateParams,
    signal?: AbortSignal,
  ): AsyncGenerator<readonly TokenEvent[]> {
    if (this.dead !== undefined) throw this.dead
    const number = this.calls.length
    const call: Call = {
      ids,
      params,
      sent: 0,
      ended: undefined,
      signalled: false,
      sentAfterAbort: 0,
    }
    this.calls.push(call)
    signal?.addEventListener("abort", () => (call.signalled = true))
    const { delayMs = 0, then = "eos", failAt, cachedTokens = 0, together = 1 } = this.#script
    const batch: TokenEvent[] = []
    const tokens = this.#tokens(number)
    try {
      if (params.tellsProgress === true)
        for (const processed of [cachedTokens, ids.length - 1, ids.length]) {
          const progress = { total: ids.length, cached: cachedTokens, processed, ms: processed }
          yield [{ id: number, token: -1, progress }]
        }
      for (let i = 0; ; i++) {
        if (delayMs > 0) await Bun.sleep(delayMs)
        else if (i % 16 === 15) await Bun.sleep(0)
        if (signal?.aborted) {
          yield [{ id: number, token: -1, finish: "abort" }]
          return
        }
        if (this.#script.refuses !== undefined) {
          const error = this.#script.refuses
          yield [{ id: number, token: -1, finish: "error", error, isRefused: true }]
          return
        }
        if (i === failAt) {
          yield [{ id: number, token: -1, finish: "error", error: "the kernel failed: status -4" }]
          return
        }
        const atEnd = then === "eos" && i >= tokens.length
        const token = atEnd ? EOS : (tokens[i % tokens.length] ?? EOS)
        const stops = params.ignoreEos !== true && params.stopTokens.includes(token)
        const finish = stops ? "stop" : i + 1 >= params.maxTokens ? "length" : undefined
        if (finish !== undefined) call.ended = "finished"
        call.sent++
        batch.push({
          id: number,
          token,
          ...(finish === undefined ? {} : { finish }),
          ...(i > 0
            ? {}
            : { first: { promptTokens: ids.length, cachedTokens, queueMs: 1, prefillMs: 5 } }),
          ...logprobs(token, params.logprobs),
          ...(params.logprobs !== undefined && this.#script.logprobOf !== undefined
            ? { logprob: this.#script.logprobOf(number) }
            : {}),
          ...(i === 0 ? promptLogprobs(ids, params.promptLogprobs) : {}),
        })
        if (batch.length >= together || finish !== undefined) yield batch.splice(0)
        if (finish !== undefined) return
        if (signal?.aborted) call.sentAfterAbort++
      }
    } finally {
      call.ended ??= "aborted"
    }
  }

  vocabulary: TokenTable | undefined

  setVocabulary(table: Promise<TokenTable>): void {
    void table.then((known) => (this.vocabulary = known))
  }

  async pool(_ids: Int32Array, _params: PoolParams): Promise<Pooled> {
    throw new ConfigError("this engine pools no states")
  }

  async stats(): Promise<EngineStats> {
    if (this.dead !== undefined) throw this.dead
    return {
      waiting: 0,
      running: this.running,
      kvPagesTotal: 64,
      kvPagesFree: 60,
      prefixCachePages: 3,
      promptTokensTotal: 11,
      cachedTokensTotal: 4,
      cacheDeviceBytes: 1000,
      cacheHostBytes: 2000,
      cacheHostLimitBytes: 4000,
      cacheDiskBytes: 3000,
      cacheDiskLimitBytes: 8000,
      cacheHostTokensTotal: 2,
      cacheDiskTokensTotal: 1,
      cacheDiskWritesTotal: 5,
      cacheDiskDropsTotal: 0,
      cacheDiskFailuresTotal: 0,
      generatedTokensTotal: 7,
      stepsTotal: 9,
      preemptionsTotal: 0,
      prefillSecondsTotal: 0.25,
      decodeSecondsTotal: 0.5,
      prefillWork: { steps: 2, sequences: 2, tokens: 11, positions: 0 },
      decodeWork: { steps: 7, sequences: 7, tokens: 7, positions: 60 },
      draftedTokensTotal: 0,
      acceptedTokensTotal: 0,
      stepTimes: { steps: 0, gpuSeconds: 0, cpuSeconds: 0, syncSeconds: 0, hostSeconds: 0 },
      residentBytes: 123_456_789,
    }
  }

  /** How often it was asked to forget. */
  cleared = 0
  async details(): Promise<EngineDetails> {
    const types = [["Q4_1", 1000]] as const
    const path = "model.layers.0.mlp.experts"
    const rule = "default-cpu.yaml:3: rule 1"
    const module = { path, operator: "Experts", device: "cpu", rule, isPacked: true, types }
    return { modules: [module], experts: [{ path, counts: [3, 0, 1] }] }
  }

  /** Blocks of four tokens, whose records are just these; those that are known. */
  readonly known = new Set<string>()

  async prefix(action: PrefixAction): Promise<PrefixAnswer> {
    if (this.dead !== undefined) throw this.dead
    const answer = { pageSize: 4, recordBytes: 16 }
    const name = (ids: Int32Array, i: number): string => ids.slice(0, 4 * i + 4).join(" ")
    if (action.type === "import") {
      if (action.isFirst) this.#imported = []
      const tokens = new Int32Array(action.records.slice().buffer)
      if (tokens.some((token) => token < 0))
        return { ...answer, blocks: 0, problem: "it is damaged" }
      this.#imported.push(...tokens)
      const all = Int32Array.from(this.#imported)
      for (let i = 0; 4 * i < all.length; i++) this.known.add(name(all, i))
      return { ...answer, blocks: tokens.length / 4, tokens }
    }
    const { ids, from } = action
    const count = Math.floor(ids.length / 4)
    if (action.type === "forget") {
      for (let i = from; i < count; i++) this.known.delete(name(ids, i))
      return { ...answer, blocks: Math.max(0, count - from) }
    }
    const until = Math.min(count, from + 2)
    const records = new Uint8Array(ids.slice(4 * from, 4 * until).buffer)
    return { ...answer, blocks: until - from, records, isLast: until === count }
  }

  #imported: number[] = []

  clearCache(): void {
    this.cleared++
  }

  async close(): Promise<void> {}

  #tokens(call: number): readonly number[] {
    const { answer = "Hello, world!" } = this.#script
    const said = typeof answer === "function" ? answer(call) : answer
    return typeof said === "string" ? [...encoder.encode(said)] : said
  }
}

function logprobs(token: number, count: number | undefined): Partial<TokenEvent> {
  if (count === undefined) return {}
  const top = Array.from({ length: count }, (_, i) => [(token + i) % VOCAB, -0.5 - i] as const)
  return { logprob: -0.5, topLogprobs: top }
}

/** Token i of the prompt has the log-probability -i / 8. */
function promptLogprobs(ids: Int32Array, count: number | undefined): Partial<TokenEvent> {
  if (count === undefined) return {}
  const rest = [...ids].slice(1)
  return {
    promptLogprobs: rest.map((token, i) => ({
      logprob: -(i + 1) / 8,
      top: logprobs(token, count).topLogprobs ?? [],
    })),
  }
}

export interface TestServer {
  readonly app: ServerApp
  readonly client: FakeClient
  /** What the server told the log. */
  readonly failures: { readonly error: unknown; readonly requestId: string }[]
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>
}

export function testServer(
  script: Script = {},
  config: Partial<ServerConfig> = {},
  deps: Partial<ServerDeps> = {},
): TestServer {
  const client = new FakeClient(script)
  const failures: TestServer["failures"] = []
  const app = createApp({
    client,
    tokenizer: byteTokenizer,
    model: {
      name: "fake",
      created: 1_700_000_000,
      sizeBytes: 98_000_000,
      digest: "ab".repeat(32),
      details: { format: "gguf", family: "llama", parameterSize: "135M", quantization: "Q4_1" },
      chatTemplate: "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}",
    },
    config: { heartbeatMs: 0, ...config },
    onFailure: (error, requestId) => failures.push({ error, requestId }),
    ...deps,
  })
  const post = async (path: string, body: unknown, headers = {}): Promise<Response> =>
    app.request(path, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: typeof body === "string" ? body : JSON.stringify(body),
    })
  return { app, client, failures, post }
}

/** The JSON objects of an SSE body; the last must be [DONE] unless `done` is false. */
export function sseItems(text: string): { readonly items: Json[]; readonly done: boolean } {
  const frames = text.split("\n\n").filter((frame) => frame.startsWith("data: "))
  const done = frames.at(-1) === "data: [DONE]"
  const items = frames
    .slice(0, done ? -1 : undefined)
    .map((frame) => JSON.parse(frame.slice(6)) as Json)
  return { items, done }
}

export function ndjson(text: string): Json[] {
  return text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Json)
}

/** JSON of unknown shape: tests look values up with `at` and `list`. */
export type Json = unknown

/** The value at a path, undefined where the path leads nowhere. */
export function at(value: Json, ...path: (string | number)[]): Json {
  let here = value
  for (const key of path) here = (here as Record<PropertyKey, unknown> | null | undefined)?.[key]
  return here
}

/** The array at a path, empty where there is none. */
export function list(value: Json, ...path: (string | number)[]): Json[] {
  const found = at(value, ...path)
  return Array.isArray(found) ? found : []
}

export async function json(response: Response | Promise<Response>): Promise<Json> {
  return (await response).json()
}

/** Polls until true; fails after `timeoutMs`. */
export async function until(condition: () => boolean, timeoutMs = 2000): Promise<void> {
  const end = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${timeoutMs} ms: ${condition}`)
    await Bun.sleep(2)
  }
}

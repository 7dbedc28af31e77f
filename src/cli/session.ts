import type { EngineConfig } from "../config.ts"
import { serverTokenizer } from "../server/server-tokenizer.ts"
import type { ModelMetadata, ServerTokenizer } from "../server/types.ts"
import type { Tokenizer } from "../tokenizer/tokenizer.ts"
import { startEngine } from "../worker/client.ts"
import type { EngineClient } from "../worker/protocol.ts"
import { readMetadata } from "./library/metadata.ts"
import { loadTokenizer } from "./load-tokenizer.ts"
import { logger } from "./log.ts"
import { modelName } from "./model-resolve.ts"
import { formatBytes, formatCount } from "./output.ts"
import { progressBar } from "./progress.ts"

/** A loaded model with its tokenizer: what serve, chat and run share. */
export interface Session {
  readonly client: EngineClient
  readonly tokenizer: ServerTokenizer
  readonly metadata: ModelMetadata
  /** The tokenizer with another chat template (Jinja source). */
  readonly withTemplate: (template: string) => ServerTokenizer
}

export interface SessionOptions {
  /** Bytes of weights, in place of a bar on stderr. */
  readonly onProgress?: (done: number, total: number) => void
  /** Of engines that share the cores. */
  readonly turns?: SharedArrayBuffer
  /** Jinja source in place of the model's own. */
  readonly template?: string
}

/** Loads the model in the engine Worker and its tokenizer beside it, with progress on stderr. */
export async function openSession(
  config: EngineConfig,
  name?: string,
  options: SessionOptions = {},
): Promise<Session> {
  const log = logger("engine")
  const started = performance.now()
  const [client, tokenizer] = await bothOrNeither(
    loadEngine(config, options),
    loadTokenizer(config.model, config.modelPath),
  )
  const { info } = client
  log.debug(
    `${info.architecture}, ${formatCount(info.parameters)} parameters (${info.quantization}), ready in ${((performance.now() - started) / 1000).toFixed(2)} s`,
  )
  const warn = (line: string): void => logger("template").warn(line)
  const templates = new Map<string, ServerTokenizer>()
  const { template: own } = options
  return {
    client,
    tokenizer: serverTokenizer(tokenizer, own === undefined ? { warn } : { template: own, warn }),
    withTemplate: (template) =>
      templates.getOrInsertComputed(template, () => serverTokenizer(tokenizer, { template, warn })),
    metadata: modelMetadata(config.model, client, own ?? tokenizer.chatTemplate, name),
  }
}

async function loadEngine(
  config: EngineConfig,
  { onProgress, turns }: SessionOptions,
): Promise<EngineClient> {
  const log = logger("engine")
  using bar = progressBar("loading", formatBytes)
  return await startEngine(
    { ...config },
    {
      onProgress: (stage, done, total) => {
        if (stage === "weights") (onProgress ?? bar.update.bind(bar))(done, total)
        if (done === total) log.debug(`${stage} done`)
      },
      ...(turns === undefined ? {} : { turns }),
      onLog: (level, message) => (level === "warning" ? log.warn(message) : log.info(message)),
    },
  )
}

/** A tokenizer that fails must not leave the engine running. */
async function bothOrNeither(
  engine: Promise<EngineClient>,
  tokenizer: Promise<Tokenizer>,
): Promise<[EngineClient, Tokenizer]> {
  const [client, made] = await Promise.allSettled([engine, tokenizer])
  if (client.status === "rejected") throw client.reason
  if (made.status === "fulfilled") return [client.value, made.value]
  await client.value.close()
  throw made.reason
}

function modelMetadata(
  path: string,
  client: EngineClient,
  chatTemplate: string | undefined,
  name: string | undefined,
): ModelMetadata {
  const { contextLength: _, ...known } = readMetadata(path)
  return {
    ...known,
    name: name ?? modelName(path),
    details: {
      ...known.details,
      family: client.info.architecture,
      parameterSize: formatCount(client.info.parameters),
    },
    ...(chatTemplate === undefined ? {} : { chatTemplate }),
  }
}

import { createHash } from "node:crypto"
import { closeSync, openSync, readSync, statSync } from "node:fs"
import { basename } from "node:path"

import type { EngineConfig } from "../config.ts"
import { serverTokenizer } from "../server/server-tokenizer.ts"
import type { ModelMetadata, ServerTokenizer } from "../server/types.ts"
import type { Tokenizer } from "../tokenizer/tokenizer.ts"
import { openWeights } from "../weights/open.ts"
import { startEngine } from "../worker/client.ts"
import type { EngineClient } from "../worker/protocol.ts"
import { DEFAULT_MODEL } from "./home.ts"
import { mainType, shownMetadata } from "./list.ts"
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
}

/** Loads the model in the engine Worker and its tokenizer beside it, with progress on stderr. */
export async function openSession(config: EngineConfig, name?: string): Promise<Session> {
  const log = logger("engine")
  const started = performance.now()
  const [client, tokenizer] = await bothOrNeither(
    loadEngine(config),
    loadTokenizer(config.model, config.modelPath),
  )
  const { info } = client
  log.debug(
    `${info.architecture}, ${formatCount(info.parameters)} parameters (${info.quantization}), ready in ${((performance.now() - started) / 1000).toFixed(2)} s`,
  )
  return {
    client,
    tokenizer: serverTokenizer(tokenizer, { warn: (line) => logger("template").warn(line) }),
    metadata: modelMetadata(config.model, client, tokenizer, name),
  }
}

async function loadEngine(config: EngineConfig): Promise<EngineClient> {
  const log = logger("engine")
  using bar = progressBar("loading", formatBytes)
  return await startEngine(
    { ...config },
    {
      onProgress: (stage, done, total) => {
        if (stage === "weights") bar.update(done, total)
        if (done === total) log.debug(`${stage} done`)
      },
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
  tokenizer: Tokenizer,
  name: string | undefined,
): ModelMetadata {
  const weights = openWeights(path)
  try {
    const { chatTemplate } = tokenizer
    const stats = weights.files.map((file) => statSync(file))
    return {
      name: name ?? modelName(path),
      created: Math.floor(Math.max(...stats.map(({ mtimeMs }) => mtimeMs)) / 1000),
      sizeBytes: stats.reduce((sum, { size }) => sum + size, 0),
      digest: digestOf(path, weights.files),
      details: {
        format: weights.kind,
        family: client.info.architecture,
        parameterSize: formatCount(client.info.parameters),
        quantization: mainType(weights),
      },
      ...(chatTemplate === undefined ? {} : { chatTemplate }),
      ...(weights.kind === "gguf" ? { info: shownMetadata(weights.metadata) } : {}),
    }
  } finally {
    weights.close()
  }
}

const DIGEST_BYTES = 1024 * 1024

/**
 * An id for the weights. Reading hundreds of gigabytes at start-up to hash them is out of the question, so it is the
 * SHA-256 of every file's size and its first MiB, where headers are; the default model's whole SHA-256 is known.
 */
function digestOf(path: string, files: readonly string[]): string {
  const size = statSync(files[0] ?? path).size
  if (basename(path) === DEFAULT_MODEL.file && size === DEFAULT_MODEL.bytes)
    return DEFAULT_MODEL.sha256
  const hash = createHash("sha256")
  const buffer = Buffer.alloc(DIGEST_BYTES)
  for (const file of files) {
    const fd = openSync(file, "r")
    try {
      hash.update(`${statSync(file).size}\n`)
      hash.update(buffer.subarray(0, readSync(fd, buffer, 0, DIGEST_BYTES, 0)))
    } finally {
      closeSync(fd)
    }
  }
  return hash.digest("hex")
}

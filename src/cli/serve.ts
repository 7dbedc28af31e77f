import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"

import { OpenAPIHono } from "@hono/zod-openapi"

import { FormatError, UsageError } from "../errors.ts"
import { Workload } from "../server/admission.ts"
import { createApp, type ServerApp } from "../server/app.ts"
import type { ServerEnv } from "../server/context.ts"
import { KeptDatabase } from "../server/openai/kept-database.ts"
import { type ServeOptions, startServer } from "../server/serve.ts"
import { DEFAULT_BODY_LIMIT } from "../server/types.ts"
import { SAMPLING_FLAGS } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { createdModel, resolveNamed } from "./created-model.ts"
import {
  ALL_KEYS,
  CONFIG_FLAG,
  configFile,
  engineOptions,
  givenModel,
  MODEL_POSITIONAL,
  namesModel,
} from "./engine-options.ts"
import { ktHome } from "./home.ts"
import { IGNORED_FLAGS } from "./ignored-flags.ts"
import { reasonOf } from "./kt-config.ts"
import { logger } from "./log.ts"
import { formatBytes, formatCount, write } from "./output.ts"
import { samplingFrom } from "./sampling.ts"
import { MODELS_FLAGS, modelsOptions, servedFolder, servedModels } from "./serve-models.ts"
import type { Session } from "./session.ts"

const DEFAULT_PORT = 10002

/** What holds the port for a moment to see whether it can be had. */
const NO_APP = Object.assign(new OpenAPIHono<ServerEnv>(), { admission: new Workload() })

export const serve = defineCommand({
  name: "serve",
  summary: "Serve models: web page, OpenAI and Ollama APIs",
  details: `The server listens on this machine only unless --host says otherwise; set an API key before it does.
SIGTERM and Ctrl-C let running answers finish for --grace seconds, a second one ends at once.`,
  positionals: [MODEL_POSITIONAL],
  engine: ALL_KEYS,
  flags: {
    ...CONFIG_FLAG,
    host: { type: "string", hint: "address", help: "address to listen on (default 127.0.0.1)" },
    port: {
      type: "integer",
      min: 0,
      max: 65_535,
      help: `port (default ${DEFAULT_PORT}); 0 = a free one`,
    },
    "api-key": {
      type: "list",
      hint: "key",
      aliases: ["api_key"],
      help: "key that clients must send [KT_API_KEY]",
    },
    "api-key-file": { type: "string", hint: "file", help: "file with one key a line" },
    ...MODELS_FLAGS,
    "model-name": {
      type: "string",
      aliases: ["model_name"],
      hint: "name",
      help: "id that clients see",
    },
    "max-new-tokens": {
      type: "integer",
      min: 1,
      aliases: ["max_new_tokens"],
      help: "longest answer where a request says nothing",
    },
    "force-think": {
      type: "boolean",
      aliases: ["force_think"],
      help: "start every answer with <think>",
    },
    "reasoning-format": {
      type: "enum",
      values: ["auto", "none"],
      default: "auto",
      help: "auto: reasoning goes into a field of its own; none: it stays in the answer's text",
    },
    "reasoning-budget": {
      type: "integer",
      min: -1,
      aliases: ["reasoning_budget"],
      default: -1,
      help: "tokens after which reasoning ends, where a request says nothing; -1 = when the model ends it",
    },
    responses: {
      type: "string",
      hint: "file",
      help: "database for /v1/responses and /v1/conversations; default responses.sqlite beside the models; :memory: keeps nothing",
    },
    "slot-save-path": {
      type: "string",
      hint: "folder",
      help: "where POST /slots/{id}?action=save puts what a client names; without it nothing is saved",
    },
    "slot-save-limit": {
      type: "integer",
      hint: "MiB",
      min: 1,
      max: 2 ** 30,
      default: 16_384,
      help: "MiB that saved slots may take in all",
    },
    "tls-cert": { type: "string", hint: "file", help: "certificate chain (PEM); serves https" },
    "tls-key": { type: "string", hint: "file", help: "the certificate's private key (PEM)" },
    "request-timeout": {
      type: "number",
      min: 0,
      max: 86_400,
      default: 0,
      help: "seconds that one request may take; 0 = any",
    },
    "max-body": {
      type: "integer",
      min: 1024,
      max: 1_073_741_824,
      default: DEFAULT_BODY_LIMIT,
      help: "bytes that a request's body may have",
    },
    "cors-origin": {
      type: "list",
      hint: "origin",
      help: "web page origin that may call; * for all",
    },
    ui: { type: "boolean", default: true, help: "serve the web page" },
    "log-format": {
      type: "enum",
      values: ["text", "json"],
      default: "text",
      help: "json: each line of the log is an object",
    },
    grace: {
      type: "number",
      min: 0,
      max: 3600,
      default: 10,
      help: "seconds for running answers at the end",
    },
    ...SAMPLING_FLAGS,
  },
  ignored: IGNORED_FLAGS,
  logLevel: "info",
  examples: [
    { command: "kt serve", says: `the default model on http://127.0.0.1:${DEFAULT_PORT}` },
    {
      command: "kt serve model.gguf --port 8080 --ctx 8192 --api-key secret",
      says: "a model of yours, with a key",
    },
    {
      command: "kt serve --models ./models --max-models 2 --keep-alive 30m --alias 'claude*=qwen3'",
      says: "every model of a folder, each when a request names it",
    },
    {
      command:
        "kt serve --model_path ./Qwen3 --gguf_path ./Qwen3-GGUF --optimize_config_path rules/qwen3.yaml --cpu_infer 16",
      says: "as KTransformers is started",
    },
  ],
  async run(invocation) {
    const { flags } = invocation
    const file = configFile(invocation)
    const fromFile = file.flags
    const folder = servedFolder(flags)
    const hasFirst = flags.models === undefined || namesModel(invocation, file)
    const config = engineOptions(invocation, file, {}, (model) =>
      hasFirst ? resolveNamed(model, folder) : model,
    )
    const own = createdModel(givenModel(invocation, file), folder)
    modelsOptions(flags, config)
    const host = flags.host ?? (fromFile["host"] as string | undefined) ?? "127.0.0.1"
    const port = flags.port ?? portFromFile(fromFile["port"]) ?? DEFAULT_PORT
    const apiKeys = readKeys(flags["api-key"], flags["api-key-file"], fromFile["api-key"])
    const name = flags["model-name"] ?? (fromFile["model-name"] as string | undefined)
    const maxTokens = flags["max-new-tokens"] ?? (fromFile["max-new-tokens"] as number | undefined)
    const forceThink = flags["force-think"] || fromFile["force-think"] === true

    const tls = readTls(flags["tls-cert"], flags["tls-key"])
    // whoever cannot have the port, or whose certificate is none, should learn it before minutes of loading
    await probePort(host, port, tls)
    const { models, session } = await servedModels(
      flags,
      config,
      hasFirst ? { path: config.model, name, own } : undefined,
      (path) => samplingFrom(flags, maxTokens, path),
    )
    let app: ServerApp | undefined
    try {
      using kept = openKept(flags.responses)
      app = createApp({
        models,
        config: {
          apiKeys,
          maxQueue: config.maxQueue,
          bodyLimit: flags["max-body"],
          requestTimeoutMs: flags["request-timeout"] * 1000,
          corsOrigins: flags["cors-origin"],
          defaults: samplingFrom(flags, maxTokens),
          forceThink,
          slotFolder:
            flags["slot-save-path"] === undefined ? undefined : resolve(flags["slot-save-path"]),
          slotLimitBytes: flags["slot-save-limit"] * 2 ** 20,
          thinkingBudget:
            flags["reasoning-budget"] < 0 ? Number.POSITIVE_INFINITY : flags["reasoning-budget"],
          reasoningFormat: flags["reasoning-format"] === "none" ? "none" : "auto",
        },
        kept,
        onLog: (level, line) =>
          level === "warning" ? logger("models").warn(line) : logger("models").info(line),
        onFailure: (error, id) => logger("server").error(`${id}: ${reasonOf(error)}`),
      })
      const ui = flags.ui ? { "/": (await import("../web/index.html")).default } : {}
      const server = startServer({ app: withAccessLog(app), ui, host, port, ...tls })
      await write(banner(server.url, models.library.list().length, session, apiKeys.length > 0))
      if (apiKeys.length === 0 && !isLoopback(host))
        logger("server").warn(
          `anybody who reaches ${host} can use this server: --api-key asks for a key`,
        )
      await untilStopped(async () => server.stop(flags.grace * 1000))
    } finally {
      await (app === undefined ? session?.client.close() : app.models.close())
    }
  },
})

function banner(url: string, count: number, session: Session | undefined, hasKey: boolean): string {
  const key = hasKey ? "; API key required" : ""
  if (session === undefined)
    return `${url}\n  models   ${count}, each loaded when a request names it${key}\n`
  const { info } = session.client
  const { name, details } = session.metadata
  return [
    `${url}`,
    `  model    ${name} (${info.architecture}, ${formatCount(info.parameters)}, ${details.quantization}, ${formatBytes(info.weightBytes)})`,
    `  context  ${info.contextLength} tokens (the model's own: ${info.trainedContextLength})`,
    `  KV cache ${info.kvCacheTokens} tokens, ${formatBytes(info.kvCacheBytes)}; beyond it ${formatBytes(info.cacheRamBytes)} of host memory`,
    ...(info.draftBytes === 0
      ? []
      : [`  draft    ${formatBytes(info.draftBytes)} for the model that guesses ahead`]),
    `  CPU      ${info.threads} threads${info.numaNodes > 1 ? ` on ${info.numaNodes} NUMA nodes` : ""}, ${info.isa}, precision ${info.precision}`,
    ...(count > 1 ? [`  others   ${count - 1}, each loaded when a request names it`] : []),
    `  loaded   in ${(info.loadMs / 1000).toFixed(2)} s${key}`,
    "",
  ].join("\n")
}

/** Resolves once a signal came and `stop` has ended; a second signal ends the process. */
async function untilStopped(stop: () => Promise<void>): Promise<void> {
  const signals = ["SIGINT", "SIGTERM"] as const
  const signal = await new Promise<string>((resolve) => {
    for (const name of signals) process.once(name, () => resolve(name))
  })
  const end = (): never => process.exit(130)
  for (const name of signals) process.once(name, end)
  logger("server").info(`${signal}: finishing running answers`)
  await stop()
  for (const name of signals) process.removeListener(name, end)
}

/** One line per answered request: method, path, status, time until the answer began. */
function withAccessLog(app: ServerApp): ServerApp {
  const log = logger("access")
  const logged = async (...args: Parameters<ServerApp["fetch"]>): Promise<Response> => {
    const [request] = args
    const started = performance.now()
    const response = await app.fetch(...args)
    const ms = (performance.now() - started).toFixed(0)
    const id = response.headers.get("x-request-id") ?? "-"
    log.info("{method} {path} {status} {ms} ms {id}", {
      method: request.method,
      path: new URL(request.url).pathname,
      status: response.status,
      ms: Number(ms),
      id,
    })
    return response
  }
  return Object.assign(Object.create(app) as ServerApp, { fetch: logged })
}

function readKeys(given: readonly string[], file: string | undefined, fromFile: unknown): string[] {
  const keys = [...given]
  if (keys.length === 0 && typeof fromFile === "string") keys.push(fromFile)
  const { KT_API_KEY } = process.env
  if (keys.length === 0 && KT_API_KEY) keys.push(KT_API_KEY)
  if (file !== undefined) {
    const lines = readLines(file)
    if (lines.length === 0) throw new FormatError(file, "holds no API key (one a line)")
    keys.push(...lines)
  }
  if (keys.some((key) => key.trim() === "")) throw new UsageError("an API key must not be empty")
  return keys
}

function readLines(file: string): string[] {
  try {
    return readFileSync(file, "utf8")
      .split(/\r?\n/)
      .map((line) => line.trim())
      .filter((line) => line !== "" && !line.startsWith("#"))
  } catch (cause) {
    throw new FormatError(file, reasonOf(cause), { cause })
  }
}

function portFromFile(value: unknown): number | undefined {
  if (value === undefined) return undefined
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 65_535)
    return value as number
  throw new UsageError(`server.port ${String(value)}: expected an integer in 0..65535`)
}

/** @throws ConfigError in the server's words where the port cannot be had */
async function probePort(
  host: string,
  port: number,
  tls: Pick<ServeOptions, "tls">,
): Promise<void> {
  if (port !== 0 || tls.tls !== undefined)
    await startServer({ app: NO_APP, host, port, ...tls }).stop(0)
}

function openKept(file: string | undefined): KeptDatabase {
  const path = file ?? join(ktHome(), "responses.sqlite")
  return new KeptDatabase(path, (error) =>
    logger("server").warn(`${path}: ${reasonOf(error)}; responses are kept in memory only`),
  )
}

/** @throws UsageError where there is only one of the two, FormatError where a file cannot be read */
function readTls(cert: string | undefined, key: string | undefined): Pick<ServeOptions, "tls"> {
  if (cert === undefined && key === undefined) return {}
  if (cert === undefined || key === undefined)
    throw new UsageError("--tls-cert and --tls-key are given together")
  const read = (file: string): string => {
    try {
      return readFileSync(file, "utf8")
    } catch (error) {
      throw new FormatError(file, reasonOf(error), { cause: error })
    }
  }
  return { tls: { cert: read(cert), key: read(key) } }
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || host.startsWith("127.")
}

import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"

import { OpenAPIHono } from "@hono/zod-openapi"

import { FormatError, UsageError } from "../errors.ts"
import { Workload } from "../server/admission.ts"
import { createApp, type ServerApp } from "../server/app.ts"
import type { ServerEnv } from "../server/context.ts"
import { KeptDatabase } from "../server/openai/kept-database.ts"
import { type ServeOptions, startServer } from "../server/serve.ts"
import { DEFAULT_BODY_LIMIT, type SamplingDefaults } from "../server/types.ts"
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
import { readText } from "./files.ts"
import { FOREIGN_FLAGS } from "./foreign-flags.ts"
import { ktHome } from "./home.ts"
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
      aliases: ["model_name", "served-model-name"],
      hint: "name",
      help: "id that clients see",
    },
    "max-new-tokens": {
      type: "integer",
      short: "n",
      min: -1,
      aliases: ["max_new_tokens", "predict", "n-predict"],
      help: "longest answer where a request says nothing; -1 = up to the end of the context",
    },
    seed: {
      type: "integer",
      short: "s",
      min: -1,
      max: 4_294_967_295,
      help: "of requests that give none: the same seed and request draw the same; -1 = each draws anew",
    },
    "force-think": {
      type: "boolean",
      aliases: ["force_think"],
      help: "start every answer with <think>",
    },
    "reasoning-format": {
      type: "enum",
      values: ["auto", "none", "deepseek"],
      default: "auto",
      aliases: ["reasoning_format"],
      help: "auto, deepseek: reasoning goes into a field of its own; none: it stays in the answer's text",
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
    "chat-template": {
      type: "string",
      hint: "file",
      aliases: ["chat-template-file"],
      help: "Jinja file, or its text, in place of MODEL's own template",
    },
    "chat-template-kwargs": {
      type: "string",
      hint: "json",
      aliases: ["default-chat-template-kwargs"],
      help: 'variables for chat templates where a request says nothing, as in {"enable_thinking":false}',
    },
    reasoning: {
      type: "enum",
      short: "rea",
      values: ["auto", "on", "off"],
      default: "auto",
      help: "whether models think whose template leaves it to the request (enable_thinking)",
    },
    "tls-cert": {
      type: "string",
      aliases: ["ssl-cert-file", "ssl-certfile"],
      hint: "file",
      help: "certificate chain (PEM); serves https",
    },
    "tls-key": {
      type: "string",
      aliases: ["ssl-key-file", "ssl-keyfile"],
      hint: "file",
      help: "the certificate's private key (PEM)",
    },
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
      aliases: ["cors-origins"],
      help: "web page origin that may call; localhost for this machine's at any port, * for all",
    },
    ui: { type: "boolean", aliases: ["webui"], default: true, help: "serve the web page" },
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
  foreign: FOREIGN_FLAGS,
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
    const host = flags.host ?? (fromFile["host"] as string | undefined) ?? "127.0.0.1"
    const port = flags.port ?? portFromFile(fromFile["port"]) ?? DEFAULT_PORT
    const apiKeys = readKeys(flags["api-key"], flags["api-key-file"], fromFile["api-key"])
    const { names, aliases } = namesAndAliases(flags.alias)
    const [name, ...others] = [
      flags["model-name"] ?? (fromFile["model-name"] as string | undefined),
      ...names,
    ].filter((one) => one !== undefined)
    const ofModels = { ...flags, alias: [...aliases, ...others.map((one) => `${one}=${name}`)] }
    modelsOptions(ofModels, config)
    const asked = flags["max-new-tokens"] ?? (fromFile["max-new-tokens"] as number | undefined)
    const maxTokens = asked !== undefined && asked > 0 ? asked : undefined
    const sampling = (path?: string): SamplingDefaults => ({
      ...samplingFrom(flags, maxTokens, path),
      ...(flags.seed === undefined ? {} : { seed: flags.seed }),
    })
    const template = templateOf(flags["chat-template"])
    const templateVars = templateVarsOf(flags["chat-template-kwargs"], flags.reasoning)
    const forceThink = flags["force-think"] || fromFile["force-think"] === true

    const tls = readTls(flags["tls-cert"], flags["tls-key"])
    // whoever cannot have the port, or whose certificate is none, should learn it before minutes of loading
    await probePort(host, port, tls)
    const { models, session } = await servedModels(
      ofModels,
      config,
      hasFirst ? { path: config.model, name, own, template } : undefined,
      sampling,
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
          corsOrigins: flags["cors-origin"].flatMap((origins) => origins.split(",")),
          defaults: sampling(),
          forceThink,
          slotFolder:
            flags["slot-save-path"] === undefined ? undefined : resolve(flags["slot-save-path"]),
          slotLimitBytes: flags["slot-save-limit"] * 2 ** 20,
          thinkingBudget:
            flags["reasoning-budget"] < 0 ? Number.POSITIVE_INFINITY : flags["reasoning-budget"],
          templateVars,
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

/** llama.cpp's --alias is a name for MODEL, or several with commas between. */
function namesAndAliases(given: readonly string[]): { names: string[]; aliases: string[] } {
  const isAlias = (text: string): boolean => text.includes("=")
  return {
    names: given
      .filter((text) => !isAlias(text))
      .flatMap((text) => text.split(","))
      .filter((name) => name !== ""),
    aliases: given.filter(isAlias),
  }
}

/** A file's text, or the text itself. @throws FormatError where it is neither */
function templateOf(given: string | undefined): string | undefined {
  if (given === undefined || /\{[{%]/.test(given)) return given
  return readText(given)
}

/** @throws UsageError where they are no JSON object */
function templateVarsOf(
  json: string | undefined,
  reasoning: string | undefined,
): Readonly<Record<string, unknown>> {
  const thinks = reasoning === "auto" ? {} : { enable_thinking: reasoning === "on" }
  if (json === undefined) return thinks
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch {
    value = undefined
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new UsageError(`--chat-template-kwargs ${json}: expected a JSON object`)
  return { ...value, ...thinks }
}

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

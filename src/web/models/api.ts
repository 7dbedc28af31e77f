import {
  type Answer,
  asNumber,
  asRecord,
  authorization,
  errorMessage,
  getJson,
  parseJson,
  responseFailure,
} from "../api.ts"
import { t } from "../language.ts"
import type { Failure } from "../types.ts"

/** One entry of GET /api/models. */
export interface ModelEntry {
  name: string
  /** Bytes of its files. */
  size: number
  state: "unloaded" | "loading" | "loaded" | "unloading"
  loading: { done: number; total: number } | null
  default: boolean
  deletable: boolean
  parent: string | null
  problem: string | null
  family: string
  parameters: string
  quantization: string
  capabilities: string[]
  context: number | null
  memory: number | null
  active: number
  /** When it will be unloaded; `null` for never. */
  expires: string | null
}

export interface ModelOverview {
  models: ModelEntry[]
  limits: { models: number; memory: number | null; used: number }
  can_change: boolean
}

/** What POST /api/show has beyond the overview. */
export interface ModelDetails {
  parameters: string
  template: string
  system: string
  license: string
}

export async function fetchOverview(apiKey: string): Promise<Answer<ModelOverview>> {
  const answer = await getJson("/api/models", apiKey)
  if ("failure" in answer) return answer
  const { models, limits } = asRecord(answer.value) ?? {}
  if (!Array.isArray(models) || asRecord(limits) === undefined)
    return { failure: { kind: "server", message: t("noModelList") } }
  return { value: answer.value as ModelOverview }
}

/** Loads a model, as an empty prompt asks for, or with `keepAlive` 0 unloads it. */
export function loadModel(
  name: string,
  apiKey: string,
  keepAlive?: number,
): Promise<Failure | undefined> {
  return change("/api/generate", "POST", apiKey, {
    model: name,
    stream: false,
    ...(keepAlive === undefined ? {} : { keep_alive: keepAlive }),
  })
}

export function deleteModel(name: string, apiKey: string): Promise<Failure | undefined> {
  return change("/api/delete", "DELETE", apiKey, { model: name })
}

export async function fetchDetails(name: string, apiKey: string): Promise<Answer<ModelDetails>> {
  const answer = await ask("/api/show", "POST", apiKey, { model: name })
  if (!(answer instanceof Response)) return { failure: answer }
  const body = asRecord(parseJson(await answer.text().catch(() => "")))
  const text = (key: string): string => {
    const value = body?.[key]
    return typeof value === "string" ? value : ""
  }
  return {
    value: {
      parameters: text("parameters"),
      template: text("template"),
      system: text("system"),
      license: text("license"),
    },
  }
}

/** How far a pull is; bytes are of the file that `status` names. */
export interface PullProgress {
  status: string
  completed: number | undefined
  total: number | undefined
}

/** Tells of a pull as it goes on. Returns once it is complete (`undefined`), refused or broken, or `signal` has ended it. */
export async function pullModel(
  name: string,
  apiKey: string,
  signal: AbortSignal,
  tell: (progress: PullProgress) => void,
): Promise<Failure | undefined> {
  const answer = await ask("/api/pull", "POST", apiKey, { model: name }, signal)
  if (!(answer instanceof Response)) return answer
  try {
    for await (const line of lines(answer)) {
      const record = asRecord(parseJson(line))
      const error = errorMessage(record)
      if (error !== undefined) return { kind: "server", message: error }
      const status = record?.["status"]
      if (status === "success") return undefined
      if (typeof status === "string")
        tell({
          status,
          completed: asNumber(record?.["completed"]),
          total: asNumber(record?.["total"]),
        })
    }
  } catch {
    // the connection ended, which the line below says
  }
  return { kind: "connection", message: t(signal.aborted ? "pullStopped" : "pullEnded") }
}

async function* lines(response: Response): AsyncGenerator<string> {
  if (response.body === null) return
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    const parts = (rest + value).split("\n")
    rest = parts.pop() ?? ""
    for (const line of parts) if (line.trim() !== "") yield line
  }
  if (rest.trim() !== "") yield rest
}

async function change(
  path: string,
  method: string,
  apiKey: string,
  body: object,
): Promise<Failure | undefined> {
  const answer = await ask(path, method, apiKey, body)
  return answer instanceof Response ? undefined : answer
}

async function ask(
  path: string,
  method: string,
  apiKey: string,
  body: object,
  signal?: AbortSignal,
): Promise<Response | Failure> {
  try {
    const response = await fetch(path, {
      method,
      headers: { "content-type": "application/json", ...authorization(apiKey) },
      body: JSON.stringify(body),
      ...(signal === undefined ? {} : { signal }),
    })
    return response.ok ? response : await responseFailure(response)
  } catch {
    return { kind: "connection", message: t(signal?.aborted ? "pullStopped" : "unreachable") }
  }
}

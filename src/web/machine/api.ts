import { type Answer, asRecord, authorization, getJson, responseFailure } from "../api.ts"
import { t } from "../language.ts"
import type { Failure } from "../types.ts"

export interface ModuleEntry {
  path: string
  operator: string
  device: string
  /** Which rule placed or replaced it; "" for none. */
  rule: string
  packed: boolean
  /** Bytes by type. */
  types: Record<string, number>
}

export interface ExpertCounts {
  path: string
  /** By expert. */
  counts: number[]
}

export interface EngineInfo {
  architecture: string
  quantization: string
  weightBytes: number
  contextLength: number
  maxBatchSize: number
  kvCacheTokens: number
  kvCacheBytes: number
  threads: number
  numaNodes: number
  isa: string
  device: string
  precision: string
  loadMs: number
}

export interface EngineStats {
  running: number
  waiting: number
  kvPagesTotal: number
  kvPagesFree: number
  cacheDeviceBytes: number
  cacheHostBytes: number
  cacheHostLimitBytes: number
  cacheDiskBytes: number
  cacheDiskLimitBytes: number
  cacheHostTokensTotal: number
  cacheDiskTokensTotal: number
  promptTokensTotal: number
  cachedTokensTotal: number
  generatedTokensTotal: number
}

export interface PhaseShare {
  /** Tokens/s while computing, and what the machine allows for the same work. */
  speed: number
  limit: number
  /** 1 is all of the limit. */
  share: number
}

export interface Roofline {
  /** Bytes/s read from memory. */
  read_bytes: number
  generation: PhaseShare | null
  prompt: PhaseShare | null
}

export interface MachineModel {
  name: string
  info: EngineInfo
  /** `null` while a long step keeps the engine busy. */
  stats: EngineStats | null
  modules: ModuleEntry[]
  experts: ExpertCounts[]
  /** `null` until it has been measured. */
  roofline: Roofline | null
}

/** The answer of GET /api/machine. */
export interface Machine {
  memory: { resident: number }
  queue: { active: number; waiting: number }
  models: MachineModel[]
  can_measure: boolean
}

export async function fetchMachine(apiKey: string): Promise<Answer<Machine>> {
  const answer = await getJson("/api/machine", apiKey)
  if ("failure" in answer) return answer
  if (!Array.isArray(asRecord(answer.value)?.["models"]))
    return { failure: { kind: "server", message: t("serverError") } }
  return { value: answer.value as Machine }
}

/** Has the server measure what the machine can do, which takes seconds. */
export async function measureLimits(model: string, apiKey: string): Promise<Failure | undefined> {
  try {
    const response = await fetch("/api/machine/limits", {
      method: "POST",
      headers: { "content-type": "application/json", ...authorization(apiKey) },
      body: JSON.stringify({ model }),
    })
    return response.ok ? undefined : await responseFailure(response)
  } catch {
    return { kind: "connection", message: t("unreachable") }
  }
}

/** GET /metrics, in Prometheus' text format. */
export async function fetchMetrics(apiKey: string): Promise<Answer<string>> {
  try {
    const response = await fetch("/metrics", {
      headers: authorization(apiKey),
      signal: AbortSignal.timeout(10_000),
    })
    if (!response.ok) return { failure: await responseFailure(response) }
    return { value: await response.text() }
  } catch {
    return { failure: { kind: "connection", message: t("unreachable") } }
  }
}

import type { EngineConfig } from "../config.ts"
import type { ModelConfig } from "../models/config.ts"
import { freeBytes } from "./backends.ts"
import type { BuiltModel } from "./build.ts"
import { workspaceBytes } from "./plan.ts"

/** New tokens per step where `--chunk-size` says nothing. */
const TOKENS = 512
/** The same where each chunk of a prompt takes the host's experts to a device: that pays for many tokens. */
const STREAMED_TOKENS = 4096
/** Of a device's free memory that activations of such chunks may take. */
const WORKSPACE_SHARE = 1 / 8

/** New tokens per step: as asked for, or as many as pay and the device has room for. */
export function chunkTokens(
  config: EngineConfig,
  model: ModelConfig,
  streams: boolean,
  free: number,
): number {
  if (config.maxBatchTokens > 0) return config.maxBatchTokens
  if (!streams) return TOKENS
  let tokens = STREAMED_TOKENS
  const room = free * WORKSPACE_SHARE
  while (tokens > TOKENS && workspaceBytes({ ...config, maxBatchTokens: tokens }, model) > room)
    tokens /= 2
  return tokens
}

/** The settings of a model whose placement is known. */
export function withChunk(
  config: EngineConfig,
  { config: model, placement }: BuiltModel,
  free: (device: string) => number = freeBytes,
): EngineConfig {
  if (config.maxBatchTokens > 0) return config
  const devices = config.streamExperts ? [...new Set(placement.streamed.values())] : []
  const least = Math.min(...devices.map(free))
  return { ...config, maxBatchTokens: chunkTokens(config, model, devices.length > 0, least) }
}

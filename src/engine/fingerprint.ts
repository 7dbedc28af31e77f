import { closeSync, fstatSync, openSync, readFileSync, readSync } from "node:fs"

import type { EngineConfig } from "../config.ts"
import type { Backend } from "../native/backend.ts"
import type { DTypeInfo } from "../tensor/dtype.ts"
import type { BuiltModel } from "./build.ts"

/** Bytes of a file's beginning, where names and shapes are. */
const HEAD_BYTES = 2 ** 20
const SAMPLE_BYTES = 4096
/** Evenly over all files: enough to meet every large tensor of a model, and a fraction of a second to read. */
const SAMPLES = 2048
const MAX_FILE_SAMPLES = 1024

/** What two engines must have in common for one to use the other's keys and values. */
export interface CacheIdentity {
  /** 32 hexadecimal digits. */
  readonly fingerprint: string
  /** The same for people. */
  readonly about: Readonly<Record<string, string | number>>
}

/**
 * Of the weights (sizes, times and samples of the files), the model's configuration with its rope factors, what replaces
 * its modules, and the types and instruction set that it is computed with.
 */
export function cacheIdentity(
  config: EngineConfig,
  built: BuiltModel,
  kv: { readonly dtype: DTypeInfo; readonly pieceBytes: number; readonly stateBytes: number },
  backend: Pick<Backend, "isa" | "name">,
): CacheIdentity {
  const { weights, plan } = built
  const hash = new Bun.CryptoHasher("sha256")
  const about = {
    model: weights.path,
    architecture: built.config.model_type,
    kvType: kv.dtype.name,
    precision: config.precision,
    pageTokens: config.pageSize,
    pageBytes: kv.pieceBytes,
    stateBytes: kv.stateBytes,
    backend: backend.name,
    isa: backend.isa,
  }
  const { model: _, ...settings } = about
  const operators = [...plan.entries].map(([path, { operator, kwargs }]) => [
    path,
    operator,
    kwargs,
  ])
  hash.update(
    JSON.stringify([
      1,
      settings,
      built.config,
      operators,
      config.repack,
      process.env["KT_AMX_TOKENS"] ?? "",
    ]),
  )
  for (const file of config.operators) hash.update(readFileSync(file))
  for (const file of weights.files) hashFile(hash, file, weights.files.length)
  return { fingerprint: hash.digest("hex").slice(0, 32), about }
}

function hashFile(hash: Bun.CryptoHasher, path: string, files: number): void {
  const fd = openSync(path, "r")
  try {
    const { size, mtimeMs } = fstatSync(fd)
    hash.update(`${size} ${mtimeMs}\n`)
    const head = new Uint8Array(HEAD_BYTES)
    hash.update(head.subarray(0, readSync(fd, head, 0, HEAD_BYTES, 0)))
    const count = Math.max(16, Math.min(MAX_FILE_SAMPLES, Math.floor(SAMPLES / files)))
    const sample = new Uint8Array(SAMPLE_BYTES)
    for (let i = 1; i <= count; i++) {
      const at = Math.floor((size - SAMPLE_BYTES) * (i / count))
      if (at > 0) hash.update(sample.subarray(0, readSync(fd, sample, 0, SAMPLE_BYTES, at)))
    }
  } finally {
    closeSync(fd)
  }
}

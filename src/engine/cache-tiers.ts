import { resolve } from "node:path"

import type { EngineConfig } from "../config.ts"
import { headerBytes, recordBytes } from "../kvcache/block-record.ts"
import { DiskClient, type DiskLog } from "../kvcache/disk-client.ts"
import { HostTier } from "../kvcache/host-tier.ts"
import { type PieceMemory, PrefixTiers } from "../kvcache/prefix-tiers.ts"
import type { Library } from "../native/library.ts"
import type { CacheIdentity } from "./fingerprint.ts"

const MIB = 2 ** 20
/** `--cache-ram -1` takes this part of the memory that is left, and no more than so many bytes. */
const AUTO_SHARE = 1 / 4
const AUTO_BYTES = 8 * 2 ** 30
/** A disk needs memory for what is on its way. */
const DISK_BYTES = 64 * MIB
const DISK_SLOTS = 8

export interface TierOptions {
  readonly library: Library
  readonly pages: PieceMemory
  readonly states: PieceMemory | undefined
  /** Memory that is free beside everything else. */
  readonly spareBytes: number
  readonly identity: () => CacheIdentity
  readonly log: DiskLog
}

/** The tiers below the device, or undefined where there are none; close() before the pages go. */
export interface OpenTiers {
  readonly tiers: PrefixTiers
  readonly hostLimitBytes: number
  readonly diskLimitBytes: number
  close(): void
}

/** Host memory and disk as the configuration has them. A disk that cannot be used costs a warning. */
export async function openTiers(
  config: EngineConfig,
  options: TierOptions,
): Promise<OpenTiers | undefined> {
  if (!config.prefixCache) return undefined
  const { library, pages, states, log } = options
  const header = config.cacheDir === undefined ? 0 : headerBytes(config.pageSize)
  const pageBytes = recordBytes(header, pages.pieceBytes)
  const stateBytes = states === undefined ? 0 : recordBytes(header, states.pieceBytes)
  const least =
    config.cacheDir === undefined
      ? 0
      : Math.max(DISK_BYTES, 2 * DISK_SLOTS * pageBytes, states === undefined ? 0 : 4 * stateBytes)
  const bytes = Math.max(least, hostBytes(config, options.spareBytes, log))
  // states and the pages that lead to them are of use together
  const share = states === undefined ? bytes : bytes / 2
  if (share < pageBytes || share < stateBytes) return undefined

  const disk = await openDisk(config, header, options)
  const hosts: HostTier[] = []
  const tiers = new PrefixTiers({
    pages,
    states,
    headerBytes: header,
    disk,
    host: (slotBytes, _, onEvict) => {
      const host = new HostTier(library, share, slotBytes, onEvict)
      hosts.push(host)
      return host
    },
  })
  return {
    tiers,
    hostLimitBytes: hosts.reduce((sum, { slots, slotBytes }) => sum + slots * slotBytes, 0),
    diskLimitBytes: disk === undefined ? 0 : config.cacheDiskMib * MIB,
    close() {
      // a thread that does not end may yet write to this memory
      if (disk === undefined || disk.close()) for (const host of hosts) host[Symbol.dispose]()
    },
  }
}

function hostBytes({ cacheRamMib }: EngineConfig, spareBytes: number, log: DiskLog): number {
  const spare = Math.max(0, spareBytes)
  if (cacheRamMib < 0) return Math.min(AUTO_BYTES, spare * AUTO_SHARE)
  const wanted = cacheRamMib * MIB
  if (wanted <= spare) return wanted
  log(
    "warning",
    `--cache-ram ${cacheRamMib}: only ${Math.floor(spare / MIB)} MiB are free, and are used`,
  )
  return spare
}

async function openDisk(
  config: EngineConfig,
  header: number,
  { identity, log }: TierOptions,
): Promise<DiskClient | undefined> {
  if (config.cacheDir === undefined || config.cacheDiskMib === 0) return undefined
  const folder = resolve(config.cacheDir)
  try {
    const { fingerprint, about } = identity()
    const limitBytes = config.cacheDiskMib * MIB
    return await DiskClient.open(
      { folder, fingerprint, about, limitBytes, headerBytes: header },
      log,
    )
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    log("warning", `${folder}: no prefix cache on disk (${reason})`)
    return undefined
  }
}

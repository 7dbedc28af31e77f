import type { JSX } from "preact"

import { formatBytes, formatCount } from "../format.ts"
import { t } from "../language.ts"
import type { EngineInfo, EngineStats } from "./api.ts"

interface Props {
  info: EngineInfo
  stats: EngineStats
}

/** Known prefixes by tier: what they take, may take, and have saved. */
export function CacheTiers({ info, stats }: Props): JSX.Element {
  const prompts = stats.promptTokensTotal
  const percent = (tokens: number): string =>
    prompts === 0 ? "0 %" : `${((tokens / prompts) * 100).toFixed(1)} %`
  const host = stats.cacheHostTokensTotal
  const disk = stats.cacheDiskTokensTotal
  const tiers = [
    {
      name: "tierDevice",
      bytes: stats.cacheDeviceBytes,
      limit: info.kvCacheBytes,
      tokens: Math.max(0, stats.cachedTokensTotal - host - disk),
    },
    {
      name: "tierHost",
      bytes: stats.cacheHostBytes,
      limit: stats.cacheHostLimitBytes,
      tokens: host,
    },
    {
      name: "tierDisk",
      bytes: stats.cacheDiskBytes,
      limit: stats.cacheDiskLimitBytes,
      tokens: disk,
    },
  ] as const
  return (
    <>
      <p class="hint">
        {t("cacheSummary", { rate: percent(stats.cachedTokensTotal), n: formatCount(prompts) })}
      </p>
      <div class="table-scroll" role="group" tabIndex={0} aria-label={t("prefixCache")}>
        <table class="table">
          <thead>
            <tr>
              <th scope="col">{t("tier")}</th>
              <td />
              <th scope="col" class="number">
                {t("bytes")}
              </th>
              <th scope="col" class="number">
                {t("limit")}
              </th>
              <th scope="col" class="number">
                {t("hitTokens")}
              </th>
              <th scope="col" class="number">
                {t("hitRate")}
              </th>
            </tr>
          </thead>
          <tbody>
            {tiers.map(({ name, bytes, limit, tokens }) => {
              const n = limit > 0 ? Math.round((bytes / limit) * 100) : 0
              return (
                <tr key={name}>
                  <th scope="row">{t(name)}</th>
                  <td>
                    {limit > 0 && (
                      <meter min={0} max={100} value={n} aria-label={t("fullShare", { n })} />
                    )}
                  </td>
                  <td class="number">{formatBytes(bytes)}</td>
                  <td class="number">{limit > 0 ? formatBytes(limit) : t("off")}</td>
                  <td class="number">{formatCount(tokens)}</td>
                  <td class="number">{percent(tokens)}</td>
                </tr>
              )
            })}
          </tbody>
        </table>
      </div>
    </>
  )
}

import type { JSX } from "preact"

import { formatCount, formatDuration, formatSpeed } from "../format.ts"
import { t } from "../language.ts"
import type { Stats } from "../types.ts"

/** What an answer cost, with a bar that shows how its time divides into reading the prompt and writing. */
export function StatsLine({ stats }: { stats: Stats }): JSX.Element {
  const total = stats.firstTokenMs + stats.generationMs
  const share = total > 0 ? stats.firstTokenMs / total : 0
  const cached =
    stats.cachedTokens > 0 ? t("statsCached", { n: formatCount(stats.cachedTokens) }) : ""
  const seconds = formatDuration(total)
  return (
    <p class="stats">
      <span
        class="stats-bar"
        role="img"
        aria-label={t("statsShare", { n: Math.round(share * 100), time: seconds })}
        title={t("statsTimes", {
          first: formatDuration(stats.firstTokenMs),
          rest: formatDuration(stats.generationMs),
        })}
      >
        <span style={{ width: `${Math.max(4, Math.min(96, share * 100))}%` }} />
      </span>
      {stats.tokensPerSecond > 0 && (
        <span class="stats-speed">
          <b>{formatSpeed(stats.tokensPerSecond)}</b> {t("tokensPerSecond")}
        </span>
      )}
      <span>
        {t("firstToken")} <b>{formatDuration(stats.firstTokenMs)}</b>
      </span>
      <span>
        <b>{formatCount(stats.answerTokens)}</b> {t(stats.answerTokens === 1 ? "token" : "tokens")}
      </span>
      {stats.promptTokens > 0 && (
        <span>
          {t("prompt")} <b>{formatCount(stats.promptTokens)}</b>
          {cached}
        </span>
      )}
    </p>
  )
}

import type { JSX } from "preact"

import { formatCount, formatDuration, formatSpeed } from "../format.ts"
import type { Stats } from "../types.ts"

/** What an answer cost, with a bar that shows how its time divides into reading the prompt and writing. */
export function StatsLine({ stats }: { stats: Stats }): JSX.Element {
  const total = stats.firstTokenMs + stats.generationMs
  const share = total > 0 ? stats.firstTokenMs / total : 0
  const cached = stats.cachedTokens > 0 ? `, ${formatCount(stats.cachedTokens)} of it cached` : ""
  const seconds = formatDuration(total)
  return (
    <p class="stats">
      <span
        class="stats-bar"
        role="img"
        aria-label={`${Math.round(share * 100)} % of ${seconds} went by before the first token`}
        title={`${formatDuration(stats.firstTokenMs)} to the first token, ${formatDuration(stats.generationMs)} writing`}
      >
        <span style={{ width: `${Math.max(4, Math.min(96, share * 100))}%` }} />
      </span>
      {stats.tokensPerSecond > 0 && (
        <span class="stats-speed">
          <b>{formatSpeed(stats.tokensPerSecond)}</b> tokens/s
        </span>
      )}
      <span>
        first token <b>{formatDuration(stats.firstTokenMs)}</b>
      </span>
      <span>
        <b>{formatCount(stats.answerTokens)}</b> {stats.answerTokens === 1 ? "token" : "tokens"}
      </span>
      {stats.promptTokens > 0 && (
        <span>
          prompt <b>{formatCount(stats.promptTokens)}</b>
          {cached}
        </span>
      )}
    </p>
  )
}

import { useSignal } from "@preact/signals"
import type { JSX } from "preact"

import { t } from "../language.ts"
import { fetchOverview, type ModelEntry } from "../models/api.ts"
import { apiKey, models } from "../state.ts"
import { usePolling } from "../use-polling.ts"

const REFRESH_MS = 1000

/** Before the first token: the prompt is being read, or the model still loaded. */
export function Waiting({ model }: { model: string | undefined }): JSX.Element {
  const entry = useSignal<ModelEntry | undefined>(undefined)
  usePolling(async () => {
    const known = models.value.find(({ id }) => id === model)
    // as of the last look; a model that was loaded then rarely leaves before it is asked
    if (known?.isLoaded !== false) return
    const answer = await fetchOverview(apiKey.value)
    if ("value" in answer) entry.value = answer.value.models.find(({ name }) => name === model)
  }, REFRESH_MS)
  const { name = "", state, loading = null } = entry.value ?? {}
  const n = loading === null ? 0 : Math.floor((loading.done / Math.max(1, loading.total)) * 100)
  return (
    <p class="waiting">
      <span /> {state === "loading" ? t("loadingShare", { name, n }) : t("readingPrompt")}
    </p>
  )
}

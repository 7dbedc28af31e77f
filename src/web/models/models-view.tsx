import { useSignal } from "@preact/signals"
import type { JSX } from "preact"

import { IconButton } from "../components/icon-button.tsx"
import { ViewFrame } from "../components/view-frame.tsx"
import { formatBytes, formatCount } from "../format.ts"
import { t } from "../language.ts"
import { usePolling } from "../use-polling.ts"
import type { ModelOverview } from "./api.ts"
import { ModelCard } from "./model-card.tsx"
import {
  overview,
  overviewProblem,
  type Pull,
  pull,
  pulls,
  refreshOverview,
} from "./models-state.ts"

const REFRESH_MS = 2000

/** What models there are, and what can be done with them. */
export function ModelsView(): JSX.Element {
  usePolling(refreshOverview, REFRESH_MS)
  const known = overview.value
  const problem = overviewProblem.value
  return (
    <ViewFrame title={t("models")}>
      {problem !== undefined && (
        <p class="view-problem" role="alert">
          {t("refusedView", { reason: problem })}
        </p>
      )}
      {known === undefined ? (
        problem === undefined && <p class="view-empty">{t("waitingForServer")}…</p>
      ) : (
        <>
          <Summary overview={known} />
          {known.models.length === 0 && <p class="view-empty">{t("noModels")}</p>}
          <ul class="cards">
            {known.models.map((model) => (
              <ModelCard key={model.name} model={model} />
            ))}
          </ul>
          {known.can_change && <PullForm />}
        </>
      )}
    </ViewFrame>
  )
}

function Summary({ overview: { models, limits } }: { overview: ModelOverview }): JSX.Element {
  const loaded = models.filter((each) => each.state === "loaded").length
  const used = formatBytes(limits.used)
  return (
    <p class="view-summary">
      <span>{t("modelsSummary", { loaded, total: models.length, max: limits.models })}</span>
      <span>
        {limits.memory === null
          ? t("memoryUsed", { used })
          : t("memoryOf", { used, limit: formatBytes(limits.memory) })}
      </span>
    </p>
  )
}

function PullForm(): JSX.Element {
  const name = useSignal("")
  const submit = (event: Event): void => {
    event.preventDefault()
    const wanted = name.value.trim()
    if (wanted === "") return
    name.value = ""
    void pull(wanted)
  }
  return (
    <section class="view-section" aria-labelledby="pull-title">
      <h2 id="pull-title">{t("pullTitle")}</h2>
      <form class="pull" onSubmit={submit}>
        <label for="pull-name">{t("pullLabel")}</label>
        <input
          id="pull-name"
          type="text"
          spellcheck={false}
          autocomplete="off"
          autocapitalize="off"
          aria-describedby="pull-hint"
          value={name.value}
          onInput={(event) => (name.value = event.currentTarget.value)}
        />
        <button type="submit" class="button is-primary" disabled={name.value.trim() === ""}>
          {t("pull")}
        </button>
        <p id="pull-hint" class="hint">
          {t("pullHint")}
        </p>
      </form>
      <ul class="pulls">
        {pulls.value.map((each) => (
          <PullRow key={each.name} pull={each} />
        ))}
      </ul>
    </section>
  )
}

function PullRow({ pull: { name, controller, progress } }: { pull: Pull }): JSX.Element {
  const { status, completed, total } = progress ?? {}
  const isMeasured = completed !== undefined && total !== undefined && total > 0
  const share = isMeasured ? Math.floor((completed / total) * 100) : undefined
  return (
    <li class="pull-row">
      <div class="pull-head">
        <b>{name}</b>
        <span>{share === undefined ? "" : `${formatCount(share)} %`}</span>
        <IconButton
          icon="close"
          label={t("cancelPull", { name })}
          onClick={() => controller.abort()}
        />
      </div>
      <progress aria-label={name} max={100} {...(share === undefined ? {} : { value: share })} />
      <p class="hint">
        <span lang="en">{status ?? ""}</span>
        {isMeasured &&
          ` · ${t("transferred", { done: formatBytes(completed), total: formatBytes(total) })}`}
      </p>
    </li>
  )
}

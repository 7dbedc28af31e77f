import type { JSX } from "preact"

import { chooseModel, refreshModels } from "../actions.ts"
import { formatCount } from "../format.ts"
import { t } from "../language.ts"
import { newChat } from "../library.ts"
import { countChanged } from "../settings.ts"
import { connection, current, isSidebarOpen, model, models, openPanel, settings } from "../state.ts"
import type { Model } from "../types.ts"
import { IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"

const CONNECTION_TEXT = {
  unknown: "connecting",
  online: "connected",
  loading: "modelLoading",
  offline: "notReachable",
} as const

export function Header(): JSX.Element {
  const changed = countChanged(settings.value)
  return (
    <header class="header">
      <IconButton
        icon="menu"
        label={t("conversations")}
        class="only-narrow open-list"
        onClick={() => (isSidebarOpen.value = true)}
      />
      <div class="header-text">
        <h1 class="header-title">{current.value?.title ?? t("newChat")}</h1>
        <ModelName />
      </div>
      <button
        type="button"
        class="button is-quiet settings-button"
        aria-label={changed === 0 ? t("settings") : t("settingsChanged", { n: changed })}
        onClick={() => (openPanel.value = "settings")}
      >
        <Icon name="sliders" />
        <span class="only-wide">{t("settings")}</span>{" "}
        {changed > 0 && <span class="badge">{changed}</span>}
      </button>
      <IconButton
        icon="plus"
        label={t("newChat")}
        keys="Ctrl+K"
        class="only-narrow"
        onClick={newChat}
      />
    </header>
  )
}

/** Loaded models apart from those that the first message loads, where the server tells. */
function ModelOptions(): JSX.Element {
  const list = (shown: readonly Model[]): JSX.Element[] =>
    shown.map((each) => (
      <option key={each.id} value={each.id}>
        {each.id}
      </option>
    ))
  const all = models.value
  const loaded = all.filter((each) => each.isLoaded === true)
  const others = all.filter((each) => each.isLoaded === false)
  if (loaded.length + others.length < all.length) return <>{list(all)}</>
  return (
    <>
      {loaded.length > 0 && <optgroup label={t("loadedNow")}>{list(loaded)}</optgroup>}
      {others.length > 0 && <optgroup label={t("loadedOnDemand")}>{list(others)}</optgroup>}
    </>
  )
}

function ModelName(): JSX.Element {
  const state = connection.value
  const chosen = model.value
  const context =
    chosen?.contextLength === undefined
      ? ""
      : t("contextTokens", { n: formatCount(chosen.contextLength) })
  return (
    <div class="model" title={`${t(CONNECTION_TEXT[state])}${context}`}>
      <span class={`dot is-${state}`} role="img" aria-label={t(CONNECTION_TEXT[state])} />
      {models.value.length > 1 ? (
        <select
          aria-label={t("model")}
          value={chosen?.id ?? ""}
          onFocus={() => void refreshModels()}
          onChange={(event) => chooseModel(event.currentTarget.value)}
        >
          <ModelOptions />
        </select>
      ) : (
        <span class="model-name">{chosen?.id ?? t(CONNECTION_TEXT[state])}</span>
      )}
    </div>
  )
}

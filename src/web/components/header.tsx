import type { JSX } from "preact"

import { chooseModel } from "../actions.ts"
import { formatCount } from "../format.ts"
import { newChat } from "../library.ts"
import { countChanged } from "../settings.ts"
import { connection, current, isSidebarOpen, model, models, openPanel, settings } from "../state.ts"
import { IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"

const CONNECTION_TEXT = {
  unknown: "Connecting",
  online: "Connected",
  loading: "The model is loading",
  offline: "Server not reachable",
} as const

export function Header(): JSX.Element {
  const changed = countChanged(settings.value)
  return (
    <header class="header">
      <IconButton
        icon="menu"
        label="Conversations"
        class="only-narrow open-list"
        onClick={() => (isSidebarOpen.value = true)}
      />
      <div class="header-text">
        <h1 class="header-title">{current.value?.title ?? "New chat"}</h1>
        <ModelName />
      </div>
      <button
        type="button"
        class="button is-quiet settings-button"
        aria-label={changed === 0 ? "Settings" : `Settings, ${changed} changed`}
        onClick={() => (openPanel.value = "settings")}
      >
        <Icon name="sliders" />
        <span class="only-wide">Settings</span>
        {changed > 0 && <span class="badge">{changed}</span>}
      </button>
      <IconButton
        icon="plus"
        label="New chat"
        keys="Ctrl+K"
        class="only-narrow"
        onClick={newChat}
      />
    </header>
  )
}

function ModelName(): JSX.Element {
  const state = connection.value
  const chosen = model.value
  const context =
    chosen?.contextLength === undefined
      ? ""
      : `, ${formatCount(chosen.contextLength)} tokens of context`
  return (
    <div class="model" title={`${CONNECTION_TEXT[state]}${context}`}>
      <span class={`dot is-${state}`} role="img" aria-label={CONNECTION_TEXT[state]} />
      {models.value.length > 1 ? (
        <select
          aria-label="Model"
          value={chosen?.id ?? ""}
          onChange={(event) => chooseModel(event.currentTarget.value)}
        >
          {models.value.map((each) => (
            <option key={each.id} value={each.id}>
              {each.id}
            </option>
          ))}
        </select>
      ) : (
        <span class="model-name">{chosen?.id ?? CONNECTION_TEXT[state]}</span>
      )}
    </div>
  )
}

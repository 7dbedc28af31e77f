import type { JSX } from "preact"

import { showVersion } from "../actions.ts"
import { t } from "../language.ts"
import { currentGeneration } from "../state.ts"
import type { Message } from "../types.ts"
import { IconButton } from "./icon-button.tsx"

/** Which of a message's versions is shown, and the way to its neighbours; nothing where there is one only. */
export function VersionSwitch({ message }: { message: Message }): JSX.Element | null {
  if (message.versions === undefined) return null
  const { at, others } = message.versions
  const isBusy = currentGeneration.value !== undefined
  return (
    <div class="versions" role="group" aria-label={t("versions")}>
      <IconButton
        icon="back"
        label={t("previousVersion")}
        disabled={isBusy || at === 0}
        onClick={() => showVersion(message.id, at - 1)}
      />
      <span>{t("versionOf", { n: at + 1, of: others.length + 1 })}</span>
      <IconButton
        icon="chevron"
        label={t("nextVersion")}
        disabled={isBusy || at === others.length}
        onClick={() => showVersion(message.id, at + 1)}
      />
    </div>
  )
}

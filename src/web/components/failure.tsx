import type { JSX } from "preact"

import { t } from "../language.ts"
import { openPanel } from "../state.ts"
import type { Failure } from "../types.ts"
import { Icon } from "./icons.tsx"

/** Why an answer failed, where the answer would be, with what can be done about it. */
export function FailureView(props: {
  failure: Failure
  onRetry: (() => void) | undefined
}): JSX.Element {
  const { failure, onRetry } = props
  const wait =
    failure.retryAfter === undefined ? "" : ` ${t("tryAgainIn", { n: failure.retryAfter })}`
  return (
    <div class="failure" role="alert">
      <Icon name="warning" />
      <p>
        {failure.message}
        {wait}
      </p>
      <div class="failure-actions">
        {failure.kind === "auth" && (
          <button type="button" class="button" onClick={() => (openPanel.value = "key")}>
            {t("enterKey")}
          </button>
        )}
        {onRetry !== undefined && (
          <button type="button" class="button" onClick={onRetry}>
            {t("tryAgain")}
          </button>
        )}
      </div>
    </div>
  )
}

import type { JSX } from "preact"

import { t } from "../language.ts"
import { closeNotice } from "../library.ts"
import { notice } from "../state.ts"
import { IconButton } from "./icon-button.tsx"

/** A short message at the edge of the page, with a way back where there is one. */
export function NoticeView(): JSX.Element {
  const shown = notice.value
  return (
    <div class="notices" role="status" aria-live="polite">
      {shown !== undefined && (
        <div class={shown.isError ? "notice is-error" : "notice"}>
          <span>{shown.text}</span>
          {shown.undo !== undefined && (
            <button
              type="button"
              class="button"
              onClick={() => {
                shown.undo?.()
                closeNotice()
              }}
            >
              {t("undo")}
            </button>
          )}
          <IconButton icon="close" label={t("dismiss")} onClick={closeNotice} />
        </div>
      )}
    </div>
  )
}

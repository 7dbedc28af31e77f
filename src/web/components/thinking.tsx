import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { Icon } from "./icons.tsx"
import { MarkdownView } from "./markdown-view.tsx"

/** The model's reasoning, folded away; unfolded by hand it stays so. */
export function ThinkingView({ text, isOpen }: { text: string; isOpen: boolean }): JSX.Element {
  const [isUnfolded, setUnfolded] = useState(false)
  return (
    <div class={isOpen ? "thinking is-running" : "thinking"}>
      <button
        type="button"
        class="thinking-head"
        aria-expanded={isUnfolded}
        onClick={() => setUnfolded(!isUnfolded)}
      >
        <Icon name="chevron" />
        {t(isOpen ? "thinking" : "thoughts")}
      </button>
      {isUnfolded && text !== "" && (
        <div class="thinking-body">
          <MarkdownView text={text} isStreaming={isOpen} />
        </div>
      )}
    </div>
  )
}

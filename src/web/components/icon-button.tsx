import type { JSX } from "preact"
import { useState } from "preact/hooks"

import { t } from "../language.ts"
import { copyText } from "./copy.ts"
import { Icon, type IconName } from "./icons.tsx"

interface Props {
  icon: IconName
  label: string
  onClick: () => void
  /** Keyboard shortcut shown in the tooltip. */
  keys?: string
  class?: string
  disabled?: boolean
  /** It does nothing now and says so, but keeps its place in the order of focus. */
  isIdle?: boolean
}

export function IconButton({
  icon,
  label,
  onClick,
  keys,
  class: extra,
  disabled,
  isIdle = false,
}: Props): JSX.Element {
  return (
    <button
      type="button"
      class={extra === undefined ? "icon-button" : `icon-button ${extra}`}
      aria-label={label}
      title={keys === undefined ? label : `${label} (${keys})`}
      disabled={disabled ?? false}
      aria-disabled={isIdle ? true : undefined}
      onClick={() => isIdle || onClick()}
    >
      <Icon name={icon} />
    </button>
  )
}

const SHOWN_MS = 1600

/** Copies what `text` gives when pressed and shows a tick for a moment. */
export function CopyButton({ label, text }: { label: string; text: () => string }): JSX.Element {
  const [isCopied, setCopied] = useState(false)
  const copy = async (): Promise<void> => {
    if (!(await copyText(text()))) return
    setCopied(true)
    setTimeout(() => setCopied(false), SHOWN_MS)
  }
  return (
    <IconButton
      icon={isCopied ? "check" : "copy"}
      label={isCopied ? t("copied") : label}
      onClick={() => void copy()}
    />
  )
}

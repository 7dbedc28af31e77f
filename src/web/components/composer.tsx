import type { JSX, TargetedKeyboardEvent } from "preact"
import { useEffect, useLayoutEffect, useRef } from "preact/hooks"

import { attach, send, setUnsentFiles, stop } from "../actions.ts"
import { contextTokens } from "../conversation.ts"
import { draftStats } from "../draft.ts"
import { backToPrompt } from "../focus.ts"
import { formatCount, formatTokens } from "../format.ts"
import { t } from "../language.ts"
import {
  connection,
  current,
  currentGeneration,
  currentId,
  editingId,
  model,
  unsent,
  unsentFiles,
} from "../state.ts"
import { AttachButton, DropZone, UnsentFiles } from "./files.tsx"
import { Icon } from "./icons.tsx"

/** Past this share of the context the meter warns. */
const NEARLY_FULL = 0.85

export function Composer(): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null)
  const key = currentId.value ?? ""
  const text = unsent.value.get(key) ?? ""
  const files = unsentFiles.value.get(key) ?? []
  const isEmpty = text.trim() === "" && files.length === 0
  const isBusy = currentGeneration.value !== undefined
  const isOffline = connection.value === "offline"

  useLayoutEffect(() => {
    const element = area.current
    if (element === null) return
    element.style.height = "auto"
    element.style.height = `${element.scrollHeight}px`
  }, [text])
  useEffect(() => {
    if (!isTouch()) area.current?.focus()
  }, [key])

  const submit = (): void => {
    if (isEmpty || isBusy) return
    setUnsent(key, "")
    setUnsentFiles(key, [])
    send(text, files)
  }
  const onKeyDown = (event: TargetedKeyboardEvent<HTMLTextAreaElement>): void => {
    if (event.isComposing) return
    // On a touch keyboard Enter is the only way to a new line; the button sends.
    if (event.key === "Enter" && !event.shiftKey && !isTouch()) {
      event.preventDefault()
      submit()
    } else if (event.key === "ArrowUp" && text === "" && !isBusy) {
      const last = current.value?.messages.findLast((message) => message.role === "user")
      if (last === undefined) return
      event.preventDefault()
      editingId.value = last.id
    }
  }
  return (
    <div class="composer-wrap">
      {isOffline && (
        <p class="offline" role="status">
          <Icon name="warning" /> {t("offline")}
        </p>
      )}
      <DropZone />
      {files.length > 0 && <UnsentFiles conversation={key} files={files} />}
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault()
          submit()
        }}
      >
        <AttachButton />
        <textarea
          id="prompt"
          ref={area}
          rows={1}
          aria-label={t("message")}
          aria-describedby="prompt-hint"
          placeholder={t("askAnything")}
          value={text}
          onInput={(event) => setUnsent(key, event.currentTarget.value)}
          onKeyDown={onKeyDown}
          onPaste={(event) => {
            const pasted = [...(event.clipboardData?.files ?? [])]
            if (pasted.length === 0) return
            event.preventDefault()
            void attach(pasted)
          }}
        />
        {isBusy ? (
          <button
            type="button"
            class="send is-stop"
            aria-label={t("stopAnswering")}
            title={t("stopKey")}
            onClick={() => {
              stop()
              backToPrompt()
            }}
          >
            <Icon name="stop" />
          </button>
        ) : (
          <button
            type="submit"
            class="send"
            aria-label={t("sendMessage")}
            title={t("sendKey")}
            disabled={isEmpty}
          >
            <Icon name="send" />
          </button>
        )}
      </form>
      <div class="composer-foot">
        <span id="prompt-hint" class="hint keys-hint">
          <kbd>Enter</kbd> {t("hintSends")} <kbd>Shift</kbd> <kbd>Enter</kbd> {t("hintNewLine")}
          {isBusy && (
            <>
              , <kbd>Esc</kbd> {t("hintStops")}
            </>
          )}
        </span>
        <ContextMeter />
      </div>
    </div>
  )
}

/** How much of the model's context the conversation fills. */
function ContextMeter(): JSX.Element | null {
  const conversation = current.value
  const limit = model.value?.contextLength
  const generation = currentGeneration.value
  const before = conversation === undefined ? undefined : contextTokens(conversation)
  const live = generation === undefined ? undefined : draftStats(generation.draft.value)
  const used =
    live === undefined
      ? before
      : live.answerTokens + (live.promptTokens > 0 ? live.promptTokens : (before ?? 0))
  if (used === undefined) return null
  if (limit === undefined)
    return <span class="meter-text">{t("tokensUsed", { n: formatCount(used) })}</span>
  const share = Math.min(1, used / limit)
  return (
    <span
      class={share > NEARLY_FULL ? "meter is-full" : "meter"}
      title={t("contextUsedOf", { used: formatCount(used), limit: formatCount(limit) })}
    >
      <span
        class="meter-bar"
        role="meter"
        aria-label={t("contextUsed")}
        aria-valuemin={0}
        aria-valuemax={limit}
        aria-valuenow={Math.min(used, limit)}
      >
        <span style={{ width: `${Math.max(2, share * 100)}%` }} />
      </span>
      <span class="meter-text">
        {t("usedOf", { used: formatTokens(used), limit: formatTokens(limit) })}
      </span>
    </span>
  )
}

function setUnsent(key: string, text: string): void {
  const next = new Map(unsent.value)
  if (text === "") next.delete(key)
  else next.set(key, text)
  unsent.value = next
}

function isTouch(): boolean {
  return matchMedia("(hover: none) and (pointer: coarse)").matches
}

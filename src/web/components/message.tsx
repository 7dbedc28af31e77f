import type { JSX } from "preact"
import { useLayoutEffect, useRef, useState } from "preact/hooks"

import { continueAnswer, deleteMessage, regenerate, resend } from "../actions.ts"
import { fenced } from "../attachments.ts"
import { canContinue, messageText } from "../conversation.ts"
import { fillMessage } from "../draft.ts"
import { backToPrompt } from "../focus.ts"
import { t } from "../language.ts"
import { branch } from "../library.ts"
import { current, currentGeneration, editingId, type Generation } from "../state.ts"
import { splitThinking } from "../think.ts"
import type { Message } from "../types.ts"
import { FailureView } from "./failure.tsx"
import { SentFiles } from "./files.tsx"
import { CopyButton, IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"
import { MarkdownView } from "./markdown-view.tsx"
import { StatsLine } from "./stats.tsx"
import { ThinkingView } from "./thinking.tsx"
import { CallForm, CallView, ResultView } from "./tool-calls.tsx"
import { VersionSwitch } from "./version-switch.tsx"
import { Waiting } from "./waiting.tsx"

export function MessageView({ message }: { message: Message }): JSX.Element {
  if (message.role === "user") return <UserMessage message={message} />
  if (message.role === "tool") return <ResultView message={message} />
  const generation = currentGeneration.value
  if (generation?.messageId === message.id)
    return <StreamingAnswer message={message} generation={generation} />
  return <Answer message={message} />
}

function UserMessage({ message }: { message: Message }): JSX.Element {
  const isBusy = currentGeneration.value !== undefined
  if (editingId.value === message.id) return <Editor message={message} />
  return (
    <article class="message from-user" aria-label={t("you")}>
      {message.files !== undefined && <SentFiles files={message.files} />}
      {message.content !== "" && <div class="bubble">{message.content}</div>}
      <div class="actions">
        <CopyButton label={t("copyMessage")} text={() => messageText(message)} />
        <IconButton
          icon="edit"
          label={t("editAndResend")}
          disabled={isBusy}
          onClick={() => (editingId.value = message.id)}
        />
        <IconButton
          icon="trash"
          label={t("deleteMessage")}
          disabled={isBusy}
          onClick={() => deleteMessage(message.id)}
        />
        <VersionSwitch message={message} />
      </div>
    </article>
  )
}

function Editor({ message }: { message: Message }): JSX.Element {
  const [text, setText] = useState(message.content)
  const area = useRef<HTMLTextAreaElement>(null)
  useLayoutEffect(() => {
    area.current?.focus()
    area.current?.setSelectionRange(text.length, text.length)
  }, [])
  const cancel = (): void => {
    editingId.value = null
    document.getElementById("prompt")?.focus()
  }
  const submit = (): void => {
    resend(message.id, text)
    document.getElementById("prompt")?.focus()
  }
  return (
    <article class="message from-user is-editing" aria-label={t("editingYours")}>
      <textarea
        ref={area}
        class="editor"
        aria-label={t("editMessage")}
        rows={Math.min(12, text.split("\n").length + 1)}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.isComposing) return
          if (event.key === "Escape") {
            event.stopPropagation()
            cancel()
          } else if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault()
            submit()
          }
        }}
      />
      <div class="editor-actions">
        <span class="hint">{t("earlierKept")}</span>
        <button type="button" class="button is-quiet" onClick={cancel}>
          {t("cancel")}
        </button>
        <button
          type="button"
          class="button is-primary"
          disabled={text.trim() === "" && message.files === undefined}
          onClick={submit}
        >
          {t("send")}
        </button>
      </div>
    </article>
  )
}

/** Reads the draft's signal, so each frame of a stream renders this one message and nothing else. */
function StreamingAnswer(props: { message: Message; generation: Generation }): JSX.Element {
  return <Answer message={fillMessage(props.message, props.generation.draft.value)} />
}

/** An answer that is JSON and nothing else; while it grows, one that must be. */
function isJson(text: string, isStreaming: boolean): boolean {
  if (!/^\s*[[{]/.test(text)) return false
  if (isStreaming) return current.value?.settings.schema !== ""
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function Answer({ message }: { message: Message }): JSX.Element {
  const isBusy = currentGeneration.value !== undefined
  const isStreaming = message.state === "streaming"
  const split = splitThinking(message.content)
  const thinking = [message.reasoning ?? "", split.thinking]
    .filter((text) => text !== "")
    .join("\n\n")
  const isThinking = isStreaming && split.answer === "" && (split.isOpen || thinking !== "")
  const { calls = [] } = message
  const isWaiting =
    isStreaming && thinking === "" && split.answer === "" && !split.isOpen && calls.length === 0
  const conversation = current.value
  const isLast = conversation?.messages.at(-1)?.id === message.id
  const goesOn = conversation !== undefined && !isBusy && canContinue(conversation, message)
  const again = (): void => regenerate(message.id)
  const goOn = (): void => {
    continueAnswer(message.id)
    // the button goes, and the focus with it
    backToPrompt()
  }
  return (
    <article class="message from-model" aria-label={t("answer")} aria-busy={isStreaming}>
      {(thinking !== "" || isThinking) && <ThinkingView text={thinking} isOpen={isThinking} />}
      {isWaiting && <Waiting model={message.model} />}
      {split.answer !== "" && (
        <MarkdownView
          text={isJson(split.answer, isStreaming) ? fenced("json", split.answer) : split.answer}
          isStreaming={isStreaming}
        />
      )}
      {calls.length > 0 && isLast && !isBusy ? (
        <CallForm key={message.id} messageId={message.id} calls={calls} />
      ) : (
        calls.map((call) => <CallView key={call.id} call={call} isStreaming={isStreaming} />)
      )}
      {message.state === "stopped" && <p class="ended">{t("stoppedHere")}</p>}
      {message.state === "length" && <p class="ended">{t("cutOff")}</p>}
      {message.failure !== undefined && (
        <FailureView failure={message.failure} onRetry={isBusy ? undefined : again} />
      )}
      {goesOn && (
        <button type="button" class="button continue" onClick={goOn}>
          <Icon name="play" /> {t("continueAnswer")}
        </button>
      )}
      <footer class="message-foot">
        <div class="message-facts">
          {message.stats !== undefined && <StatsLine stats={message.stats} />}
          {!isStreaming && <VersionSwitch message={message} />}
        </div>
        {!isStreaming && (
          <div class="actions">
            <CopyButton label={t("copyAnswer")} text={() => split.answer} />
            <IconButton icon="retry" label={t("regenerate")} disabled={isBusy} onClick={again} />
            <IconButton icon="branch" label={t("branchHere")} onClick={() => branch(message.id)} />
            <IconButton
              icon="trash"
              label={t("deleteAnswer")}
              disabled={isBusy}
              onClick={() => deleteMessage(message.id)}
            />
          </div>
        )}
      </footer>
    </article>
  )
}

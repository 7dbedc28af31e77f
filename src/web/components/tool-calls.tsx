import type { JSX } from "preact"
import { useMemo, useState } from "preact/hooks"

import { answerCalls, deleteMessage } from "../actions.ts"
import { highlightCode } from "../highlight.ts"
import { t } from "../language.ts"
import { current, currentGeneration } from "../state.ts"
import type { Message, ToolCall } from "../types.ts"
import { CopyButton, IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"

/** A tool that the model asks for; its arguments are folded away. */
export function CallView(props: { call: ToolCall; isStreaming: boolean }): JSX.Element {
  const { call, isStreaming } = props
  return (
    <Folded icon="tool" title={t("calls", { name: call.name })} isRunning={isStreaming}>
      <Code text={call.arguments} label={t("callArguments", { name: call.name })} />
    </Folded>
  )
}

/** An answer's calls, each with a field for its result, which are sent together. */
export function CallForm(props: { messageId: string; calls: readonly ToolCall[] }): JSX.Element {
  const { messageId, calls } = props
  const [results, setResults] = useState<readonly string[]>(calls.map(() => ""))
  return (
    <form
      class="call-form"
      onSubmit={(event) => {
        event.preventDefault()
        answerCalls(messageId, results)
      }}
    >
      {calls.map((call, index) => (
        <div key={call.id} class="call-pair">
          <CallView call={call} isStreaming={false} />
          <textarea
            rows={2}
            spellcheck={false}
            aria-label={t("resultOf", { name: call.name })}
            placeholder={t("resultHint", { name: call.name })}
            value={results[index]}
            onInput={(event) => setResults(results.with(index, event.currentTarget.value))}
          />
        </div>
      ))}
      <button type="submit" class="button">
        <Icon name="send" /> {t("sendResults")}
      </button>
    </form>
  )
}

/** What a tool gave. */
export function ResultView({ message }: { message: Message }): JSX.Element {
  const call = current.value?.messages
    .flatMap((each) => each.calls ?? [])
    .findLast((each) => each.id === message.callId)
  const title = t("resultOf", { name: call?.name ?? "" })
  return (
    <article class="message from-tool" aria-label={title}>
      <Folded icon="check" title={title} isRunning={false}>
        <Code text={message.content} label={title} />
        <div class="actions">
          <CopyButton label={t("copyMessage")} text={() => message.content} />
          <IconButton
            icon="trash"
            label={t("deleteMessage")}
            disabled={currentGeneration.value !== undefined}
            onClick={() => deleteMessage(message.id)}
          />
        </div>
      </Folded>
    </article>
  )
}

function Folded(props: {
  icon: "tool" | "check"
  title: string
  isRunning: boolean
  children: JSX.Element | JSX.Element[]
}): JSX.Element {
  return (
    <details class={props.isRunning ? "call is-running" : "call"}>
      <summary>
        <Icon name="chevron" />
        <Icon name={props.icon} />
        <span>{props.title}</span>
      </summary>
      {props.children}
    </details>
  )
}

/** JSON with its lines and colours; other text as it is. */
function Code({ text, label }: { text: string; label: string }): JSX.Element {
  const html = useMemo(() => highlightCode(pretty(text), "json"), [text])
  return (
    <pre class="call-code" tabIndex={0} aria-label={label}>
      <code dangerouslySetInnerHTML={{ __html: html }} />
    </pre>
  )
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

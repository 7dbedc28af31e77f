import type { JSX } from "preact"

import { send } from "../actions.ts"
import { model } from "../state.ts"
import { Mark } from "./icons.tsx"

const EXAMPLES = [
  {
    title: "Explain something",
    prompt: "Explain how a hash map works, with a small example, to someone who knows arrays.",
  },
  {
    title: "Write code",
    prompt: "Write a Python function that merges overlapping intervals, with three test cases.",
  },
  {
    title: "Improve a text",
    prompt:
      "Rewrite this so that it is clear and friendly: “Per my last mail, the report is still outstanding, advise soonest.”",
  },
  {
    title: "Work with numbers",
    prompt: "Derive the quadratic formula step by step, and show the steps as equations.",
  },
] as const

/** What a new chat shows: where the model runs, and a few ways to begin. */
export function EmptyState(): JSX.Element {
  const name = model.value?.id
  return (
    <section class="empty" aria-labelledby="empty-title">
      <Mark />
      <h2 id="empty-title">What are you working on?</h2>
      <p class="empty-sub">
        {name !== undefined && (
          <>
            <strong>{name}</strong> answers.{" "}
          </>
        )}
        What you write goes to this server and nowhere else; chats are kept in this browser.
      </p>
      <ul class="examples">
        {EXAMPLES.map(({ title, prompt }) => (
          <li key={title}>
            <button type="button" class="example" onClick={() => send(prompt)}>
              <span class="example-title">{title}</span>
              <span class="example-prompt">{prompt}</span>
            </button>
          </li>
        ))}
      </ul>
    </section>
  )
}

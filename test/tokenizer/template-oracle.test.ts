import { describe, expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

import { ChatTemplate } from "../../src/tokenizer/chat-template.ts"
import { llamaCppModels, noLlamaCpp } from "./checkout.ts"
import { CONVERSATIONS } from "./conversations.ts"
import { askPython, noPython } from "./python.ts"

interface Answer {
  readonly text?: string
  readonly error?: string
}

const folder = join(llamaCppModels ?? "", "templates")
const reason = noPython ?? noLlamaCpp

/** This one hands Python's generators to tojson, which refuses them; here they are lists, as its author meant. */
const LAX = "llama-cpp-deepseek-r1.jinja"
const TOKENS = { bosToken: "<BOS>", eosToken: "<EOS>", padToken: "<PAD>", unkToken: "<UNK>" }
const NOW = "2026-01-02T03:04:05"

if (reason !== undefined)
  test.skip(`published templates as Python renders them (${reason})`, () => {})

describe("as Python renders", async () => {
  const names =
    reason === undefined ? readdirSync(folder).filter((name) => name.endsWith(".jinja")) : []
  const templates = Object.fromEntries(
    names.map((name) => [name, readFileSync(join(folder, name), "utf8")]),
  )
  const cases = CONVERSATIONS.map((variables) => ({
    add_generation_prompt: true,
    tools: null,
    documents: null,
    bos_token: TOKENS.bosToken,
    eos_token: TOKENS.eosToken,
    pad_token: TOKENS.padToken,
    unk_token: TOKENS.unkToken,
    ...variables,
  }))
  const answers =
    reason === undefined
      ? ((await askPython({ templates, cases, now: NOW })) as Record<string, Answer[]>)
      : {}

  test.each(names)("%s", (name) => {
    const template = new ChatTemplate(templates[name]!, { ...TOKENS, now: () => new Date(NOW) })
    for (const [i, conversation] of CONVERSATIONS.entries()) {
      const {
        name: what,
        messages,
        tools,
        documents,
        add_generation_prompt,
        ...vars
      } = conversation
      const render = (): string =>
        template.render({
          messages,
          tools: tools as unknown[] | undefined,
          documents: documents as unknown[] | undefined,
          addGenerationPrompt: add_generation_prompt ?? true,
          vars,
        })
      const { text, error } = answers[name]![i]!
      if (error === undefined) expect({ what, text: render() }).toEqual({ what, text: text! })
      else if (!(name === LAX && error.includes("generator"))) expect(render, what).toThrow()
    }
  })
})

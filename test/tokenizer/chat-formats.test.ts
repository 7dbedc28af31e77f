import { describe, expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

import { chatFormatOf, reasoningAtEnd, THINK_TAGS } from "../../src/tokenizer/chat-formats.ts"
import { ChatTemplate } from "../../src/tokenizer/chat-template.ts"
import { llamaCppModels, noLlamaCpp } from "./checkout.ts"
import { CONVERSATIONS } from "./conversations.ts"

/** What a template says where it writes a call, and the formats that follow. */
const SMALL: readonly [
  name: string,
  template: string,
  toolCalls: string | undefined,
  reasoning: string | undefined,
][] = [
  ["ChatML", "<|im_start|>{{ x }}<|im_end|>", undefined, undefined],
  ["Qwen3", "<tool_call>{{ c | tojson }}</tool_call><think>{{ r }}</think>", "hermes", "think"],
  ["Qwen3-Coder", "<tool_call>\n<function={{ n }}>\n<parameter={{ k }}>", "qwen3-coder", undefined],
  ["GLM-4.5", "<tool_call>{{ n }}\n<arg_key>{{ k }}</arg_key><think></think>", "glm", "think"],
  [
    "DeepSeek-R1",
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + t + '<｜tool▁sep｜>' + n + '\\n```json\\n' }}</think>",
    "deepseek-v3",
    "think",
  ],
  [
    "DeepSeek-V3.1",
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + n + '<｜tool▁sep｜>' + a }}<think>",
    "deepseek-v3.1",
    "think",
  ],
  [
    "DeepSeek-V3.2",
    "{% set d = '｜DSML｜' %}{{ '<' + d + 'function_calls>' }}<think>",
    "deepseek-dsml-function-calls",
    "think",
  ],
  ["Kimi-K2", "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}", "kimi-k2", undefined],
  ["MiniMax-M2", "{{ '<minimax:tool_call>' }}<invoke name=<think>", "minimax-m2", "think"],
  [
    "gpt-oss",
    "<|start|>assistant<|channel|>analysis<|message|> to=functions.",
    "harmony",
    "harmony",
  ],
  ["Mistral Nemo", "[TOOL_CALLS] [{{ c }}]", "mistral", undefined],
  ["Ministral 3", "[TOOL_CALLS]{{ n }}[ARGS]{{ a }}[THINK]", "mistral-args", "mistral"],
  ["Llama 3.1", "<|python_tag|>", "llama3", undefined],
  ["Llama 4", "<|python_start|>", "pythonic", undefined],
  ["Gemma 4", "<|tool_call>call:{{ n }}<tool_call|><|channel>thought", "gemma", "gemma"],
  ["LFM2", "<|tool_list_start|>", "lfm", undefined],
]
test.each(SMALL)("%s", (_name, template, toolCalls, reasoning) => {
  const format = chatFormatOf(template)
  expect(format.toolCalls?.name).toBe(toolCalls)
  expect(format.reasoning?.name).toBe(reasoning)
})

test("examples hold their own markers", () => {
  for (const [, template, name] of SMALL) {
    if (name === undefined) continue
    const { section, open, close, example } = chatFormatOf(template).toolCalls!
    for (const marker of [section?.open, open, close, section?.close])
      if (marker !== undefined) expect(example).toContain(marker)
  }
})

test("where a prompt leaves the reasoning", () => {
  const at = (prompt: string): string => reasoningAtEnd(prompt, THINK_TAGS)
  expect(at("<|im_start|>assistant\n")).toBe("none")
  expect(at("<|im_start|>assistant\n<think>\n")).toBe("open")
  expect(at("<|im_start|>assistant\n<think>\n\n</think>\n\n")).toBe("closed")
})

describe("published templates", () => {
  const folder = join(llamaCppModels ?? "", "templates")
  if (noLlamaCpp !== undefined)
    test.skip(`show the formats found in them (${noLlamaCpp})`, () => {})
  const names =
    noLlamaCpp === undefined ? readdirSync(folder).filter((name) => name.endsWith(".jinja")) : []
  /** These write calls in answers otherwise than in the history, or leave them out. */
  const silent = /^(LFM2-8B|deepseek-ai-DeepSeek-R1-Distill-Llama|llama-cpp-deepseek-r1)/

  test.each(names)("%s", (name) => {
    const source = readFileSync(join(folder, name), "utf8")
    const { reasoning, toolCalls } = chatFormatOf(source)
    const template = new ChatTemplate(source)
    const render = (what: string): string => {
      const { messages, tools } = CONVERSATIONS.find((each) => each.name === what)!
      try {
        return template.render({ messages, tools: tools as unknown[], addGenerationPrompt: false })
      } catch {
        return ""
      }
    }
    const called = render("call") || render("call-str")
    if (called !== "" && toolCalls !== undefined && !silent.test(name))
      for (const marker of [toolCalls.section?.open, toolCalls.open])
        if (marker !== undefined) expect(called).toContain(marker)
    const reasoned = render("reason-last")
    if (reasoning !== undefined && reasoned.includes("and two"))
      expect(reasoned).toContain(reasoning.close)
  })
})

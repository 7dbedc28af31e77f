import { expect, test } from "bun:test"

import { splitThinking } from "../../src/web/think.ts"

test.each([
  ["plain", { thinking: "", answer: "plain", isOpen: false }],
  ["<think>\nhm\n</think>\n\nyes", { thinking: "hm", answer: "yes", isOpen: false }],
  ["\n<think>half", { thinking: "half", answer: "", isOpen: true }],
  ["<thi", { thinking: "", answer: "", isOpen: true }],
  ["<this", { thinking: "", answer: "<this", isOpen: false }],
  ["hm\n</think>\n\nyes", { thinking: "hm", answer: "yes", isOpen: false }],
  [
    "The tag `</think>` ends it.",
    { thinking: "", answer: "The tag `</think>` ends it.", isOpen: false },
  ],
  ["", { thinking: "", answer: "", isOpen: false }],
])("%j", (text, expected) => {
  expect(splitThinking(text)).toEqual(expected)
})

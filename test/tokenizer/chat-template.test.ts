import { describe, expect, test } from "bun:test"

import { ConfigError } from "../../src/errors.ts"
import {
  type ChatMessage,
  ChatTemplate,
  DEFAULT_TEMPLATE,
} from "../../src/tokenizer/chat-template.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { golden } from "../setup.ts"
import { readGgufMetadata } from "./gguf-metadata.ts"

const MESSAGES: readonly ChatMessage[] = [
  { role: "system", content: "Be brief" },
  { role: "user", content: "Hi" },
  { role: "assistant", content: "Hello" },
  { role: "user", content: "Weather?" },
]
const TOOLS = [
  {
    type: "function",
    function: {
      name: "weather",
      description: 'of a <city> & "more" é',
      parameters: { type: "object", properties: {} },
    },
  },
]

describe("prompts", () => {
  const table: readonly [name: string, template: string, prompt: string][] = [
    [
      "ChatML, the default",
      DEFAULT_TEMPLATE,
      "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n" +
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n",
    ],
    [
      "white space around blocks",
      "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- m.content + ';' }}\n    {%- endif %}\n{%- endfor %}\n  {% if add_generation_prompt %}\n>\n  {% endif %}\n",
      "Hi;Weather?;>\n",
    ],
    [
      "special tokens, slices and namespaces",
      "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}{{ messages[-1]['content'] | upper }}{{ eos_token }}",
      "<s>6WEATHER?</s>",
    ],
    [
      "JSON as Python writes it",
      "{{ tools | tojson }}\n{{ tools[0].function.parameters | tojson(indent=2) }}",
      '[{"type": "function", "function": {"name": "weather", "description": "of a <city> & \\"more\\" é", "parameters": {"type": "object", "properties": {}}}}]\n' +
        '{\n  "type": "object",\n  "properties": {}\n}',
    ],
    [
      "macros, filters, break and generation marks",
      "{% macro tag(x, y='/') %}<{{ x }}{{ y }}>{% endmacro %}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ tag(i) }}{% endfor %}{% generation %}{{ ' a ' | trim }}{% endgeneration %}{{ (x is defined) | tojson }}",
      "<0/><1/>afalse",
    ],
    [
      "dates",
      "{{ strftime_now('%d %b %Y, %B %A %-d %H:%M %y %F %e %j') }}",
      "02 Jan 2026, January Friday 2 03:04 26 2026-01-02  2 002",
    ],
    [
      "variables of the request",
      "{{ enable_thinking | tojson }} {{ documents | tojson }}",
      "true null",
    ],
    [
      "values shown as Python shows them",
      "{{ enable_thinking }} {{ [1, 'it', \"it's\", none, 2.0] }} {{ {'a': true, 3: (1, 2)} | string }} {{ 'a' ~ false ~ none }}",
      "True [1, 'it', \"it's\", None, 2.0] {'a': True, 3: (1, 2)} aFalseNone",
    ],
    [
      "filters on what is missing",
      "[{{ missing | trim }}|{{ missing | length }}|{{ none | selectattr('type', 'equalto', 'x') | list | length }}]",
      "[|0|0]",
    ],
    [
      "mappings with integer keys, tuples in loops, str.format, min and max",
      "{% set m = {512: 'a', 16: 'b'} %}{{ m[512] }}{% for k, v in m | dictsort %}{{ k + 1 }}{{ v }}{% endfor %}{% for a, b in [('x', 'y')] %}{{ a }}{{ b }}{% endfor %} {{ '<{}|{n}>{{}}'.format(1, n='z') }} {{ [3, 1, 2] | min }}{{ [3, 1, 2] | max }}",
      "a17b513axy <1|z>{} 13",
    ],
  ]
  test.each(table)("%s", (_name, source, prompt) => {
    const template = new ChatTemplate(source, {
      bosToken: "<s>",
      eosToken: "</s>",
      now: () => new Date(2026, 0, 2, 3, 4),
    })
    expect(
      template.render({ messages: MESSAGES, tools: TOOLS, vars: { enable_thinking: true } }),
    ).toBe(prompt)
  })
})

describe("Python's rules", () => {
  const table: readonly [template: string, text: string][] = [
    ["{{ none }}{{ missing }}{{ [none, true] }}", "None[None, True]"],
    ["{% macro m(x) %}{{ x }}{% endmacro %}{{ m(none) }}", "None"],
    [
      "{{ 1 == '1' }} {{ [1, {'a': 2}] == [1, {'a': 2}] }} {{ (1, 2) == [1, 2] }} {{ true == 1 }}",
      "False True False True",
    ],
    ["{{ [1] in ([1], 2) }} {{ 'a' in {'a': 1} }} {{ 'x' in missing }}", "True True False"],
    ["{{ 'ab' * 3 }}{{ [0] * 2 }}{{ 2 * 'c' }}{{ 'a' * -1 }}", "ababab[0, 0]cc"],
    ["{{ -7 % 3 }} {{ 7 % -3 }} {{ -7 // 2 }} {{ true + 1 }}", "2 -2 -4 2"],
    ["{{ 'B' < 'a' }} {{ [1, 2] < [1, 3] }}", "True True"],
    ["{{ [1, 'a'] | trim }}|{{ {'a': none} | upper }}", "[1, 'a']|{'A': NONE}"],
    [
      "{% set d = {'items': 5, 'x': 6} %}{{ d['items'] }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}",
      "5items5x6",
    ],
    ["{{ '<b>' | safe + '<i>' }}{{ '<b>' | safe ~ '<i>' }}", "<b>&lt;i&gt;<b><i>"],
  ]
  const filters: readonly [template: string, text: string][] = [
    ["{{ [1, 2, 3, 4] | select('odd') | list }}{{ [1, 2] | reject('eq', 2) | list }}", "[1, 3][1]"],
    [
      "{{ [{'n': 1}, {'m': '1'}] | selectattr('n') | list }}{{ [{'n': 1}] | selectattr('n', 'equalto', 1) | list | length }}",
      "[{'n': 1}]1",
    ],
    [
      "{{ ['a', 'b'] | map('upper') | join('-') }}{{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }}{{ [{}] | map(attribute='y', default=0) | list }}",
      "A-B[1][0]",
    ],
    ["{{ [{'a': 1}, {'a': none}] | join('|', attribute='a') }}{{ [1, 2] | sum }}", "1|None3"],
    [
      "{{ 2.5 | round }} {{ 3.14159 | round(2) }} {{ 1.7 | round(method='floor') }}",
      "2.0 3.14 1.0",
    ],
    ["{{ none | d('e', true) }}{{ '' | d('f') }}{{ '<' | e }}{{ 'xax' | trim('x') }}", "e&lt;a"],
    [
      "{{ [1, 2, 3] | batch(2) | list }}{{ [] | first is defined }}{{ 'ab' | list }}",
      "[[1, 2], [3]]False['a', 'b']",
    ],
    [
      "{% for c in 'ab' %}{{ c }}{{ loop.cycle('x', 'y') }}{% endfor %}{% for m in missing %}1{% else %}2{% endfor %}",
      "axby2",
    ],
    [
      "{{ 'a-b'.count('-') }}{{ 'abc'.find('c') }}{{ 'a.b.c'.rsplit('.', 1) }}{{ 'abc'.removeprefix('a') }}{{ 'a\nb'.splitlines() }}{{ '7'.zfill(3) }}{{ '12'.isdigit() }}",
      "12['a.b', 'c']bc['a', 'b']007True",
    ],
  ]
  test.each([...table, ...filters])("%s", (source, text) => {
    expect(new ChatTemplate(source).render({ messages: [] })).toBe(text)
  })

  test.each([
    ["{{ 'a' + 1 }}", "unsupported operand types for +: string and integer"],
    ["{{ 'a' + [1] }}", "unsupported operand types for +: string and array"],
    ["{{ 'a' + missing }}", 'an undefined value stands beside "+"'],
    ["{{ messages[0].role }}", "the member 0 is undefined"],
    ["{{ missing.role }}", '"missing" is undefined'],
    ["{{ missing | tojson }}", "an undefined value cannot be written as JSON"],
    ["{{ 1 < 'a' }}", "unsupported operand types for <: integer and string"],
    ["{{ 1 in 'abc' }}", '"in" has string on its right and integer on its left'],
    ["{{ 'x' * 99999999 }}", "is longer than"],
    ["{{ 'x'.constructor('y') }}", "not a function"],
    ["{{ 'x' | constructor }}", "constructor"],
  ])("%s is refused", (source, message) => {
    expect(() => new ChatTemplate(source).render({ messages: [] })).toThrow(message)
  })
})

test("without a generation prompt the text ends with the last message", () => {
  const prompt = new ChatTemplate(DEFAULT_TEMPLATE).render({
    messages: MESSAGES.slice(1, 2),
    addGenerationPrompt: false,
  })
  expect(prompt).toBe("<|im_start|>user\nHi<|im_end|>\n")
})

test("an empty list of tools is no tools", () => {
  const template = new ChatTemplate("{% if tools is none %}none{% else %}some{% endif %}")
  expect(template.render({ messages: [], tools: [] })).toBe("none")
  expect(template.render({ messages: [], tools: TOOLS })).toBe("some")
})

describe("errors", () => {
  test("a template that cannot be parsed", () => {
    expect(() => new ChatTemplate("{% for %}", { source: "x.gguf" })).toThrow(ConfigError)
    expect(() => new ChatTemplate("{% for %}", { source: "x.gguf" })).toThrow(
      "x.gguf: cannot be parsed",
    )
  })

  test("a template that refuses the messages says why", () => {
    const template = new ChatTemplate("{{ raise_exception('System role not supported') }}", {
      source: "x.gguf",
    })
    expect(() => template.render({ messages: MESSAGES })).toThrow(ConfigError)
    expect(() => template.render({ messages: MESSAGES })).toThrow(
      "x.gguf: cannot be rendered: System role not supported",
    )
  })
})

describe("templates of a model", () => {
  const tokenizer = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", "llama-f16.gguf")))
  const plain = Tokenizer.fromGguf(readGgufMetadata(golden("gguf", "llama-tied-bf16.gguf")))

  test("its own is used", () => {
    const warnings: string[] = []
    const template = ChatTemplate.of(tokenizer, { warn: (message) => warnings.push(message) })
    expect(template.source).toBe(tokenizer.chatTemplate!)
    expect(warnings).toEqual([])
    const ids = tokenizer.encodePrompt(template.render({ messages: MESSAGES }))
    expect([...ids].filter((id) => id === tokenizer.tokenId("<|im_start|>"))).toHaveLength(5)
  })

  test("ChatML stands in, with one warning", () => {
    const warnings: string[] = []
    const template = ChatTemplate.of(plain, {
      source: "m.gguf",
      warn: (message) => warnings.push(message),
    })
    expect(template.source).toBe(DEFAULT_TEMPLATE)
    expect(warnings).toEqual(["m.gguf: the model has no chat template, so ChatML is used"])
  })

  test("a named one is preferred where there is one", () => {
    const named = {
      ...tokenizer,
      chatTemplates: new Map([
        ["default", "d"],
        ["tool_use", "t"],
      ]),
      tokenText: () => "",
    }
    const of = (name: string): string =>
      ChatTemplate.of({ ...named, bosId: undefined, eosId: undefined, padId: undefined }, { name })
        .source
    expect(of("tool_use")).toBe("t")
    expect(of("rag")).toBe("d")
  })
})

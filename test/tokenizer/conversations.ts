/** Variables of chat templates: conversations of every shape that clients send. */
export interface Conversation {
  readonly name: string
  readonly messages: readonly Message[]
  readonly add_generation_prompt?: boolean
  readonly [variable: string]: unknown
}

interface Message {
  readonly role: string
  readonly content?: unknown
  readonly [key: string]: unknown
}

function tool(name: string, description: string, parameters: object): object {
  return { type: "function", function: { name, description, parameters } }
}

export const TOOLS: readonly object[] = [
  tool("get_weather", "Weather of a city", {
    type: "object",
    properties: {
      city: { type: "string", description: 'The city, "quoted" <b> é 日本' },
      unit: { type: "string", enum: ["c", "f"], default: "c" },
      days: { type: "integer", minimum: 1 },
    },
    required: ["city"],
  }),
  tool("search", "Search\nmultiline", {
    type: "object",
    properties: {
      q: { type: ["string", "null"] },
      filters: {
        type: "object",
        properties: {
          tags: { type: "array", items: { type: "string" } },
          deep: { type: "object", properties: { x: { type: "number" } } },
        },
        required: ["tags"],
      },
      any: { anyOf: [{ type: "string" }, { type: "boolean" }] },
    },
    required: ["q", "filters"],
    additionalProperties: false,
  }),
  tool("noargs", "Nothing", { type: "object", properties: {} }),
]

/** A call. */
function C(name: string, args: unknown, id = "call_1_abcd"): object {
  return { id, type: "function", function: { name, arguments: args } }
}
/** Messages by role. */
const U = (content: unknown): Message => ({ role: "user", content })
const S = (content: unknown): Message => ({ role: "system", content })
const D = (content: unknown): Message => ({ role: "developer", content })
const A = (content: unknown, more: object = {}): Message => ({
  role: "assistant",
  content,
  ...more,
})
const T = (content: unknown, id = "call_1_abcd", name = "get_weather"): Message => ({
  role: "tool",
  tool_call_id: id,
  name,
  content,
})
const P = (...texts: string[]): object[] => texts.map((text) => ({ type: "text", text }))

const CALL: readonly Message[] = [
  U("Weather?"),
  A("", { tool_calls: [C("get_weather", { city: "Paris", unit: "c", days: 2 })] }),
  T('{"t": 20}'),
]
const LONG: readonly Message[] = [0, 1, 2, 3, 4, 5].flatMap((i) => [
  U(`q${i}`),
  A(`a${i}`, { reasoning_content: `r${i}` }),
])

export const CONVERSATIONS: readonly Conversation[] = [
  { name: "user", messages: [U("Hi")] },
  { name: "user-nogen", messages: [U("Hi")], add_generation_prompt: false },
  { name: "sys", messages: [S("Be brief."), U("Hello <b>\n 'x' \"y\" é 😀")] },
  {
    name: "multi",
    messages: [S("Be brief."), U(" Hi "), A("Hello!\n"), U("More?"), A("Yes"), U("Bye")],
  },
  { name: "multi-nogen", messages: [U("Hi"), A("Hello!")], add_generation_prompt: false },
  { name: "tools", messages: [U("Weather?")], tools: TOOLS },
  { name: "tools-sys", messages: [S("Sys"), U("Weather?")], tools: TOOLS },
  { name: "call", messages: CALL, tools: TOOLS },
  {
    name: "call-none",
    messages: [
      U("W"),
      A(null, { tool_calls: [C("get_weather", { city: 'Pa"ris é' })] }),
      T("sunny"),
    ],
    tools: TOOLS,
  },
  {
    name: "call-nocontent",
    messages: [
      U("W"),
      { role: "assistant", tool_calls: [C("get_weather", { city: "P" })] },
      T("sunny"),
    ],
    tools: TOOLS,
  },
  {
    name: "call-str",
    messages: [
      U("W"),
      A("", { tool_calls: [C("get_weather", '{"city": "Paris", "days": 2}')] }),
      T("sunny"),
    ],
    tools: TOOLS,
  },
  { name: "call-answer", messages: [...CALL, A("It is 20"), U("And Rome?")], tools: TOOLS },
  {
    name: "call-content",
    messages: [
      S("S"),
      U("W"),
      A("Let me look", { tool_calls: [C("get_weather", { city: "P", days: 3 })] }),
      T("r"),
      A("done"),
      U("thx"),
    ],
    tools: TOOLS,
  },
  {
    name: "parallel",
    messages: [
      U("W"),
      A("", {
        tool_calls: [
          C("get_weather", { city: "P" }, "call_1_abcd"),
          C(
            "search",
            { q: null, filters: { tags: ["a", "b"], deep: { x: 1.5 } }, any: true },
            "call_2_efgh",
          ),
        ],
      }),
      T("1", "call_1_abcd"),
      T("2", "call_2_efgh", "search"),
    ],
    tools: TOOLS,
  },
  { name: "call-notools", messages: CALL },
  {
    name: "call-last",
    messages: [U("W"), A("", { tool_calls: [C("noargs", {})] })],
    tools: TOOLS,
    add_generation_prompt: false,
  },
  { name: "reason", messages: [U("2+2"), A("4", { reasoning_content: "two and two" }), U("3+3")] },
  {
    name: "reason-last",
    messages: [U("2+2"), A("4", { reasoning_content: "two\nand two\n" })],
    add_generation_prompt: false,
  },
  {
    name: "reason-call",
    messages: [
      U("W"),
      A("", { reasoning_content: "need tool", tool_calls: [C("get_weather", { city: "P" })] }),
      T("20"),
    ],
    tools: TOOLS,
  },
  {
    name: "reason-call2",
    messages: [
      U("W"),
      A("", { reasoning_content: "need tool", tool_calls: [C("get_weather", { city: "P" })] }),
      T("20"),
      A("twenty", { reasoning_content: "so" }),
      U("ok"),
    ],
    tools: TOOLS,
  },
  { name: "think-inline", messages: [U("2+2"), A("<think>\nhm\n</think>\n\n4"), U("x")] },
  { name: "reason-thinking", messages: [U("2+2"), A("4", { thinking: "two and two" }), U("3")] },
  {
    name: "reason-thinking-call",
    messages: [
      U("2+2"),
      A("", { thinking: "two and two", tool_calls: [C("get_weather", { city: "P" })] }),
      T("1"),
    ],
    tools: TOOLS,
  },
  { name: "think-on", messages: [U("Hi")], enable_thinking: true },
  { name: "think-off", messages: [U("Hi")], enable_thinking: false },
  {
    name: "think-off2",
    messages: [S("s"), U("a"), A("b", { reasoning_content: "r" }), U("c")],
    enable_thinking: false,
    tools: TOOLS,
  },
  { name: "thinking-on", messages: [U("Hi")], thinking: true },
  { name: "thinking-off", messages: [U("Hi")], thinking: false },
  { name: "effort", messages: [S("sys"), U("Hi")], reasoning_effort: "high" },
  { name: "effort-low", messages: [U("Hi")], reasoning_effort: "low", tools: TOOLS },
  { name: "budget", messages: [U("Hi")], thinking_budget: 512 },
  {
    name: "parts",
    messages: [
      { role: "system", content: P("sys") },
      { role: "user", content: P("a", "b") },
    ],
  },
  { name: "parts2", messages: [U(P("a")), A(P("b")), U(P("c"))] },
  {
    name: "image",
    messages: [{ role: "user", content: [{ type: "image" }, { type: "text", text: "what" }] }],
  },
  {
    name: "image-url",
    messages: [
      {
        role: "user",
        content: [
          { type: "image_url", image_url: { url: "x" } },
          { type: "text", text: "what" },
        ],
      },
    ],
  },
  {
    name: "tool-parts",
    messages: [U("W"), A("", { tool_calls: [C("get_weather", { city: "P" })] }), T(P("20", "c"))],
    tools: TOOLS,
  },
  { name: "developer", messages: [D("Dev"), U("Hi")] },
  { name: "developer-tools", messages: [D("Dev"), U("Hi")], tools: TOOLS },
  { name: "bad-order", messages: [U("a"), U("b")] },
  { name: "bad-order2", messages: [A("a"), U("b")] },
  { name: "late-sys", messages: [U("a"), A("b"), S("late"), U("c")] },
  { name: "only-sys", messages: [S("x")] },
  { name: "bad-role", messages: [{ role: "alien", content: "x" }] },
  { name: "empty", messages: [] },
  { name: "empty-user", messages: [U("")] },
  {
    name: "docs",
    messages: [U("q")],
    documents: [
      { title: "T", text: "body", content: "c", doc_id: 1 },
      { title: "T2", text: "b2" },
    ],
  },
  {
    name: "tool-obj",
    messages: [
      U("W"),
      A("", { tool_calls: [C("get_weather", { city: "P" })] }),
      { role: "tool", tool_call_id: "call_1_abcd", content: '{"temp": 1.0, "ok": true}' },
      U("next"),
    ],
    tools: TOOLS,
  },
  { name: "prefix", messages: [U("a"), A("b", { prefix: true })], add_generation_prompt: false },
  { name: "long", messages: [S("S"), ...LONG, U("end")], tools: TOOLS },
  {
    name: "tool2turn",
    messages: [
      ...CALL,
      A("", {
        tool_calls: [C("search", { q: "x", filters: { tags: [] } }, "call_9_zzzz")],
        reasoning_content: "again",
      }),
      T("[]", "call_9_zzzz", "search"),
      A("fin"),
      U("more"),
    ],
    tools: TOOLS,
    enable_thinking: true,
  },
]

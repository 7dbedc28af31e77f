/** How a model marks its reasoning within an answer. */
export interface ReasoningFormat {
  readonly name: string
  readonly open: string
  readonly close: string
  /** What an answer that is made to reason begins with: the opening marker and what models write after it. */
  readonly start: string
}

/** How the arguments of a call are written. */
export type ArgumentSyntax =
  /** one JSON object */
  | "json"
  /** one element per argument; values that are no strings are JSON */
  | "xml"
  /** Python's keyword arguments */
  | "python"
  /** Gemma's JSON without quotes on keys and with `<|"|>` around strings */
  | "gemma"

/** How a model writes tool calls. */
export interface ToolCallFormat {
  readonly name: string
  /** Surrounds all calls of one answer. */
  readonly section?: { readonly open: string; readonly close: string }
  /** Begins a call; empty where the whole answer is one. */
  readonly open: string
  /** Ends a call; empty where the end of the answer does. */
  readonly close: string
  readonly arguments: ArgumentSyntax
  /** A call of `f` with `a` = 1, as the model writes it. */
  readonly example: string
}

export interface ChatFormat {
  readonly reasoning: ReasoningFormat | undefined
  readonly toolCalls: ToolCallFormat | undefined
}

/** Every format of tool calls that is known. */
export function toolCallFormats(): ToolCallFormat[] {
  return TOOL_CALLS.map(([, format]) => format)
}

/** Reasoning between tags, in the order in which templates are searched for them. */
const REASONING: readonly (readonly [mark: RegExp, format: ReasoningFormat])[] = [
  [/<\|channel\|>/, reasoning("harmony", "<|channel|>analysis<|message|>", "<|end|>")],
  [/<\|channel>/, reasoning("gemma", "<|channel>thought\n", "<channel|>")],
  [/<seed:think>/, reasoning("seed", "<seed:think>", "</seed:think>")],
  [/<mm:think>|mm:think/, reasoning("minimax-m3", "<mm:think>", "</mm:think>")],
  [/<\|START_THINKING\|>/, reasoning("command", "<|START_THINKING|>", "<|END_THINKING|>")],
  [/\[THINK\]/, reasoning("mistral", "[THINK]", "[/THINK]")],
  [/<\|inner_prefix\|>/, reasoning("apertus", "<|inner_prefix|>", "<|inner_suffix|>")],
  [/<\|open\|>/, reasoning("kimi-k3", "<|open|>think<|sep|>", "<|close|>think<|sep|>")],
  [/<\|tool_call:begin\|>/, reasoning("solar", "<|think|>", "<|end|>")],
  [/<\/?think>/, { ...reasoning("think", "<think>", "</think>"), start: "<think>\n" }],
]

/** DeepSeek-R1's and Qwen's tags, which most models follow. */
export const THINK_TAGS: ReasoningFormat = REASONING.at(-1)![1]

function reasoning(name: string, open: string, close: string): ReasoningFormat {
  return { name, open, close, start: open }
}

const DEEPSEEK_SECTION = {
  open: "<\uff5ctool\u2581calls\u2581begin\uff5c>",
  close: "<\uff5ctool\u2581calls\u2581end\uff5c>",
}
const DEEPSEEK_CALL = {
  open: "<\uff5ctool\u2581call\u2581begin\uff5c>",
  close: "<\uff5ctool\u2581call\u2581end\uff5c>",
}
const SEPARATOR = "<\uff5ctool\u2581sep\uff5c>"
const DSML = "\uff5cDSML\uff5c"
const JSON_CALL = '{"name": "f", "arguments": {"a": 1}}'

function tags(name: string, open: string, close: string, body: string): ToolCallFormat {
  return { name, open, close, arguments: "json", example: open + body + close }
}

function xml(name: string, open: string, close: string, body: string): ToolCallFormat {
  return { name, open, close, arguments: "xml", example: open + body + close }
}

/** DeepSeek V3.2's and V4's markup. */
function dsml(section: string): ToolCallFormat {
  return {
    name: `deepseek-dsml-${section.replace("_", "-")}`,
    section: { open: `<${DSML}${section}>`, close: `</${DSML}${section}>` },
    open: `<${DSML}invoke`,
    close: `</${DSML}invoke>`,
    arguments: "xml",
    example: `<${DSML}${section}>\n<${DSML}invoke name="f">\n<${DSML}parameter name="a" string="false">1</${DSML}parameter>\n</${DSML}invoke>\n</${DSML}${section}>`,
  }
}

/** Searched in this order: the special ones before the tags that many share. */
const TOOL_CALLS: readonly (readonly [mark: RegExp, format: ToolCallFormat])[] = [
  [
    /<\|tool_calls_section_begin\|>/,
    {
      name: "kimi-k2",
      section: { open: "<|tool_calls_section_begin|>", close: "<|tool_calls_section_end|>" },
      open: "<|tool_call_begin|>",
      close: "<|tool_call_end|>",
      arguments: "json",
      example:
        '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|><|tool_calls_section_end|>',
    },
  ],
  // V4 calls the section what V3.2 calls function_calls
  [new RegExp(`^(?=[^]*${DSML})[^]*tool_calls>`), dsml("tool_calls")],
  [new RegExp(DSML), dsml("function_calls")],
  [
    // R1 and V3: a type before the name and a fence around the arguments
    /^(?=[^]*<\uff5ctool\u2581sep\uff5c>)(?=[^]*```json)/,
    {
      name: "deepseek-v3",
      section: DEEPSEEK_SECTION,
      ...DEEPSEEK_CALL,
      arguments: "json",
      example: `${DEEPSEEK_SECTION.open}${DEEPSEEK_CALL.open}function${SEPARATOR}f\n\`\`\`json\n{"a": 1}\n\`\`\`${DEEPSEEK_CALL.close}${DEEPSEEK_SECTION.close}`,
    },
  ],
  [
    /<\uff5ctool\u2581sep\uff5c>/,
    {
      name: "deepseek-v3.1",
      section: DEEPSEEK_SECTION,
      ...DEEPSEEK_CALL,
      arguments: "json",
      example: `${DEEPSEEK_SECTION.open}${DEEPSEEK_CALL.open}f${SEPARATOR}{"a": 1}${DEEPSEEK_CALL.close}${DEEPSEEK_SECTION.close}`,
    },
  ],
  [
    /<arg_key>/,
    xml(
      "glm",
      "<tool_call>",
      "</tool_call>",
      "f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n",
    ),
  ],
  [
    /<seed:tool_call>/,
    xml(
      "seed",
      "<seed:tool_call>",
      "</seed:tool_call>",
      "\n<function=f>\n<parameter=a>1</parameter>\n</function>\n",
    ),
  ],
  [
    /<parameter=/,
    xml(
      "qwen3-coder",
      "<tool_call>",
      "</tool_call>",
      "\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n",
    ),
  ],
  [
    /<minimax:tool_call>/,
    {
      name: "minimax-m2",
      section: { open: "<minimax:tool_call>", close: "</minimax:tool_call>" },
      open: "<invoke",
      close: "</invoke>",
      arguments: "xml",
      example:
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n</minimax:tool_call>',
    },
  ],
  [
    /\]<\]minimax\[>\[/,
    {
      name: "minimax-m3",
      section: { open: "]<]minimax[>[<tool_call>", close: "]<]minimax[>[</tool_call>" },
      open: "]<]minimax[>[<invoke",
      close: "]<]minimax[>[</invoke>",
      arguments: "xml",
      example:
        ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<a>1]<]minimax[>[</a>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>',
    },
  ],
  [
    /<\|channel\|>/,
    {
      name: "harmony",
      // before the channel or after it: models write both
      open: "to=functions.",
      close: "<|call|>",
      arguments: "json",
      example: '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
    },
  ],
  [
    /<tool_call\|>/,
    {
      name: "gemma",
      open: "<|tool_call>",
      close: "<tool_call|>",
      arguments: "gemma",
      example: "<|tool_call>call:f{a:1}<tool_call|>",
    },
  ],
  [
    /\[ARGS\]/,
    {
      name: "mistral-args",
      open: "[TOOL_CALLS]",
      close: "",
      arguments: "json",
      example: '[TOOL_CALLS]f[ARGS]{"a": 1}',
    },
  ],
  [/\[TOOL_CALLS\]/, { ...tags("mistral", "[TOOL_CALLS]", "", `[${JSON_CALL}]`) }],
  [
    /<\|tool_call_start\|>|<\|tool_list_start\|>/,
    {
      name: "lfm",
      open: "<|tool_call_start|>",
      close: "<|tool_call_end|>",
      arguments: "python",
      example: "<|tool_call_start|>[f(a=1)]<|tool_call_end|>",
    },
  ],
  [
    /<\|open\|>/,
    {
      name: "kimi-k3",
      section: { open: "<|open|>tools<|sep|>", close: "<|close|>tools<|sep|>" },
      open: "<|open|>call tool=",
      close: "<|close|>call<|sep|>",
      arguments: "xml",
      example:
        '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|><|open|>argument key="a" type="number"<|sep|>1<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    },
  ],
  [
    /<\|tool_call:begin\|>/,
    {
      name: "solar",
      section: { open: "<|tool_calls|>", close: "<|calls|>" },
      open: "<|tool_call:begin|>",
      close: "<|tool_call:end|>",
      arguments: "json",
      example:
        '<|tool_calls|><|tool_call:begin|>0<|tool_call:name|>f<|tool_call:args|>{"a": 1}<|tool_call:end|><|calls|>',
    },
  ],
  [
    /<\|START_ACTION\|>/,
    tags(
      "command",
      "<|START_ACTION|>",
      "<|END_ACTION|>",
      '[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]',
    ),
  ],
  [/<TOOLCALL>/, tags("nemotron", "<TOOLCALL>", "</TOOLCALL>", `[${JSON_CALL}]`)],
  [
    /<\|tools_prefix\|>/,
    tags("apertus", "<|tools_prefix|>", "<|tools_suffix|>", '[{"f": {"a": 1}}]'),
  ],
  [/<\|tool_call\|>/, tags("granite", "<|tool_call|>", "", `[${JSON_CALL}]`)],
  [/<\|function_call\|>/, tags("gigachat", "<|function_call|>", "", JSON_CALL)],
  [/<tool_calls>/, tags("minimax-m1", "<tool_calls>", "</tool_calls>", `\n${JSON_CALL}\n`)],
  [
    /<param name=/,
    xml("minicpm", "<function", "</function>", ' name="f"><param name="a">1</param>'),
  ],
  [/functools\[| functools/, tags("firefunction", " functools", "", `[${JSON_CALL}]`)],
  [/>>>/, tags("functionary-v3.2", ">>>", "", 'f\n{"a": 1}')],
  [/<tool_call>/, tags("hermes", "<tool_call>", "</tool_call>", `\n${JSON_CALL}\n`)],
  [/<function=/, tags("functionary-v3.1", "<function=", "</function>", 'f>{"a": 1}')],
  [
    // Llama 4, and Llama 3.2's lightweight models by their prompt
    /<\|python_start\|>|\[func_name1\(/,
    { name: "pythonic", open: "", close: "", arguments: "python", example: "[f(a=1)]" },
  ],
  [
    /<\|python_tag\|>|"parameters": dictionary of argument name/,
    tags("llama3", "", "", '{"name": "f", "parameters": {"a": 1}}'),
  ],
]

/** The formats that a chat template shows, or the most likely ones; undefined where it knows no such thing. */
export function chatFormatOf(template: string): ChatFormat {
  const find = <T>(table: readonly (readonly [RegExp, T])[]): T | undefined =>
    table.find(([mark]) => mark.test(template))?.[1]
  return { reasoning: find(REASONING), toolCalls: find(TOOL_CALLS) }
}

/**
 * Where a rendered prompt leaves the reasoning: "open" where the answer continues it, "closed" where the prompt has put an
 * empty one, "none" where the answer may begin it.
 */
export function reasoningAtEnd(
  prompt: string,
  format: ReasoningFormat,
): "open" | "closed" | "none" {
  const end = prompt.trimEnd()
  if (end.endsWith(format.open.trimEnd())) return "open"
  if (end.endsWith(format.close)) return "closed"
  return "none"
}

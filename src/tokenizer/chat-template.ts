import { Environment, type Template } from "@huggingface/jinja"

import { ConfigError } from "../errors.ts"
import { parseTemplate, PythonInterpreter } from "./jinja-python.ts"

/** One message as chat templates read it; content is a string or, for some models, a list of parts. */
export interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly [key: string]: unknown
}

export interface RenderOptions {
  readonly messages: readonly ChatMessage[]
  /** Function schemas as the OpenAI API has them. */
  readonly tools?: readonly unknown[] | undefined
  readonly documents?: readonly unknown[] | undefined
  /** End with the beginning of the assistant's answer; default true. */
  readonly addGenerationPrompt?: boolean
  /** Further variables, such as `enable_thinking`; they win over the ones above. */
  readonly vars?: Readonly<Record<string, unknown>> | undefined
}

export interface ChatTemplateOptions {
  readonly bosToken?: string | undefined
  readonly eosToken?: string | undefined
  readonly padToken?: string | undefined
  readonly unkToken?: string | undefined
  /** Where the template comes from, for messages. */
  readonly source?: string
  /** The date that `strftime_now` shows; default the time of rendering. */
  readonly now?: () => Date
}

/** ChatML, the format most models follow that were not given one. */
export const DEFAULT_TEMPLATE =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

/** What a chat template needs of a tokenizer. */
export interface TemplateTokenizer {
  readonly bosId: number | undefined
  readonly eosId: number | undefined
  readonly padId: number | undefined
  readonly chatTemplates: ReadonlyMap<string, string>
  tokenText(id: number): string
}

/** A model's chat template, in the Jinja dialect and with the variables of Hugging Face's `apply_chat_template`. */
export class ChatTemplate {
  readonly source: string
  readonly #name: string
  readonly #program: Template["parsed"]
  readonly #options: ChatTemplateOptions

  /** @throws ConfigError where the text is no valid template. */
  constructor(source: string, options: ChatTemplateOptions = {}) {
    this.source = source
    this.#name = options.source ?? "chat template"
    this.#options = options
    try {
      this.#program = parseTemplate(source)
    } catch (cause) {
      throw new ConfigError(`${this.#name}: cannot be parsed: ${reason(cause)}`, { cause })
    }
  }

  /**
   * The template of a model: "tool_use" where tools are given and it has one, else "default", else ChatML with one
   * call of `warn`.
   */
  static of(
    tokenizer: TemplateTokenizer,
    options: { name?: string; source?: string; warn?: (message: string) => void } = {},
  ): ChatTemplate {
    const { name = "default", source = "chat template", warn } = options
    const text = tokenizer.chatTemplates.get(name) ?? tokenizer.chatTemplates.get("default")
    if (text === undefined) warn?.(`${source}: the model has no chat template, so ChatML is used`)
    const tokenOf = (id: number | undefined): string | undefined =>
      id === undefined ? undefined : tokenizer.tokenText(id)
    return new ChatTemplate(text ?? DEFAULT_TEMPLATE, {
      source,
      bosToken: tokenOf(tokenizer.bosId),
      eosToken: tokenOf(tokenizer.eosId),
      padToken: tokenOf(tokenizer.padId),
    })
  }

  /** @throws ConfigError with the template's own message where it refuses the input. */
  render(options: RenderOptions): string {
    const { messages, tools, documents, addGenerationPrompt = true, vars } = options
    const {
      bosToken = "",
      eosToken = "",
      padToken,
      unkToken,
      now = () => new Date(),
    } = this.#options
    try {
      const variables = {
        ...GLOBALS,
        messages,
        tools: tools === undefined || tools.length === 0 ? null : tools,
        documents: documents ?? null,
        add_generation_prompt: addGenerationPrompt,
        bos_token: bosToken,
        eos_token: eosToken,
        ...(padToken === undefined ? {} : { pad_token: padToken }),
        ...(unkToken === undefined ? {} : { unk_token: unkToken }),
        strftime_now: (format: string) => strftime(format, now()),
        ...vars,
      }
      // the library's own `render` forbids other values for its globals, and its strftime_now speaks the user's language
      const environment = new Environment()
      for (const [name, value] of Object.entries(variables)) environment.set(name, value)
      return String(new PythonInterpreter(environment).run(this.#program).value)
    } catch (cause) {
      throw new ConfigError(`${this.#name}: cannot be rendered: ${reason(cause)}`, { cause })
    }
  }
}

/** Names that every template knows. */
const GLOBALS: Readonly<Record<string, unknown>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  raise_exception: (message: unknown): never => {
    throw new Error(String(message))
  },
  range: (first: number, end?: number, step = 1): number[] => {
    const from = end === undefined ? 0 : first
    const to = end ?? first
    if (step === 0) throw new Error("range() step must not be zero")
    return Array.from(
      { length: Math.max(0, Math.ceil((to - from) / step)) },
      (_, i) => from + i * step,
    )
  },
}

function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}

const MONTHS =
  "January February March April May June July August September October November December".split(" ")
const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ")

/** Python's `strftime` in the C locale, local time, for the directives that templates use. */
function strftime(format: string, date: Date): string {
  const two = (value: number): string => String(value).padStart(2, "0")
  const hour12 = date.getHours() % 12 || 12
  return format.replace(/%(-?)([A-Za-z%])/g, (whole, dash: string, directive: string) => {
    const number = (value: number): string => (dash === "-" ? String(value) : two(value))
    switch (directive) {
      case "Y":
        return String(date.getFullYear())
      case "y":
        return number(date.getFullYear() % 100)
      case "m":
        return number(date.getMonth() + 1)
      case "d":
        return number(date.getDate())
      case "H":
        return number(date.getHours())
      case "I":
        return number(hour12)
      case "M":
        return number(date.getMinutes())
      case "S":
        return number(date.getSeconds())
      case "B":
        return MONTHS[date.getMonth()]!
      case "b":
        return MONTHS[date.getMonth()]!.slice(0, 3)
      case "A":
        return DAYS[date.getDay()]!
      case "a":
        return DAYS[date.getDay()]!.slice(0, 3)
      case "p":
        return date.getHours() < 12 ? "AM" : "PM"
      case "e":
        return String(date.getDate()).padStart(2, " ")
      case "j": {
        const start = Date.UTC(date.getFullYear(), 0, 0)
        const day = Date.UTC(date.getFullYear(), date.getMonth(), date.getDate())
        return String((day - start) / 86_400_000).padStart(3, "0")
      }
      case "F":
        return strftime("%Y-%m-%d", date)
      case "T":
        return strftime("%H:%M:%S", date)
      case "D":
        return strftime("%m/%d/%y", date)
      case "%":
        return "%"
      default:
        return whole
    }
  })
}

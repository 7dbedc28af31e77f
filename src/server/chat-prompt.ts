import { RequestError } from "../errors.ts"
import { reasoningAtEnd, THINK_TAGS } from "../tokenizer/chat-formats.ts"
import type { RenderOptions, ServerConfig, ServerTokenizer, TemplateMessage } from "./types.ts"

export interface ChatPrompt {
  readonly ids: Int32Array
  /** Text that the answer starts with because the prompt ends with it. */
  readonly prefix: string
}

/** Template → text → token ids. RequestError 400 when the template refuses the messages. */
export function chatPrompt(
  tokenizer: ServerTokenizer,
  messages: readonly TemplateMessage[],
  options: RenderOptions,
  config: ServerConfig,
): ChatPrompt {
  let text = renderOr400(tokenizer, messages, options)
  let prefix = ""
  if (config.forceThink) {
    const reasoning = tokenizer.chatFormat?.reasoning ?? THINK_TAGS
    // Some templates open the reasoning themselves; the answer still shows it.
    if (reasoningAtEnd(text, reasoning) !== "open") text += reasoning.start
    prefix = reasoning.start
  }
  return { ids: tokenizer.encodePrompt(text), prefix }
}

function renderOr400(
  tokenizer: ServerTokenizer,
  messages: readonly TemplateMessage[],
  options: RenderOptions,
): string {
  try {
    return tokenizer.renderChat(messages, { addGenerationPrompt: true, ...options })
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    throw new RequestError(400, `messages: the model's chat template refuses them: ${reason}`, {
      code: "chat_template_error",
      param: "messages",
      cause: error,
    })
  }
}

import { Detokenizer, StopMatcher } from "../tokenizer/detokenizer.ts"
import type { TokenLogprob } from "./generate.ts"
import type { ServerTokenizer } from "./types.ts"

export interface TextDelta {
  /** Whole characters, free of stop strings. */
  readonly text: string
  /** Log-probabilities of the tokens whose text is now out. */
  readonly logprobs: readonly TokenLogprob[]
}

/**
 * Tokens of one sequence → text that can be sent, with each token's log-probability beside its
 * text.
 */
export class TextStream {
  readonly #detokenizer: Detokenizer
  readonly #matcher: StopMatcher
  /** Tokens whose text is not out yet, with the text length at which it is. */
  readonly #pending: { readonly logprob: TokenLogprob; readonly end: number }[] = []
  #decoded = 0
  #sent = 0
  #stopString: string | undefined

  /** @param keepToken Control tokens whose text is kept */
  constructor(
    tokenizer: ServerTokenizer,
    stops: readonly string[],
    keepToken?: (id: number) => boolean,
  ) {
    this.#detokenizer = new Detokenizer(tokenizer, keepToken === undefined ? {} : { keepToken })
    this.#matcher = new StopMatcher(stops)
  }

  /** The stop string that ended the text. */
  get stopString(): string | undefined {
    return this.#stopString
  }

  push(token: number, logprob: TokenLogprob | undefined): TextDelta {
    const decoded = this.#detokenizer.push(token)
    this.#decoded += decoded.length
    if (logprob !== undefined) this.#pending.push({ logprob, end: this.#decoded })
    return this.#match(decoded)
  }

  /** What was held back, once no token follows; nothing after a stop string. */
  flush(): TextDelta {
    if (this.#stopString !== undefined) return { text: "", logprobs: [] }
    const rest = this.#match(this.#detokenizer.flush())
    if (this.#stopString !== undefined) return rest
    const text = rest.text + this.#matcher.flush()
    const held = this.#pending.splice(0).map(({ logprob }) => logprob)
    return { text, logprobs: [...rest.logprobs, ...held] }
  }

  #match(decoded: string): TextDelta {
    const { text, stop } = this.#matcher.push(decoded)
    this.#stopString = stop
    this.#sent += text.length
    const logprobs: TokenLogprob[] = []
    // A token that ends inside a character waits for the rest of it: its text comes with the next.
    while (text !== "" && this.#pending[0] !== undefined && this.#pending[0].end <= this.#sent) {
      const token = this.#pending.shift()
      if (token !== undefined) logprobs.push(token.logprob)
    }
    return { text, logprobs }
  }
}

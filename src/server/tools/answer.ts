/** JSON schemas of the parameters, by the tool's name. */
export type ToolParameters = ReadonlyMap<string, Readonly<Record<string, unknown>>>

/** A call as far as it is there. */
export interface PartialCall {
  /** Undefined while it is not complete. */
  readonly name: string | undefined
  readonly id: string | undefined
  /** JSON text; what is there stays as more comes. */
  readonly arguments: string
}

export interface CallBody {
  readonly calls: readonly PartialCall[]
  /** Where the body and what closes it end, or -1 while they have not come. */
  readonly end: number
}

/** A piece of an answer. Calls are numbered from 0; a call's `arguments` pieces join to JSON text. */
export type AnswerPart =
  | { readonly type: "reasoning"; readonly text: string }
  | { readonly type: "content"; readonly text: string }
  | {
      readonly type: "call"
      readonly index: number
      /** As the model wrote it, where its format has ids. */
      readonly id: string | undefined
      readonly name: string
    }
  | { readonly type: "arguments"; readonly index: number; readonly text: string }

/** Splits an answer, as its text comes, into reasoning, content and tool calls. */
export interface AnswerParser {
  push(text: string): AnswerPart[]
  /** Nothing follows. */
  flush(): AnswerPart[]
}

export interface AnswerParserOptions {
  /** Parameters of the tools that may be called (JSON schemas by name); undefined leaves calls as text. */
  readonly tools?: ToolParameters
  /** The prompt has begun the reasoning, which the answer continues. */
  readonly reasoningOpen?: boolean
}

/** Past the closing marker, which may follow spaces or a fence; -1 while it has not come. */
export function closeAfter(body: string, from: number, close: string, isEnd: boolean): number {
  if (close === "") return from
  const at = body.indexOf(close, from)
  if (at >= 0) return at + close.length
  return isEnd ? body.length : -1
}

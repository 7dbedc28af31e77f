import { RequestError } from "../errors.ts"
import type { ServerContext } from "./context.ts"
import { sequenceLimit } from "./generate.ts"
import type { ServerTokenizer } from "./types.ts"

/** A text with a hole. */
export interface InfillRequest {
  readonly prefix: string
  readonly suffix: string
  /** What the hole begins with. */
  readonly prompt?: string
  /** Other files that the model should know, the nearest last. */
  readonly files?: readonly { readonly name: string; readonly text: string }[]
  /** Tokens wanted for the hole; they and the prompt share the context. */
  readonly maxTokens: number | undefined
  /** The field that a model which cannot do this is blamed on. */
  readonly param: string
}

/** Part of the context that is kept for the answer where none is asked for. */
const ANSWER_SHARE = 8

/**
 * The prompt of a hole. What does not fit is left out: first other files, the farthest first, then of prefix and suffix
 * what is farthest from the hole, three parts of prefix to one of suffix. RequestError 400 where the model has no such tokens.
 */
export function infillPrompt(
  { tokenizer, client }: Pick<ServerContext, "tokenizer" | "client">,
  request: InfillRequest,
): Int32Array {
  const { fim } = tokenizer
  if (fim === undefined)
    throw new RequestError(400, `${request.param}: this model cannot fill in the middle`, {
      code: "unsupported_value",
      param: request.param,
    })
  const limit = sequenceLimit(client)
  const answer = Math.min(request.maxTokens ?? Math.ceil(limit / ANSWER_SHARE), limit - 1)
  const begun = plain(tokenizer, request.prompt ?? "")
  // only where texts begin with it
  const bos = [...tokenizer.encode("")].slice(0, 1).filter((id) => id === tokenizer.bosId)
  const isHere = (id: number | undefined): id is number => id !== undefined
  const marks = [fim.prefix, fim.suffix, fim.middle].filter(isHere).length + bos.length
  let room = Math.max(0, limit - answer - begun.length - marks)

  const [allPrefix, allSuffix] = [
    plain(tokenizer, request.prefix),
    plain(tokenizer, request.suffix),
  ]
  const suffixRoom = Math.max(Math.floor(room / 4), room - allPrefix.length)
  const suffix = allSuffix.slice(0, suffixRoom)
  const prefix = last(allPrefix, room - suffix.length)
  room -= suffix.length + prefix.length

  const head: number[] = []
  for (const { name, text } of (request.files ?? []).toReversed()) {
    const file = plain(tokenizer, fim.file === undefined ? `${text}\n\n` : `${name}\n${text}`)
    const ids = fim.file === undefined ? file : [fim.file, ...file]
    if (ids.length > room) break
    head.unshift(...ids)
    room -= ids.length
  }
  const before = [fim.prefix, ...prefix]
  const after = [fim.suffix, ...suffix]
  const whole = fim.suffixFirst
    ? [...bos, ...head, ...after, ...before]
    : [...bos, ...head, ...before, ...after]
  if (fim.middle !== undefined) whole.push(fim.middle)
  return Int32Array.from([...whole, ...begun])
}

function plain(tokenizer: ServerTokenizer, text: string): number[] {
  return [...tokenizer.encode(text, { addSpecial: false })]
}

function last<T>(list: readonly T[], count: number): readonly T[] {
  return count >= list.length ? list : list.slice(list.length - Math.max(0, count))
}

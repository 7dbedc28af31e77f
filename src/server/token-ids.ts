import { RequestError } from "../errors.ts"
import type { ServerTokenizer } from "./types.ts"

/** RequestError 400 naming the first token that the model does not have. */
export function checkIds(tokenizer: ServerTokenizer, ids: Iterable<number>, param: string): void {
  for (const id of ids) {
    if (id < tokenizer.vocabSize) continue
    throw new RequestError(
      400,
      `${param} ${id}: the model has tokens 0 to ${tokenizer.vocabSize - 1}`,
      { code: "invalid_value", param },
    )
  }
}

/** Control tokens too; what is no whole character at the end is U+FFFD. */
export function textOfIds(tokenizer: ServerTokenizer, ids: readonly number[]): string {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true })
  const parts = ids.map((id) => decoder.decode(tokenizer.tokenBytes(id), { stream: true }))
  return parts.join("") + decoder.decode()
}

/** Where JSON text that may not be complete yet has its parts; nothing is parsed. */

const SPACE = /\s/

/** Where the value that begins at `start` ends, or -1 while it has not ended or where no object, list or string begins. */
export function valueEnd(text: string, start: number): number {
  let position = start
  while (position < text.length && SPACE.test(text[position] as string)) position++
  const first = text[position]
  if (first === '"') return stringEnd(text, position)
  if (first !== "{" && first !== "[") return scalarEnd(text, position)
  let depth = 0
  for (; position < text.length; position++) {
    const c = text[position]
    if (c === '"') {
      const end = stringEnd(text, position)
      if (end < 0) return -1
      position = end - 1
    } else if (c === "{" || c === "[") depth++
    else if ((c === "}" || c === "]") && --depth === 0) return position + 1
  }
  return -1
}

function stringEnd(text: string, start: number): number {
  for (let i = start + 1; i < text.length; i++) {
    if (text[i] === "\\") i++
    else if (text[i] === '"') return i + 1
  }
  return -1
}

/** A number or word ends where something else follows. */
function scalarEnd(text: string, start: number): number {
  const match = /[^\w.+-]/.exec(text.slice(start))
  return match === null || match.index === 0 ? -1 : start + match.index
}

export interface JsonEntry {
  readonly key: string
  /** Of the value; `end` is -1 while it is not complete. */
  readonly start: number
  readonly end: number
}

/** The entries of the object that begins at `start`, as far as their values have begun. */
export function objectEntries(text: string, start: number): JsonEntry[] {
  const entries: JsonEntry[] = []
  let position = start + 1
  for (;;) {
    while (position < text.length && /[\s,]/.test(text[position] as string)) position++
    if (text[position] !== '"') return entries
    const keyEnd = stringEnd(text, position)
    if (keyEnd < 0) return entries
    const key = text.slice(position + 1, keyEnd - 1)
    const colon = /^\s*:\s*/.exec(text.slice(keyEnd))
    if (colon === null) return entries
    const valueStart = keyEnd + colon[0].length
    if (valueStart >= text.length) return entries
    const end = valueEnd(text, valueStart)
    entries.push({ key, start: valueStart, end })
    if (end < 0) return entries
    position = end
  }
}

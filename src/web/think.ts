const OPEN = "<think>"
const CLOSE = "</think>"

export interface Thinking {
  thinking: string
  answer: string
  /** True while the closing tag has not come yet. */
  isOpen: boolean
}

/**
 * Splits an answer into the reasoning that some models write first and the answer proper. Templates that put the opening
 * tag into the prompt leave only the closing one in the answer; then it must stand alone on its line, so that an answer that
 * merely mentions the tag is not cut.
 */
export function splitThinking(content: string): Thinking {
  const text = content.trimStart()
  if (text.startsWith(OPEN)) {
    const close = text.indexOf(CLOSE)
    if (close < 0) return { thinking: text.slice(OPEN.length).trim(), answer: "", isOpen: true }
    return {
      thinking: text.slice(OPEN.length, close).trim(),
      answer: text.slice(close + CLOSE.length).trimStart(),
      isOpen: false,
    }
  }
  if (text !== "" && OPEN.startsWith(text)) return { thinking: "", answer: "", isOpen: true }
  const alone = /(?:^|\n)[ \t]*<\/think>[ \t]*(?:\n|$)/.exec(content)
  if (alone !== null && !content.slice(0, alone.index).includes(OPEN))
    return {
      thinking: content.slice(0, alone.index).trim(),
      answer: content.slice(alone.index + alone[0].length).trimStart(),
      isOpen: false,
    }
  return { thinking: "", answer: content, isOpen: false }
}

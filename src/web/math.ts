import katex from "katex"
import type { MarkedExtension, TokenizerAndRendererExtension, Tokens } from "marked"

/** Bounds on what a formula may expand to; KaTeX stops there and shows the source instead. */
const MAX_EXPAND = 500
const MAX_SIZE_EM = 40

function renderMath(tex: string, displayMode: boolean): string {
  return katex.renderToString(tex, {
    displayMode,
    throwOnError: false,
    trust: false,
    strict: "ignore",
    maxExpand: MAX_EXPAND,
    maxSize: MAX_SIZE_EM,
    errorColor: "currentColor",
  })
}

function renderToken(token: Tokens.Generic): string {
  const display = token["display"] === true
  const html = renderMath(String(token["text"]), display)
  return display ? `<div class="math" tabindex="0">${html}</div>` : html
}

const block: TokenizerAndRendererExtension = {
  name: "mathBlock",
  level: "block",
  start: (src) => src.match(/(?:^|\n) {0,3}(?:\$\$|\\\[)/)?.index,
  tokenizer(src) {
    const match =
      /^ {0,3}\$\$([^]+?)\$\$[ \t]*(?:\n|$)/.exec(src) ??
      /^ {0,3}\\\[([^]+?)\\\][ \t]*(?:\n|$)/.exec(src)
    if (match?.[1] === undefined || match[1].includes("\n\n")) return undefined
    return { type: "mathBlock", raw: match[0], text: match[1].trim(), display: true }
  },
  renderer: renderToken,
}

/**
 * `$…$` counts as math only when the dollars hug their content and no digit follows, as pandoc has it, so that "between $5
 * and $10" stays text.
 */
const inline: TokenizerAndRendererExtension = {
  name: "mathInline",
  level: "inline",
  start: (src) => src.match(/\$|\\[([]/)?.index,
  tokenizer(src) {
    const shown = /^\$\$([^$]+?)\$\$/.exec(src) ?? /^\\\[([^]+?)\\\]/.exec(src)
    if (shown?.[1] !== undefined)
      return { type: "mathInline", raw: shown[0], text: shown[1].trim(), display: false }
    const match =
      /^\$((?![\s$])(?:\\[^\n]|[^$\\\n])*?(?:\\[^\n]|[^\s$\\]))\$(?!\d)/.exec(src) ??
      /^\\\(([^]+?)\\\)/.exec(src)
    if (match?.[1] === undefined) return undefined
    return { type: "mathInline", raw: match[0], text: match[1].trim(), display: false }
  },
  renderer: renderToken,
}

/** Math for marked: `$…$`, `$$…$$`, `\(…\)` and `\[…\]`, drawn by KaTeX. */
export const mathExtension: MarkedExtension = { extensions: [block, inline] }

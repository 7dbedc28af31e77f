import { Marked } from "marked"
import { markedHighlight } from "marked-highlight"

import { escapeHtml, highlightCode } from "./highlight.ts"
import { t } from "./language.ts"
import { mathExtension } from "./math.ts"

/**
 * One top-level block of a message: its source and its HTML, which is safe by construction (no tag or attribute of the
 * model's own gets through) and is still passed through sanitizeHtml before it reaches the page.
 */
export interface Block {
  raw: string
  html: string
}

/** Tags that models use for plain formatting; they pass without attributes, every other tag is shown as text. */
const PLAIN_TAG =
  /&lt;(\/?)(br|b|i|u|em|strong|s|del|ins|sub|sup|small|kbd|mark|details|summary|hr)\s*\/?&gt;/gi

const SAFE_LINK = /^(?:https?:|mailto:|#)/i

const marked = new Marked({ gfm: true, breaks: false, async: false })
marked.use(
  markedHighlight({
    langPrefix: "hljs language-",
    highlight: (code, language) => highlightCode(code, language.toLowerCase()),
  }),
)
marked.use(mathExtension)
marked.use({
  renderer: {
    code({ text, lang, escaped }) {
      const language = lang?.match(/^[\w+#.-]+/)?.[0] ?? ""
      const html = escaped === true ? text : escapeHtml(text)
      const label = escapeHtml(language === "" ? t("text") : language)
      return (
        `<figure class="code"><figcaption><span>${label}</span>` +
        `<button type="button" class="copy-code" aria-label="${t("copyCode")}">${t("copy")}</button></figcaption>` +
        `<pre tabindex="0"><code class="hljs">${html}\n</code></pre></figure>\n`
      )
    },
    html({ text }) {
      return escapeHtml(text).replace(PLAIN_TAG, "<$1$2>")
    },
    link({ href, tokens }) {
      const text = this.parser.parseInline(tokens)
      if (!isSafeLink(href)) return text
      return `<a href="${escapeHtml(href)}" target="_blank" rel="noopener noreferrer nofollow">${text}</a>`
    },
    // Loading an image would tell its server what the model wrote, so it stays a link.
    image({ href, text }) {
      const label = escapeHtml(text === "" ? t("image") : text)
      if (!isSafeLink(href)) return label
      return `<a href="${escapeHtml(href)}" target="_blank" rel="noopener noreferrer nofollow">${label}</a>`
    },
    table(token) {
      const cells = (row: typeof token.header): string =>
        row
          .map((cell) => {
            const tag = cell.header ? "th" : "td"
            const align = cell.align === null ? "" : ` class="align-${cell.align}"`
            return `<${tag}${align}>${this.parser.parseInline(cell.tokens)}</${tag}>`
          })
          .join("")
      const rows = token.rows.map((row) => `<tr>${cells(row)}</tr>`).join("")
      return (
        `<div class="table" tabindex="0"><table><thead><tr>${cells(token.header)}</tr></thead>` +
        `<tbody>${rows}</tbody></table></div>\n`
      )
    },
  },
})

/** Only what a reader may want to follow: javascript:, data:, file: and relative links stay text. */
export function isSafeLink(href: string): boolean {
  // Browsers skip control characters and blanks inside a scheme, so they must not hide one here.
  return SAFE_LINK.test(href.replace(/[\u0000-\u0020]/g, ""))
}

/**
 * Splits a message into blocks and renders them. Given the blocks of a shorter text that this one continues, only its end is
 * parsed again: the last two blocks, since more text can still join them (a list item after a blank line, a table's rule).
 * Blocks that did not change are the same objects, so the page keeps their elements.
 */
export function renderBlocks(source: string, previous: readonly Block[] = []): Block[] {
  const text = source.replace(/\r\n?/g, "\n")
  const kept = stablePrefix(text, previous)
  const offset = kept.reduce((sum, block) => sum + block.raw.length, 0)
  const tokens = marked.lexer(text.slice(offset))
  const definitions = tokens.filter((token) => token.type === "def").map((token) => token.raw)
  const context = definitions.length === 0 ? "" : `\n\n${definitions.join("\n")}`
  const blocks = [...kept]
  for (const token of tokens) {
    const old = previous[blocks.length]
    if (old !== undefined && old.raw === token.raw && context === "") blocks.push(old)
    else blocks.push({ raw: token.raw, html: renderToken(token.type, token.raw, context) })
  }
  return blocks
}

function renderToken(type: string, raw: string, context: string): string {
  if (type === "space" || type === "def") return ""
  return marked.parse(raw + context, { async: false })
}

function stablePrefix(text: string, previous: readonly Block[]): Block[] {
  let end = previous.length
  for (let unstable = 0; end > 0 && unstable < 2; end--)
    if (previous[end - 1]?.raw.trim() !== "") unstable++
  const kept = previous.slice(0, end)
  return text.startsWith(kept.map((block) => block.raw).join("")) ? kept : []
}

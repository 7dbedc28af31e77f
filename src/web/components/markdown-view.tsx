import type { JSX, TargetedMouseEvent } from "preact"
import { useMemo, useRef } from "preact/hooks"

import { t } from "../language.ts"
import { type Block, renderBlocks } from "../markdown.ts"
import { addMathStyle } from "../math-style.ts"
import { sanitizeHtml } from "../sanitize.ts"
import { copyText } from "./copy.ts"

const SHOWN_MS = 1600

/** A message's markdown. While it grows, only its last blocks are parsed, cleaned and laid out again. */
export function MarkdownView({
  text,
  isStreaming,
}: {
  text: string
  isStreaming: boolean
}): JSX.Element {
  const blocks = useRef<Block[]>([])
  // Once complete everything is parsed together, so that link definitions at the end reach the start.
  blocks.current = useMemo(
    () => renderBlocks(text, isStreaming ? blocks.current : []),
    [text, isStreaming],
  )
  return (
    <div class="prose" onClick={onClick}>
      {blocks.current.map((block, index) => (
        <BlockView key={index} block={block} />
      ))}
    </div>
  )
}

function BlockView({ block }: { block: Block }): JSX.Element | null {
  return useMemo(() => {
    if (block.html === "") return null
    if (block.html.includes('class="katex')) addMathStyle()
    return <div class="block" dangerouslySetInnerHTML={{ __html: sanitizeHtml(block.html) }} />
  }, [block])
}

/** The copy buttons of code blocks are part of the rendered HTML, so one handler serves them all. */
function onClick(event: TargetedMouseEvent<HTMLDivElement>): void {
  const button = event.target instanceof Element ? event.target.closest(".copy-code") : null
  const code = button?.closest("figure")?.querySelector("code")?.textContent
  if (button === null || code === undefined || code === null) return
  void copyText(code.replace(/\n$/, "")).then((isCopied) => {
    if (!isCopied) return
    button.textContent = t("copied")
    setTimeout(() => (button.textContent = t("copy")), SHOWN_MS)
  })
}

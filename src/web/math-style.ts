import { katexStyle } from "./math-style.macro.ts" with { type: "macro" }

const css = katexStyle()
let isAdded = false

/** Adds KaTeX's style to the page, once there is a formula to show. */
export function addMathStyle(): void {
  if (isAdded) return
  isAdded = true
  const style = document.createElement("style")
  style.textContent = css
  // First, so that the page's own rules win.
  document.head.prepend(style)
}

import fontAMSRegular from "katex/dist/fonts/KaTeX_AMS-Regular.woff2" with { type: "file" }
import fontCaligraphicBold from "katex/dist/fonts/KaTeX_Caligraphic-Bold.woff2" with { type: "file" }
import fontCaligraphicRegular from "katex/dist/fonts/KaTeX_Caligraphic-Regular.woff2" with { type: "file" }
import fontFrakturBold from "katex/dist/fonts/KaTeX_Fraktur-Bold.woff2" with { type: "file" }
import fontFrakturRegular from "katex/dist/fonts/KaTeX_Fraktur-Regular.woff2" with { type: "file" }
import fontMainBold from "katex/dist/fonts/KaTeX_Main-Bold.woff2" with { type: "file" }
import fontMainBoldItalic from "katex/dist/fonts/KaTeX_Main-BoldItalic.woff2" with { type: "file" }
import fontMainItalic from "katex/dist/fonts/KaTeX_Main-Italic.woff2" with { type: "file" }
import fontMainRegular from "katex/dist/fonts/KaTeX_Main-Regular.woff2" with { type: "file" }
import fontMathBoldItalic from "katex/dist/fonts/KaTeX_Math-BoldItalic.woff2" with { type: "file" }
import fontMathItalic from "katex/dist/fonts/KaTeX_Math-Italic.woff2" with { type: "file" }
import fontSansSerifBold from "katex/dist/fonts/KaTeX_SansSerif-Bold.woff2" with { type: "file" }
import fontSansSerifItalic from "katex/dist/fonts/KaTeX_SansSerif-Italic.woff2" with { type: "file" }
import fontSansSerifRegular from "katex/dist/fonts/KaTeX_SansSerif-Regular.woff2" with { type: "file" }
import fontScriptRegular from "katex/dist/fonts/KaTeX_Script-Regular.woff2" with { type: "file" }
import fontSize1Regular from "katex/dist/fonts/KaTeX_Size1-Regular.woff2" with { type: "file" }
import fontSize2Regular from "katex/dist/fonts/KaTeX_Size2-Regular.woff2" with { type: "file" }
import fontSize3Regular from "katex/dist/fonts/KaTeX_Size3-Regular.woff2" with { type: "file" }
import fontSize4Regular from "katex/dist/fonts/KaTeX_Size4-Regular.woff2" with { type: "file" }
import fontTypewriterRegular from "katex/dist/fonts/KaTeX_Typewriter-Regular.woff2" with { type: "file" }

import { katexStyle } from "./math-style.macro.ts" with { type: "macro" }

/** Addresses of the fonts: browsers fetch those that a formula needs. */
const FONTS: Readonly<Record<string, string>> = {
  "KaTeX_AMS-Regular.woff2": fontAMSRegular,
  "KaTeX_Caligraphic-Bold.woff2": fontCaligraphicBold,
  "KaTeX_Caligraphic-Regular.woff2": fontCaligraphicRegular,
  "KaTeX_Fraktur-Bold.woff2": fontFrakturBold,
  "KaTeX_Fraktur-Regular.woff2": fontFrakturRegular,
  "KaTeX_Main-Bold.woff2": fontMainBold,
  "KaTeX_Main-BoldItalic.woff2": fontMainBoldItalic,
  "KaTeX_Main-Italic.woff2": fontMainItalic,
  "KaTeX_Main-Regular.woff2": fontMainRegular,
  "KaTeX_Math-BoldItalic.woff2": fontMathBoldItalic,
  "KaTeX_Math-Italic.woff2": fontMathItalic,
  "KaTeX_SansSerif-Bold.woff2": fontSansSerifBold,
  "KaTeX_SansSerif-Italic.woff2": fontSansSerifItalic,
  "KaTeX_SansSerif-Regular.woff2": fontSansSerifRegular,
  "KaTeX_Script-Regular.woff2": fontScriptRegular,
  "KaTeX_Size1-Regular.woff2": fontSize1Regular,
  "KaTeX_Size2-Regular.woff2": fontSize2Regular,
  "KaTeX_Size3-Regular.woff2": fontSize3Regular,
  "KaTeX_Size4-Regular.woff2": fontSize4Regular,
  "KaTeX_Typewriter-Regular.woff2": fontTypewriterRegular,
}
const css = katexStyle()
let isAdded = false

/** Adds KaTeX's style to the page, once there is a formula to show. */
export function addMathStyle(): void {
  if (isAdded) return
  isAdded = true
  const style = document.createElement("style")
  style.textContent = css.replace(/url\(fonts\/([\w-]+\.woff2)\)/g, (whole, file: string) => {
    const url = FONTS[file]
    return url === undefined ? whole : `url("${url}")`
  })
  // First, so that the page's own rules win.
  document.head.prepend(style)
}

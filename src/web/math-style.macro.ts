import { readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

/**
 * KaTeX's stylesheet for the bundler to run (`with { type: "macro" }`), with its woff2 fonts only, which every browser that
 * runs this page reads. Importing the CSS as it is would put every font into the page three times.
 */
export function katexStyle(): string {
  const dist = dirname(fileURLToPath(import.meta.resolve("katex")))
  const css = readFileSync(join(dist, "katex.min.css"), "utf8")
  return css.replace(/,url\([^)]+\) format\("(?:woff|truetype)"\)/g, "")
}

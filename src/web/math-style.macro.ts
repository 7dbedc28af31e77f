import { readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

/**
 * KaTeX's stylesheet with its fonts inside, for the bundler to run (`with { type: "macro" }`): importing the CSS as it is
 * would embed every font three times (woff2, woff and ttf), and every browser that runs this page reads woff2.
 */
export function katexStyle(): string {
  const dist = dirname(fileURLToPath(import.meta.resolve("katex")))
  const css = readFileSync(join(dist, "katex.min.css"), "utf8")
  return css
    .replace(/,url\([^)]+\) format\("(?:woff|truetype)"\)/g, "")
    .replace(/url\((fonts\/[\w-]+\.woff2)\)/g, (_, file: string) => {
      const font = readFileSync(join(dist, file)).toString("base64")
      return `url(data:font/woff2;base64,${font})`
    })
}

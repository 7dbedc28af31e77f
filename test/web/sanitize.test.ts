import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test"

import type { Page } from "puppeteer-core"

import { describeInBrowser } from "./browser.ts"
import sanitizePage from "./sanitize-page.html"

/** The sanitiser alone, in a real browser: it must hold even if the renderer let something through. */

setDefaultTimeout(60_000)

describeInBrowser("sanitizeHtml", (browser) => {
  let server: Bun.Server<undefined>
  let page: Page

  beforeAll(async () => {
    server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      development: false,
      routes: { "/": sanitizePage },
    })
    page = await browser().browser.newPage()
    await page.goto(`http://127.0.0.1:${server.port}`)
    await page.waitForFunction(() => "sanitizeHtml" in window)
  })

  afterAll(async () => {
    await server.stop(true)
  })

  const clean = (html: string): Promise<string> =>
    page.evaluate((text) => window.sanitizeHtml(text), html)

  test.each([
    ["<script>alert(1)</script>ok", "ok"],
    ["<p onclick=alert(1)>ok</p>", "<p>ok</p>"],
    ['<img src=x onerror="alert(1)">ok', "ok"],
    ["<svg onload=alert(1)></svg>ok", "<svg></svg>ok"],
    ['<a href="javascript:alert(1)">ok</a>', "<a>ok</a>"],
    ['<a href=" jAvA\tscript:alert(1)">ok</a>', "<a>ok</a>"],
    ['<a href="data:text/html,<script>alert(1)</script>">ok</a>', "<a>ok</a>"],
    ['<a href="/v1/models">ok</a>', "<a>ok</a>"],
    [
      '<svg><a xlink:href="javascript:alert(1)"><text>ok</text></a></svg>',
      "<svg><a><text>ok</text></a></svg>",
    ],
    ["<iframe srcdoc='<script>alert(1)</script>'></iframe>ok", "ok"],
    ["<style>*{display:none}</style>ok", "ok"],
    ["<form action=https://evil.example><p>ok</p></form>", "<p>ok</p>"],
    ['<p id="prompt" name="x">ok</p>', "<p>ok</p>"],
    ["<svg><use href=data:image/svg+xml,x></use></svg>ok", "<svg></svg>ok"],
    [
      "<math><annotation-xml encoding=text/html><img src=x onerror=alert(1)></annotation-xml></math>ok",
      "<math></math>ok",
    ],
  ])("%s", async (html, expected) => {
    expect(await clean(html)).toBe(expected)
  })

  test("web links open elsewhere and tell nothing", async () => {
    expect(await clean('<a href="https://example.org/a?b" target="_self">ok</a>')).toBe(
      '<a href="https://example.org/a?b" target="_blank" rel="noopener noreferrer nofollow">ok</a>',
    )
  })

  test("formulas keep their strokes, styles and MathML", async () => {
    const html = await page.evaluate(() =>
      window
        .renderBlocks("$$\\sqrt{\\frac{a}{b}}$$")
        .map((block) => window.sanitizeHtml(block.html))
        .join(""),
    )
    expect(html).toMatch(/<path d="M\d/)
    expect(html).toContain("viewBox=")
    expect(html).toContain('style="height:')
    expect(html).toContain("<msqrt>")
    expect(html).toContain('<annotation encoding="application/x-tex">')
  })

  test("code keeps its colours and its button", async () => {
    const html = await page.evaluate(() =>
      window.sanitizeHtml(window.renderBlocks("```js\nlet a = 1\n```")[0]?.html ?? ""),
    )
    expect(html).toContain('<span class="hljs-keyword">let</span>')
    expect(html).toContain('class="copy-code"')
  })
})

import { describe, expect, test } from "bun:test"

import fc from "fast-check"

import { type Block, isSafeLink, renderBlocks } from "../../src/web/markdown.ts"

const html = (text: string): string =>
  renderBlocks(text)
    .map((block) => block.html)
    .join("")

/** Names of all tags in HTML, and whether an attribute could run or load something. */
function tags(text: string): Set<string> {
  return new Set(
    [...text.matchAll(/<([a-z][\w-]*)/gi)].map((match) => (match[1] ?? "").toLowerCase()),
  )
}

describe("markdown", () => {
  test("code blocks have a label, a copy button and colours", () => {
    const out = html("```python\nprint('a < b')\n```")
    expect(out).toContain("<figcaption><span>python</span>")
    expect(out).toContain('class="copy-code"')
    expect(out).toContain('class="hljs-string"')
    expect(out).toContain("&lt;")
  })

  test("code in an unknown language is shown plain and escaped", () => {
    expect(html('```"><script>\n<b>&\n```')).toContain("&lt;b&gt;&amp;\n")
    expect(html("```brainfog\n<b>\n```")).toContain("<span>brainfog</span>")
  })

  test("a code block that is still open is a code block already", () => {
    expect(html("```js\nlet a")).toContain("<figure")
  })

  test("tables keep their alignment and scroll on their own", () => {
    const out = html("| a | b |\n|:-:|--:|\n| 1 | `2` |")
    expect(out).toContain('<div class="table"')
    expect(out).toContain('<th class="align-center">a</th>')
    expect(out).toContain('<td class="align-right"><code>2</code></td>')
  })

  test.each(["$x^2$", "\\(x^2\\)", "$$x^2$$", "\\[x^2\\]", "a $$x^2$$ b"])("math: %s", (text) => {
    expect(html(text)).toContain('class="katex"')
  })

  test.each(["between $5 and $10", "a$ b $c", "`$x$`", "\\$x\\$", "```\n$$x$$\n```"])(
    "not math: %s",
    (text) => {
      expect(html(text)).not.toContain("katex")
    },
  )

  test("display math over several lines", () => {
    expect(html("Then\n$$\n\\frac{a}{b}\n$$\nfollows")).toContain("katex-display")
  })

  test("broken math shows its source", () => {
    expect(html("$\\frac{$")).toContain("\\frac{")
    expect(html("$\\href{javascript:alert(1)}{x}$")).not.toContain("href=")
  })

  test("link definitions at the end reach the start", () => {
    expect(html("See [this][1].\n\nMore.\n\n[1]: https://example.org")).toContain(
      'href="https://example.org"',
    )
  })
})

describe("nothing of the model's own HTML gets through", () => {
  test.each([
    "<script>alert(1)</script>",
    "text <img src=x onerror=alert(1)> text",
    "<svg onload=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    '<iframe src="https://example.org"></iframe>',
    "<style>*{display:none}</style>",
    "<b onmouseover=alert(1)>x</b>",
    "<details ontoggle=alert(1) open>",
    "<math><mtext></mtext><script>alert(1)</script></math>",
    "<form action=https://example.org><input></form>",
    "<!-- --!><script>alert(1)</script>",
  ])("%s", (text) => {
    const out = html(text)
    for (const tag of tags(out)) expect(["p", "b", "details"]).toContain(tag)
    expect(out).not.toMatch(/<[^>]*\son\w+\s*=/i)
    expect(out).toContain("&lt;")
  })

  test("plain formatting tags work without attributes", () => {
    expect(html("H<sub>2</sub>O<br>x")).toContain("H<sub>2</sub>O<br>x")
  })

  test.each([
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:x)",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](file:///etc/passwd)",
    "[x](/v1/models)",
    "<javascript:alert(1)>",
    "![x](data:image/svg+xml,<svg/onload=alert(1)>)",
  ])("no link: %s", (text) => {
    expect(html(text)).not.toContain("href")
  })

  test("links leave the page open and tell the target nothing", () => {
    const out = html('[x](https://example.org/"onclick="alert(1))')
    expect(out).toContain('target="_blank" rel="noopener noreferrer nofollow"')
    expect(out).not.toContain('"onclick')
  })

  test("images are not loaded", () => {
    const out = html("![secret](https://example.org/?q=secret)")
    expect(out).not.toContain("<img")
    expect(out).toContain('<a href="https://example.org/?q=secret"')
  })

  test("isSafeLink", () => {
    expect(["https://a", "HTTP://a", "mailto:a@b", "#x"].every(isSafeLink)).toBe(true)
    expect(
      ["", "javascript:x", " javascript:x", "java\nscript:x", "//a", "data:,"].some(isSafeLink),
    ).toBe(false)
  })

  test("any text gives only known tags", () => {
    const known = new Set(
      "p b i u br hr em strong s del ins sub sup small kbd mark details summary a code pre h1 h2 h3 h4 h5 h6 ul ol li blockquote input figure figcaption button span div table thead tbody tr th td".split(
        " ",
      ),
    )
    const piece = fc.constantFrom(
      ..."< > \" ' = ` ``` [ ] ( ) ! # - * _ \n \n\n  | & ; / \\ : script img onerror=alert(1) src=x javascript: style a b".split(
        " ",
      ),
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
        for (const tag of tags(html(pieces.join("")))) expect(known).toContain(tag)
      }),
      { numRuns: 300 },
    )
  })
})

describe("streaming", () => {
  const text =
    "# Title\n\nSome *text* with\na break.\n\n- one\n\n- two\n\n  more\n\n```js\nlet a = 1\n\nlet b\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n1. x\n2. y\n\n> q\n\n$$\nx\n$$\n\nEnd."

  test("each character more gives what all at once would", () => {
    let blocks: Block[] = []
    for (let end = 1; end <= text.length; end++) {
      blocks = renderBlocks(text.slice(0, end), blocks)
      const whole = renderBlocks(text.slice(0, end))
      expect(blocks.map((block) => block.html)).toEqual(whole.map((block) => block.html))
    }
  })

  test("finished blocks keep their objects", () => {
    const before = renderBlocks(text)
    const after = renderBlocks(`${text} And more.`, before)
    const same = after.filter((block, index) => block === before[index])
    expect(same.length).toBeGreaterThanOrEqual(before.length - 1)
  })

  test("a text that does not continue the last one is parsed anew", () => {
    expect(renderBlocks("other\n\ntext\n\nhere", renderBlocks(text))).toEqual(
      renderBlocks("other\n\ntext\n\nhere"),
    )
  })

  test("a long answer costs no more per token at its end than its last blocks", () => {
    const long = "A paragraph of some words.\n\n".repeat(2000)
    const before = renderBlocks(long)
    const after = renderBlocks(`${long}word`, before)
    expect(before.length).toBeGreaterThan(2000)
    expect(after.filter((block, index) => block !== before[index])).toHaveLength(1)
  })
})

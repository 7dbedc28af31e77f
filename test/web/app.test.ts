import {
  afterAll,
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  setDefaultTimeout,
  test,
} from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import type { BrowserContext, Page } from "puppeteer-core"

import { findChromium, launchChromium, type TestBrowser } from "./browser.ts"
import { type FakeServer, startFakeServer, tokens } from "./fake-server.ts"

/** The page in a real browser, against a server that answers as each test says. */

setDefaultTimeout(60_000)

const chromium = findChromium()
const DESKTOP = { width: 1200, height: 800 }
const PHONE = { width: 360, height: 740, isMobile: true, hasTouch: true, deviceScaleFactor: 2 }

const LONG = Array.from({ length: 400 }, (_, i) => `Line ${i} of a long answer.\n\n`)

if (chromium === undefined)
  test.skip("the page in a browser: no Chromium found (install it or set CHROMIUM)", () => {})

describe.skipIf(chromium === undefined)("the page", () => {
  let browser: TestBrowser
  let server: FakeServer
  let context: BrowserContext
  let page: Page
  let problems: string[]

  beforeAll(async () => {
    browser = await launchChromium(chromium ?? "")
  })

  afterAll(async () => {
    await browser.close()
  })

  beforeEach(async () => {
    server = startFakeServer()
    context = await browser.browser.createBrowserContext()
    page = await open()
  })

  afterEach(async () => {
    await context.close()
    await server.stop()
  })

  /** A tab of the same browser profile; errors of the page and requests to elsewhere are problems. */
  async function open(viewport: typeof DESKTOP | typeof PHONE = DESKTOP): Promise<Page> {
    const opened = await context.newPage()
    problems = []
    opened.setDefaultTimeout(10_000)
    opened.on("pageerror", (error) => problems.push(String(error)))
    opened.on("console", (message) => {
      // The browser reports every 4xx and dropped connection there; tests that cause them see them in the page.
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource"))
        problems.push(message.text())
    })
    opened.on("dialog", (dialog) => {
      problems.push(`dialog: ${dialog.message()}`)
      void dialog.dismiss()
    })
    opened.on("request", (request) => {
      const url = request.url()
      if (!url.startsWith(server.url) && !/^(?:data|blob):/.test(url))
        problems.push(`request: ${url}`)
    })
    await opened.setViewport(viewport)
    await opened.goto(server.url)
    await opened.waitForSelector(".dot.is-online")
    return opened
  }

  async function send(text: string): Promise<void> {
    await page.type("#prompt", text)
    await page.keyboard.press("Enter")
  }

  const done = (count: number): Promise<unknown> =>
    page.waitForFunction(
      (n) =>
        document.querySelectorAll('.from-model[aria-busy="false"]').length === n &&
        document.querySelector(".is-stop") === null,
      {},
      count,
    )

  const texts = (selector: string): Promise<string[]> =>
    page.$$eval(selector, (elements) => elements.map((element) => element.textContent.trim()))

  const click = (label: string): Promise<void> => page.locator(`[aria-label="${label}"]`).click()

  /** Waits until `read` gives `value`; an action in the page may take a frame to show. */
  async function eventually<T>(read: () => T | Promise<T>, value: T): Promise<void> {
    const end = performance.now() + 5000
    while (performance.now() < end && !Bun.deepEquals(await read(), value)) await Bun.sleep(20)
    expect<unknown>(await read()).toEqual(value)
  }

  async function chord(...keys: ("Control" | "Shift" | "k" | "Enter" | "Tab")[]): Promise<void> {
    const last = keys.at(-1)
    if (last === undefined) return
    for (const key of keys.slice(0, -1)) await page.keyboard.down(key)
    await page.keyboard.press(last)
    for (const key of keys.slice(0, -1).reverse()) await page.keyboard.up(key)
  }

  test("an answer streams in, with what it cost", async () => {
    server.reply = () => ({ chunks: ["The ", "**answer** ", "is ", "`42`."], delayMs: 150 })
    await send("What is the answer?")
    // Text is there while the stream still runs.
    await page.waitForFunction(
      () => document.querySelector(".prose strong")?.textContent === "answer",
    )
    expect(await page.$(".is-stop")).not.toBeNull()
    await done(1)
    expect(await texts(".prose")).toEqual(["The answer is 42."])
    const [stats] = await texts(".stats")
    expect(stats).toContain("131 tokens/s")
    expect(stats).toMatch(/first token \d+ ms/)
    expect(stats).toContain("4 tokens")
    expect(stats).toContain("prompt 42, 30 of it cached")
    expect(await texts(".meter-text")).toEqual(["46 of 8.2k"])
    expect(await texts(".model-name")).toEqual(["SmolLM2-135M-Instruct"])
    expect(await texts(".header-title")).toEqual(["What is the answer?"])
    expect(server.calls[0]?.body).toMatchObject({
      model: "SmolLM2-135M-Instruct",
      messages: [{ role: "user", content: "What is the answer?" }],
      stream: true,
      stream_options: { include_usage: true },
    })
    // Screen readers get the whole answer once.
    expect(await page.$eval("[aria-atomic]", (e) => e.textContent)).toBe("The **answer** is `42`.")
    expect(problems).toEqual([])
  })

  test("stop keeps what came and closes the request", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 20 })
    await send("Go on")
    await page.waitForSelector(".prose")
    await click("Stop answering")
    await done(1)
    await eventually(() => server.calls[0]?.isAborted, true)
    expect(await texts(".ended")).toEqual(["Stopped here."])
    const [text] = await texts(".prose")
    await Bun.sleep(200)
    expect(await texts(".prose")).toEqual([text ?? ""])
    expect(problems).toEqual([])
  })

  test("regenerate asks again with the same messages", async () => {
    server.reply = (_, index) => ({ chunks: [`Answer ${index}`] })
    await send("Hi")
    await done(1)
    await send("More")
    await done(2)
    await click("Regenerate answer")
    // The first answer's button: everything below it goes.
    await eventually(() => texts(".prose"), ["Answer 2"])
    expect(server.calls[2]?.body.messages).toEqual([{ role: "user", content: "Hi" }])
    expect(problems).toEqual([])
  })

  test("an edited message replaces what followed it", async () => {
    server.reply = (call) => ({ chunks: [`You said ${call.body.messages.at(-1)?.content}`] })
    await send("one")
    await done(1)
    await send("two")
    await done(2)
    expect(server.calls[1]?.body.messages.map((message) => message.content)).toEqual([
      "one",
      "You said one",
      "two",
    ])
    await click("Edit and resend")
    await page.waitForSelector(".editor")
    await page.keyboard.type(" more")
    await page.keyboard.press("Enter")
    await eventually(() => texts(".prose"), ["You said one more"])
    expect(await texts(".bubble")).toEqual(["one more"])
    expect(problems).toEqual([])
  })

  test("a message can be deleted and brought back", async () => {
    await send("Hi")
    await done(1)
    await click("Delete answer")
    await eventually(() => texts(".prose"), [])
    await page.locator(".notice .button").click()
    await eventually(() => texts(".prose"), ["Hello there."])
  })

  test("conversations survive a reload, can be renamed, searched and deleted", async () => {
    await send("First topic")
    await done(1)
    await chord("Control", "k")
    await send("Second topic")
    await done(1)
    await page.reload()
    await eventually(() => texts(".item-title"), ["Second topic", "First topic"])
    expect(await texts(".bubble")).toEqual(["Second topic"])
    expect(await texts(".prose")).toEqual(["Hello there."])
    expect(await texts(".stats-speed")).toEqual(["131 tokens/s"])

    await page.hover('.item-open[title="First topic"]')
    await click("Rename First topic")
    await page.waitForSelector(".item-input")
    await page.keyboard.type("Renamed")
    await page.keyboard.press("Enter")
    await eventually(() => texts(".item-title"), ["Second topic", "Renamed"])

    await page.type('[aria-label="Search conversations"]', "renam")
    await eventually(() => texts(".item-title"), ["Renamed"])
    await page.hover('.item-open[title="Renamed"]')
    await click("Delete Renamed")
    await eventually(() => texts(".list-empty"), ["Nothing found."])
    await page.reload()
    await eventually(() => texts(".item-title"), ["Second topic"])
    expect(problems).toEqual([])
  })

  test("export and import carry conversations to another browser", async () => {
    const folder = mkdtempSync(join(tmpdir(), "kt-export-"))
    try {
      const session = await page.createCDPSession()
      await session.send("Browser.setDownloadBehavior", {
        behavior: "allow",
        downloadPath: folder,
        ...(context.id === undefined ? {} : { browserContextId: context.id }),
      })
      await send("Carry me")
      await done(1)
      await click("Export all conversations")
      const file = join(folder, "Carry-me.json")
      await eventually(() => Bun.file(file).exists(), true)
      const exported = JSON.parse(readFileSync(file, "utf8")) as { conversations: unknown[] }
      expect(exported.conversations).toHaveLength(1)

      await context.close()
      context = await browser.browser.createBrowserContext()
      page = await open()
      const input = await page.$("#import-file")
      if (input === null) throw new Error("no file input")
      await (input as Awaited<ReturnType<typeof page.$<"input">>>)?.uploadFile(file)
      await eventually(() => texts(".item-title"), ["Carry me"])
      writeFileSync(join(folder, "bad.json"), "{}")
      await (input as Awaited<ReturnType<typeof page.$<"input">>>)?.uploadFile(
        join(folder, "bad.json"),
      )
      await eventually(
        () => texts(".notice.is-error span"),
        ["bad.json: This file was not exported from this page."],
      )
      expect(problems).toEqual([])
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })

  test("settings go with the request, stay with the conversation and can be reset", async () => {
    await page.locator(".settings-button").click()
    await page.type("#system-prompt", "Be brief.")
    await page.type("#setting-temperature", "0.5")
    await page.type("#setting-top_p", "7")
    expect(await texts(".problem")).toEqual(["Top-p must be between 0.01 and 1"])
    await page.keyboard.press("Escape")
    await page.waitForSelector("dialog", { hidden: true })
    await send("Hi")
    await done(1)
    const body = server.calls[0]?.body
    expect(body?.messages[0]).toEqual({ role: "system", content: "Be brief." })
    expect(body?.["temperature"]).toBe(0.5)
    expect(body).not.toHaveProperty("top_p")

    await page.reload()
    await eventually(() => texts(".badge"), ["2"])
    await page.locator(".settings-button").click()
    expect(await page.$eval("#system-prompt", (e) => (e as HTMLTextAreaElement).value)).toBe(
      "Be brief.",
    )
    await page.locator(".panel-foot .button").click()
    await eventually(() => texts(".badge"), [])
    // New chats were never changed.
    await page.keyboard.press("Escape")
    await chord("Control", "k")
    expect(await texts(".badge")).toEqual([])
  })

  test("dark and light, kept over a reload; the system's by default", async () => {
    const theme = (): Promise<string | undefined> =>
      page.evaluate(() => document.documentElement.dataset["theme"])
    const background = (): Promise<string> =>
      page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }])
    await eventually(theme, "dark")
    const dark = await background()
    await click("Light theme")
    await eventually(theme, "light")
    expect(await background()).not.toBe(dark)
    await page.reload()
    await page.waitForSelector(".composer")
    expect(await theme()).toBe("light")
    await click("Dark theme")
    await eventually(background, dark)
  })

  test("works by keyboard alone", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 20 })
    const focused = (): Promise<string> =>
      page.evaluate(
        () =>
          document.activeElement?.id || document.activeElement?.getAttribute("aria-label") || "",
      )
    // The message box has the focus from the start.
    expect(await focused()).toBe("prompt")
    await page.keyboard.type("Line one")
    await chord("Shift", "Enter")
    await page.keyboard.type("line two")
    await page.keyboard.press("Enter")
    await page.waitForSelector(".prose")
    expect(server.calls[0]?.body.messages[0]?.content).toBe("Line one\nline two")
    await page.keyboard.press("Escape")
    await eventually(() => server.calls[0]?.isAborted, true)
    await done(1)
    // Up edits the last message, Escape leaves it as it was.
    await page.keyboard.press("ArrowUp")
    await eventually(focused, "Edit message")
    await page.keyboard.press("Escape")
    await eventually(focused, "prompt")
    expect(await texts(".bubble")).toEqual(["Line one\nline two"])
    await chord("Control", "k")
    await eventually(() => texts("#empty-title"), ["What are you working on?"])
    await eventually(focused, "prompt")
    // The first stop of the page is the link that skips the list.
    const isFirst = (): Promise<boolean> =>
      page.evaluate(() => document.activeElement?.className === "skip")
    for (let i = 0; i < 40 && !(await isFirst()); i++) await chord("Shift", "Tab")
    expect(await isFirst()).toBe(true)
    await page.keyboard.press("Enter")
    await eventually(focused, "prompt")
    // Every button that can be focused has a name and shows the focus.
    const unnamed = await page.$$eval("button, input, textarea, select", (elements) =>
      elements
        .filter((e) => !(e.getAttribute("aria-label") ?? e.textContent.trim()))
        .map((e) => e.outerHTML),
    )
    expect(unnamed.filter((html) => !html.includes("hidden"))).toEqual([])
    await chord("Shift", "Tab")
    expect(
      await page.evaluate(() => getComputedStyle(document.activeElement as Element).outlineStyle),
    ).toBe("solid")
    expect(problems).toEqual([])
  })

  test("fits a phone of 360 px, with the conversations in a drawer", async () => {
    server.reply = () => ({
      chunks: tokens(
        `A long line: ${"x".repeat(200)}\n\n\`\`\`js\n${"const wide = 1; ".repeat(20)}\n\`\`\`\n\n` +
          `| ${"column | ".repeat(12)}\n|${"---|".repeat(12)}\n| ${"value | ".repeat(12)}\n\n` +
          "$$\\int x + y + z + a + b + c + d + e + f + g + h + i + j + k + l + m + n\\,dx$$\n",
      ),
    })
    await page.close()
    page = await open(PHONE)
    await page.type("#prompt", "Something wide")
    await click("Send message")
    await done(1)
    const sizes = await page.evaluate(() =>
      [document.documentElement, document.body, document.querySelector(".scroller")].map((e) =>
        e === null ? -1 : e.scrollWidth - e.clientWidth,
      ),
    )
    expect(sizes).toEqual([0, 0, 0])
    const outside = await page.$$eval("button, textarea", (elements) =>
      elements
        .filter((e) => !e.closest("[inert]") && e.getBoundingClientRect().right > innerWidth)
        .map((e) => e.outerHTML),
    )
    expect(outside).toEqual([])
    // Closed, the drawer is out of reach; open, it takes the focus and the page behind is inert.
    expect(await page.$eval(".sidebar", (e) => (e as HTMLElement).inert)).toBe(true)
    await page.locator(".header .icon-button").click()
    await page.waitForSelector(".sidebar.is-open")
    expect(await page.$eval(".main", (e) => (e as HTMLElement).inert)).toBe(true)
    await page.locator(".new-chat").click()
    await page.waitForSelector(".sidebar:not(.is-open)")
    expect(await texts("#empty-title")).toHaveLength(1)
    expect(await page.$eval(".scroller", (e) => e.scrollTop)).toBe(0)
    expect(problems).toEqual([])
  })

  test("follows the answer until the reader scrolls up", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 5 })
    await send("Go on")
    const distance = (): Promise<number> =>
      page.$eval(".scroller", (e) => e.scrollHeight - e.clientHeight - e.scrollTop)
    await page.waitForFunction(() => (document.querySelector(".scroller")?.scrollTop ?? 0) > 300)
    expect(await distance()).toBeLessThan(40)
    await page.hover(".scroller")
    await page.mouse.wheel({ deltaY: -200 })
    await page.waitForSelector(".to-end")
    const top = await page.$eval(".scroller", (e) => e.scrollTop)
    await Bun.sleep(300)
    expect(await page.$eval(".scroller", (e) => e.scrollTop)).toBe(top)
    await page.locator(".to-end").click()
    await done(1)
    await eventually(async () => (await distance()) < 2, true)
    expect(problems).toEqual([])
  })

  test("a hostile answer stays text", async () => {
    const payload = [
      "<script>window.hacked = 1; alert(1)</script>",
      '<img src="https://evil.example/x" onerror="window.hacked = 1">',
      '[click](javascript:window.hacked=1) <a href="javascript:alert(1)">x</a>',
      '<iframe srcdoc="<script>parent.hacked = 1</script>"></iframe>',
      "![pixel](https://evil.example/leak?q=1)",
      "$\\href{javascript:window.hacked=1}{x}$ $\\includegraphics{https://evil.example/y}$",
      '```"><img src=x onerror=window.hacked=1>\ncode\n```',
    ].join("\n\n")
    server.reply = () => ({ chunks: tokens(payload) })
    await page.focus("#prompt")
    await page.keyboard.sendCharacter(payload)
    await page.keyboard.press("Enter")
    await done(1)
    await page.$$eval(".prose a, .prose button", (elements) => {
      for (const element of elements)
        if (!element.getAttribute("href")?.startsWith("http")) (element as HTMLElement).click()
    })
    await Bun.sleep(200)
    expect(await page.evaluate(() => "hacked" in window)).toBe(false)
    expect(await page.$$(".prose img, .prose iframe, .prose script")).toEqual([])
    expect(await texts(".bubble")).toEqual([payload])
    expect(problems).toEqual([])
  })

  test("reasoning is folded until asked for", async () => {
    server.reply = () => ({ chunks: tokens("<think>\nLet me see.\n</think>\n\nYes."), delayMs: 30 })
    await send("Well?")
    await eventually(() => texts(".thinking.is-running .thinking-head"), ["Thinking"])
    await done(1)
    expect(await texts(".thinking-head")).toEqual(["Thoughts"])
    expect(await texts(".prose")).toEqual(["Yes."])
    await page.locator(".thinking-head").click()
    await eventually(() => texts(".thinking-body"), ["Let me see."])
    await send("Sure?")
    await done(2)
    expect(server.calls[1]?.body.messages[1]).toEqual({ role: "assistant", content: "Yes." })
  })

  test("code can be copied", async () => {
    await context.overridePermissions(server.url, ["clipboard-read", "clipboard-sanitized-write"])
    server.reply = () => ({ chunks: ["```python\n", "print(1 < 2)\n", "```\n"] })
    await send("Code, please")
    await done(1)
    await page.locator(".copy-code").click()
    await eventually(() => texts(".copy-code"), ["Copied"])
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe("print(1 < 2)")
    expect((await page.$$(".hljs-number")).length).toBe(2)
  })

  test("errors show in place and can be tried again", async () => {
    server.reply = (_, index) =>
      index === 0
        ? { chunks: [], status: 429, error: "The queue is full.", headers: { "retry-after": "2" } }
        : { chunks: ["Done."] }
    await send("Hi")
    await eventually(() => texts(".failure p"), ["The queue is full. Try again in 2 s."])
    await page.locator(".failure .button").click()
    await eventually(() => texts(".prose"), ["Done."])
    expect(await texts(".failure")).toEqual([])
    expect(problems).toEqual([])
  })

  test("a lost connection keeps what came and says so", async () => {
    server.reply = () => ({ chunks: ["Half ", "an ", "answer"], cutAfter: 2 })
    await send("Hi")
    await eventually(
      () => texts(".failure p"),
      ["The connection to the server was lost before the answer was complete."],
    )
    expect(await texts(".prose")).toEqual(["Half an"])
    await page.setOfflineMode(true)
    await send("Still there?")
    await page.waitForSelector(".offline")
    expect((await texts(".failure p")).at(-1)).toStartWith("The server cannot be reached.")
    await page.setOfflineMode(false)
    await page.waitForSelector(".offline", { hidden: true })
  })

  test("asks for the API key, keeps it and then answers", async () => {
    server.apiKey = "secret"
    await send("Hi")
    await page.waitForSelector("#api-key")
    await page.type("#api-key", "wrong")
    await page.keyboard.press("Enter")
    await eventually(() => texts(".problem"), ["The API key is missing or wrong."])
    await page.locator("#api-key").fill("secret")
    await page.keyboard.press("Enter")
    await eventually(() => texts(".prose"), ["Hello there."])
    expect(server.calls[0]?.authorization).toBe("Bearer secret")
    await page.reload()
    await eventually(() => texts(".model-name"), ["SmolLM2-135M-Instruct"])
    expect(await page.$("#api-key")).toBeNull()
    // Without it the page asks as soon as it is opened.
    await page.evaluate(() => localStorage.removeItem("kt.apiKey"))
    await page.reload()
    await page.waitForSelector("#api-key")
  })

  test("two tabs show the same conversations", async () => {
    const other = await open()
    await page.bringToFront()
    await send("Shared")
    await done(1)
    // A tab in the background gets no frames, so it is asked instead of waited in.
    const seen = (selector: string): Promise<string[]> =>
      other.$$eval(selector, (elements) => elements.map((element) => element.textContent.trim()))
    await eventually(() => seen(".item-title"), ["Shared"])
    await other.$eval(".item-open", (element) => (element as HTMLElement).click())
    await eventually(() => seen(".prose"), ["Hello there."])
    // What the first tab streams shows up in the second, also before its end.
    server.reply = () => ({ chunks: ["One ", "two ", "three ", "four."], delayMs: 1300 })
    await send("More")
    await eventually(() => seen('.from-model[aria-busy="true"] .prose'), ["One two three"])
    await done(2)
    await eventually(() => seen(".prose"), ["Hello there.", "One two three four."])
    expect(await seen(".ended")).toEqual([])
    await other.close()
  })
})

import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { describeInBrowser } from "./browser.ts"
import { type FakeServer, startFakeServer, tokens } from "./fake-server.ts"
import { eventually, latinTexts, PHONE, readTexts, type Session, startSession } from "./session.ts"

/** What surrounds the talk: conversations, settings, themes, keyboard, phone, tabs and the API key, in a real browser. */

setDefaultTimeout(60_000)

const LONG = Array.from({ length: 400 }, (_, i) => `Line ${i} of a long answer.\n\n`)

describeInBrowser("the page in a browser", (browser) => {
  let server: FakeServer
  let s: Session

  beforeEach(async () => {
    server = startFakeServer()
    s = await startSession(browser(), server.url)
  })

  afterEach(async () => {
    await s.close()
    await server.stop()
  })

  test("conversations survive a reload, can be renamed, searched and deleted", async () => {
    await s.send("First topic")
    await s.done(1)
    await s.chord("Control", "k")
    await s.send("Second topic")
    await s.done(1)
    await s.page.reload()
    await eventually(() => s.texts(".item-title"), ["Second topic", "First topic"])
    expect(await s.texts(".bubble")).toEqual(["Second topic"])
    expect(await s.texts(".prose")).toEqual(["Hello there."])
    expect(await s.texts(".stats-speed")).toEqual(["131 tokens/s"])

    await s.page.hover('.item-open[title="First topic"]')
    await s.click("Rename First topic")
    await s.page.waitForSelector(".item-input")
    await s.page.keyboard.type("Renamed")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".item-title"), ["Second topic", "Renamed"])

    await s.page.type('[aria-label="Search conversations"]', "renam")
    await eventually(() => s.texts(".item-title"), ["Renamed"])
    await s.page.hover('.item-open[title="Renamed"]')
    await s.click("Delete Renamed")
    await eventually(() => s.texts(".list-empty"), ["Nothing found."])
    await s.page.reload()
    await eventually(() => s.texts(".item-title"), ["Second topic"])
    expect(s.problems).toEqual([])
  })

  test("export and import carry conversations to another browser", async () => {
    const folder = mkdtempSync(join(tmpdir(), "kt-export-"))
    try {
      const session = await s.page.createCDPSession()
      await session.send("Browser.setDownloadBehavior", {
        behavior: "allow",
        downloadPath: folder,
        ...(s.context.id === undefined ? {} : { browserContextId: s.context.id }),
      })
      await s.send("Carry me")
      await s.done(1)
      await s.click("Export all conversations")
      const file = join(folder, "Carry-me.json")
      await eventually(() => Bun.file(file).exists(), true)
      const exported = JSON.parse(readFileSync(file, "utf8")) as { conversations: unknown[] }
      expect(exported.conversations).toHaveLength(1)

      await s.context.close()
      s = await startSession(browser(), server.url)
      const input = await s.input("#import-file")
      await input.uploadFile(file)
      await eventually(() => s.texts(".item-title"), ["Carry me"])
      writeFileSync(join(folder, "bad.json"), "{}")
      await input.uploadFile(join(folder, "bad.json"))
      await eventually(
        () => s.texts(".notice.is-error span"),
        ["bad.json: This file was not exported from this page."],
      )
      expect(s.problems).toEqual([])
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })

  test("settings go with the request, stay with the conversation and can be reset", async () => {
    await s.page.locator(".settings-button").click()
    await s.page.type("#system-prompt", "Be brief.")
    await s.page.type("#setting-temperature", "0.5")
    await s.page.type("#setting-top_p", "7")
    expect(await s.texts(".problem")).toEqual(["Top-p must be between 0.01 and 1"])
    await s.page.keyboard.press("Escape")
    await s.page.waitForSelector("dialog", { hidden: true })
    await s.send("Hi")
    await s.done(1)
    const body = server.calls[0]?.body
    expect(body?.messages[0]).toEqual({ role: "system", content: "Be brief." })
    expect(body?.["temperature"]).toBe(0.5)
    expect(body).not.toHaveProperty("top_p")

    await s.page.reload()
    await eventually(() => s.texts(".badge"), ["2"])
    await s.page.locator(".settings-button").click()
    expect(await s.page.$eval("#system-prompt", (e) => (e as HTMLTextAreaElement).value)).toBe(
      "Be brief.",
    )
    await s.page.locator(".panel-foot .button").click()
    await eventually(() => s.texts(".badge"), [])
    // New chats were never changed.
    await s.page.keyboard.press("Escape")
    await s.chord("Control", "k")
    expect(await s.texts(".badge")).toEqual([])
  })

  test("in Chinese no English is left, and the choice lasts", async () => {
    await s.page.select('select[aria-label="Language"]', "zh")
    const lang = (): Promise<string> => s.page.evaluate(() => document.documentElement.lang)
    await eventually(lang, "zh")
    // the model's and the user's words are not the page's
    await s.page.type("#prompt", "你好")
    await s.page.keyboard.press("Enter")
    await s.done(1)
    await s.click("设置")
    await s.page.waitForSelector("#system-prompt")
    expect(await latinTexts(s.page)).toEqual([])
    const { KT_SCREENSHOTS } = process.env
    if (KT_SCREENSHOTS) await s.page.screenshot({ path: join(KT_SCREENSHOTS, "chinese.png") })
    await s.page.reload()
    await s.page.waitForSelector(".composer")
    expect(await lang()).toBe("zh")
    expect(await s.texts(".new-chat")).toEqual([expect.stringContaining("新对话")])
  })

  test("dark and light, kept over a reload; the system's by default", async () => {
    const theme = (): Promise<string | undefined> =>
      s.page.evaluate(() => document.documentElement.dataset["theme"])
    const background = (): Promise<string> =>
      s.page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }])
    await eventually(theme, "dark")
    const dark = await background()
    await s.click("Light theme")
    await eventually(theme, "light")
    expect(await background()).not.toBe(dark)
    await s.page.reload()
    await s.page.waitForSelector(".composer")
    expect(await theme()).toBe("light")
    await s.click("Dark theme")
    await eventually(background, dark)
  })

  test("works by keyboard alone", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 20 })
    const focused = (): Promise<string> =>
      s.page.evaluate(
        () =>
          document.activeElement?.id || document.activeElement?.getAttribute("aria-label") || "",
      )
    // The message box has the focus from the start.
    expect(await focused()).toBe("prompt")
    await s.page.keyboard.type("Line one")
    await s.chord("Shift", "Enter")
    await s.page.keyboard.type("line two")
    await s.page.keyboard.press("Enter")
    await s.page.waitForSelector(".prose")
    expect(server.calls[0]?.body.messages[0]?.content).toBe("Line one\nline two")
    await s.page.keyboard.press("Escape")
    await eventually(() => server.calls[0]?.isAborted, true)
    await s.done(1)
    // Up edits the last message, Escape leaves it as it was.
    await s.page.keyboard.press("ArrowUp")
    await eventually(focused, "Edit message")
    await s.page.keyboard.press("Escape")
    await eventually(focused, "prompt")
    expect(await s.texts(".bubble")).toEqual(["Line one\nline two"])
    await s.chord("Control", "k")
    await eventually(() => s.texts("#empty-title"), ["What are you working on?"])
    await eventually(focused, "prompt")
    // The first stop of the page is the link that skips the list.
    const isFirst = (): Promise<boolean> =>
      s.page.evaluate(() => document.activeElement?.className === "skip")
    for (let i = 0; i < 40 && !(await isFirst()); i++) await s.chord("Shift", "Tab")
    expect(await isFirst()).toBe(true)
    await s.page.keyboard.press("Enter")
    await eventually(focused, "prompt")
    // Every button that can be focused has a name and shows the focus.
    const unnamed = await s.page.$$eval("button, input, textarea, select", (elements) =>
      elements
        .filter((e) => !(e.getAttribute("aria-label") ?? e.textContent.trim()))
        .map((e) => e.outerHTML),
    )
    expect(unnamed.filter((html) => !html.includes("hidden"))).toEqual([])
    await s.chord("Shift", "Tab")
    expect(
      await s.page.evaluate(() => getComputedStyle(document.activeElement as Element).outlineStyle),
    ).toBe("solid")
    expect(s.problems).toEqual([])
  })

  test("fits a phone of 360 px, with the conversations in a drawer", async () => {
    server.reply = () => ({
      chunks: tokens(
        `A long line: ${"x".repeat(200)}\n\n\`\`\`js\n${"const wide = 1; ".repeat(20)}\n\`\`\`\n\n` +
          `| ${"column | ".repeat(12)}\n|${"---|".repeat(12)}\n| ${"value | ".repeat(12)}\n\n` +
          "$$\\int x + y + z + a + b + c + d + e + f + g + h + i + j + k + l + m + n\\,dx$$\n",
      ),
    })
    await s.close()
    s = await startSession(browser(), server.url, PHONE)
    await s.page.type("#prompt", "Something wide")
    await s.click("Send message")
    await s.done(1)
    const sizes = await s.page.evaluate(() =>
      [document.documentElement, document.body, document.querySelector(".scroller")].map((e) =>
        e === null ? -1 : e.scrollWidth - e.clientWidth,
      ),
    )
    expect(sizes).toEqual([0, 0, 0])
    const outside = await s.page.$$eval("button, textarea", (elements) =>
      elements
        .filter((e) => !e.closest("[inert]") && e.getBoundingClientRect().right > innerWidth)
        .map((e) => e.outerHTML),
    )
    expect(outside).toEqual([])
    // Closed, the drawer is out of reach; open, it takes the focus and the page behind is inert.
    expect(await s.page.$eval(".sidebar", (e) => (e as HTMLElement).inert)).toBe(true)
    await s.page.locator(".header .icon-button").click()
    await s.page.waitForSelector(".sidebar.is-open")
    expect(await s.page.$eval(".main", (e) => (e as HTMLElement).inert)).toBe(true)
    await s.page.locator(".new-chat").click()
    await s.page.waitForSelector(".sidebar:not(.is-open)")
    expect(await s.texts("#empty-title")).toHaveLength(1)
    expect(await s.page.$eval(".scroller", (e) => e.scrollTop)).toBe(0)
    expect(s.problems).toEqual([])
  })

  test("asks for the API key, keeps it and then answers", async () => {
    server.apiKey = "secret"
    await s.send("Hi")
    await s.page.waitForSelector("#api-key")
    await s.page.type("#api-key", "wrong")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".problem"), ["The API key is missing or wrong."])
    await s.page.locator("#api-key").fill("secret")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".prose"), ["Hello there."])
    expect(server.calls[0]?.authorization).toBe("Bearer secret")
    await s.page.reload()
    await eventually(() => s.texts(".model-name"), ["SmolLM2-135M-Instruct"])
    expect(await s.page.$("#api-key")).toBeNull()
    // Without it the page asks as soon as it is opened.
    await s.page.evaluate(() => localStorage.removeItem("kt.apiKey"))
    await s.page.reload()
    await s.page.waitForSelector("#api-key")
  })

  test("two tabs show the same conversations", async () => {
    const other = await s.tab()
    await s.page.bringToFront()
    await s.send("Shared")
    await s.done(1)
    // A tab in the background gets no frames, so it is asked instead of waited in.
    const seen = (selector: string): Promise<string[]> => readTexts(other, selector)
    await eventually(() => seen(".item-title"), ["Shared"])
    await other.$eval(".item-open", (element) => (element as HTMLElement).click())
    await eventually(() => seen(".prose"), ["Hello there."])
    // What the first tab streams shows up in the second, also before its end.
    server.reply = () => ({ chunks: ["One ", "two ", "three ", "four."], delayMs: 1300 })
    await s.send("More")
    await eventually(() => seen('.from-model[aria-busy="true"] .prose'), ["One two three"])
    await s.done(2)
    await eventually(() => seen(".prose"), ["Hello there.", "One two three four."])
    expect(await seen(".ended")).toEqual([])
    await other.close()
  })
})

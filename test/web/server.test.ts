import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test"

import type { BrowserContext, Page } from "puppeteer-core"

import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import index from "../../src/web/index.html"
import { type FakeClient, type Script, testServer } from "../server/fakes.ts"
import { findChromium, launchChromium, type TestBrowser } from "./browser.ts"

/** The page against the project's own server; only the engine is scripted. */

setDefaultTimeout(60_000)

const chromium = findChromium()

if (chromium === undefined)
  test.skip("the page on our server: no Chromium found (install it or set CHROMIUM)", () => {})

describe.skipIf(chromium === undefined)("the page on our server", () => {
  let browser: TestBrowser
  let context: BrowserContext
  let server: RunningServer
  let page: Page

  beforeAll(async () => {
    browser = await launchChromium(chromium ?? "")
  })

  afterAll(async () => {
    await browser.close()
  })

  afterEach(async () => {
    await context.close()
    await server.stop(0)
  })

  async function open(script: Script, config: Partial<ServerConfig> = {}): Promise<FakeClient> {
    const { app, client } = testServer(script, config)
    server = startServer({ app, port: 0, ui: { "/": index } })
    context = await browser.browser.createBrowserContext()
    page = await context.newPage()
    page.setDefaultTimeout(10_000)
    await page.goto(server.url)
    await page.waitForSelector(".dot.is-online")
    return client
  }

  async function send(text: string): Promise<void> {
    await page.type("#prompt", text)
    await page.keyboard.press("Enter")
  }

  const texts = (selector: string): Promise<string[]> =>
    page.$$eval(selector, (elements) => elements.map((element) => element.textContent.trim()))

  async function eventually<T>(read: () => T | Promise<T>, value: T): Promise<void> {
    const end = performance.now() + 5000
    while (performance.now() < end && !Bun.deepEquals(await read(), value)) await Bun.sleep(20)
    expect<unknown>(await read()).toEqual(value)
  }

  test("chats, with the server's own counts and the model's context", async () => {
    const client = await open({ answer: "Grüße, **welt** 🙂", cachedTokens: 3 })
    await eventually(() => texts(".model-name"), ["fake"])
    await send("Hi")
    await eventually(() => texts(".prose"), ["Grüße, welt 🙂"])
    await page.waitForSelector('.from-model[aria-busy="false"] .stats')
    expect(client.prompt()).toBe("user:Hi\nassistant:")
    const [stats] = await texts(".stats")
    expect(stats).toMatch(/[\d.,]+ tokens\/s/)
    expect(stats).toContain("prompt 19, 3 of it cached")
    expect((await texts(".meter-text"))[0]).toEndWith("of 2k")
  })

  test("stop reaches the engine", async () => {
    const client = await open({ answer: "on and ", then: "endless", delayMs: 5 })
    await send("Go")
    await page.waitForSelector(".prose")
    await page.keyboard.press("Escape")
    await eventually(() => client.calls[0]?.ended, "aborted")
    await eventually(() => texts(".ended"), ["Stopped here."])
  })

  test("a message that does not fit and an engine that fails are explained in place", async () => {
    await open({ answer: "abcdef", contextLength: 64, failAt: 3 })
    await send("x".repeat(100))
    await page.waitForSelector(".failure")
    expect((await texts(".failure p"))[0]).toContain("64")
    await page.keyboard.down("Control")
    await page.keyboard.press("k")
    await page.keyboard.up("Control")
    await send("Hi")
    await eventually(() => texts(".prose"), ["abc"])
    await page.waitForSelector(".failure")
    expect((await texts(".failure p"))[0]).toContain("the kernel failed")
  })

  test("asks for the key that the server wants", async () => {
    const client = await open({ answer: "Hello" }, { apiKeys: ["secret"] })
    await page.waitForSelector("#api-key")
    await page.type("#api-key", "secret")
    await page.keyboard.press("Enter")
    await eventually(() => texts(".model-name"), ["fake"])
    await send("Hi")
    await eventually(() => texts(".prose"), ["Hello"])
    expect(client.calls).toHaveLength(1)
    // A key that no longer works is asked for again; left alone, the message box can be typed in.
    await page.evaluate(() => localStorage.setItem("kt.apiKey", "stale"))
    await page.reload()
    await page.waitForSelector("#api-key")
    await page.keyboard.press("Escape")
    await page.waitForSelector("dialog", { hidden: true })
    await page.keyboard.type("Still here")
    await eventually(
      () => page.$eval("#prompt", (element) => (element as HTMLTextAreaElement).value),
      "Still here",
    )
  })

  test("settings arrive at the sampler", async () => {
    const client = await open({ answer: "Hello" })
    await page.locator(".settings-button").click()
    await page.waitForSelector("dialog[open]")
    const values = {
      temperature: "0.5",
      top_p: "0.9",
      top_k: "20",
      min_p: "0.05",
      repetition_penalty: "1.1",
      max_tokens: "3",
      seed: "7",
    }
    await page.type("#system-prompt", "Be brief.")
    for (const [key, value] of Object.entries(values)) await page.type(`#setting-${key}`, value)
    await page.keyboard.press("Escape")
    await page.waitForSelector("dialog", { hidden: true })
    await send("Hi")
    await eventually(
      () => texts(".ended"),
      ["Cut off: the token limit or the end of the context was reached."],
    )
    expect(client.prompt()).toBe("system:Be brief.\nuser:Hi\nassistant:")
    expect(client.calls[0]?.params).toMatchObject({
      temperature: 0.5,
      topP: 0.9,
      topK: 20,
      minP: 0.05,
      repetitionPenalty: 1.1,
      maxTokens: 3,
      seed: 7,
    })
  })
})

import { expect } from "bun:test"

import type { BrowserContext, ElementHandle, Page } from "puppeteer-core"

import type { TestBrowser } from "./browser.ts"

export const DESKTOP = { width: 1200, height: 800 }
export const PHONE = {
  width: 360,
  height: 740,
  isMobile: true,
  hasTouch: true,
  deviceScaleFactor: 2,
}

type Key = "Control" | "Shift" | "k" | "Enter" | "Tab"

/** A fresh browser profile with the page open in a tab, and what tests do with it. */
export interface Session {
  readonly context: BrowserContext
  readonly page: Page
  /** Errors of the page, dialogs, and requests to elsewhere. */
  readonly problems: string[]
  send(text: string): Promise<void>
  /** Waits until `count` answers are complete and none is running. */
  done(count: number): Promise<void>
  texts(selector: string): Promise<string[]>
  /** Clicks what has this label. */
  click(label: string): Promise<void>
  chord(...keys: Key[]): Promise<void>
  input(selector: string): Promise<ElementHandle<HTMLInputElement>>
  /** One more tab of the same profile. */
  tab(): Promise<Page>
  close(): Promise<void>
}

export async function startSession(
  browser: TestBrowser,
  url: string,
  viewport: typeof DESKTOP | typeof PHONE = DESKTOP,
): Promise<Session> {
  const context = await browser.browser.createBrowserContext()
  const problems: string[] = []
  const tab = async (): Promise<Page> => {
    const opened = await context.newPage()
    opened.setDefaultTimeout(15_000)
    watch(opened, url, problems)
    await opened.setViewport(viewport)
    await opened.goto(url)
    await opened.waitForSelector(".dot.is-online")
    return opened
  }
  const page = await tab()
  return {
    context,
    page,
    problems,
    tab,
    close: () => context.close(),
    async send(text) {
      await page.type("#prompt", text)
      await page.keyboard.press("Enter")
    },
    async done(count) {
      await page.waitForFunction(
        (n) =>
          document.querySelectorAll('.from-model[aria-busy="false"]').length === n &&
          document.querySelector(".is-stop") === null,
        {},
        count,
      )
    },
    texts: (selector) => readTexts(page, selector),
    click: (label) => page.locator(`[aria-label="${label}"]`).click(),
    async chord(...keys) {
      const last = keys.at(-1)
      if (last === undefined) return
      const held = keys.slice(0, -1)
      for (const key of held) await page.keyboard.down(key)
      await page.keyboard.press(last)
      for (const key of held.reverse()) await page.keyboard.up(key)
    },
    async input(selector) {
      const element = await page.$<"input">(`input${selector}` as "input")
      if (element === null) throw new Error(`no input ${selector}`)
      return element
    },
  }
}

function watch(page: Page, url: string, problems: string[]): void {
  page.on("pageerror", (error) => problems.push(String(error)))
  page.on("console", (message) => {
    // The browser reports every 4xx and dropped connection; tests that cause them see them in the page.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource"))
      problems.push(message.text())
  })
  page.on("dialog", (dialog) => {
    problems.push(`dialog: ${dialog.message()}`)
    void dialog.dismiss()
  })
  page.on("request", (request) => {
    const asked = request.url()
    if (!asked.startsWith(url) && !/^(?:data|blob):/.test(asked)) problems.push(`request: ${asked}`)
  })
}

export function readTexts(page: Page, selector: string): Promise<string[]> {
  return page.$$eval(selector, (elements) => elements.map((element) => element.textContent.trim()))
}

/** Waits until `read` gives `value`; what is done in a page may take a frame to show. */
export async function eventually<T>(read: () => T | Promise<T>, value: T): Promise<void> {
  const end = performance.now() + 8000
  while (performance.now() < end && !Bun.deepEquals(await read(), value)) await Bun.sleep(20)
  expect<unknown>(await read()).toEqual(value)
}

/** Words of the page in Latin letters, for a page that is in Chinese: what the model, the user and the world call so left out. */
export async function latinTexts(page: Page): Promise<string[]> {
  const shown = await page.evaluate(() => {
    const foreign =
      ".prose, .bubble, .item-title, .header-title, .model, .language, kbd, .brand, noscript, [aria-live]"
    const texts: string[] = []
    for (const element of document.querySelectorAll("body *")) {
      if (element.closest(foreign) !== null) continue
      for (const name of ["aria-label", "title", "placeholder"])
        texts.push(element.getAttribute(name) ?? "")
      for (const node of element.childNodes)
        if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent ?? "")
    }
    return texts.filter((text) => /[a-z]{3}/i.test(text))
  })
  // what the world calls so, and names of keys
  const known =
    /^(?:[上下]移 )?(Top-p|Top-k|Min-p|Top-n-sigma|(?:XTC|DRY|Mirostat)[^a-z]*|.*API 密钥|.*[（(](Enter|Esc|Ctrl\+K)[)）]|.*你好.*)$/
  return shown.filter((text) => !known.test(text.trim()))
}

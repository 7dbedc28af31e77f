import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test"
import { readFileSync } from "node:fs"

import type { Page } from "puppeteer-core"

import { describeInBrowser } from "./browser.ts"
import { machineModel, modelEntry } from "./fake-machine.ts"
import { type FakeServer, startFakeServer } from "./fake-server.ts"
import { DESKTOP, eventually, PHONE, type Session, startSession } from "./session.ts"

const AXE = readFileSync(Bun.resolveSync("axe-core/axe.min.js", import.meta.dir), "utf8")

interface Violation {
  id: string
  nodes: { target: string[] }[]
}

/** What axe finds amiss in the page as it is now: rule and element. */
async function violations(page: Page): Promise<string[]> {
  await page.evaluate(AXE)
  const found = await page.evaluate(async () => {
    const { axe } = globalThis as unknown as {
      axe: { run(options: object): Promise<{ violations: Violation[] }> }
    }
    return (await axe.run({ resultTypes: ["violations"] })).violations
  })
  return found.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(" "))[0]}`)
}

/** What people need who do not see the page, use no mouse, want no motion, or print it. */
describeInBrowser("access to the page", (chromium) => {
  setDefaultTimeout(60_000)
  let server: FakeServer
  let s: Session
  beforeEach(() => {
    server = startFakeServer()
  })
  afterEach(async () => {
    await s.close()
    await server.stop()
  })

  async function open(viewport: typeof DESKTOP | typeof PHONE): Promise<void> {
    s = await startSession(chromium(), server.url, viewport)
    // axe is given to the page by the test, which the page's policy would not have
    await s.page.setBypassCSP(true)
    await s.page.reload()
    await s.page.waitForSelector(".dot.is-online")
  }

  /** By the button: on a phone Enter makes a new line. */
  async function say(text: string): Promise<void> {
    await s.page.type("#prompt", text)
    await s.page.locator(".send").click()
  }

  for (const [name, viewport, theme] of [
    ["wide and light", DESKTOP, "light"],
    ["narrow and dark", PHONE, "dark"],
  ] as const)
    test(`axe finds nothing amiss, ${name}`, async () => {
      const { machine } = server
      machine.machine.models.push(machineModel("moe"))
      machine.entries.push(
        modelEntry("moe", { state: "loaded", context: 4096, memory: 9 }),
        modelEntry("next", { state: "loading", loading: { done: 1, total: 2 } }),
        modelEntry("broken", { problem: "its header ends early" }),
      )
      await open(viewport)
      await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }])
      expect(await violations(s.page)).toEqual([])

      const call = { id: "c", name: "f", arguments: ['{"a": 1}'] }
      const text =
        "<think>\nHm.\n</think>\n\n## A\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n```js\nf()\n```\n\n$x$"
      server.reply = (_, i) =>
        i === 0
          ? { chunks: [text] }
          : i === 1
            ? { chunks: ["Now."], calls: [call], finish: "tool_calls" }
            : { chunks: [], status: 503, error: "full", headers: { "retry-after": "5" } }
      await say("Say it")
      await s.done(1)
      await s.page.locator(".thinking-head").click()
      await say("Call it")
      await s.done(2)
      await s.page.waitForSelector(".call-form")
      await s.page.$$eval("main details", (all) => all.forEach((e) => (e.open = true)))
      expect(await violations(s.page)).toEqual([])
      await s.page.locator(".call-form textarea").fill("1")
      await s.page.locator('.call-form button[type="submit"]').click()
      await s.page.waitForSelector(".failure")
      expect(await violations(s.page)).toEqual([])

      await s.page.locator(".settings-button").click()
      await s.page.locator(".more summary").click()
      await s.page.locator('[data-name="xtc"] input').click()
      await s.page.locator("#setting-temperature").fill("9")
      expect(await violations(s.page)).toEqual([])
      await s.page.keyboard.press("Escape")

      await s.page.evaluate(() => (location.hash = "#/models"))
      await s.page.waitForSelector("#pull-hint")
      expect(await violations(s.page)).toEqual([])
      await s.page.evaluate(() => (location.hash = "#/machine"))
      await s.page.waitForSelector("#prefix-cache")
      await s.page.locator("#roofline button").click()
      await s.page.waitForSelector("#roofline meter")
      await s.page.locator("#experts summary").click()
      await s.page.waitForSelector("#experts table")
      expect(await violations(s.page)).toEqual([])
      expect(s.problems).toEqual([])
    })

  test("on paper there is what was said, black on white, and nothing to press", async () => {
    await open(DESKTOP)
    await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }])
    server.reply = () => ({
      chunks: ["```\n", "long ".repeat(80), "\n```\n", "word\n\n".repeat(80)],
    })
    await s.send("Go on")
    await s.done(1)
    await s.page.emulateMediaType("print")
    const shown = await s.page.evaluate(() => ({
      pressed: [...document.querySelectorAll("button, input, select, textarea")]
        .filter((e) => e.checkVisibility())
        .map((e) => e.outerHTML),
      color: getComputedStyle(document.querySelector(".prose") as Element).color,
      // nothing scrolls: all of it is on the pages
      cut: [...document.querySelectorAll("main *")]
        .filter((e) => e.scrollHeight > e.clientHeight + 1 && e.clientHeight > 0)
        .filter((e) => getComputedStyle(e).overflowY !== "visible")
        .map((e) => e.className),
      wide: [...document.querySelectorAll(".prose pre")].map((e) => e.scrollWidth - e.clientWidth),
    }))
    expect(shown).toEqual({ pressed: [], color: "rgb(0, 0, 0)", cut: [], wide: [0] })
  })

  test("who wants no motion gets none", async () => {
    await open(DESKTOP)
    await s.page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }])
    server.reply = () => ({ chunks: Array(40).fill("word "), delayMs: 30 })
    await s.send("Go on")
    await s.page.waitForSelector(".prose")
    await s.page.locator(".settings-button").click()
    const moving = (): Promise<string[]> =>
      s.page.evaluate(() =>
        document
          .getAnimations()
          .filter(({ effect, playState }) => {
            const { duration } = effect?.getComputedTiming() ?? {}
            return playState === "running" && Number(duration) > 50
          })
          .map((each) => (each as CSSAnimation).animationName ?? "transition"),
      )
    expect(await moving()).toEqual([])
    await s.page.keyboard.press("Escape")
    await s.click("Stop answering")
    await s.done(1)
  })

  test("a chat from beginning to end without a mouse", async () => {
    await open(DESKTOP)
    const focused = (): Promise<string> =>
      s.page.evaluate(() => {
        const e = document.activeElement
        return (e?.getAttribute("aria-label") ?? (e?.id || e?.textContent)) || ""
      })
    /** Tab, or Shift and Tab, until that is reached. */
    const reach = async (name: string, back = false): Promise<void> => {
      for (let i = 0; i < 60; i++) {
        const now = await focused()
        if (now === name || now.trim() === name) return
        await (back ? s.chord("Shift", "Tab") : s.chord("Tab"))
      }
      throw new Error(`${name} cannot be reached; last was ${await focused()}`)
    }
    await eventually(focused, "Message")
    await s.page.keyboard.type("Hi")
    await s.chord("Enter")
    await s.done(1)
    expect(await focused()).toBe("Message")
    await reach("Regenerate answer", true)
    await s.chord("Enter")
    await s.page.waitForSelector(".from-model .versions")
    await s.done(1)
    await reach("Previous version", true)
    await s.chord("Enter")
    await eventually(() => s.texts(".versions"), ["1 / 2"])
    await reach("Edit and resend", true)
    await s.chord("Enter")
    await s.page.waitForSelector(".editor")
    await s.page.keyboard.type(" there")
    await reach("Send")
    await s.chord("Enter")
    await eventually(() => s.texts(".bubble"), ["Hi there"])
    await s.done(1)
    await reach("Settings", true)
    await s.chord("Enter")
    await s.page.waitForSelector("#system-prompt")
    await reach("setting-temperature")
    await s.page.keyboard.type("0.5")
    await s.page.keyboard.press("Escape")
    await eventually(focused, "Settings 1 changed")
    await s.chord("Control", "k")
    await eventually(focused, "Message")
    expect(s.problems).toEqual([])
  })
})

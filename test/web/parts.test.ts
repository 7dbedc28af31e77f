import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

import { SAMPLERS } from "../../src/web/types.ts"
import { describeInBrowser } from "./browser.ts"
import { type FakeServer, startFakeServer } from "./fake-server.ts"
import { eventually, latinTexts, PHONE, type Session, startSession } from "./session.ts"

/** Going on, versions, files, tools, schemas, samplers and saved prompts, in a real browser. */

setDefaultTimeout(60_000)

const TOOLS = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: {} } },
  },
]

describeInBrowser("parts of messages in a browser", (browser) => {
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

  /** The page in both themes, wide and narrow, where KT_SCREENSHOTS names a folder. */
  async function shoot(name: string): Promise<void> {
    const { KT_SCREENSHOTS } = process.env
    if (!KT_SCREENSHOTS) return
    const before = s.page.viewport()
    for (const theme of ["light", "dark"] as const)
      for (const width of [1280, 360]) {
        await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }])
        await s.page.setViewport({ width, height: 760 })
        await Bun.sleep(400)
        const path = join(KT_SCREENSHOTS, `${name}-${theme}-${width}.png`)
        await s.page.screenshot({ path: path as `${string}.png` })
      }
    await s.page.setViewport(before)
  }

  test("a stopped answer goes on in place", async () => {
    server.reply = (_, index) =>
      index === 0
        ? { chunks: ["One ", "two ", "three", ...Array(500).fill(" more")], delayMs: 60 }
        : { chunks: [" four", " five."], delayMs: 30, promptTokens: 50, finish: "length" }
    await s.send("Count")
    await eventually(async () => (await s.texts(".prose"))[0]?.startsWith("One two three"), true)
    await s.click("Stop answering")
    await s.done(1)
    const [begun = ""] = await s.texts(".prose")
    await shoot("continue")
    await s.page.locator(".continue").click()
    await eventually(() => s.texts(".prose"), [`${begun} four five.`])
    await s.done(1)
    const { messages, ...rest } = server.calls[1]?.body ?? { messages: [] }
    expect(rest).toMatchObject({ continue_final_message: true, add_generation_prompt: false })
    expect(messages).toHaveLength(2)
    expect(messages[1]).toEqual({
      role: "assistant",
      content: expect.stringContaining("One two three") as unknown as string,
    })
    expect(messages[1]?.content.trim()).toBe(begun)
    // Cut by its length it can go on again; complete it cannot.
    expect(await s.texts(".ended")).toEqual([
      "Cut off: the token limit or the end of the context was reached.",
    ])
    server.reply = () => ({ chunks: [" six."] })
    await s.page.locator(".continue").click()
    await eventually(() => s.texts(".prose"), [`${begun} four five. six.`])
    await s.done(1)
    expect(await s.page.$(".continue")).toBeNull()
    await s.page.reload()
    await eventually(() => s.texts(".prose"), [`${begun} four five. six.`])
    expect(s.problems).toEqual([])
  })

  test("versions of answers and messages can be switched, and last", async () => {
    server.reply = (_, index) => ({ chunks: [`Answer ${index}`] })
    await s.send("first")
    await s.done(1)
    await s.click("Regenerate answer")
    await eventually(() => s.texts(".prose"), ["Answer 1"])
    await s.done(1)
    await s.click("Regenerate answer")
    await eventually(() => s.texts(".from-model .versions"), ["3 / 3"])
    await s.done(1)
    await s.click("Previous version")
    await eventually(() => s.texts(".prose"), ["Answer 1"])
    await s.send("second")
    await s.done(2)
    expect(server.calls[3]?.body.messages[1]?.content).toBe("Answer 1")
    await s.click("Next version")
    await eventually(() => s.texts(".prose"), ["Answer 2"])

    // Rewriting the message keeps all of that as its first version.
    await s.click("Edit and resend")
    await s.page.waitForSelector(".editor")
    await s.page.keyboard.type(" again")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".prose"), ["Answer 4"])
    await s.done(1)
    expect(await s.texts(".versions")).toEqual(["2 / 2"])
    await s.page.reload()
    await eventually(() => s.texts(".versions"), ["2 / 2"])
    expect(await s.texts(".bubble")).toEqual(["first again"])
    await s.click("Previous version")
    await eventually(() => s.texts(".versions"), ["1 / 2", "3 / 3"])
    expect(await s.texts(".prose")).toEqual(["Answer 2"])
    await s.page.locator('.from-model [aria-label="Previous version"]').click()
    await eventually(() => s.texts(".prose"), ["Answer 1", "Answer 3"])
    expect(await s.texts(".bubble")).toEqual(["first", "second"])
    await shoot("versions")
    expect(await s.texts(".header-title")).toEqual(["first again"])

    // Deleting a version shows its neighbour.
    await s.page.locator('.from-model [aria-label="Delete answer"]').click()
    await eventually(() => s.texts(".from-model .versions"), ["2 / 2"])
    expect(await s.texts(".prose")).toEqual(["Answer 2"])
    expect(s.problems).toEqual([])
  })

  test("text files go along by button, drop and paste; others are refused", async () => {
    const folder = mkdtempSync(join(tmpdir(), "kt-files-"))
    try {
      const file = (name: string, text: string | Uint8Array): string => {
        writeFileSync(join(folder, name), text)
        return join(folder, name)
      }
      const input = await s.input("#attach-file")
      await input.uploadFile(
        file("notes.md", "# Notes\n```\ncode\n```\n"),
        file("image.png", new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0])),
        file("huge.txt", "x".repeat(600_000)),
      )
      await eventually(() => s.texts(".file-name"), ["notes.md"])
      await eventually(
        () => s.texts(".notice.is-error span"),
        [
          "image.png is not a text file and was not attached. huge.txt is larger than 500 kB and was not attached.",
        ],
      )
      const bring = (event: "drop" | "paste", name: string): Promise<void> =>
        s.page.evaluate(
          (kind, called) => {
            const data = new DataTransfer()
            data.items.add(new File([`text of ${called}`], called))
            const init = { bubbles: true, cancelable: true }
            if (kind === "paste") {
              const pasted = new ClipboardEvent("paste", { ...init, clipboardData: data })
              document.querySelector("#prompt")?.dispatchEvent(pasted)
              return
            }
            document.body.dispatchEvent(new DragEvent("dragover", { ...init, dataTransfer: data }))
            document.body.dispatchEvent(new DragEvent("drop", { ...init, dataTransfer: data }))
          },
          event,
          name,
        )
      await bring("drop", "dropped.ts")
      await bring("paste", "pasted.csv")
      await eventually(() => s.texts(".file-name"), ["notes.md", "dropped.ts", "pasted.csv"])
      expect(await s.page.$(".drop-zone")).toBeNull()
      await s.click("Remove dropped.ts")
      await eventually(() => s.texts(".file-name"), ["notes.md", "pasted.csv"])
      await shoot("attached")
      await s.send("Look at these")
      await s.done(1)
      const content =
        "````notes.md\n# Notes\n```\ncode\n```\n````\n\n" +
        "```pasted.csv\ntext of pasted.csv\n```\n\nLook at these"
      expect(server.calls[0]?.body.messages).toEqual([{ role: "user", content }])
      expect(await s.texts(".composer-wrap .file")).toEqual([])
      expect(await s.texts(".bubble")).toEqual(["Look at these"])
      await s.page.reload()
      await eventually(() => s.texts(".is-sent .file-name"), ["notes.md", "pasted.csv"])
      await s.page.locator(".is-sent summary").click()
      await eventually(
        () => s.page.$eval(".file-text", (e) => (e as HTMLDetailsElement).open),
        true,
      )
      await shoot("sent-files")
      // A file alone is a message, too.
      await input.dispose()
      await (await s.input("#attach-file")).uploadFile(file("only.txt", "alone"))
      await eventually(() => s.texts(".composer-wrap .file-name"), ["only.txt"])
      await s.click("Send message")
      await s.done(2)
      expect(server.calls[1]?.body.messages.at(-1)?.content).toBe("```only.txt\nalone\n```")
      expect(s.problems).toEqual([])
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })

  test("tools are called, and what they return is typed in and sent back", async () => {
    server.reply = (_, index) =>
      index === 0
        ? {
            chunks: ["Let me look."],
            calls: [
              { id: "call_1", name: "get_weather", arguments: ['{"city":', '"Oslo","days":3}'] },
              { id: "call_2", name: "get_weather", arguments: ['{"city":"Bergen"}'] },
            ],
            finish: "tool_calls",
          }
        : { chunks: ["It rains."] }
    await s.page.locator(".settings-button").click()
    const tools = "#setting-tools"
    await s.page.locator(tools).fill('[{"type": "function"}]')
    await eventually(async () => (await s.texts(".problem")).length, 1)
    expect((await s.texts(".problem"))[0]).toStartWith("Tools are a list like")
    await s.page.locator(tools).fill("[{]")
    await eventually(async () => (await s.texts(".problem"))[0]?.startsWith("Not JSON: "), true)
    await s.page.locator(tools).fill(JSON.stringify(TOOLS))
    await eventually(() => s.texts(".problem"), [])
    await s.page.keyboard.press("Escape")
    await s.page.waitForSelector("dialog", { hidden: true })

    await s.send("Weather?")
    await s.done(1)
    expect(server.calls[0]?.body["tools"]).toEqual(TOOLS)
    expect(await s.texts(".call summary")).toEqual(["Calls get_weather", "Calls get_weather"])
    expect(await s.page.$eval(".call-code", (e) => e.checkVisibility())).toBe(false)
    await s.page.locator(".call summary").click()
    await s.page.waitForSelector(".call[open]")
    expect((await s.texts(".call-code"))[0]).toBe('{\n  "city": "Oslo",\n  "days": 3\n}')
    await s.page.locator(".call-form textarea").fill('{"rain":true}')
    await s.page.locator(".call-pair:nth-of-type(2) textarea").fill("dry")
    await shoot("calls")
    await s.page.locator(".call-form .button").click()
    await s.done(2)
    expect(server.calls[1]?.body.messages.slice(1)).toEqual([
      {
        role: "assistant",
        content: "Let me look.",
        tool_calls: [
          {
            id: "call_1",
            type: "function",
            function: { name: "get_weather", arguments: '{"city":"Oslo","days":3}' },
          },
          {
            id: "call_2",
            type: "function",
            function: { name: "get_weather", arguments: '{"city":"Bergen"}' },
          },
        ],
      },
      { role: "tool", content: '{"rain":true}', tool_call_id: "call_1" },
      { role: "tool", content: "dry", tool_call_id: "call_2" },
    ])
    await s.page.reload()
    await eventually(() => s.texts(".prose"), ["Let me look.", "It rains."])
    expect(await s.texts(".from-tool summary")).toEqual([
      "Result of get_weather",
      "Result of get_weather",
    ])
    expect(await s.page.$(".call-form")).toBeNull()
    await shoot("results")
    expect(s.problems).toEqual([])
  })

  test("a schema and all samplers go with the request", async () => {
    await s.page.locator(".settings-button").click()
    const isOpen = (): Promise<boolean> =>
      s.page.$eval(".more", (e) => (e as HTMLDetailsElement).open)
    expect(await isOpen()).toBe(false)
    await s.page.locator(".more summary").click()
    const values: Readonly<Record<string, number>> = {
      presence_penalty: 0.5,
      frequency_penalty: -0.5,
      typical_p: 0.9,
      top_n_sigma: 1.5,
      xtc_probability: 0.5,
      xtc_threshold: 0.1,
      dynatemp_range: 0.3,
      dynatemp_exponent: 1.5,
      dry_multiplier: 0.8,
      dry_base: 1.75,
      dry_allowed_length: 2,
      dry_penalty_last_n: -1,
      mirostat: 2,
      mirostat_tau: 5,
      mirostat_eta: 0.1,
      repeat_last_n: 64,
    }
    for (const [key, value] of Object.entries(values))
      await s.page.locator(`#setting-${key}`).fill(String(value))
    await shoot("samplers")
    await s.page.locator("#setting-schema").fill("[]")
    await eventually(async () => (await s.texts(".problem")).length, 1)
    const schema = { type: "object", properties: { a: { type: "integer" } } }
    await s.page.locator("#setting-schema").fill(JSON.stringify(schema))
    await eventually(() => s.texts(".problem"), [])
    await shoot("schema")
    await s.page.keyboard.press("Escape")
    await s.page.waitForSelector("dialog", { hidden: true })
    server.reply = () => ({ chunks: ['{"a": '], finish: "length" })
    await s.send("JSON, please")
    await s.done(1)
    expect(server.calls[0]?.body).toMatchObject({
      ...values,
      response_format: {
        type: "json_schema",
        json_schema: { name: "answer", schema, strict: true },
      },
    })
    server.reply = () => ({ chunks: ['{"a": ', "1}\n"], delayMs: 300 })
    await s.click("Regenerate answer")
    await eventually(() => s.texts('[aria-busy="true"] .prose code'), ['{"a":'])
    await eventually(() => s.texts(".prose code"), ['{"a": 1}'])
    await s.done(1)
    await s.click("Previous version")
    await eventually(() => s.texts(".versions"), ["1 / 2"])
    // an answer that must match goes on where it ended
    server.reply = () => ({ chunks: ["2}"] })
    await s.page.locator(".continue").click()
    await eventually(() => s.texts(".prose code"), ['{"a": 2}'])
    await s.done(1)
    expect(server.calls.at(-1)?.body).toMatchObject({
      continue_final_message: true,
      response_format: { type: "json_schema" },
    })
    await s.page.reload()
    await eventually(() => s.texts(".badge"), ["17"])
    await s.page.locator(".settings-button").click()
    await s.page.waitForSelector(".more")
    expect(await isOpen()).toBe(true)
    expect(s.problems).toEqual([])
  })

  test("a chat branches: the copy goes on, the other one stays", async () => {
    server.reply = (_, i) => ({ chunks: [`Answer ${i}`] })
    await s.send("One")
    await s.done(1)
    await s.click("Regenerate answer")
    await s.done(1)
    await s.send("Two")
    await s.done(2)
    await s.page.$$eval('[aria-label="Branch into a new chat"]', ([first]) =>
      (first as HTMLElement).click(),
    )
    await eventually(() => s.texts(".bubble"), ["One"])
    expect(await s.texts(".prose")).toEqual(["Answer 1"])
    expect(await s.texts(".versions")).toEqual([])
    await eventually(() => s.texts(".item-title"), ["Branch of One", "One"])
    expect(await s.page.evaluate(() => document.activeElement?.id)).toBe("prompt")
    await s.send("Three")
    await s.done(2)
    expect(server.calls.at(-1)?.body.messages.map(({ content }) => content)).toEqual([
      ...["One", "Answer 1", "Three"],
    ])
    await s.page.locator('.item-open[title="One"]').click()
    await eventually(() => s.texts(".bubble"), ["One", "Two"])
    expect(await s.texts(".versions")).toEqual(["2 / 2"])
    // who stops an answer can write on
    server.reply = () => ({ chunks: Array(50).fill("word "), delayMs: 50 })
    await s.send("Go on")
    await s.click("Stop answering")
    await s.page.waitForSelector(".send:not(.is-stop)")
    expect(await s.page.evaluate(() => document.activeElement?.id)).toBe("prompt")
    expect(s.problems).toEqual([])
  })

  test("samplers are ordered, switched off and told where to stop, by keyboard and by mouse", async () => {
    await s.page.locator(".settings-button").click()
    await s.page.locator(".more summary").click()
    const order = (): Promise<string[]> =>
      s.page.$$eval(".order ol li", (all) => all.map((e) => e.getAttribute("data-name") ?? ""))
    const own = await order()
    expect(own).toEqual([...SAMPLERS])
    // a button keeps the focus while its row moves, also where the row can go no further
    await s.page.focus('[data-name="dry"] .move-up')
    await s.page.keyboard.press("Enter")
    await eventually(async () => (await order()).slice(0, 3), ["dry", "penalties", "top_n_sigma"])
    await eventually(
      () => s.page.evaluate(() => document.activeElement?.getAttribute("aria-label")),
      "Move DRY up",
    )
    await s.page.keyboard.press("Enter")
    expect((await order())[0]).toBe("dry")
    await eventually(() => s.texts('.order [role="status"]'), ["DRY is number 1 of 9"])
    await s.page.locator('[data-name="xtc"] input').click()
    await eventually(() => s.texts(".order ul li"), ["XTC"])
    await s.page.$eval(".order", (e) => e.scrollIntoView({ block: "center" }))
    const from = await s.page.$('[data-name="min_p"] .grip')
    const to = await s.page.$('[data-name="penalties"]')
    if (from === null || to === null) throw new Error("no rows")
    const [a, b] = await Promise.all([from.clickablePoint(), to.clickablePoint()])
    await s.page.mouse.move(a.x, a.y)
    await s.page.mouse.down()
    await s.page.mouse.move(b.x, b.y, { steps: 12 })
    await s.page.mouse.up()
    await eventually(async () => (await order()).slice(0, 3), ["dry", "min_p", "penalties"])
    await s.page.locator("#setting-dry_sequence_breakers").fill("\\n\n###\n\\n")
    await s.page.select("#setting-thinking", "low")
    await s.page.locator("#setting-thinking_budget_tokens").fill("200")
    await shoot("order")
    await s.page.keyboard.press("Escape")
    await s.send("Hi")
    await s.done(1)
    const body = server.calls[0]?.body as unknown as Record<string, unknown>
    expect(body["samplers"]).toEqual([
      ...["dry", "min_p", "penalties", "top_n_sigma", "temperature", "top_k", "typ_p", "top_p"],
    ])
    expect(body["dry_sequence_breakers"]).toEqual(["\n", "###"])
    expect(body["reasoning_effort"]).toBe("low")
    expect(body["thinking_budget_tokens"]).toBe(200)
    expect(body["chat_template_kwargs"]).toEqual({ enable_thinking: true })
    // they are of the conversation, and the server's order comes back by one button
    await s.page.reload()
    await eventually(() => s.texts(".badge"), ["4"])
    await s.page.locator(".settings-button").click()
    await s.page.waitForSelector(".order ul li")
    expect((await order())[1]).toBe("min_p")
    await s.page.$$eval(".order .button", ([button]) => (button as HTMLElement).click())
    await eventually(order, own)
    expect(s.problems).toEqual([])
  })

  test("system prompts are kept under names, chosen and deleted", async () => {
    await s.page.locator(".settings-button").click()
    const prompt = (): Promise<string> =>
      s.page.$eval("#system-prompt", (e) => (e as HTMLTextAreaElement).value)
    for (const [name, text] of [
      ["Pirate", "Talk like a pirate."],
      ["Brief", "Be brief."],
    ] as const) {
      await s.page.locator("#system-prompt").fill(text)
      await s.page.locator('[aria-label="Name of this prompt"]').fill(name)
      await s.page.keyboard.press("Enter")
      await s.page.waitForSelector(`[aria-label="Delete prompt ${name}"]`)
    }
    await s.page.reload()
    await s.page.locator(".settings-button").click()
    const saved = '[aria-label="Saved prompts"]'
    await s.page.waitForSelector(saved)
    expect(await s.texts(`${saved} option`)).toEqual(["Choose a saved prompt", "Brief", "Pirate"])
    await s.page.select(saved, "Pirate")
    await eventually(prompt, "Talk like a pirate.")
    await shoot("prompts")
    await s.click("Delete prompt Pirate")
    await eventually(() => s.texts(`${saved} option`), ["Choose a saved prompt", "Brief"])
    // What was chosen stays, ready to be saved again.
    expect(await prompt()).toBe("Talk like a pirate.")
    expect(await s.page.$('[aria-label="Name of this prompt"]')).not.toBeNull()
    await s.page.keyboard.press("Escape")
    await s.send("Hi")
    await s.done(1)
    expect(server.calls[0]?.body.messages[0]?.content).toBe("Talk like a pirate.")
    expect(s.problems).toEqual([])
  })

  test("the speed is told while an answer streams", async () => {
    server.reply = () => ({ chunks: Array(100).fill("word "), delayMs: 50, promptTokens: 7 })
    await s.send("Go on")
    await s.page.waitForFunction(() => {
      const words = document.querySelector(".prose")?.textContent.split(" ").length ?? 0
      return words > 12
    })
    const [speed = ""] = await s.texts(".stats-speed")
    expect(await s.page.$(".is-stop")).not.toBeNull()
    // One token each 50 ms or a little more.
    expect(Number(speed.split(" ")[0])).toBeWithin(4, 20.5)
    const meter = await s.texts(".meter-text")
    expect(Number(meter[0]?.split(" ")[0])).toBeGreaterThan(7 + 10)
    await s.click("Stop answering")
    await s.done(1)
    expect(s.problems).toEqual([])
  })

  test("in Chinese no English is left in it", async () => {
    server.reply = () => ({
      chunks: ["好"],
      calls: [{ id: "c", name: "f", arguments: ["{}"] }],
      finish: "length",
    })
    await s.page.select('select[aria-label="Language"]', "zh")
    await s.page.waitForSelector('[aria-label="附加文本文件"]')
    const attach = (): Promise<void> =>
      s.page.evaluate(() => {
        const data = new DataTransfer()
        data.items.add(new File(["x"], "一"))
        const init = { bubbles: true, clipboardData: data }
        document.querySelector("#prompt")?.dispatchEvent(new ClipboardEvent("paste", init))
      })
    await attach()
    await eventually(() => s.texts(".file-name"), ["一"])
    await s.send("你好")
    await s.done(1)
    await s.click("重新生成回答")
    await eventually(() => s.texts(".versions"), ["2 / 2"])
    await s.done(1)
    await attach()
    await eventually(() => s.texts(".composer-wrap .file-name"), ["一"])
    await s.page.waitForSelector(".call-form")
    expect(await latinTexts(s.page)).toEqual([])
    await s.click("编辑并重新发送")
    await s.click("设置")
    await s.page.locator("#system-prompt").fill("一")
    await s.page.locator('[aria-label="此提示词的名称"]').fill("二")
    await s.page.keyboard.press("Enter")
    await s.page.waitForSelector('[aria-label="已保存的提示词"]')
    expect(await latinTexts(s.page)).toEqual([])
    await shoot("chinese")
    expect(s.problems).toEqual([])
  })

  test("all of it fits a phone", async () => {
    await s.close()
    s = await startSession(browser(), server.url, PHONE)
    server.reply = () => ({
      chunks: ["Half"],
      calls: [{ id: "c", name: "a_function_with_quite_a_long_name_of_its_own", arguments: ["{}"] }],
    })
    const folder = mkdtempSync(join(tmpdir(), "kt-files-"))
    try {
      const path = join(folder, `${"long-name-".repeat(12)}.txt`)
      writeFileSync(path, "wide ".repeat(200))
      await (await s.input("#attach-file")).uploadFile(path)
      await s.page.waitForSelector(".file-name")
      await s.page.type("#prompt", "Look")
      await s.click("Send message")
      await s.done(1)
      await s.click("Regenerate answer")
      await eventually(() => s.texts(".versions"), ["2 / 2"])
      await s.done(1)
      await s.page.locator(".is-sent summary").click()
      const wide = (): Promise<string[]> =>
        s.page.$$eval("main *, dialog *", (elements) =>
          elements
            .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
            .filter((e) => e.closest("pre, .visually-hidden, textarea") === null)
            .map((e) => e.outerHTML.slice(0, 80)),
        )
      expect(await wide()).toEqual([])
      await s.page.locator(".settings-button").click()
      await s.page.waitForSelector("#setting-tools")
      await Bun.sleep(300)
      expect(await wide()).toEqual([])
      expect(s.problems).toEqual([])
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
})

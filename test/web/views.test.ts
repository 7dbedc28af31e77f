import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test"
import { join } from "node:path"

import { describeInBrowser } from "./browser.ts"
import { histogram, machineModel, modelEntry } from "./fake-machine.ts"
import { type FakeServer, startFakeServer } from "./fake-server.ts"
import { eventually, type Session, startSession } from "./session.ts"

/** The views of models and machine in a real browser. */

setDefaultTimeout(90_000)

const MOE = "qwen3-30b-a3b-instruct:q4_k_m"
const SMALL = "smollm2-135m:q8_0"
const BROKEN = "notes/broken.gguf"

describeInBrowser("the views in a browser", (browser) => {
  let server: FakeServer
  let s: Session

  beforeEach(async () => {
    server = startFakeServer()
    const { machine } = server
    machine.entries.push(
      modelEntry(MOE, {
        state: "loaded",
        default: true,
        size: 18_556_000_000,
        context: 32_768,
        memory: 21_000_000_000,
        active: 2,
        expires: new Date(Date.now() + 240_000).toISOString(),
      }),
      modelEntry(SMALL, {
        family: "llama",
        parameters: "134.5M",
        quantization: "Q8_0",
        deletable: true,
      }),
      modelEntry(BROKEN, { problem: "notes/broken.gguf: the file ends within its header" }),
    )
    machine.machine.models.push(machineModel(MOE))
    machine.metrics = histogram("vllm:time_to_first_token_seconds", MOE, [
      ["0.25", 40],
      ["0.5", 90],
      ["+Inf", 100],
    ])
    s = await startSession(browser(), server.url)
  })

  afterEach(async () => {
    await s.close()
    await server.stop()
  })

  const open = async (view: "Models" | "Machine"): Promise<void> => {
    await s.page.locator(`.views a[href="#/${view.toLowerCase()}"]`).click()
    await eventually(() => s.texts("#view-title"), [view])
  }
  const card = (name: string): string => `.card[aria-label="${name}"]`
  const tags = (name: string): Promise<string[]> => s.texts(`${card(name)} .tag`)

  test("models: what is there, loading and unloading, and a chat with one", async () => {
    await open("Models")
    await eventually(() => s.texts(".card h2"), [MOE, SMALL, BROKEN])
    // the heading has the focus, so that readers and keys start there
    expect(await s.page.evaluate(() => document.activeElement?.id)).toBe("view-title")
    expect(await s.page.title()).toBe("Models · KTransformers")
    expect(await tags(MOE)).toEqual(["Default", "Loaded"])
    const facts = (await s.texts(`${card(MOE)} dd`)).join(" | ")
    expect(facts).toMatch(
      /^17\.3 GiB \| 30\.5B \| Q4_K_M \| qwen3moe \| text, tools \| 32,768 \| 19\.6 GiB \| 2 \| \d/,
    )
    expect(await s.texts(`${card(BROKEN)} .problem`)).toEqual([
      "notes/broken.gguf: the file ends within its header",
    ])
    expect(
      await s.page.$eval(`[aria-label="Load ${BROKEN}"]`, (e) => (e as HTMLButtonElement).disabled),
    ).toBe(true)

    const gate = Promise.withResolvers<void>()
    server.machine.loadGate = gate.promise
    await s.click(`Load ${SMALL}`)
    await eventually(() => tags(SMALL), ["Loading"])
    await s.page.waitForSelector(`progress[aria-label="${SMALL}: 25 % loaded"]`)
    gate.resolve()
    await eventually(() => tags(SMALL), ["Loaded"])
    await eventually(() => s.texts('[aria-live="polite"].visually-hidden'), [`${SMALL} is loaded.`])
    await s.click(`Unload ${MOE}`)
    await eventually(() => tags(MOE), ["Default", "Not loaded"])
    expect(server.machine.asked).toEqual([`load ${SMALL}`, `unload ${MOE}`])

    await s.page.locator(`${card(SMALL)} summary`).click()
    await eventually(() => s.texts(`${card(SMALL)} pre`), ["temperature 0.7", "{{ messages }}"])

    await s.click(`Chat with ${SMALL}`)
    await s.page.waitForSelector("#prompt")
    await s.send("Hi")
    await s.done(1)
    expect(server.calls[0]?.body.model).toBe(SMALL)
    expect(s.problems).toEqual([])
  })

  test("each conversation keeps its model", async () => {
    const chosen = (): Promise<string> =>
      s.page.$eval(".model select", (e) => (e as HTMLSelectElement).value)
    await s.page.waitForSelector(".model select")
    await s.page.select('select[aria-label="Model"]', SMALL)
    await s.send("First")
    await s.done(1)
    await s.chord("Control", "k")
    await s.page.select('select[aria-label="Model"]', MOE)
    await s.send("Second")
    await s.done(1)
    expect(server.calls.map(({ body }) => body.model)).toEqual([SMALL, MOE])
    await s.page.locator('.item-open[title="First"]').click()
    await eventually(chosen, SMALL)
    await s.page.reload()
    await s.page.waitForSelector(".model select")
    await eventually(chosen, SMALL)
    await s.send("Again")
    await s.done(2)
    expect(server.calls.at(-1)?.body.model).toBe(SMALL)
    // one that is gone gives way to the one chosen for new chats
    server.machine.entries.splice(1, 1)
    await s.page.reload()
    await s.page.waitForSelector(".model select")
    await eventually(chosen, MOE)
    expect(s.problems).toEqual([])
  })

  test("an answer that waits for its model says how far that is loaded", async () => {
    const small = server.machine.entries.find(({ name }) => name === SMALL)
    if (small === undefined) throw new Error("no entry")
    await s.page.select('select[aria-label="Model"]', SMALL)
    Object.assign(small, { state: "loading", loading: { done: 30, total: 120 } })
    server.reply = () => ({ chunks: ["Here."], delayMs: 4000 })
    await s.send("Hi")
    await eventually(() => s.texts(".waiting"), [`${SMALL}: 25 % loaded`])
    Object.assign(small, { state: "loaded", loading: null })
    await eventually(() => s.texts(".waiting"), ["Reading the prompt"])
    await s.done(1)
    expect(s.problems).toEqual([])
  })

  test("models: deleting asks first, by keyboard", async () => {
    await open("Models")
    await s.page.waitForSelector(`[aria-label="Delete ${SMALL}"]`)
    expect(await s.page.$(`[aria-label="Delete ${MOE}"]`)).toBeNull()
    await s.page.focus(`[aria-label="Delete ${SMALL}"]`)
    await s.page.keyboard.press("Enter")
    await s.page.waitForSelector("dialog[open]")
    expect(await s.texts("#confirm-title")).toEqual([`Delete ${SMALL}?`])
    // what has the focus first changes nothing
    await s.page.keyboard.press("Enter")
    await s.page.waitForSelector("dialog", { hidden: true })
    expect(server.machine.asked).toEqual([])
    await eventually(
      () => s.page.evaluate(() => document.activeElement?.getAttribute("aria-label")),
      `Delete ${SMALL}`,
    )
    await s.page.keyboard.press("Enter")
    await s.page.waitForSelector("dialog[open]")
    await s.page.keyboard.press("Tab")
    await s.page.keyboard.press("Enter")
    await eventually(() => s.texts(".card h2"), [MOE, BROKEN])
    expect(server.machine.asked).toEqual([`delete ${SMALL}`])
    expect(s.problems).toEqual([])
  })

  test("models: getting one shows how far it is, says why it failed, and can be stopped", async () => {
    const { machine } = server
    await open("Models")
    await s.page.waitForSelector("#pull-name")
    const get = async (name: string): Promise<void> => {
      await s.page.type("#pull-name", name)
      await s.page.keyboard.press("Enter")
    }
    machine.pullLines = [
      { status: "pulling manifest" },
      { status: "pulling model.gguf", total: 2_097_152, completed: 1_048_576 },
      ...Array.from({ length: 400 }, () => ({
        status: "pulling model.gguf",
        total: 2_097_152,
        completed: 1_572_864,
      })),
    ]
    await get("hf.co/user/model:Q4_0")
    await eventually(
      () => s.texts(".pull-row .hint"),
      ["pulling model.gguf · 1.50 MiB of 2.00 MiB"],
    )
    expect(await s.page.$eval(".pull-row progress", (e) => (e as HTMLProgressElement).value)).toBe(
      75,
    )
    // it goes on while another view is shown
    await open("Machine")
    await open("Models")
    await s.click("Stop getting hf.co/user/model:Q4_0")
    await eventually(() => machine.isPullAborted, true)
    await eventually(
      () => s.texts(".notice span"),
      ["Stopped; asking again goes on where it ended."],
    )
    expect(await s.texts(".pull-row")).toEqual([])

    machine.pullLines = [{ error: "user/none is not on the hub" }]
    await get("user/none")
    await eventually(() => s.texts(".notice.is-error span"), ["user/none is not on the hub"])
    machine.pullLines = [{ status: "pulling manifest" }]
    await get("user/broken")
    await eventually(
      () => s.texts(".notice.is-error span"),
      ["The connection ended before the model was complete."],
    )
    machine.pullLines = [{ status: "success" }]
    machine.entries.push(modelEntry("user/good"))
    await get("user/good")
    await eventually(() => s.texts(".notice span"), ["user/good is here."])
    await eventually(() => s.texts(".card h2"), [MOE, SMALL, BROKEN, "user/good"])
    expect(s.problems).toEqual([])
  })

  test("machine: modules, devices, experts, cache and load", async () => {
    const { machine } = server
    const plots: string[] = []
    s.page.on("request", (request) => {
      if (request.url().includes("uPlot")) plots.push(request.url())
    })
    await open("Machine")
    await s.page.waitForSelector("#placement table")
    const rows = await s.texts("#placement tbody tr")
    expect(rows).toHaveLength(7)
    expect(rows[1]).toMatch(/^model\.layers\.\*\.self_attn\.q_proj24CudaLinearcuda:0q4_k216 MiB$/)
    expect(rows[5]).toContain("CpuExpertsqwen3_moe.yaml:12cpu")
    expect(rows[5]).toContain("q4_k, q6_k packed")
    expect(
      await s.page.$$eval(".bars meter", (all) => all.map((e) => e.getAttribute("aria-label"))),
    ).toEqual(["cpu: 8.02 GiB, 88 % of the weights", "cuda:0: 1.08 GiB, 12 % of the weights"])
    expect(await s.texts("#prefix-cache tbody tr")).toEqual([
      "Device768 MiB3.00 GiB7,00035.0 %",
      "Host memory2.00 GiB4.00 GiB2,00010.0 %",
      "Disk0 Boff00.0 %",
    ])
    expect((await s.texts("#hardware dd")).slice(0, 3)).toEqual(["16", "avx512bf16", "2"])
    const tile = async (name: string): Promise<string | undefined> =>
      (await s.texts(".tile")).find((text) => text.startsWith(name))?.slice(name.length)
    expect(await tile("Running")).toBe("3")
    expect(await tile("KV cache in use")).toBe("25 %")
    expect(await tile("Time to first token")).toBe("300 msp95 500 ms")
    // the picture of experts, and the same as a table
    await s.page.waitForSelector('canvas[aria-label="Use of 64 experts in 24 layers"]')
    expect(await s.page.$("#experts table")).toBeNull()
    await s.page.locator("#experts summary").click()
    await s.page.waitForSelector("#experts table")
    expect(await s.page.$$eval("#experts tbody tr", (all) => all.length)).toBe(24)
    expect((await s.texts("#experts tbody tr:nth-child(2) td")).slice(0, 3)).toEqual([
      "11",
      "48",
      "85",
    ])

    // how near the limit it comes, once somebody has had that measured
    const measure = (): Promise<void> => s.page.locator("#roofline button").click()
    machine.refusal = "requests run"
    await measure()
    await eventually(() => s.texts('#roofline [role="status"]'), ["requests run"])
    machine.refusal = undefined
    await measure()
    await eventually(
      () => s.texts("#roofline .bar-value"),
      ["41.5 of 60.2 tokens/s · 69 %", "nothing computed yet"],
    )
    expect((await s.texts("#roofline .hint"))[0]).toStartWith("Memory is read at 44.0 GB/s.")
    expect(await s.texts("#roofline button")).toEqual(["Measure again"])

    // it has the theme's colours, also after they change
    const picture = (): Promise<string> =>
      s.page.$eval(".heat canvas", (e) => (e as HTMLCanvasElement).toDataURL())
    const light = await picture()
    await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }])
    await eventually(async () => (await picture()) === light, false)

    // counters that grow are rates, drawn by a library that comes only now
    const [model] = machine.machine.models
    if (model?.stats) model.stats = { ...model.stats, generatedTokensTotal: 5_100 }
    await s.page.waitForSelector(".chart-area canvas")
    expect(plots).toHaveLength(1)
    await eventually(async () => Number(await tile("Generated tokens/s")) > 0, true)
    expect(
      (
        await s.page.$$eval(".chart-area", (all) => all.map((e) => e.getAttribute("aria-label")))
      )[0],
    ).toMatch(/^Tokens per second over the last \d+ s; now [\d.]+ generated and 0\.0 of prompts$/)
    // a busy engine keeps its last figures
    if (model) Object.assign(model, { stats: null, modules: [], experts: [] })
    await eventually(
      () => s.texts(".view-summary"),
      ["The engine is busy with a long step; these figures are from before it."],
    )
    expect(await s.texts("#placement tbody tr")).toHaveLength(7)
    // nobody asks once the view is left
    await s.chord("Control", "k")
    await s.page.waitForSelector("#prompt")
    await Bun.sleep(300)
    const { looks } = machine
    await Bun.sleep(2600)
    expect(machine.looks).toBe(looks)
    expect(s.problems).toEqual([])
  })

  test("machine: without a model it leads to the models; back and forth by the browser's buttons", async () => {
    server.machine.machine.models.pop()
    await open("Machine")
    await eventually(() => s.texts(".view-empty"), ["No model is loaded. See the models"])
    await s.page.locator(".view-empty a").click()
    await eventually(() => s.texts("#view-title"), ["Models"])
    await s.page.goBack()
    await eventually(() => s.texts("#view-title"), ["Machine"])
    await s.page.reload()
    await eventually(() => s.texts("#view-title"), ["Machine"])
    expect(await s.page.$eval(".views [aria-current]", (e) => e.textContent.trim())).toBe("Machine")
    await s.page.goBack()
    await eventually(() => s.texts("#empty-title"), ["What are you working on?"])
    expect(s.problems).toEqual([])
  })

  test("the views in Chinese have no English left", async () => {
    await s.page.select('select[aria-label="Language"]', "zh")
    const foreign =
      ".card h2, .card .problem, dd, code, pre, option, .model, .language, kbd, .brand, noscript, .chart-area > *, small"
    const english = (): Promise<string[]> =>
      s.page.evaluate((selector) => {
        const texts: string[] = []
        for (const element of document.querySelectorAll(".main *, .views *")) {
          if (element.closest(selector) !== null) continue
          for (const name of ["aria-label", "title", "placeholder"])
            texts.push(element.getAttribute(name) ?? "")
          for (const node of element.childNodes)
            if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent ?? "")
        }
        return texts.filter((text) => /[a-z]{3}/i.test(text))
      }, foreign)
    // names of models, devices and units are the same in every language
    const named = new RegExp(
      `${MOE}|${SMALL}|${BROKEN}|hf\\.co|Hugging Face|cuda:|cpu:|[KMG]iB|Ctrl|NUMA`,
    )
    for (const view of ["models", "machine"]) {
      await s.page.locator(`.views a[href="#/${view}"]`).click()
      await s.page.waitForSelector(view === "models" ? "#pull-hint" : "#prefix-cache")
      expect((await english()).filter((text) => !named.test(text))).toEqual([])
    }
  })

  test("fits every width, light and dark; every control has a name", async () => {
    const { KT_SCREENSHOTS } = process.env
    await s.send("How are experts placed?")
    await s.done(1)
    for (const [width, height] of [
      [360, 740],
      [820, 1100],
      [1280, 900],
    ] as const) {
      await s.page.setViewport({ width, height })
      for (const [name, hash, ready] of [
        ["chat", "", "#prompt"],
        ["models", "#/models", "#pull-hint"],
        ["machine", "#/machine", ".chart-area canvas"],
      ] as const) {
        if (hash === "")
          await s.page.evaluate(() => document.querySelector<HTMLElement>(".item-open")?.click())
        else await s.page.evaluate((to) => (location.hash = to), hash)
        await s.page.waitForSelector(ready)
        const wide = await s.page.evaluate(() =>
          [document.documentElement, document.body, document.querySelector(".view")].map((e) =>
            e === null ? 0 : e.scrollWidth - e.clientWidth,
          ),
        )
        expect([name, width, ...wide]).toEqual([name, width, 0, 0, 0])
        const unnamed = await s.page.$$eval(
          ".main button, .main input, .main select, .main summary, .views a",
          (all) =>
            all
              .filter((e) => !(e.getAttribute("aria-label") ?? e.textContent.trim()))
              .filter((e) => !(e as HTMLInputElement).labels?.length)
              .map((e) => e.outerHTML),
        )
        expect(unnamed.filter((html) => !html.includes("hidden"))).toEqual([])
        if (!KT_SCREENSHOTS) continue
        for (const theme of ["light", "dark"] as const) {
          await s.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }])
          await eventually(
            () => s.page.evaluate(() => document.documentElement.dataset["theme"]),
            theme,
          )
          await Bun.sleep(120)
          await s.page.screenshot({ path: join(KT_SCREENSHOTS, `${name}-${width}-${theme}.png`) })
          if (name === "machine") {
            await s.page.$eval(".view", (e) => e.scrollTo(0, e.scrollHeight / 2.2))
            await s.page.screenshot({
              path: join(KT_SCREENSHOTS, `${name}-lower-${width}-${theme}.png`),
            })
            await s.page.$eval(".view", (e) => e.scrollTo(0, 0))
          }
        }
      }
    }
    expect(s.problems).toEqual([])
  })
})

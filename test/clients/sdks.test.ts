import { afterAll, describe, expect, test } from "bun:test"

import { createAnthropic } from "@ai-sdk/anthropic"
import { createOpenAI } from "@ai-sdk/openai"
import { createOpenAICompatible } from "@ai-sdk/openai-compatible"
import { HumanMessage } from "@langchain/core/messages"
import { tool as langchainTool } from "@langchain/core/tools"
import { ChatOpenAI } from "@langchain/openai"
import { generateText, type LanguageModel, Output, stepCountIs, streamText, tool } from "ai"
import { z } from "zod"

import { type RunningServer, startServer } from "../../src/server/serve.ts"
import { type Script, type TestServer, testServer } from "../server/fakes.ts"

// its advice on models that it does not know
Object.assign(globalThis, { AI_SDK_LOG_WARNINGS: false })

const servers: RunningServer[] = []
afterAll(async () => {
  await Promise.all(servers.map((server) => server.stop(0)))
})

function open(script: Script): TestServer & { readonly url: string } {
  const fake = testServer({ contextLength: 65_536, ...script }, { apiKeys: ["secret"] })
  const server = startServer({ app: fake.app, port: 0 })
  servers.push(server)
  return { ...fake, url: `${server.url}/v1` }
}

const CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
/** Calls the tool first, then answers. */
const calling = (call: number): string => (call === 0 ? CALL : "It rains in Ulm.")
const inputSchema = z.object({ city: z.string() })

/** The Vercel AI SDK, by each of its ways to us. */
const PROVIDERS: readonly [name: string, model: (baseURL: string) => LanguageModel][] = [
  [
    "openai-compatible",
    (baseURL) =>
      createOpenAICompatible({ name: "kt", baseURL, apiKey: "secret", includeUsage: true })("fake"),
  ],
  ["openai chat", (baseURL) => createOpenAI({ baseURL, apiKey: "secret" }).chat("fake")],
  ["openai responses", (baseURL) => createOpenAI({ baseURL, apiKey: "secret" })("fake")],
  ["anthropic", (baseURL) => createAnthropic({ baseURL, apiKey: "secret" })("fake")],
]

for (const [name, model] of PROVIDERS) {
  describe(`the AI SDK, ${name}`, () => {
    test("whole and streamed texts, with their counts", async () => {
      const { url } = open({ answer: "Grüße! 世界" })
      const whole = await generateText({ model: model(url), prompt: "hi" })
      expect(whole.text).toBe("Grüße! 世界")
      expect(whole.finishReason).toBe("stop")
      expect(whole.usage.outputTokens).toBeGreaterThan(5)
      const streamed = streamText({ model: model(url), prompt: "hi" })
      let text = ""
      for await (const piece of streamed.textStream) text += piece
      expect(text).toBe("Grüße! 世界")
      expect((await streamed.usage).inputTokens).toBeGreaterThan(0)
    })

    test("a tool is called, its result is sent back, and the answer uses it", async () => {
      for (const run of [generateText, streamText]) {
        const { url, client } = open({ answer: calling })
        const asked: string[] = []
        const weather = tool({
          description: "the weather of a city",
          inputSchema,
          execute: async ({ city }) => {
            asked.push(city)
            return "rain"
          },
        })
        const options = { model: model(url), prompt: "Ulm?", tools: { weather } }
        const result = await run({ ...options, stopWhen: stepCountIs(3) })
        expect(await result.text).toBe("It rains in Ulm.")
        expect(asked).toEqual(["Ulm"])
        expect(client.prompt(1)).toContain("rain")
        expect(client.prompt(1)).toContain("weather")
      }
    })
  })
}

test("the AI SDK: output that follows a schema is forced to", async () => {
  const { url, client } = open({ answer: '{"city": "Ulm"}' })
  const provider = createOpenAI({ baseURL: url, apiKey: "secret" })
  for (const model of [provider.chat("fake"), provider("fake")]) {
    const { output } = await generateText({
      model,
      prompt: "which city?",
      output: Output.object({ schema: inputSchema }),
    })
    expect(output).toEqual({ city: "Ulm" })
  }
  for (const { params } of client.calls) expect(params.grammar).toContain("city")
})

describe("LangChain", () => {
  const chat = (baseURL: string): ChatOpenAI =>
    new ChatOpenAI({ model: "fake", apiKey: "secret", configuration: { baseURL }, maxRetries: 0 })

  test("invoke and stream", async () => {
    const { url } = open({ answer: "Hello, world!" })
    const answer = await chat(url).invoke([new HumanMessage("hi")])
    expect(answer.text).toBe("Hello, world!")
    expect(answer.response_metadata).toMatchObject({ usage: { completion_tokens: 14 } })
    let text = ""
    for await (const piece of await chat(url).stream("hi")) text += piece.text
    expect(text).toBe("Hello, world!")
  })

  test("bound tools are called, and structured output is parsed", async () => {
    const { url, client } = open({ answer: CALL })
    const weather = langchainTool(() => "rain", {
      name: "weather",
      description: "the weather",
      schema: inputSchema,
    })
    const { tool_calls } = await chat(url).bindTools([weather]).invoke("Ulm?")
    expect(tool_calls).toMatchObject([{ name: "weather", args: { city: "Ulm" } }])
    expect(client.prompt()).toContain("the weather")
    const json = open({ answer: '{"city": "Ulm"}' })
    const structured = chat(json.url).withStructuredOutput(inputSchema, { method: "jsonSchema" })
    expect(await structured.invoke("which city?")).toEqual({ city: "Ulm" })
    expect(json.client.calls[0]?.params.grammar).toContain("city")
  })
})

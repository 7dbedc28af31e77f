import { createInterface } from "node:readline"

import type { TemplateMessage } from "../server/types.ts"
import { SAMPLING_FLAGS, SYSTEM_FLAG } from "./args/common.ts"
import { parseArguments } from "./args/parse.ts"
import { type Command, defineCommand } from "./args/spec.ts"
import { CHAT_COMMANDS, ChatSession, type Drawing } from "./chat-session.ts"
import { createdModel, stopsOf, withSettings } from "./created-model.ts"
import {
  CONFIG_FLAG,
  configFile,
  engineOptions,
  givenModel,
  MODEL_POSITIONAL,
  SINGLE_KEYS,
} from "./engine-options.ts"
import { readJson } from "./files.ts"
import { FOREIGN_FLAGS, PORT_FLAGS } from "./foreign-flags.ts"
import { write } from "./output.ts"
import { samplingFrom } from "./sampling.ts"
import { openSession } from "./session.ts"

export const chat: Command = defineCommand({
  name: "chat",
  summary: "Talk to a model in the terminal",
  details: `Lines between """ and """ are one message. /help lists the commands. Ctrl-C stops an answer,
and leaves when there is none. Piped input is answered line by line.`,
  positionals: [MODEL_POSITIONAL],
  engine: [...SINGLE_KEYS, "maxBatchSize"],
  flags: {
    ...CONFIG_FLAG,
    ...SYSTEM_FLAG,
    load: { type: "string", hint: "file.json", help: "continue a conversation that /save wrote" },
    "max-tokens": {
      type: "integer",
      short: "n",
      min: 1,
      aliases: ["max_new_tokens", "predict", "n-predict"],
      help: "longest answer in tokens",
    },
    "force-think": {
      type: "boolean",
      aliases: ["force_think"],
      help: "start every answer with <think>",
    },
    seed: { type: "integer", min: 0, help: "same seed, same answers" },
    ...SAMPLING_FLAGS,
  },
  foreign: { ...FOREIGN_FLAGS, ...PORT_FLAGS },
  examples: [
    { command: "kt chat", says: "with the default model" },
    {
      command: 'kt chat model.gguf -s "You answer in rhymes." --temperature 0.7',
      says: "with a system prompt",
    },
    {
      command: 'echo "What is 7 times 6?" | kt chat model.gguf --quiet',
      says: "one question from a pipe",
    },
  ],
  async run(invocation) {
    const { flags } = invocation
    const file = configFile(invocation)
    const messages = flags.load === undefined ? [] : loadMessages(flags.load)
    const own = createdModel(givenModel(invocation, file))
    const session = withSettings(await openSession(engineOptions(invocation, file), own?.name), own)
    const maxTokens = flags["max-tokens"] ?? (file.flags["max-new-tokens"] as number | undefined)
    const { modelPath } = session.client.info
    let now = { ...flags, "max-tokens": maxTokens }
    const drawing = (wanted: typeof now): Drawing => ({
      sampling: samplingFrom(wanted, wanted["max-tokens"], modelPath, own?.settings.parameters),
      seed: wanted.seed,
    })
    const talk = new ChatSession(session, {
      ...drawing(now),
      set(name, value) {
        if (!(name in SAMPLING_FLAGS) && name !== "seed" && name !== "max-tokens") return undefined
        const { invocation: one } = parseArguments(chat, [`--${name}=${value}`])
        const wanted = { ...now, [name]: one.flags[name] }
        const changed = drawing(wanted)
        now = wanted
        return changed
      },
      stops: stopsOf(own),
      settings: own?.settings,
      forceThink: flags["force-think"] || file.flags["force-think"] === true,
      system: flags.system,
      messages,
      out: (text) => void process.stdout.write(text),
      note: (text) => void process.stderr.write(`${text}\n`),
    })
    try {
      await converse(talk, session.metadata.name)
      await write("")
    } finally {
      await session.client.close()
    }
  },
})

/** Reads messages until the input ends or /quit. */
async function converse(talk: ChatSession, model: string): Promise<void> {
  const interactive = process.stdin.isTTY && process.stdout.isTTY
  const lines = createInterface({
    input: process.stdin,
    ...(interactive ? { output: process.stdout } : {}),
    terminal: interactive,
    prompt: "> ",
    completer: (line: string): [string[], string] => [
      line.startsWith("/") ? CHAT_COMMANDS.filter((each) => each.startsWith(line)) : [],
      line,
    ],
  })
  const prompt = (text: string): void => {
    if (!interactive) return
    lines.setPrompt(text)
    lines.prompt()
  }
  const interrupt = (): void => {
    if (!talk.stop()) lines.close()
  }
  lines.on("SIGINT", interrupt)
  process.on("SIGINT", interrupt)
  if (interactive) process.stderr.write(`${model}: /help lists the commands, Ctrl-D leaves\n`)
  let open: string[] | undefined
  try {
    prompt("> ")
    for await (const line of lines) {
      if (open === undefined && line.trimStart().startsWith('"""')) {
        const rest = line.trimStart().slice(3)
        if (rest.trimEnd().endsWith('"""')) await talk.say(rest.trimEnd().slice(0, -3))
        else open = rest === "" ? [] : [rest]
      } else if (open !== undefined) {
        const end = line.trimEnd().endsWith('"""')
        const text = end ? line.trimEnd().slice(0, -3) : line
        if (!end || text !== "") open.push(text)
        if (end) {
          await talk.say(open.join("\n"))
          open = undefined
        }
      } else if (!(await talk.enter(line))) break
      prompt(open === undefined ? "> " : "… ")
    }
    if (open !== undefined && open.length > 0) await talk.say(open.join("\n"))
  } finally {
    process.removeListener("SIGINT", interrupt)
    lines.close()
  }
}

function loadMessages(file: string): TemplateMessage[] {
  return ChatSession.parse(file, readJson(file))
}

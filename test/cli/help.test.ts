import { describe, expect, test } from "bun:test"

import { version } from "../../package.json" with { type: "json" }
import { helpText } from "../../src/cli/args/help.ts"
import { dashed, flagOf, parseArguments } from "../../src/cli/args/parse.ts"
import { similar } from "../../src/cli/args/suggest.ts"
import { COMMANDS } from "../../src/cli/commands.ts"
import { CONFIG_OPTIONS } from "../../src/config.ts"
import { UsageError } from "../../src/errors.ts"
import { kt } from "./kt.ts"

const ALL = await Promise.all(
  Object.entries(COMMANDS).map(async ([name, load]) => ({ name, command: await load() })),
)
const explain = await (await COMMANDS["rules"]!()).subCommands!["explain"]!()
const benches = await Promise.all(
  Object.entries((await COMMANDS["bench"]!()).subCommands!).map(async ([name, load]) => ({
    name: `bench ${name}`,
    command: await load(),
  })),
)

describe("help", () => {
  for (const { name, command } of [
    ...ALL,
    { name: "rules explain", command: explain },
    ...benches,
  ]) {
    test(`kt ${name} --help teaches with examples that parse`, async () => {
      const text = Bun.stripANSI(await helpText(command))
      expect(text).toContain(command.summary)
      expect(text).toContain(`USAGE kt ${name}`)
      expect(text).toContain("EXAMPLES")
      expect(command.examples.length).toBeGreaterThan(0)
      for (const [flag] of Object.entries(command.flags)) expect(text).toContain(`--${flag}`)
      for (const example of command.examples) {
        expect(text).toContain(example.command)
        const words = shellWords(example.command.split("| ").at(-1)!)
        expect(words.slice(0, 1 + name.split(" ").length).join(" ")).toStartWith(
          `kt ${name.split(" ")[0]}`,
        )
        const isSub = command.subCommands?.[words[2] ?? ""] !== undefined
        if (!isSub) parseArguments(command, words.slice(1 + name.split(" ").length))
      }
    })
  }

  test("flags stand under what they are about, in lines that fit", async () => {
    const command = ALL.find(({ name }) => name === "serve")!.command
    for (const columns of [60, 80, 140]) {
      const text = Bun.stripANSI(await helpText(command, columns))
      const listed = text.slice(0, text.indexOf("\nEXAMPLES"))
      const long = listed.split("\n").filter((line) => line.length > columns)
      // what has no space cannot be broken
      expect(long.filter((line) => /\S \S/.test(line.trim().slice(-20)))).toEqual([])
      const titles = [...text.matchAll(/^[A-Z][A-Z ]+(?=$|,)/gm)].map(([title]) => title)
      expect(titles).toEqual([
        ...["ARGUMENTS", "FLAGS", "SAMPLING", "MODEL AND ENGINE", "CONTEXT AND MEMORY", "GENERAL"],
        ...["OTHER NAMES", "EXAMPLES"],
      ])
    }
    const text = Bun.stripANSI(await helpText(command, 200))
    expect(text.indexOf("--temperature")).toBeGreaterThan(text.indexOf("SAMPLING"))
    expect(text).toMatch(/^ {2}--max-models <n> +models loaded at once; .* \(default 3\)$/m)
    expect(text).toMatch(/^ {2}--ui, --no-ui +serve the web page$/m)
    expect(text).toMatch(/^ {2}--cache-tokens +--cache_lens$/m)
    const examples = command.examples.map((each) => each.command)
    expect(new Set(examples).size).toBe(examples.length)
  })

  test("every command and the version through the program itself", async () => {
    const root = await kt(["--help"])
    expect(root.status).toBe(0)
    for (const name of Object.keys(COMMANDS)) expect(root.out).toContain(name)
    expect((await kt(["--version"])).out).toBe(`${version}\n`)
    const serve = await kt(["serve", "--help"])
    expect(serve).toMatchObject({ status: 0, err: "" })
    expect(serve.out).toContain("--gguf_path")
    expect((await kt(["rules", "explain", "-h"])).out).toContain("kt rules explain")
  })
})

describe("arguments", () => {
  const serve = ALL.find(({ name }) => name === "serve")!.command
  const tokenize = ALL.find(({ name }) => name === "tokenize")!.command

  test("every engine option is a flag under each of its names", () => {
    for (const option of CONFIG_OPTIONS) {
      const texts: Record<string, [string, unknown]> = {
        string: ["x", "x"],
        list: ["a,b", ["a", "b"]],
        boolean: ["false", false],
        integer: [String(option.min ?? 8), option.min ?? 8],
        enum: [option.values?.[0] ?? "", option.values?.[0]],
      }
      const [text, value] = texts[option.type]!
      for (const name of [option.flag, ...option.aliases]) {
        const { invocation } = parseArguments(serve, [`${dashed(name)}=${text}`])
        expect(invocation.engine[option.key]).toEqual(value)
      }
    }
    expect(flagOf(CONFIG_OPTIONS[0]!).help).toContain("[KT_MODEL]")
  })

  test("KTransformers' command line", () => {
    const argv =
      "--model_path m --gguf_path g --optimize_config_path r.yaml --cpu_infer 16 --max_new_tokens 500 --cache_lens 4096 --chunk_size 256 --max_batch_size 4 --force_think True --port 10002 --host 127.0.0.1 --api_key k --backend_type balance_serve --no-use_cuda_graph"
    const { invocation, warnings } = parseArguments(serve, argv.split(" "))
    expect(invocation.engine).toEqual({
      modelPath: "m",
      model: "g",
      rules: "r.yaml",
      threads: 16,
      kvCacheTokens: 4096,
      maxBatchTokens: 256,
      maxBatchSize: 4,
      stepGraph: false,
    })
    expect(invocation.flags).toMatchObject({
      "max-new-tokens": 500,
      "force-think": true,
      port: 10002,
      host: "127.0.0.1",
      "api-key": ["k"],
    })
    expect(warnings.length).toBe(1)
    expect(warnings[0]).toContain("--backend_type has no effect")
  })

  test("llama.cpp's command line", () => {
    const argv =
      "-m g.gguf -c 4096 -np 4 -t 2 -b 256 -ub 128 -ctk q8_0 -ctv q8_0 -ngl 99 -fa on --mlock --no-mmap --jinja -n -1 -a small --temp 0.5 --repeat_penalty 1.1 --no-webui --host 0.0.0.0 --port 8080 -cb --ssl-key-file k --ssl-cert-file c -rea off -v"
    const { invocation, warnings } = parseArguments(serve, argv.split(" "))
    expect(invocation.args).toEqual([])
    expect(invocation.engine).toEqual({
      model: "g.gguf",
      contextLength: 4096,
      maxBatchSize: 4,
      threads: 2,
      maxBatchTokens: 256,
      kvDtype: "q8_0",
    })
    expect(invocation.flags).toMatchObject({
      "max-new-tokens": -1,
      alias: ["small"],
      temperature: 0.5,
      "repetition-penalty": 1.1,
      ui: false,
      "tls-key": "k",
      "tls-cert": "c",
      reasoning: "off",
      verbose: true,
    })
    expect(warnings.map((line) => line.split(" ")[0])).toEqual([
      "-ub",
      "-ngl",
      "-fa",
      "--mlock",
      "--no-mmap",
      "--jinja",
      "-cb",
    ])
    // a switch takes no word that stands behind it
    expect(parseArguments(serve, ["--mlock", "m.gguf"]).invocation.args).toEqual(["m.gguf"])
  })

  test("vLLM's command line", () => {
    const argv =
      "Qwen3-8B --served-model-name qwen --max-model-len 8192 --max-num-seqs 16 --max-num-batched-tokens 1024 --dtype auto --gpu-memory-utilization 0.9 --enable-auto-tool-choice --tool-call-parser hermes --no-enable-prefix-caching --trust-remote-code"
    const { invocation, warnings } = parseArguments(serve, argv.split(" "))
    expect(invocation.args).toEqual(["Qwen3-8B"])
    expect(invocation.engine).toEqual({
      contextLength: 8192,
      maxBatchSize: 16,
      maxBatchTokens: 1024,
      prefixCache: false,
    })
    expect(invocation.flags).toMatchObject({ "model-name": "qwen" })
    expect(warnings.length).toBe(5)
  })

  test("what others have and this has not is refused with what does it", () => {
    for (const [argv, says] of [
      [["-hf", "org/repo:Q4_K_M"], "kt pull"],
      [["--lora", "a.gguf"], "adapters"],
      [["--override-tensor", "x=CPU"], "rules"],
      [["--allowed-origins", "*"], "--cors-origin"],
    ] as const)
      try {
        parseArguments(serve, argv)
        expect.unreachable()
      } catch (error) {
        expect(error).toBeInstanceOf(UsageError)
        expect((error as UsageError).message).toContain(`${argv[0]} is not a flag here`)
        expect((error as UsageError).hint).toContain(says)
      }
  })

  test("threads and context by one letter wherever a model runs", () => {
    for (const name of ["serve", "run", "chat", "perplexity"]) {
      const { command } = ALL.find((each) => each.name === name)!
      const { invocation } = parseArguments(command, ["-t", "3", "-m", "x.gguf"])
      expect(invocation.engine).toMatchObject({ threads: 3, model: "x.gguf" })
    }
  })

  test("repeats, negations, short flags and --", () => {
    const { invocation } = parseArguments(serve, [
      "--api-key",
      "a",
      "--api-key=b",
      "--no-ui",
      "--no-fuse",
    ])
    expect(invocation.flags).toMatchObject({ "api-key": ["a", "b"], ui: false })
    expect(invocation.engine).toEqual({ fuse: false })
    const other = parseArguments(tokenize, [
      "-p",
      "-x",
      "--no-special",
      "--",
      "--odd.gguf",
    ]).invocation
    expect(other.flags).toMatchObject({ prompt: "-x", special: false })
    expect(other.args).toEqual(["--odd.gguf"])
  })

  const wrong: [argv: string[], says: string, hint?: string][] = [
    [["--prot", "1"], "unknown flag --prot", "did you mean --port?"],
    [["--no-fues"], "unknown flag --no-fues", "did you mean --no-fuse?"],
    [["--port", "70000"], "--port 70000: expected an integer in 0..65535"],
    [["--port", "8o"], "--port 8o: expected an integer"],
    [["--port"], "--port needs a value"],
    [["--temperature", "-1"], "--temperature -1: expected a number in 0..100"],
    [["--threads", "1.5"], "--threads 1.5: expected an integer in 0..1024"],
    [["--precision", "f8"], "--precision f8: expected one of fast, f32"],
    [["--no-ui=1"], "--no-ui takes no value"],
    [["--ui=maybe"], "--ui maybe: expected true or false"],
    [["a.gguf", "b.gguf"], 'unexpected argument "b.gguf"'],
  ]
  for (const [argv, says, hint] of wrong) {
    test(`${argv.join(" ")}: ${says}`, () => {
      let error: unknown
      try {
        parseArguments(serve, argv)
      } catch (caught) {
        error = caught
      }
      expect(error).toBeInstanceOf(UsageError)
      expect((error as UsageError).message).toStartWith(says)
      if (hint !== undefined) expect((error as UsageError).hint).toBe(hint)
    })
  }

  test("suggestions know swapped, missing and wrong letters, and nothing far", () => {
    expect(similar("sevre", ["serve", "chat"])).toEqual(["serve"])
    expect(similar("perpl", ["perplexity", "pull"])).toEqual(["perplexity"])
    expect(similar("quantum", ["serve", "chat"])).toEqual([])
  })
})

/** Words as a shell cuts them, double quotes only. */
function shellWords(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2]!)
}

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { writeGguf } from "../fixtures/gguf.ts"
import { golden } from "../setup.ts"
import { kt, temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
const at = (name: string): string => join(folder.path, name)
const MODEL = golden("gguf", "llama-f16.gguf")
const MOE = golden("gguf", "qwen2moe-q5_1.gguf")
let taken: Bun.Server<undefined>

beforeAll(() => {
  const bytes = readFileSync(MODEL)
  writeFileSync(at("cut.gguf"), bytes.subarray(0, 5000))
  writeFileSync(at("text.gguf"), "not a model")
  writeGguf(at("unknown.gguf"), { "general.architecture": "mamba9" }, [])
  writeFileSync(at("broken.json"), "[[1, 2")
  writeFileSync(at("ids.json"), "[[1, 2, 3]]")
  writeFileSync(at("big-ids.json"), "[[1, 2, 99999]]")
  writeFileSync(at("strings.json"), '[["a"]]')
  writeFileSync(at("long-ids.json"), JSON.stringify([Array.from({ length: 100_000 }, () => 1)]))
  writeFileSync(at("messages.json"), '[{"role":"user","content":"hi"}]')
  writeFileSync(at("no-role.json"), '[{"content":"hi"}]')
  writeFileSync(at("bad.jinja"), "{% if %}")
  writeFileSync(
    at("rules.yaml"),
    "- match:\n    name: ^model$\n  replace:\n    class: NoSuchOperator\n",
  )
  writeFileSync(
    at("unused.yaml"),
    "- match:\n    name: ^nothing$\n  replace:\n    class: KTransformersLinear\n",
  )
  writeFileSync(at("config.yaml"), "server:\n  port: high\n")
  writeFileSync(at("broken.yaml"), "server: [1,\n")
  writeFileSync(at("latin1.txt"), Buffer.from([0x66, 0xfc, 0x72]))
  writeFileSync(at("short.txt"), "too short")
  writeFileSync(at("long.txt"), "long enough for a few windows of eight tokens each")
  writeFileSync(at("keys"), "# none\n")
  mkdirSync(at("empty"))
  mkdirSync(at("locked"))
  chmodSync(at("locked"), 0o500)
  taken = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("taken") })
})
afterAll(async () => {
  await taken.stop(true)
  chmodSync(at("locked"), 0o700)
  folder[Symbol.dispose]()
})

type Row = [
  name: string,
  argv: () => string[],
  says: RegExp,
  status?: number,
  env?: Record<string, string>,
]

const out = (): string[] => ["--out", at("o.safetensors")]
const rows: Row[] = [
  ["unknown command", () => ["sreve"], /unknown command "sreve"\n.*kt serve/, 2],
  [
    "unknown flag",
    () => ["run", MODEL, "--tempreature", "1"],
    /unknown flag --tempreature\n.*--temperature/,
    2,
  ],
  ["unknown flag before a command", () => ["--fast"], /unknown flag --fast/, 2],
  ["missing subcommand", () => ["rules"], /kt rules needs one of: explain/, 2],
  [
    "missing model",
    () => ["run", "/no/model.gguf", "-p", "x"],
    /\/no\/model\.gguf: no such file or folder/,
  ],
  ["unknown name", () => ["run", "nonsense", "-p", "x"], /unknown model "nonsense"/],
  [
    "default model not there",
    () => ["run", "-p", "x"],
    /the default model, .* is not there\n.*bun run setup/,
  ],
  ["folder without weights", () => ["run", at("empty"), "-p", "x"], /holds no weights/],
  ["truncated model", () => ["run", at("cut.gguf"), "-p", "x"], /cut\.gguf: .*\d/],
  ["no model at all", () => ["run", at("text.gguf"), "-p", "x"], /does not start with GGUF/],
  [
    "unknown architecture",
    () => ["logits", at("unknown.gguf"), "--ids", at("ids.json"), ...out()],
    /mamba9.*llama/,
  ],
  [
    "context too long",
    () => ["run", MODEL, "-p", "x", "--ctx", "9999999"],
    /--ctx 9999999: the model's context is \d+ tokens/,
  ],
  [
    "sequence too long",
    () => ["logits", MODEL, "--ids", at("long-ids.json"), ...out()],
    /100000 tokens: the model's context is/,
  ],
  [
    "range of an engine option",
    () => ["run", MODEL, "-p", "x", "--page-size", "12"],
    /--page-size 12: must be a multiple of 8/,
  ],
  [
    "experts of a model without any",
    () => ["logits", MODEL, "--ids", at("ids.json"), "--experts-per-token", "2", ...out()],
    /--experts-per-token 2: this llama model has no experts/,
  ],
  [
    "more experts than the model chooses",
    () => ["perplexity", MOE, "--file", at("long.txt"), "--ctx", "8", "--experts-per-token", "4"],
    /--experts-per-token 4: expected 1 to 2 \(num_experts_per_tok of the model\)/,
  ],
  [
    "range of a sampling flag",
    () => ["run", MODEL, "-p", "x", "--top-p", "2"],
    /--top-p 2: expected a number in 0\.\.1/,
    2,
  ],
  [
    "environment",
    () => ["run", MODEL, "-p", "x"],
    /environment variable KT_THREADS: .*many/,
    1,
    { KT_THREADS: "many" },
  ],
  ["unknown ISA level", () => ["run", MODEL, "-p", "x"], /mmx/, 1, { KT_CPU_ISA: "mmx" }],
  [
    "model given twice",
    () => ["run", MODEL, "--model", MODEL, "-p", "x"],
    /the model is given twice/,
    2,
  ],
  [
    "broken JSON",
    () => ["logits", MODEL, "--ids", at("broken.json"), ...out()],
    /broken\.json: is not valid JSON/,
  ],
  [
    "ids that are none",
    () => ["logits", MODEL, "--ids", at("strings.json"), ...out()],
    /sequence 0, token 0: "a" is no token id/,
  ],
  [
    "ids outside the vocabulary",
    () => ["logits", MODEL, "--ids", at("big-ids.json"), ...out()],
    /token 2: 99999 is outside the vocabulary/,
  ],
  ["missing flag", () => ["logits", MODEL, "--ids", at("ids.json")], /--out is missing/, 2],
  [
    "output folder missing",
    () => ["logits", MODEL, "--ids", at("ids.json"), "--out", "/no/folder/o"],
    /cannot be written: no such file or folder/,
  ],
  [
    "message without role",
    () => ["template", MODEL, "--messages", at("no-role.json")],
    /message 0 has no "role"/,
  ],
  [
    "broken template",
    () => ["template", "--template", at("bad.jinja"), "--messages", at("messages.json")],
    /bad\.jinja: cannot be parsed/,
  ],
  [
    "text that is not UTF-8",
    () => ["tokenize", MODEL, "--file", at("latin1.txt")],
    /latin1\.txt: is not UTF-8/,
  ],
  [
    "text too short",
    () => ["perplexity", MODEL, "--file", at("short.txt")],
    /do not fill a window of 512/,
  ],
  [
    "unknown operator",
    () => ["rules", "explain", MODEL, "--rules", at("rules.yaml")],
    /rules\.yaml:1: rule 1: unknown operator "NoSuchOperator"/,
  ],
  [
    "rule that matches nothing",
    () => ["rules", "explain", MODEL, "--rules", at("unused.yaml")],
    /unused\.yaml:1: rule 1: matches no module/,
  ],
  [
    "rule file missing",
    () => ["rules", "explain", MODEL, "--rules", "/no/rules.yaml"],
    /\/no\/rules\.yaml/,
  ],
  [
    "config of the wrong type",
    () => ["serve", MODEL, "--config", at("config.yaml")],
    /config\.yaml:2: server\.port "high": expected a number/,
  ],
  [
    "config that is no YAML",
    () => ["serve", MODEL, "--config", at("broken.yaml")],
    /broken\.yaml:\d+: /,
  ],
  ["empty key file", () => ["serve", MODEL, "--api-key-file", at("keys")], /holds no API key/],
  [
    "port in use",
    () => ["serve", MODEL, "--port", String(taken.port)],
    /port \d+ on 127\.0\.0\.1 is in use/,
  ],
  ["bad thread list", () => ["bench", MODEL, "-t", "1,x"], /--threads 1,x: expected integers/, 2],
  [
    "peer missing",
    () => ["bench", MODEL, "-p", "8", "-n", "0", "-r", "1", "-t", "1", "--peer", "/no/peer"],
    /--peer \/no\/peer: cannot be run/,
  ],
  ["empty prompt", () => ["run", MODEL], /the prompt is empty/, 2],
  ["pull of nothing", () => ["pull"], /SOURCE is missing/, 2],
  ["pull of a name", () => ["pull", "just-a-name"], /neither org\/repo\[:quant\] nor a URL/, 2],
  [
    "hub out of reach",
    () => ["pull", "a/b"],
    /127\.0\.0\.1:1\/a\/b/,
    1,
    { HF_ENDPOINT: "http://127.0.0.1:1" },
  ],
]

describe("each is one sentence and a status", () => {
  for (const [name, argv, says, status = 1, env = {}] of rows) {
    test(name, async () => {
      const result = await kt(argv(), { env, stdin: "" })
      expect(result.err).toMatch(says)
      const lines = result.err.trimEnd().split("\n")
      expect(lines.filter((line) => line.startsWith("kt: "))).toHaveLength(1)
      expect(lines.length).toBeLessThanOrEqual(2)
      expect(result.err).not.toMatch(/\n\s+at /)
      expect(result).toMatchObject({ status, out: "" })
    })
  }

  test.skipIf(process.getuid?.() === 0)(
    "a cache that cannot be written (as an ordinary user)",
    async () => {
      const url = `http://127.0.0.1:${taken.port}/m.gguf`
      const result = await kt(["pull", url], { env: { KT_HOME: at("locked") } })
      expect(result.status).toBe(1)
      expect(result.err).toMatch(/models: cannot be made: permission denied\n.*KT_HOME/)
    },
  )

  test("a cache below a file", async () => {
    const url = `http://127.0.0.1:${taken.port}/m.gguf`
    const result = await kt(["pull", url], { env: { KT_HOME: at("ids.json") } })
    expect(result.status).toBe(1)
    expect(result.err).toMatch(/ids\.json\/models: cannot be made/)
  })
})

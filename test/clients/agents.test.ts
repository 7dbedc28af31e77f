import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { type RunningServer, startServer } from "../../src/server/serve.ts"
import { type TestServer, testServer } from "../server/fakes.ts"
import { ROOT } from "../setup.ts"

/** These programs are large, so only their tests install them, where the other tools of the checkout are. */
const FOLDER = join(ROOT, ".toolchain/clients")
const BIN = join(FOLDER, "node_modules/.bin")
const reason = install()
/** Codex will have no home in the system's temporary folder. */
const HOMES = join(FOLDER, "homes")

function install(): string | undefined {
  mkdirSync(FOLDER, { recursive: true })
  for (const file of ["package.json", "bun.lock"])
    copyFileSync(join(ROOT, "test/clients", file), join(FOLDER, file))
  const argv = [process.execPath, "install", "--frozen-lockfile", "--ignore-scripts"]
  const { exitCode, stderr } = Bun.spawnSync(argv, { cwd: FOLDER, timeout: 240_000 })
  if (exitCode === 0 && existsSync(join(BIN, "claude")) && existsSync(join(BIN, "codex")))
    return undefined
  return `they cannot be installed: ${stderr.toString().trim().split("\n").at(-1)}`
}

let home: string
let server: RunningServer | undefined
beforeAll(() => {
  mkdirSync(HOMES, { recursive: true })
  home = mkdtempSync(join(HOMES, "home-"))
  writeFileSync(join(home, "note.txt"), "the number is 42\n")
})
afterAll(async () => {
  await server?.stop(0)
  rmSync(home, { recursive: true, force: true })
})

/** A server whose model calls one tool, then answers. */
function open(name: string, args: Record<string, unknown>): TestServer & { url: string } {
  const call = `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>`
  const answer = (number: number): string => (number === 0 ? call : "The number is 42.")
  // a byte is a token here, and what these programs tell the model is long
  const fake = testServer({ answer, contextLength: 4_000_000, together: 16 })
  server = startServer({ app: fake.app, port: 0 })
  return { ...fake, url: server.url }
}

interface Run {
  readonly out: string
  readonly err: string
  readonly status: number
}

async function run(argv: readonly string[], env: Record<string, string>): Promise<Run> {
  const { PATH = "" } = process.env
  const child = Bun.spawn([...argv], {
    cwd: home,
    env: { PATH, HOME: home, NO_COLOR: "1", ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: 120_000,
  })
  const [out, err, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { out, err, status }
}

const name = "agents in a terminal" + (reason === undefined ? "" : ` (skipped: ${reason})`)

describe.skipIf(reason !== undefined)(name, () => {
  test("Claude Code reads a file through a tool call and answers", async () => {
    const { url, client } = open("Read", { file_path: join(home, "note.txt") })
    const argv = ["-p", "which number is in note.txt?", "--output-format", "json"]
    const { out, err, status } = await run(
      [join(BIN, "claude"), ...argv, "--model", "claude-sonnet-4-5", "--allowedTools", "Read"],
      {
        ANTHROPIC_BASE_URL: url,
        ANTHROPIC_API_KEY: "sk-none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
        DISABLE_TELEMETRY: "1",
        DISABLE_ERROR_REPORTING: "1",
        DISABLE_AUTOUPDATER: "1",
      },
    )
    expect(err).toBe("")
    expect(status).toBe(0)
    expect(JSON.parse(out)).toMatchObject({ is_error: false, result: "The number is 42." })
    expect(client.calls).toHaveLength(2)
    expect(client.prompt(1)).toContain("the number is 42")
  })

  test("Codex runs a command through a tool call and answers", async () => {
    const { url, client } = open("exec_command", { cmd: "cat note.txt" })
    const provider = `{name="kt", base_url="${url}/v1", wire_api="responses", env_key="KEY"}`
    const flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    const settings = [
      "model_provider=kt",
      `model_providers.kt=${provider}`,
      "analytics.enabled=false",
      "check_for_update_on_startup=false",
    ].flatMap((setting) => ["-c", setting])
    const { out, status } = await run(
      [join(BIN, "codex"), "exec", ...flags, "-m", "fake", ...settings, "which number?"],
      { KEY: "none", CODEX_HOME: home },
    )
    expect(out.trim()).toBe("The number is 42.")
    expect(status).toBe(0)
    expect(client.calls).toHaveLength(2)
    expect(client.prompt(1)).toContain("the number is 42")
  })
})

import { expect, test } from "bun:test"
import { existsSync } from "node:fs"
import { join } from "node:path"

import { defaultModelPath } from "../../src/cli/home.ts"
import { ROOT } from "../setup.ts"

/** What a terminal would show of a command, and a keyboard for it. */
class FakeTerminal implements AsyncDisposable {
  text = ""
  readonly child

  constructor(args: readonly string[]) {
    const decoder = new TextDecoder()
    this.child = Bun.spawn([process.execPath, join(ROOT, "src/cli/main.ts"), ...args], {
      cwd: ROOT,
      terminal: {
        cols: 80,
        rows: 24,
        data: (_, bytes) => void (this.text += decoder.decode(bytes, { stream: true })),
      },
    })
  }

  type(keys: string): void {
    this.child.terminal?.write(keys)
  }

  /** Waits for a text after what has been taken already. */
  async shows(wanted: string): Promise<string> {
    for (let tries = 0; !this.text.includes(wanted); tries++) {
      if (tries === 600) {
        const seen = JSON.stringify(this.text.slice(0, 500))
        throw new Error(`no ${JSON.stringify(wanted)} in ${seen}`)
      }
      await Bun.sleep(50)
    }
    const end = this.text.indexOf(wanted) + wanted.length
    const taken = this.text.slice(0, end)
    this.text = this.text.slice(end)
    return taken
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill()
    await this.child.exited
  }
}

const model = defaultModelPath()

test.skipIf(!existsSync(model) || process.platform === "win32")(
  "kt chat in a terminal: a bar that goes away, Ctrl-C ends an answer, Ctrl-D leaves (needs the default model)",
  async () => {
    await using terminal = new FakeTerminal(["chat", model, "--temperature", "0"])
    const start = await terminal.shows("Ctrl-D leaves")
    expect(start).toContain("loading")
    // the terminal wraps lines again, and the bar's line is empty, before the first word
    expect(start.lastIndexOf("\x1b[?7h")).toBeGreaterThan(start.lastIndexOf("\x1b[?7l"))
    expect(start).toMatch(/\x1b\[2K[^\r\n]*Ctrl-D leaves$/)
    await terminal.shows("> ")
    terminal.type("Write a long story about a cat, in ten chapters.\r")
    await terminal.shows("chapters.")
    await terminal.shows(" ")
    await Bun.sleep(200)
    terminal.type("\x03")
    await terminal.shows("; stopped;")
    await terminal.shows("> ")
    terminal.type('"""\r')
    await terminal.shows("… ")
    terminal.type('Say yes."""\r')
    await Bun.sleep(200)
    terminal.type("\x03")
    await terminal.shows("tokens/s")
    await terminal.shows("> ")
    terminal.type("\x04")
    expect(await terminal.child.exited).toBe(0)
  },
  60_000,
)

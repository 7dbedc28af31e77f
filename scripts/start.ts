/** `bun start [flags of kt serve]`: set-up where needed, then the server with the web page. */
import { join } from "node:path"

import { ROOT, runScript, setUp } from "./setup/setup.ts"

const args = process.argv.slice(2)
/** A model of the user's own needs no default one. */
const hasModel =
  Boolean(process.env["KT_MODEL"]) ||
  args.some((arg) => /^--(model|gguf_path|gguf-path|config)(=|$)/.test(arg)) ||
  isPositional(args[0])

function isPositional(arg: string | undefined): boolean {
  return arg !== undefined && !arg.startsWith("-")
}

await runScript(async () => {
  const asksHelp = args.includes("--help") || args.includes("-h")
  await setUp({ model: !hasModel && !asksHelp, zig: false, kernels: !asksHelp })
  // a process of its own: this one started before the dependencies were there
  const server = Bun.spawn(
    [process.execPath, join(ROOT, "src", "cli", "main.ts"), "serve", ...args],
    {
      stdio: ["inherit", "inherit", "inherit"],
      env: process.env,
    },
  )
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.removeAllListeners(signal)
    // Ctrl-C reaches the server by itself, since both are in the terminal's group
    process.on(signal, () => {
      if (signal !== "SIGINT" || !process.stdin.isTTY) server.kill(signal)
    })
  }
  return server.exited
})

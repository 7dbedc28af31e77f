/**
 * `bun run compile [--target linux-x64|linux-arm64|windows-x64|darwin-arm64] [--outfile FILE]`: one binary that holds the
 * CPU library of its platform, the server, the web page and the rule files.
 */
import { parseArgs } from "node:util"

import { KtError } from "../src/errors.ts"
import { compile, hostTarget, isTarget, TARGETS } from "./build/binary.ts"
import { ROOT, runScript, setUp } from "./setup/setup.ts"

await runScript(async () => {
  const { values } = parseArgs({
    options: { target: { type: "string" }, outfile: { type: "string" } },
  })
  const target = values.target ?? hostTarget()
  if (!isTarget(target)) {
    throw new KtError(`--target ${target}: unknown`, {
      hint: `one of ${Object.keys(TARGETS).join(", ")}`,
    })
  }
  await setUp({ model: false, zig: true, kernels: false })
  const { outfile, bytes } = await compile(ROOT, target, values.outfile)
  process.stderr.write(`${outfile}: ${(bytes / 1e6).toFixed(0)} MB for ${target}\n`)
  return 0
})

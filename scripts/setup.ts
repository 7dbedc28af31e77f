/** `bun run setup`: everything that `start` and the tests need, and nothing else. */
import { runScript, setUp } from "./setup/setup.ts"

await runScript(async () => {
  await setUp({ model: !process.argv.includes("--no-model"), zig: true })
  return 0
})

import { afterAll, expect, test } from "bun:test"
import { copyFileSync, truncateSync } from "node:fs"
import { join } from "node:path"

import { learnHeaders } from "../../src/cli/library/header-reader.ts"
import { known, readMetadata } from "../../src/cli/library/metadata.ts"
import { golden } from "../setup.ts"
import { temporaryFolder } from "./kt.ts"

const folder = temporaryFolder()
afterAll(() => folder[Symbol.dispose]())

test("headers are read by another thread, once as long as the file stays what it is", async () => {
  const files = ["a", "b", "c"].map((name) => join(folder.path, `${name}.gguf`))
  for (const file of files) copyFileSync(golden("gguf", "llama-f16.gguf"), file)
  const [a = "", b = "", c = ""] = files
  truncateSync(c, 1000)
  const gone = join(folder.path, "gone.gguf")
  let turns = 0
  let isDone = false
  // the same files are asked for twice, and read once
  const done = Promise.all([learnHeaders([...files, gone]), learnHeaders(files)]).finally(
    () => (isDone = true),
  )
  while (!isDone) {
    turns++
    await new Promise<void>((resolve) => setImmediate(resolve))
  }
  await done
  expect(turns).toBeGreaterThan(5)
  expect(known(a)).toMatchObject({ metadata: { details: { family: "llama" } } })
  const metadata = readMetadata(b)
  expect(metadata).toBe(readMetadata(b))
  expect(metadata.digest).toBe(readMetadata(golden("gguf", "llama-f16.gguf")).digest)
  // why there is nothing is remembered too
  expect(() => readMetadata(c)).toThrow(c)
  expect(known(c)).toHaveProperty("error")
  expect(() => readMetadata(gone)).toThrow("no such file")

  copyFileSync(golden("gguf", "qwen2-q8_0.gguf"), b)
  expect(known(b)).toBeUndefined()
  expect(readMetadata(b).details.family).toBe("qwen2")
})

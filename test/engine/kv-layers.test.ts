import { expect, test } from "bun:test"

import { createEngine, goldenModels } from "./golden-models.ts"

test("caches that the CPU's attention does not read are refused before weights are loaded", async () => {
  const model = goldenModels().find(({ name }) => name === "gguf/qwen2-q8_0")
  if (model === undefined) throw new Error("no such model")
  for (const kvDtype of ["bf16", "f8"] as const)
    await expect(createEngine(model, { kvDtype })).rejects.toThrow(
      kvDtype === "bf16" ? "a cache of BF16 needs a GPU" : "no whole blocks of 128",
    )
})

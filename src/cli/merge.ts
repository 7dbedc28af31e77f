import { mergeHybrid } from "../convert/merge.ts"
import { UsageError } from "../errors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { formatBytes, write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

export const merge = defineCommand({
  name: "merge",
  summary: "Join a folder's linear layers and a GGUF's experts in one folder",
  details: `Most bytes of a Mixture-of-Experts model are its experts. A hybrid folder takes them from a GGUF (say
Q4_K_M) as they are, and all else from the Hugging Face folder (say FP8): attention, norms, routers and
shared experts keep their precision. The two must be of one model. The folder has one safetensors file a
layer, as KTransformers' merge_safetensor_gguf.py writes them (its folders are read as well), beside the
configuration and the tokenizer: \`kt run OUT\` needs nothing else.`,
  flags: {
    "safetensor-path": {
      type: "string",
      hint: "folder",
      aliases: ["safetensor_path", "safetensors", "safetensors-path"],
      help: "the Hugging Face folder: config.json, safetensors, tokenizer",
    },
    "gguf-path": {
      type: "string",
      hint: "path",
      aliases: ["gguf_path", "gguf"],
      help: "the GGUF with the experts: a file, the first of several, or their folder",
    },
    "output-path": {
      type: "string",
      hint: "folder",
      aliases: ["output_path", "out"],
      help: "the folder to write, new or empty",
    },
    ...JSON_FLAG,
  },
  examples: [
    {
      command:
        "kt merge --safetensor-path ./DeepSeek-V3 --gguf-path ./V3-Q4_K_M --output-path ./V3-hybrid",
      says: "FP8 linear layers with Q4_K experts",
    },
    {
      command: "kt merge --safetensors ./Qwen3-30B-A3B --gguf q4.gguf --out ./hybrid --json",
      says: "what was written, for other tools",
    },
  ],
  async run({ flags }) {
    const needed = (name: "safetensor-path" | "gguf-path" | "output-path"): string => {
      const value = flags[name]
      if (value === undefined) throw new UsageError(`--${name} is missing`)
      return value
    }
    const folder = needed("safetensor-path")
    const gguf = needed("gguf-path")
    const output = needed("output-path")
    using bar = progressBar("merging", formatBytes)
    const result = mergeHybrid(folder, gguf, output, {
      onProgress: (done, total) => bar.update(done, total),
    })
    if (flags.json) return writeJson(result)
    const { path, architecture, files, tensors, experts, bytes } = result
    await write(
      `${path}: ${architecture}, ${files} files, ${tensors} tensors, ${experts} stacks of experts from the GGUF, ${formatBytes(bytes)}\n`,
    )
  },
})

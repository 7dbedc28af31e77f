import { convertFolder } from "../convert/convert-folder.ts"
import { FILE_TYPES } from "../convert/file-types.ts"
import { Backend } from "../native/backend.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { parseSize, SPLIT_FLAG } from "./file-size.ts"
import { logger } from "./log.ts"
import { formatBytes, write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

export const convert = defineCommand({
  name: "convert",
  summary: "Write a Hugging Face folder as a GGUF file",
  details: `The folder's config.json, safetensors and tokenizer.json become one file, or several with
--split-max-size, that llama.cpp loads as well. --type is a file type of \`kt quantize\`:
${FILE_TYPES.map(({ name }) => name).join(", ")}.
What a configuration holds beyond the format's own keys is kept under kt.config, and said.`,
  positionals: [
    { name: "FOLDER", help: "a folder with config.json and safetensors", required: true },
    { name: "OUT", help: "the GGUF file to write", required: true },
  ],
  flags: {
    type: { type: "string", hint: "type", help: "the file type (default: what the folder has)" },
    pre: { type: "string", hint: "name", help: "tokenizer.ggml.pre (default: found by comparing)" },
    threads: { type: "integer", min: 0, max: 1024, default: 0, help: "0 = physical cores" },
    ...SPLIT_FLAG,
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt convert ./Qwen3-0.6B qwen3.gguf", says: "in the weights' own type" },
    { command: "kt convert ./Qwen3-0.6B qwen3.gguf --type q8_0", says: "quantised on the way" },
  ],
  async run({ args, flags }) {
    const [folder = "", output = ""] = args
    const split = flags["split-max-size"]
    using backend = new Backend({ threads: flags.threads })
    using bar = progressBar("converting", formatBytes)
    const result = await convertFolder(folder, output, backend, {
      ...(flags.type === undefined ? {} : { type: flags.type }),
      ...(flags.pre === undefined ? {} : { pre: flags.pre }),
      ...(split === undefined ? {} : { splitMaxBytes: parseSize("--split-max-size", split) }),
      onProgress: (done, total) => bar.update(done, total),
    })
    if (!result.hasTokenizer)
      logger("convert").warn(`${folder} has no tokenizer.json: the file holds no vocabulary`)
    if (result.extraKeys.length > 0)
      logger("convert").warn(
        `GGUF has no keys for this model's ${result.extraKeys.join(", ")}: other programs compute without them`,
      )
    if (flags.json) return writeJson(result)
    const { paths, architecture, fileType, tensors, bytes } = result
    await write(
      `${paths.join(", ")}: ${architecture}, ${fileType}, ${tensors} tensors, ${formatBytes(bytes)}\n`,
    )
  },
})

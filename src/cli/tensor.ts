import { FloatRows } from "../convert/float-rows.ts"
import { ConfigError, UsageError } from "../errors.ts"
import { Backend } from "../native/backend.ts"
import { openWeights } from "../weights/open.ts"
import { SafetensorsWriter } from "../weights/safetensors-writer.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { similar } from "./args/suggest.ts"
import { formatBytes, write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

export const tensor = defineCommand({
  name: "tensor",
  summary: "Write one tensor of a model file, dequantised to F32, to a safetensors file",
  details: "`kt inspect FILE` lists the names.",
  positionals: [
    { name: "FILE", help: "a model file or folder", required: true },
    { name: "NAME", help: "the tensor's name in the file", required: true },
  ],
  flags: {
    out: { type: "string", short: "o", hint: "file.safetensors", help: "where to write" },
    ...JSON_FLAG,
  },
  examples: [
    {
      command: "kt tensor model.gguf blk.0.attn_q.weight --out q.safetensors",
      says: "as [rows, columns] F32 under its own name",
    },
  ],
  async run({ args, flags }) {
    const [file = "", name = ""] = args
    const { out } = flags
    if (out === undefined) throw new UsageError("--out is missing: the safetensors file to write")
    const weights = openWeights(file)
    try {
      const entry = weights.get(name)
      if (entry === undefined) throw unknownTensor(file, name, [...weights.names()])
      const { dtype, shape } = entry
      using writer = new SafetensorsWriter(out, [{ name, dtype: "F32", shape }], {
        file,
        type: dtype.name,
      })
      using backend = new Backend()
      using rows = new FloatRows(backend)
      using bar = progressBar(name, formatBytes)
      const total = shape.reduce((a, b) => a * b, 4)
      let done = 0
      rows.forEach(entry, (piece) => {
        const bytes = piece.bytes()
        writer.write(name, bytes)
        done += bytes.length
        bar.update(done, total)
      })
      writer.finish()
      const result = { out, name, type: dtype.name, shape }
      await (flags.json
        ? writeJson(result)
        : write(`${out}: ${name} [${shape.join(", ")}], ${dtype.name} as F32\n`))
    } finally {
      weights.close()
    }
  },
})

function unknownTensor(file: string, name: string, names: readonly string[]): ConfigError {
  const near = similar(name, names, 5)
  const inside = names.filter((n) => n.includes(name)).slice(0, 5)
  const found = [...new Set([...near, ...inside])]
  return new ConfigError(`${file} has no tensor "${name}"`, {
    hint:
      found.length > 0
        ? `did you mean ${found.join(" or ")}?`
        : `\`kt inspect ${file} --no-metadata\` lists its ${names.length} tensors`,
  })
}

import { FILE_TYPES, fileType, tensorType } from "../convert/file-types.ts"
import { readImatrix } from "../convert/imatrix.ts"
import { checkedPlan, quantizeFile, type QuantizeFileOptions } from "../convert/quantize-file.ts"
import type { PlannedTensor } from "../convert/quantize-plan.ts"
import { ConfigError, UsageError } from "../errors.ts"
import { Backend } from "../native/backend.ts"
import { byteLength } from "../tensor/tensor.ts"
import { openGguf } from "../weights/gguf.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { parseSize, SPLIT_FLAG } from "./file-size.ts"
import { logger } from "./log.ts"
import { formatBytes, table, write, writeJson } from "./output.ts"
import { progressBar } from "./progress.ts"

export const quantize = defineCommand({
  name: "quantize",
  summary: "Write a GGUF file with smaller weights",
  details: `TYPE is one of ${FILE_TYPES.map(({ name }) => name).join(", ")}.
Mixed types (_S, _M, _L, IQ…) keep the tensors that matter most in more bits, as llama-quantize
does. Rows that are no multiple of a type's block get the nearest type that fits. --imatrix takes
llama-imatrix's files, GGUF or .dat. The output appears under its name when it is whole.`,
  positionals: [
    { name: "IN", help: "a GGUF file (the first of a split) in F32, F16 or BF16", required: true },
    { name: "OUT", help: "the GGUF file to write", required: true },
    { name: "TYPE", help: "the file type", required: true },
  ],
  flags: {
    imatrix: { type: "string", hint: "file", help: "how much each column's error matters" },
    "tensor-type": {
      type: "list",
      hint: "regex=type",
      help: "a type for tensors whose names match; the first that matches counts",
    },
    "output-type": { type: "string", hint: "type", help: "the type of output.weight" },
    "embedding-type": { type: "string", hint: "type", help: "the type of token_embd.weight" },
    pure: { type: "boolean", help: "TYPE's own type for every matrix" },
    "allow-requantize": { type: "boolean", help: "quantise what is quantised already" },
    "dry-run": { type: "boolean", help: "show the types and sizes, write nothing" },
    threads: { type: "integer", min: 0, max: 1024, default: 0, help: "0 = physical cores" },
    ...SPLIT_FLAG,
    ...JSON_FLAG,
  },
  examples: [
    { command: "kt quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M", says: "a usual choice" },
    {
      command: "kt quantize in.gguf out.gguf IQ4_XS --imatrix imatrix.gguf",
      says: "errors where they matter least",
    },
    {
      command: 'kt quantize in.gguf out.gguf Q4_K_M --tensor-type "ffn_down_exps=q6_k"',
      says: "some tensors in another type",
    },
  ],
  async run({ args, flags }) {
    const [input = "", output = "", type = ""] = args
    const imatrix = flags.imatrix
    const gguf = openGguf(input)
    try {
      if (gguf.files.includes(output)) throw new ConfigError(`${output} is the input itself`)
      const split = flags["split-max-size"]
      const options: QuantizeFileOptions = {
        fileType: fileType(type),
        overrides: flags["tensor-type"].map(override),
        pure: flags.pure,
        allowRequantize: flags["allow-requantize"],
        ...(imatrix === undefined ? {} : { imatrix: readImatrix(imatrix) }),
        ...optional("outputType", flags["output-type"]),
        ...optional("embeddingType", flags["embedding-type"]),
        ...(split === undefined ? {} : { splitMaxBytes: parseSize("--split-max-size", split) }),
      }
      if (options.fileType.low === true && imatrix === undefined)
        logger("quantize").warn(
          `${options.fileType.name} without --imatrix loses much of the model`,
        )
      if (flags["dry-run"]) return await showPlan(checkedPlan(gguf, options), flags.json)
      using backend = new Backend({ threads: flags.threads })
      using bar = progressBar("quantising", formatBytes)
      const result = quantizeFile(gguf, output, backend, {
        ...options,
        onProgress: (done, total) => bar.update(done, total),
      })
      for (const { name, wanted, type: got } of result.fallbacks)
        logger("quantize").info(`${name}: ${got} in place of ${wanted}, whose blocks do not fit`)
      if (flags.json) return await writeJson(result)
      const { paths, bytesBefore, bytesAfter, fallbacks } = result
      const note = fallbacks.length === 0 ? "" : `, ${fallbacks.length} tensors in a type that fits`
      await write(
        `${paths.join(", ")}: ${formatBytes(bytesAfter)} of ${formatBytes(bytesBefore)}${note}\n`,
      )
    } finally {
      gguf.close()
    }
  },
})

/** @throws UsageError where the words are no regex=type */
function override(text: string): NonNullable<QuantizeFileOptions["overrides"]>[number] {
  const equals = text.lastIndexOf("=")
  if (equals < 1) throw new UsageError(`--tensor-type ${text}: expected REGEX=TYPE`)
  try {
    return {
      pattern: new RegExp(text.slice(0, equals)),
      type: tensorType(text.slice(equals + 1)),
    }
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new UsageError(`--tensor-type ${text}: ${reason}`, { cause })
  }
}

function optional<K extends "outputType" | "embeddingType">(
  key: K,
  name: string | undefined,
): Partial<Pick<QuantizeFileOptions, K>> {
  if (name === undefined) return {}
  const value: Partial<QuantizeFileOptions> = { [key]: tensorType(name) }
  return value
}

async function showPlan(plan: readonly PlannedTensor[], json: boolean): Promise<void> {
  const tensors = plan.map(({ entry, dtype, instead }) => ({
    name: entry.name,
    from: entry.dtype.name,
    to: dtype.name,
    ...(instead === undefined ? {} : { wanted: instead.name }),
    shape: entry.shape,
    bytes: byteLength(dtype, entry.shape),
  }))
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)
  if (json) return writeJson({ bytes, tensors })
  const rows = tensors.map((t) => [
    t.name,
    t.from,
    t.to + (t.wanted === undefined ? "" : ` (for ${t.wanted})`),
    `[${t.shape.join(", ")}]`,
    formatBytes(t.bytes),
  ])
  await write(`${table(["TENSOR", "FROM", "TO", "SHAPE", "SIZE"], rows)}\n${formatBytes(bytes)}\n`)
}

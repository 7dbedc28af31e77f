import { accessSync, constants } from "node:fs"
import { dirname } from "node:path"

import { ConfigError, FormatError, UsageError } from "../errors.ts"
import { type TensorData, writeSafetensors } from "../weights/safetensors.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { COMPUTE_KEYS, engineOptions, MODEL_POSITIONAL } from "./engine-options.ts"
import { argmax, Evaluator } from "./evaluator.ts"
import { readJson } from "./files.ts"
import { reasonOf } from "./kt-config.ts"
import { logger } from "./log.ts"
import { formatBytes, write, writeJson } from "./output.ts"

/** All results are held until they are written. */
const MAX_OUTPUT_BYTES = 8 * 2 ** 30

export const logits = defineCommand({
  name: "logits",
  summary: "Write a model's logits for given token ids to a safetensors file",
  details: `FILE.json holds an array of token-id arrays. Tensors, for array number i:
  logits.<i>         [T, vocab] f32   after each of its T tokens
  greedy_ids.<i>     [N] i32          with --greedy N: the likeliest continuation
  greedy_logits.<i>  [N, vocab] f32   the logits that each of those ids was taken from`,
  positionals: [MODEL_POSITIONAL],
  engine: COMPUTE_KEYS,
  flags: {
    ids: { type: "string", hint: "file.json", help: "token ids; - for stdin" },
    greedy: {
      type: "integer",
      min: 0,
      max: 1_000_000,
      default: 0,
      help: "tokens to continue with",
    },
    out: { type: "string", short: "o", hint: "file.safetensors", help: "where to write" },
    ...JSON_FLAG,
  },
  examples: [
    {
      command:
        "kt logits model.gguf --ids ids.json --greedy 8 --precision f32 --out out.safetensors",
      says: "for comparison with a reference",
    },
  ],
  async run(invocation) {
    const { ids: file, out, greedy, json } = invocation.flags
    if (file === undefined) throw new UsageError("--ids is missing: a JSON file of token-id arrays")
    if (out === undefined) throw new UsageError("--out is missing: the safetensors file to write")
    checkWritable(out)
    const sequences = readSequences(file)
    const options = engineOptions(invocation)
    const longest = Math.max(...sequences.map((ids) => ids.length)) + Math.max(0, greedy - 1)
    using evaluator = await Evaluator.open(options, longest, (w) => logger("rules").warn(w))
    const vocab = evaluator.config.vocab_size
    checkIds(file, sequences, vocab)
    const rows = sequences.reduce((sum, ids) => sum + ids.length + greedy, 0)
    if (rows * vocab * 4 > MAX_OUTPUT_BYTES)
      throw new ConfigError(
        `${rows} rows of ${vocab} logits are ${formatBytes(rows * vocab * 4)}: at most ${formatBytes(MAX_OUTPUT_BYTES)}`,
      )
    const tensors: Record<string, TensorData> = {}
    for (const [i, ids] of sequences.entries()) {
      const data = new Float32Array(ids.length * vocab)
      evaluator.forward(
        ids,
        0,
        () => true,
        (position, row) => data.set(row, position * vocab),
      )
      tensors[`logits.${i}`] = { shape: [ids.length, vocab], data }
      if (greedy > 0) Object.assign(tensors, continued(evaluator, i, ids, data, greedy))
    }
    writeSafetensors(out, tensors, { model: options.model, precision: options.precision })
    const summary = { out, sequences: sequences.length, vocab }
    await (json
      ? writeJson(summary)
      : write(`${out}: ${sequences.length} sequences, vocabulary ${vocab}\n`))
  },
})

/** Decodes one token at a time from where the prompt's logits end. */
function continued(
  evaluator: Evaluator,
  i: number,
  prompt: Int32Array,
  promptLogits: Float32Array,
  count: number,
): Record<string, TensorData> {
  const vocab = evaluator.config.vocab_size
  const ids = new Int32Array(count)
  const rows = new Float32Array(count * vocab)
  rows.set(promptLogits.subarray((prompt.length - 1) * vocab))
  for (let n = 0; n < count; n++) {
    ids[n] = argmax(rows.subarray(n * vocab, (n + 1) * vocab))
    if (n + 1 === count) break
    const next = Int32Array.of(ids[n]!)
    evaluator.forward(
      next,
      prompt.length + n,
      () => true,
      (_, row) => rows.set(row, (n + 1) * vocab),
    )
  }
  return {
    [`greedy_ids.${i}`]: { shape: [count], data: ids },
    [`greedy_logits.${i}`]: { shape: [count, vocab], data: rows },
  }
}

function readSequences(file: string): Int32Array[] {
  const json = readJson(file)
  if (!Array.isArray(json) || json.length === 0)
    throw new FormatError(file, "is not a JSON array of token-id arrays")
  return json.map((ids: unknown, i) => {
    if (!Array.isArray(ids) || ids.length === 0)
      throw new FormatError(file, `sequence ${i} is not an array with token ids in it`)
    ids.forEach((id: unknown, j) => {
      if (!Number.isInteger(id) || (id as number) < 0 || (id as number) > 2 ** 31 - 1)
        throw new FormatError(
          file,
          `sequence ${i}, token ${j}: ${JSON.stringify(id)} is no token id`,
        )
    })
    return Int32Array.from(ids as number[])
  })
}

function checkIds(file: string, sequences: readonly Int32Array[], vocab: number): void {
  for (const [i, ids] of sequences.entries()) {
    const at = ids.findIndex((id) => id >= vocab)
    if (at >= 0)
      throw new FormatError(
        file,
        `sequence ${i}, token ${at}: ${ids[at]} is outside the vocabulary of ${vocab}`,
      )
  }
}

/** Before minutes are spent on what could not be kept. */
function checkWritable(out: string): void {
  try {
    accessSync(dirname(out), constants.W_OK)
  } catch (cause) {
    throw new FormatError(out, `cannot be written: ${reasonOf(cause)}`, { cause })
  }
}

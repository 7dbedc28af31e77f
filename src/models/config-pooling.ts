import { existsSync } from "node:fs"
import { isAbsolute, join, normalize } from "node:path"

import { z } from "zod"

import { FormatError } from "../errors.ts"
import type { GgufFile } from "../weights/gguf.ts"
import { Keys } from "./config-gguf-keys.ts"
import { parsed, readJson } from "./config-json.ts"
import type { ClassifierConfig, ModelConfig, Pooling } from "./config.ts"

const Modules = z.array(z.object({ type: z.string(), path: z.string().max(256) })).max(64)

const PoolingModule = z.object({
  pooling_mode: z.string().nullish(),
  pooling_mode_cls_token: z.boolean().nullish(),
  pooling_mode_mean_tokens: z.boolean().nullish(),
  pooling_mode_lasttoken: z.boolean().nullish(),
  pooling_mode_max_tokens: z.literal(false).nullish(),
  pooling_mode_mean_sqrt_len_tokens: z.literal(false).nullish(),
  pooling_mode_weightedmean_tokens: z.literal(false).nullish(),
})

const MODES: Readonly<Record<string, Pooling>> = { cls: "cls", mean: "mean", lasttoken: "last" }

/**
 * The pooling that a sentence-transformers folder names in modules.json; undefined where it has none.
 *
 * @throws FormatError where it is one that is not computed here
 */
export function poolingOfFolder(folder: string): Pooling | undefined {
  const list = join(folder, "modules.json")
  if (!existsSync(list)) return undefined
  const modules = parsed(list, "", readJson(list), Modules)
  const dense = modules.find(({ type }) => type.endsWith(".Dense"))
  if (dense !== undefined)
    throw new FormatError(
      list,
      `type: ${dense.type}, a dense layer over the vector is not computed`,
    )
  const path = modules.find(({ type }) => type.endsWith("Pooling"))?.path
  if (path === undefined) return undefined
  const inside = normalize(path)
  if (isAbsolute(inside) || inside.startsWith(".."))
    throw new FormatError(list, `path: ${path} leaves the folder`)
  const file = join(folder, inside, "config.json")
  const modes = parsed(file, "", readJson(file), PoolingModule)
  const named = modes.pooling_mode ?? undefined
  const mode = named === undefined ? undefined : MODES[named]
  if (named !== undefined && mode === undefined)
    throw new FormatError(
      file,
      `pooling_mode: ${named} is unknown; known are ${Object.keys(MODES).join(", ")}`,
    )
  if (modes.pooling_mode_mean_tokens) return "mean"
  if (modes.pooling_mode_cls_token) return "cls"
  if (modes.pooling_mode_lasttoken) return "last"
  return mode
}

const GGUF_POOLINGS: readonly (Pooling | undefined)[] = [undefined, "mean", "cls", "last", "rank"]

/** What a GGUF says of pooling, and its classification head. */
export function poolingOfGguf(gguf: GgufFile): Pick<ModelConfig, "pooling" | "classifier"> {
  const keys = new Keys(gguf)
  const type = keys.count("pooling_type", GGUF_POOLINGS.length - 1)
  const rows = gguf.get("cls.output.weight")?.shape[0]
  const hasHead = rows !== undefined
  const pooling = type === undefined ? undefined : GGUF_POOLINGS[type]
  return {
    ...(pooling === undefined && !hasHead ? {} : { pooling: hasHead ? "rank" : pooling }),
    ...(hasHead ? { classifier: ggufClassifier(gguf, rows) } : {}),
  }
}

/** Rows are verdicts (yes, no) in converted generative rerankers; scores of others are logits. */
function ggufClassifier(gguf: GgufFile, num_labels: number): ClassifierConfig {
  const bias = gguf.get("cls.output.bias") !== undefined
  const labels = gguf.metadata.get(`${gguf.architecture}.classifier.output_labels`)
  const yes = Array.isArray(labels) ? labels.indexOf("yes") : -1
  if (num_labels > 1 && yes >= 0 && yes < num_labels)
    return { num_labels, label: yes, score: "softmax", bias }
  return { num_labels, label: num_labels === 2 ? 1 : 0, score: "none", bias }
}

const Head = z.object({
  architectures: z.array(z.string()).max(16).nullish(),
  num_labels: z.int().min(1).max(65_536).nullish(),
  id2label: z.record(z.string(), z.unknown()).nullish(),
  sbert_ce_default_activation_function: z.string().nullish(),
  sentence_transformers: z.object({ activation_fn: z.string().nullish() }).nullish(),
})

/**
 * The classification head of a checkpoint whose architecture names one. As in sentence-transformers one score becomes a
 * sigmoid unless the file says that it stays as it is; of two labels the second says that texts match.
 */
export function classifierOf(file: string, json: unknown): ClassifierConfig | undefined {
  const c = parsed(file, "", json, Head)
  if (!(c.architectures ?? []).some((name) => name.endsWith("ForSequenceClassification")))
    return undefined
  const num_labels = c.num_labels ?? Object.keys(c.id2label ?? { 0: "", 1: "" }).length
  const named = c.sentence_transformers?.activation_fn ?? c.sbert_ce_default_activation_function
  const isPlain = named?.endsWith("Identity") === true
  return {
    num_labels,
    label: num_labels === 2 ? 1 : 0,
    score: isPlain ? "none" : num_labels === 1 ? "sigmoid" : "softmax",
    bias: true,
  }
}

import type { EngineInfo } from "../../worker/protocol.ts"
import type { KnownModel } from "./library.ts"

/** GGUF architectures and Hugging Face model types that make vectors only. */
const ENCODERS: ReadonlySet<string> = new Set(["bert", "nomic-bert", "nomic_bert"])

/** What a model can do, in Ollama's words: as its engine says, or before it is loaded as far as its files tell. */
export function capabilitiesOf(model: KnownModel, info: EngineInfo | undefined): string[] {
  if (info?.pooling !== undefined) return [info.pooling.hasClassifier ? "rerank" : "embedding"]
  const isPooled =
    info === undefined &&
    (ENCODERS.has(model.details.family) ||
      Object.keys(model.info ?? {}).some((key) => key.endsWith(".pooling_type")))
  if (isPooled) return ["embedding"]
  const template = model.settings?.template ?? model.chatTemplate ?? ""
  // tools are rendered, and thinking is asked for, where the template knows of them
  return [
    "completion",
    ...(/\btools\b/.test(template) ? ["tools"] : []),
    ...(/enable_thinking|reasoning_effort|<think>/.test(template) ? ["thinking"] : []),
  ]
}

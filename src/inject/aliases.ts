/**
 * Class names of Transformers' and KTransformers' Python model files by the classes they are here, so that rule files
 * written for them find their modules. Names that a module has registered itself come first.
 */
const FAMILIES = [
  "DeepseekV2",
  "DeepseekV3",
  "Ernie4_5_Moe",
  "Gemma3",
  "Glm4Moe",
  "GptOss",
  "InternLM2",
  "MiniMaxM2",
  "Llama",
  "Llama4Text",
  "Mistral",
  "Mixtral",
  "Phi3",
  "Qwen2",
  "Qwen2Moe",
  "Qwen3",
  "Qwen3Moe",
  "Qwen3Next",
  "Smallthinker",
  "SmallThinker",
  "SmolLM3",
] as const

const ALIASES: ReadonlyMap<string, string> = new Map([
  ...FAMILIES.flatMap((family): [string, string][] => [
    [`${family}RMSNorm`, "RMSNorm"],
    [`${family}RotaryEmbedding`, "RotaryEmbedding"],
  ]),
  ["Phi3LongRoPEScaledRotaryEmbedding", "RotaryEmbedding"],
  ["LlamaLinearScalingRotaryEmbedding", "RotaryEmbedding"],
  ["LlamaDynamicNTKScalingRotaryEmbedding", "RotaryEmbedding"],
  ["DeepseekV2YarnRotaryEmbedding", "RotaryEmbedding"],
  ["DeepseekV3YarnRotaryEmbedding", "RotaryEmbedding"],
  ["Gemma3TextScaledWordEmbedding", "Embedding"],
  ["KQwen3MoeSparseMoeBlock", "Qwen3MoeSparseMoeBlock"],
  // KTransformers writes the family with a small t, its checkpoints with a capital one
  ["SmallthinkerAttention", "SmallThinkerAttention"],
  ["SmallthinkerMoeBlock", "SmallThinkerMoeBlock"],
  ["SmallthinkerDenseMlpBlock", "SmallThinkerDenseMlpBlock"],
  ["SmallthinkerDecoderLayer", "SmallThinkerDecoderLayer"],
  ["SmallthinkerModel", "SmallThinkerModel"],
  ["SmallthinkerForCausalLM", "SmallThinkerForCausalLM"],
  ["Llama4TextL2Norm", "L2Norm"],
  ["Llama4Router", "Linear"],
  ["Llama4TextExperts", "Experts"],
  ["GptOssExperts", "Experts"],
  // what transformers 5 calls the stacks of experts and the routers
  ...["Mixtral", "Qwen2Moe", "Qwen3Moe", "Glm4Moe", "MiniMaxM2"].map((family): [string, string] => [
    `${family}Experts`,
    "Experts",
  ]),
  ...["Mixtral", "Qwen2Moe", "Qwen3Moe", "MiniMaxM2"].map((family): [string, string] => [
    `${family}TopKRouter`,
    "Linear",
  ]),
  ["Glm4MoeNaiveMoe", "Experts"],
])

/** Whether a rule's `match.class` names one of a module's classes, its own or a base. */
export function classMatches(wanted: string, classNames: readonly string[]): boolean {
  if (classNames.includes(wanted)) return true
  const alias = ALIASES.get(wanted)
  return alias !== undefined && classNames.includes(alias)
}

/** Control tokens with which code models fill in the middle (Bavarian et al. 2022, arXiv:2207.14255). */
export interface FimTokens {
  readonly prefix: number
  readonly suffix: number
  /** Undefined where the prefix stands last and is simply continued (Codestral). */
  readonly middle: number | undefined
  /** Begin a repository's name, and a file of it (arXiv:2409.12186). */
  readonly repository: number | undefined
  readonly file: number | undefined
  /** The suffix comes before the prefix. */
  readonly suffixFirst: boolean
}

/** Prefix, suffix and middle as the families write them: Qwen, StarCoder, Granite, DeepSeek, Code Llama, GLM-4.5, Falcon. */
const FAMILIES: readonly (readonly [prefix: string, suffix: string, middle: string])[] = [
  ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
  ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
  ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
  ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"],
  ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"],
  ["<PRE>", "<SUF>", "<MID>"],
  ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
  ["<|prefix|>", "<|suffix|>", "<|middle|>"],
]
const REPOSITORY = ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]
const FILE = ["<|file_sep|>", "<file_sep>"]

/** What a vocabulary has of them; undefined where it cannot fill in. @param idOf The token that stands so in it */
export function fimTokens(idOf: (text: string) => number | undefined): FimTokens | undefined {
  const first = (texts: readonly string[]): number | undefined =>
    texts.map(idOf).find((id) => id !== undefined)
  const extra = { repository: first(REPOSITORY), file: first(FILE) }
  for (const texts of FAMILIES) {
    const [prefix, suffix, middle] = texts.map(idOf)
    if (prefix === undefined || suffix === undefined || middle === undefined) continue
    return { prefix, suffix, middle, ...extra, suffixFirst: false }
  }
  const [prefix, suffix] = ["[PREFIX]", "[SUFFIX]"].map(idOf)
  if (prefix === undefined || suffix === undefined) return undefined
  return { prefix, suffix, middle: undefined, ...extra, suffixFirst: true }
}

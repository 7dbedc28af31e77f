/** How the texts of one family of byte-pair vocabularies are cut into words. */
export interface PreTokenizer {
  /** Regular expressions applied one after the other; matches and what lies between them become pieces. */
  readonly patterns: readonly string[]
  /** Words that are tokens are taken whole, without merging. */
  readonly wholeWords?: "always" | "line-feeds"
  /** Put the start token in front when the file does not say. */
  readonly addBos?: true
  /** Symbols are code points with U+2581 for spaces and byte fallback, not GPT-2's bytes. */
  readonly metaspace?: true
}

const SUFFIX = "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
const SPACES = "\\s+(?!\\S)|\\s+"
const LINES = `\\s*[\\r\\n]+|${SPACES}`
const MARKS = " ?[^\\s\\p{L}\\p{N}]+"
const WORD = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"

const GPT2 = `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+|${MARKS}|${SPACES}`

/** tiktoken's cl100k family; `digits` says how numbers are cut. */
function cl100k(digits: string): string {
  return `${SUFFIX}|${WORD}|${digits}|${MARKS}[\\r\\n]*|${LINES}`
}

/** tiktoken's o200k family: words also end where lower case turns to upper case. */
function o200k(options: {
  suffix?: string
  digits: string
  tail: string
  head?: string
  less?: string
  lines?: string
}): string {
  const { suffix = "", digits, tail, head = "", less = "", lines = LINES } = options
  const upper = `[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}${less}]`
  const lower = `[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}${less}]`
  const lead = "[^\\r\\n\\p{L}\\p{N}]?"
  return `${head}${lead}${upper}*${lower}+${suffix}|${lead}${upper}+${lower}*${suffix}|${digits}|${MARKS}${tail}|${lines}`
}

const ASCII_MARK_WORD = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
const DEEPSEEK_WORD = "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
const DEEPSEEK3 = `${ASCII_MARK_WORD}|${DEEPSEEK_WORD}| ?[\\p{P}\\p{S}]+[\\r\\n]*|${LINES}`
const HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
/** Scripts written without spaces: Han, kana, Thai, Lao, Khmer, Burmese, Hangul. */
const ASIAN =
  "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf" +
  "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
const CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

/** Letters with case of the scripts that DeepSeek LLM's tokenizer.json lists one by one. */
const CASED =
  "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af" +
  "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5" +
  "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba" +
  "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45" +
  "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe" +
  "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc" +
  "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139" +
  "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3" +
  "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06" +
  "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}" +
  "\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}"
const BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
const JAIS2_SPACES = [512, 256, 128, 64, 32, 16, 8, 4].map((n) => `\\s{${n}}(?!\\S)`).join("|")

const gpt2: PreTokenizer = { patterns: [GPT2] }
const gpt2Digits: PreTokenizer = { patterns: ["\\p{N}", GPT2] }
const llama3: PreTokenizer = {
  patterns: [cl100k("\\p{N}{1,3}")],
  wholeWords: "always",
  addBos: true,
}
const llama3Plain: PreTokenizer = { patterns: [cl100k("\\p{N}{1,3}")] }
const qwen2: PreTokenizer = { patterns: [cl100k("\\p{N}")] }
const deepseek3: PreTokenizer = { patterns: ["\\p{N}{1,3}", HAN_KANA, DEEPSEEK3] }
const bloom: PreTokenizer = { patterns: [BLOOM] }
const gpt4o: PreTokenizer = {
  patterns: [o200k({ suffix: `(?:${SUFFIX})?`, digits: "\\p{N}{1,3}", tail: "[\\r\\n/]*" })],
}
const bailing: PreTokenizer = {
  patterns: [`${SUFFIX}|${WORD}|\\p{N}|${MARKS}[\\r\\n]*|\\s*[\\r\\n]|${SPACES}`],
}
const tinyAya: PreTokenizer = { patterns: ["\\d{1,3}(?=(?:\\d{3})*\\b)", ...gpt4o.patterns] }
const gemma4: PreTokenizer = {
  patterns: ["[^\\n]+|[\\n]+"],
  wholeWords: "line-feeds",
  addBos: true,
  metaspace: true,
}

const FAMILIES: readonly (readonly [PreTokenizer, string])[] = [
  [{ patterns: ["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"] }, "default"],
  [llama3, "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"],
  [llama3Plain, "dbrx smaug-bpe glm4 chatglm-bpe"],
  [
    gpt2,
    "gpt-2 mpt olmo jais trillion granite-docling phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code roberta-bpe exaone4",
  ],
  [gpt2Digits, "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"],
  [qwen2, "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2"],
  [
    {
      patterns: [
        `${SUFFIX}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${LINES}`,
      ],
    },
    "qwen35",
  ],
  [{ patterns: ["[^\\n]+|[\\n]+", ...qwen2.patterns] }, "laguna"],
  [
    {
      patterns: [
        "[\\r\\n]",
        `\\s?[${CASED}]+`,
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        "\\s+$",
        CJK,
        "\\p{N}+",
      ],
    },
    "deepseek-llm",
  ],
  [{ patterns: ["[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK, "\\p{N}"] }, "deepseek-coder"],
  [
    {
      patterns: [
        // groups of three from the right
        "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))",
        ASIAN,
        DEEPSEEK3,
      ],
    },
    "afmoe",
  ],
  [deepseek3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"],
  [{ patterns: ["[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"] }, "falcon"],
  [bloom, "poro-chat bloom gpt3-finnish"],
  [{ patterns: [BLOOM, "\\p{N}"] }, "viking"],
  [
    {
      patterns: [o200k({ digits: "\\p{N}", tail: "[\\r\\n/]*" })],
      wholeWords: "always",
      addBos: true,
    },
    "tekken",
  ],
  [gpt4o, "gpt-4o llama4 kanana2 talkie minimax-m2"],
  [{ ...gpt4o, wholeWords: "always" }, "granite-embed-multi-97m"],
  [tinyAya, "tiny_aya cohere2moe"],
  [
    {
      patterns: [
        o200k({
          head: "\\p{Han}+|",
          less: "&&[^\\p{Han}]",
          suffix: `(?:${SUFFIX})?`,
          digits: "\\p{N}{1,3}",
          tail: "[\\r\\n]*",
        }),
      ],
    },
    "kimi-k2",
  ],
  [bailing, "bailingmoe bailingmoe2 llada-moe"],
  [
    {
      patterns: [`${SUFFIX}|${WORD}|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|${LINES}`],
    },
    "seed-coder",
  ],
  [{ patterns: [`${WORD}|\\p{N}|${MARKS}[\\r\\n]*|${LINES}`] }, "ufakzeka"],
  [{ patterns: ["\\p{N}{1,3}", cl100k("\\p{N}+")], wholeWords: "always" }, "minicpm5"],
  [
    {
      patterns: [
        `${SUFFIX}|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|${MARKS}[\\r\\n/]?|\\s*[\\r\\n]|${SPACES}`,
      ],
    },
    "exaone-moe",
  ],
  [
    {
      patterns: [
        `${SUFFIX}|${WORD}|\\p{N}{1,3}|${MARKS}[\\r\\n]*|\\s*[\\r\\n]+|${JAIS2_SPACES}|\\s{1,2}(?!\\S)|\\s{1}`,
      ],
    },
    "jais-2",
  ],
  [
    {
      patterns: [
        "\\p{N}{1,3}",
        HAN_KANA,
        `${ASCII_MARK_WORD}|${DEEPSEEK_WORD}| ?[\\p{P}\\p{S}]+|[\\r\\n]|${SPACES}`,
        "\\p{N}",
      ],
    },
    "spark2_5",
  ],
  [
    {
      patterns: [
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" +
          HAN_KANA,
        o200k({ suffix: `(?:${SUFFIX})?`, digits: "\\p{N}", tail: "[\\r\\n/]*" }),
      ],
      wholeWords: "always",
    },
    "youtu",
  ],
  [{ patterns: ["\\p{N}+", "(?=(\\d{3})+(?!\\d))"] }, "superbpe"],
  [
    {
      patterns: [
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        "([\\t\\n]|    |  )",
        "\\p{N}",
        "[\\p{P}!-/:-@\\[-`{-~]",
        GPT2,
      ],
      addBos: true,
    },
    "chameleon",
  ],
  [gemma4, "gemma4 granite-embed-multi-311m"],
  [{ patterns: gemma4.patterns, metaspace: true }, "sarvam-moe"],
]

const BY_NAME: ReadonlyMap<string, PreTokenizer> = new Map(
  FAMILIES.flatMap(([pre, names]) => names.split(" ").map((name) => [name, pre] as const)),
)

/** The pre-tokenizer that GGUF's `tokenizer.ggml.pre` names, or undefined. */
export function preTokenizer(name: string): PreTokenizer | undefined {
  return BY_NAME.get(name)
}

/** All names known, for messages. */
export function preTokenizerNames(): readonly string[] {
  return [...BY_NAME.keys()].sort()
}

/** GPT-2's own cut, which tokenizer.json's ByteLevel pre-tokenizer applies when `use_regex` is set. */
export const GPT2_PATTERN = GPT2

/** Pieces of the scripts, signs and mistakes that texts are made of. */
const PIECES: readonly string[] = [
  ..."hello; world;Hello World;don't;I'LL've;HTTPServer;camelCase;snake_case;naïve café;Ünïcode;ß;ﬁn;Straße;İstanbul;ΑΣ Σας".split(
    ";",
  ),
  ..."日本語テキスト;中文，标点。;한국어;각;カ゛ｶﾞ;नमस्ते;ไทย;العَرَبِيَّة;שָׁלוֹם;Привет;ѐ;ελληνικά;Ⅷ½²;①㌔ﬀ;Ａｂｃ１".split(
    ";",
  ),
  ...[
    "😀",
    "👩‍👩‍👧",
    "🇩🇪",
    "👍🏽",
    "❤️",
    "e\u0301",
    "a\u0308\u0323",
    "\u1100\u1161\u11a8",
    "\u0344",
    "\u{1d400}",
    "\u{20000}",
  ],
  ...[
    " ",
    "  ",
    "     ",
    "\t",
    "\n",
    "\n\n\n",
    "\r\n",
    " \n ",
    "\u00a0",
    "\u0085",
    "\u2028",
    "\u3000",
    "\u200b",
    "\u200d",
  ],
  ...[
    "\ufeff",
    "\u00ad",
    "\u0000",
    "\u0007",
    "\u001b[0m",
    "\ufffd",
    "\ufffe",
    "\ue000",
    "\u0378",
    "\u061c",
  ],
  ...[
    "1",
    "12",
    "123",
    "1234567",
    "3.14",
    "1,000",
    "٣٤",
    "x=1;",
    "if (a<b) {",
    "}//",
    "```py\n",
    "#!/bin",
    "\\n",
    "$1",
    "~^|`",
  ],
  ...[
    "...",
    "!?",
    "''",
    '"',
    "--",
    "—",
    "“q”",
    "…",
    "、",
    "¿",
    "€",
    "°",
    "_",
    "▁",
    "▁▁a",
    "<0x41>",
    "##ing",
    "Ġa",
    "[UNK]",
  ],
]

/** Characters that Unicode has had for long: libraries of different ages agree on them. */
const RANGES: readonly (readonly [first: number, last: number])[] = [
  [0x00, 0x7f],
  [0x80, 0x24f],
  [0x250, 0x377],
  [0x38e, 0x3a1],
  [0x3a3, 0x52f],
  [0x5d0, 0x5ea],
  [0x620, 0x6ff],
  [0x904, 0x94d],
  [0xe01, 0xe3a],
  [0x1100, 0x11ff],
  [0x1e00, 0x1eff],
  [0x2000, 0x206f],
  [0x20a0, 0x20bd],
  [0x2190, 0x23f3],
  [0x2460, 0x24ff],
  [0x3000, 0x303f],
  [0x3041, 0x3096],
  [0x3099, 0x30ff],
  [0x3131, 0x318e],
  [0x4e00, 0x9fa5],
  [0xac00, 0xd7a3],
  [0xe000, 0xf8ff],
  [0xf900, 0xfa2d],
  [0xff01, 0xffbe],
  [0x1d400, 0x1d454],
  [0x1f300, 0x1f5ff],
  [0x20000, 0x2a6d6],
]

/** Texts made of such pieces and of arbitrary characters, the same for the same seed. */
export function fuzzTexts(count: number, seed = 1): string[] {
  let state = seed
  const below = (limit: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * limit)
  }
  const character = (): string => {
    const [first, last] = RANGES[below(RANGES.length)]!
    return String.fromCodePoint(first + below(last - first + 1))
  }
  return Array.from({ length: count }, () => {
    let text = ""
    for (let left = 1 + below(12); left > 0; left--)
      text += below(4) === 0 ? character() : PIECES[below(PIECES.length)]!
    return text.toWellFormed()
  })
}

import { FormatError } from "../errors.ts"
import { BpeModel } from "./bpe.ts"
import { Charsmap } from "./charsmap.ts"
import { type GgufFields, KEY } from "./gguf-fields.ts"
import { Plamo2Model } from "./plamo2.ts"
import { type PreTokenizer, preTokenizer, preTokenizerNames } from "./pre-tokenizers.ts"
import { RwkvModel } from "./rwkv.ts"
import { isolate } from "./splitters.ts"
import { cutsAtSpaces, spacedWords, SpmModel } from "./spm.ts"
import { UnigramModel } from "./unigram.ts"
import { type Spelling, type TextModel, TokenKind, type Vocabulary } from "./vocabulary.ts"
import { bertWords, WordPieceModel } from "./word-piece.ts"

export interface FamilyContext {
  readonly fields: GgufFields
  readonly vocabulary: Vocabulary
  readonly kinds: Uint8Array
  readonly unknownId: number | undefined
}

interface Built {
  readonly model: TextModel
  readonly spelling: Spelling
  readonly stripsLeadingSpace: boolean
}

/** One value of `tokenizer.ggml.model`: its model, and what holds where the file says nothing else. */
export interface Family {
  readonly bosId?: number
  readonly eosId?: number
  readonly unknownId?: number
  /** Texts lie between the start token and this one, whatever else the file says. */
  readonly separatorId?: number
  readonly addBos: boolean
  readonly addEos?: boolean
  /** Texts begin with the start token even where the file says otherwise. */
  readonly forcesBos?: boolean
  readonly build: (context: FamilyContext) => Built
}

const SPACE = "\u2581"
const ALWAYS = (): boolean => true
const NEVER = (): boolean => false
const LINE_FEEDS = (word: string): boolean => /^\n+$/.test(word)
const SAME = (text: string): string => text
const SPACES_TO_METASPACE = (text: string): string => text.replaceAll(" ", SPACE)
const NOT_WHITE_SPACE = /\P{White_Space}+/gu

const SPM: Family = { bosId: 1, eosId: 2, unknownId: 0, addBos: true, build: score }
const UNIGRAM: Family = { eosId: 1, unknownId: 2, addBos: false, addEos: true, build: unigram }
const WORD_PIECE: Family = {
  bosId: 101,
  unknownId: 100,
  separatorId: 102,
  addBos: true,
  build: wordPiece,
}
const RWKV: Family = { addBos: false, build: rwkv }
const PLAMO2: Family = { bosId: 1, eosId: 2, unknownId: 0, addBos: false, build: plamo2 }
const WORDS: Family = { addBos: false, build: whiteSpaceWords }

/**
 * The family that `tokenizer.ggml.model` names.
 * @throws FormatError naming the key where the name, or a byte-pair vocabulary's `tokenizer.ggml.pre`, is not known.
 */
export function familyOf(fields: GgufFields): Family {
  const name = fields.string("model")
  switch (name) {
    case undefined:
      return fields.fail("model", "is missing")
    case "gpt2":
    // gemma4's names no pre-tokenizer
    case "gemma4":
      return bytePair(fields, name === "gemma4" ? name : (fields.string("pre") ?? "default"))
    case "llama":
      return SPM
    case "t5":
      return UNIGRAM
    case "bert":
      return WORD_PIECE
    case "rwkv":
      return RWKV
    case "plamo2":
      return PLAMO2
    case "whitespace":
      return WORDS
    case "none":
    case "no_vocab":
      throw new FormatError(fields.file, `${KEY}model is "${name}": the file has no vocabulary`, {
        hint: "--model-path names a folder that has a tokenizer.",
      })
    default:
      throw new FormatError(
        fields.file,
        `${KEY}model is "${name}", a tokenizer that is not supported`,
        { hint: "Supported: gpt2, gemma4, whitespace, llama, t5, bert, rwkv, plamo2." },
      )
  }
}

/** An unknown name is an error, because ids would be subtly wrong. */
function bytePair(fields: GgufFields, name: string): Family {
  const pre = preTokenizer(name)
  if (pre === undefined)
    throw new FormatError(fields.file, `${KEY}pre is "${name}", an unknown pre-tokenizer`, {
      hint: `Known ones: ${preTokenizerNames().join(", ")}.`,
    })
  return {
    addBos: pre.addBos === true,
    // Gemma 4's files say false, but the model needs its start token
    forcesBos: pre.metaspace === true && pre.addBos === true,
    build: (context) => mergedBytes(context, pre),
  }
}

function mergesOf(fields: GgufFields): readonly string[] {
  return fields.strings("merges") ?? fields.fail("merges", "is missing")
}

function mergedBytes({ fields, vocabulary, unknownId }: FamilyContext, pre: PreTokenizer): Built {
  const metaspace = pre.metaspace === true
  const model = new BpeModel({
    vocabulary,
    merges: mergesOf(fields),
    byteLevel: !metaspace,
    wholeWords:
      pre.wholeWords === "always" ? ALWAYS : pre.wholeWords === "line-feeds" ? LINE_FEEDS : NEVER,
    normalize: metaspace ? SPACES_TO_METASPACE : SAME,
    splitters: pre.patterns.map(isolate),
    byteFallback: metaspace,
    unknownId,
    fuseUnknown: false,
  })
  return { model, spelling: metaspace ? "metaspace" : "byte-level", stripsLeadingSpace: false }
}

function whiteSpaceWords({ fields, vocabulary, unknownId }: FamilyContext): Built {
  const folds = fields.boolean("normalizer.lowercase") ?? false
  const model = new BpeModel({
    vocabulary,
    merges: mergesOf(fields),
    byteLevel: false,
    wholeWords: NEVER,
    normalize: folds ? (text) => text.toLowerCase() : SAME,
    splitters: [(text) => text.match(NOT_WHITE_SPACE) ?? []],
    byteFallback: false,
    unknownId,
    fuseUnknown: false,
  })
  return { model, spelling: "plain", stripsLeadingSpace: false }
}

function score({ fields, vocabulary, unknownId }: FamilyContext): Built {
  const addSpacePrefix = fields.boolean("add_space_prefix") ?? true
  const scores = fields.numbers("scores", vocabulary.size) ?? new Float32Array(vocabulary.size)
  const model = new SpmModel({ vocabulary, scores, addSpacePrefix, normalize: SAME, unknownId })
  return { model, spelling: "metaspace", stripsLeadingSpace: addSpacePrefix }
}

function unigram({ fields, vocabulary, kinds, unknownId }: FamilyContext): Built {
  const addSpacePrefix = fields.boolean("add_space_prefix") ?? false
  const mergesSpaces = fields.boolean("remove_extra_whitespaces") ?? false
  const scores = fields.numbers("scores", vocabulary.size) ?? fields.fail("scores", "is missing")
  const table = fields.bytes("precompiled_charsmap")
  const charsmap =
    table === undefined || table.length === 0
      ? undefined
      : new Charsmap(table, fields.file, `${KEY}precompiled_charsmap`)
  const cuts = cutsAtSpaces(vocabulary.texts) && vocabulary.ids.has(SPACE)
  const words = (text: string): readonly string[] => {
    const normal = charsmap?.normalize(text) ?? text
    const spelled = mergesSpaces
      ? normal
          .replace(/ +/g, " ")
          .replace(/^ ?(?=[^ ])/, SPACE)
          .replace(/ $/, "")
          .replaceAll(" ", SPACE)
      : (addSpacePrefix && normal !== "" ? SPACE + normal : normal).replaceAll(" ", SPACE)
    return cuts ? spacedWords(spelled) : spelled === "" ? [] : [spelled]
  }
  const model = new UnigramModel({
    vocabulary,
    kinds,
    scores,
    unknownId,
    byteFallback: kinds.includes(TokenKind.byte),
    words,
  })
  return { model, spelling: "metaspace", stripsLeadingSpace: addSpacePrefix || mergesSpaces }
}

function wordPiece({ fields, vocabulary, unknownId }: FamilyContext): Built {
  const lowercase = fields.boolean("normalizer.lowercase") ?? true
  const stripAccents = fields.boolean("normalizer.strip_accents") ?? lowercase
  const model = new WordPieceModel({
    vocabulary,
    wordPrefix: SPACE,
    continuingPrefix: "",
    unknownId,
    maxWordLength: Infinity,
    words: bertWords({ lowercase, stripAccents }),
  })
  return { model, spelling: "metaspace", stripsLeadingSpace: true }
}

function rwkv({ vocabulary, kinds, unknownId }: FamilyContext): Built {
  const isText = (id: number): boolean =>
    kinds[id] !== TokenKind.control && kinds[id] !== TokenKind.unknown
  return {
    model: new RwkvModel(vocabulary, isText, unknownId),
    spelling: "escaped",
    stripsLeadingSpace: false,
  }
}

function plamo2({ fields, vocabulary, kinds }: FamilyContext): Built {
  const scores = fields.numbers("scores", vocabulary.size) ?? fields.fail("scores", "is missing")
  return {
    model: new Plamo2Model({ vocabulary, kinds, scores }),
    spelling: "plain",
    stripsLeadingSpace: false,
  }
}

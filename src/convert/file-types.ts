import { ConfigError } from "../errors.ts"
import { dtypeById, type DTypeInfo, DTYPES } from "../tensor/dtype.ts"

/** A tensor of a model, as far as its type is chosen by it. */
export interface Place {
  /** Number among the tensors of its kind, or the layer where there are experts. */
  readonly index: number
  /** How many of its kind there are. */
  readonly count: number
  /** Query heads of one key head. */
  readonly gqa: number
  readonly experts: number
  readonly hasImatrix: boolean
}

/** A type by name, or one that depends on the place; undefined leaves the scheme's own. */
type Choice = string | ((place: Place) => string | undefined)

/** Kinds of tensors that mixed file types treat differently. */
export type Kind =
  | "output"
  | "embedding"
  | "attnQ"
  | "attnK"
  /** Values alone, or with queries and keys, or an MLA projection that holds them. */
  | "attnV"
  | "attnOutput"
  | "ffnUp"
  | "ffnGate"
  | "ffnDown"
  | "experts"

/** What a file is quantised to: its type for most tensors and what others get instead. */
export interface FileType {
  readonly name: string
  /** `general.file_type`, as llama.cpp numbers them. */
  readonly id: number
  readonly base: string
  readonly kinds?: Readonly<Partial<Record<Kind, Choice>>>
  /** Below three bits: every part of attention counts, and so does an importance matrix. */
  readonly low?: true
}

const early = (part: number, type: string, else_?: string): Choice => {
  return ({ index, count }) => (index < Math.floor(count / part) ? type : else_)
}
/** First and last eighth of the layers and every third between: where errors cost most. */
const more = (type: string): Choice => {
  return ({ index, count }) => {
    const eighth = Math.floor(count / 8)
    const isMore =
      index < eighth || index >= Math.floor((7 * count) / 8) || (index - eighth) % 3 === 2
    return isMore ? type : undefined
  }
}
const grouped = (type: string, else_?: string): Choice => {
  return ({ gqa }) => (gqa >= 4 ? type : else_)
}
const first = (n: number, type: string, else_?: string): Choice => {
  return ({ index }) => (index < n ? type : else_)
}
const withoutImatrix = (choice: Choice): Choice => {
  return (place) =>
    place.hasImatrix ? undefined : typeof choice === "string" ? choice : choice(place)
}
const eightExperts = (type: string, else_?: Choice): Choice => {
  return (place) => {
    if (place.experts === 8) return type
    return typeof else_ === "function" ? else_(place) : else_
  }
}
const middle = (type: string): Choice => {
  return ({ index, count }) =>
    index >= Math.floor(count / 8) && index < Math.floor((7 * count) / 8) ? type : undefined
}
const imatrixEarly = (type: string): Choice => {
  return (place) =>
    place.hasImatrix && place.index < Math.floor(place.count / 8) ? type : undefined
}

const lowKinds = (
  down: string,
  output: string | undefined,
  embedding: string,
): FileType["kinds"] => ({
  output: "Q5_K",
  embedding,
  attnV: ({ gqa, experts }) => (gqa >= 4 || experts >= 4 ? "Q4_K" : down),
  attnK: ({ experts }) => (experts === 8 ? "Q4_K" : undefined),
  ffnDown: early(8, down),
  attnOutput: eightExperts("Q5_K", output),
})

/**
 * File types by llama-quantize's names. Which tensor gets which type is what that program does, so that a name means
 * the same file everywhere.
 */
export const FILE_TYPES: readonly FileType[] = [
  { name: "F32", id: 0, base: "F32" },
  { name: "F16", id: 1, base: "F16" },
  { name: "BF16", id: 32, base: "BF16" },
  { name: "Q4_0", id: 2, base: "Q4_0", kinds: { ffnDown: imatrixEarly("Q4_1") } },
  { name: "Q4_1", id: 3, base: "Q4_1" },
  { name: "Q5_0", id: 8, base: "Q5_0", kinds: { ffnDown: imatrixEarly("Q5_1") } },
  { name: "Q5_1", id: 9, base: "Q5_1" },
  { name: "Q8_0", id: 7, base: "Q8_0" },
  {
    name: "Q2_K",
    id: 10,
    base: "Q2_K",
    kinds: {
      attnV: grouped("Q4_K", "Q3_K"),
      ffnDown: "Q3_K",
      attnOutput: eightExperts("Q5_K", "Q3_K"),
    },
  },
  {
    name: "Q2_K_S",
    id: 21,
    base: "Q2_K",
    kinds: { attnV: grouped("Q4_K"), ffnDown: early(8, "Q4_K") },
  },
  { name: "Q3_K_S", id: 11, base: "Q3_K", kinds: { attnOutput: eightExperts("Q5_K") } },
  {
    name: "Q3_K_M",
    id: 12,
    base: "Q3_K",
    kinds: {
      attnV: first(2, "Q5_K", "Q4_K"),
      ffnDown: early(16, "Q5_K", "Q4_K"),
      attnOutput: eightExperts("Q5_K", "Q4_K"),
    },
  },
  {
    name: "Q3_K_L",
    id: 13,
    base: "Q3_K",
    kinds: {
      attnV: "Q5_K",
      ffnDown: "Q5_K",
      attnOutput: eightExperts("Q3_K", "Q5_K"),
    },
  },
  {
    name: "Q4_K_S",
    id: 14,
    base: "Q4_K",
    kinds: {
      attnV: first(4, "Q5_K"),
      ffnDown: early(8, "Q5_K"),
      attnOutput: eightExperts("Q5_K"),
    },
  },
  {
    name: "Q4_K_M",
    id: 15,
    base: "Q4_K",
    kinds: {
      attnV: more("Q6_K"),
      ffnDown: more("Q6_K"),
      attnOutput: eightExperts("Q5_K"),
    },
  },
  { name: "Q5_K_S", id: 16, base: "Q5_K" },
  {
    name: "Q5_K_M",
    id: 17,
    base: "Q5_K",
    kinds: { attnV: more("Q6_K"), ffnDown: more("Q6_K") },
  },
  { name: "Q6_K", id: 18, base: "Q6_K" },
  { name: "IQ1_S", id: 24, base: "IQ1_S", low: true, kinds: lowKinds("Q2_K", "IQ2_XXS", "Q2_K")! },
  { name: "IQ1_M", id: 31, base: "IQ1_M", low: true, kinds: lowKinds("Q2_K", "IQ2_XXS", "Q2_K")! },
  {
    name: "IQ2_XXS",
    id: 19,
    base: "IQ2_XXS",
    low: true,
    kinds: lowKinds("Q2_K", undefined, "Q2_K")!,
  },
  {
    name: "IQ2_XS",
    id: 20,
    base: "IQ2_XS",
    low: true,
    kinds: lowKinds("Q2_K", undefined, "Q2_K")!,
  },
  { name: "IQ2_S", id: 28, base: "IQ2_XS", low: true, kinds: lowKinds("IQ3_S", "IQ3_S", "IQ3_S")! },
  { name: "IQ2_M", id: 29, base: "IQ2_S", low: true, kinds: lowKinds("IQ3_S", "IQ3_S", "IQ3_S")! },
  {
    name: "IQ3_XXS",
    id: 23,
    base: "IQ3_XXS",
    kinds: {
      output: "Q5_K",
      embedding: "IQ3_S",
      attnV: ({ gqa, hasImatrix }) => (gqa >= 4 ? "Q4_K" : hasImatrix ? "IQ3_XXS" : "IQ3_S"),
      attnK: "IQ2_S",
      attnQ: "IQ2_S",
      ffnDown: withoutImatrix(early(8, "Q4_K", "Q3_K")),
      attnOutput: eightExperts("Q5_K", "IQ3_S"),
    },
  },
  {
    name: "IQ3_XS",
    id: 22,
    base: "IQ3_S",
    kinds: {
      attnV: grouped("Q4_K"),
      attnK: "IQ3_XXS",
      attnQ: "IQ3_XXS",
      ffnUp: middle("IQ3_XXS"),
      ffnGate: middle("IQ3_XXS"),
      attnOutput: eightExperts("Q5_K"),
    },
  },
  {
    name: "IQ3_S",
    id: 26,
    base: "IQ3_S",
    kinds: { attnV: grouped("Q4_K"), attnOutput: eightExperts("Q5_K") },
  },
  {
    name: "IQ3_M",
    id: 27,
    base: "IQ3_S",
    kinds: {
      attnV: "Q4_K",
      ffnDown: (place) => {
        const isEarly = place.index < Math.floor(place.count / 8)
        return isEarly || (place.experts === 8 && chosen(more("Q4_K"), place) !== undefined)
          ? "Q4_K"
          : undefined
      },
      attnOutput: eightExperts("Q5_K", "Q4_K"),
    },
  },
  {
    name: "IQ4_NL",
    id: 25,
    base: "IQ4_NL",
    kinds: {
      attnV: grouped("Q5_K"),
      ffnDown: withoutImatrix(early(8, "Q5_K")),
      attnOutput: eightExperts("Q5_K"),
    },
  },
  {
    name: "IQ4_XS",
    id: 30,
    base: "IQ4_XS",
    kinds: {
      attnV: grouped("Q5_K"),
      ffnDown: withoutImatrix(early(8, "Q5_K")),
      attnOutput: eightExperts("Q5_K"),
    },
  },
  { name: "TQ1_0", id: 36, base: "TQ1_0", kinds: { embedding: "Q4_K" } },
  { name: "TQ2_0", id: 37, base: "TQ2_0", kinds: { embedding: "Q4_K" } },
  {
    name: "MXFP4_MOE",
    id: 38,
    base: "Q8_0",
    kinds: { output: "Q8_0", embedding: "Q8_0", experts: "MXFP4" },
  },
  { name: "NVFP4", id: 39, base: "NVFP4" },
  { name: "Q1_0", id: 40, base: "Q1_0" },
  { name: "Q2_0", id: 41, base: "Q2_0", kinds: { embedding: "Q4_K" } },
]

/** Shorter names in use. */
const ALIASES: Readonly<Record<string, string>> = {
  Q3_K: "Q3_K_M",
  Q4_K: "Q4_K_M",
  Q5_K: "Q5_K_M",
  MXFP4: "MXFP4_MOE",
}

/** The file type of a name in any case. @throws ConfigError that lists the names */
export function fileType(name: string): FileType {
  const upper = name.toUpperCase()
  const found = FILE_TYPES.find((type) => type.name === (ALIASES[upper] ?? upper))
  if (found !== undefined) return found
  const names = FILE_TYPES.map((type) => type.name).join(", ")
  throw new ConfigError(`"${name}" is no file type: expected ${names}`)
}

const TYPES_BY_NAME: ReadonlyMap<string, DTypeInfo> = new Map(
  [...DTYPES, ...Array.from({ length: 64 }, (_, id) => dtypeById(id))]
    .filter((type) => type !== undefined)
    .map((type) => [type.name, type]),
)

/** A tensor type by name in any case. @throws ConfigError */
export function tensorType(name: string): DTypeInfo {
  const type = TYPES_BY_NAME.get(name.toUpperCase())
  if (type === undefined) throw new ConfigError(`"${name}" is no tensor type`)
  return type
}

/** What a choice comes to at one place. */
export function chosen(choice: Choice | undefined, place: Place): string | undefined {
  return typeof choice === "function" ? choice(place) : choice
}

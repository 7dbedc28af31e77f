import { afterAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"

import type { HiddenStates } from "../../src/models/llama.ts"
import { Backend, deviceProblem, openDevice } from "../../src/native/backend.ts"
import { DEVICES, relativeError } from "../ops/harness.ts"
import { golden } from "../setup.ts"
import { lackingOp, loadModel } from "./build.ts"
import { GGUF_GOLDENS, type Golden, HF_GOLDENS, openGgufGolden, openHfGolden } from "./goldens.ts"
import { Sequences } from "./sequences.ts"

/** Bound of golden/README.md and golden/gguf/README.md for float activations. */
const F32_TOLERANCE = 1e-4
/** The same sums in another order. */
const ORDER_TOLERANCE = 1e-5

const f32 = new Backend({ threads: 1, precision: "f32" })
const fast = new Backend({ threads: 1, precision: "fast" })
afterAll(() => {
  f32[Symbol.dispose]()
  fast[Symbol.dispose]()
})

/** Where models run with float activations; a device that is not there is skipped with the reason. */
interface Place {
  readonly name: string
  /** Undefined: the CPU. */
  readonly device?: string
  readonly backends: () => { readonly backend: Backend; readonly host?: Backend }
}

const opened = new DisposableStack()
afterAll(() => opened.dispose())

function deviceOf(name: string): Place {
  let backend: Backend | undefined
  const open = (): Backend => {
    const { library, index } = openDevice(name)
    return opened.use(new Backend({ device: index, precision: "f32" }, library))
  }
  return {
    name: ` [${name}]`,
    device: name,
    backends: () => ({ backend: (backend ??= open()), host: f32 }),
  }
}

/** Why a model cannot be computed there. */
async function problemOf({ device }: Place, open: () => Golden): Promise<string | undefined> {
  if (device === undefined) return undefined
  const problem = deviceProblem(device)
  if (problem !== undefined) return problem
  const { config, weights } = open()
  weights.close()
  const lacking = await lackingOp(config, openDevice(device).library)
  return lacking && `the library has no ${lacking}`
}

const PLACES: readonly Place[] = [
  { name: "", backends: () => ({ backend: f32 }) },
  ...DEVICES.map(deviceOf),
]

interface Reference {
  readonly prompts: Int32Array[]
  /** [T, V] of each prompt */
  readonly logits: Float32Array[]
  readonly greedyIds: Int32Array[]
  /** [N, V], Hugging Face goldens only */
  readonly greedyLogits: Float32Array[]
  /** [N], GGUF goldens only */
  readonly margins: Float32Array | undefined
  readonly hidden: Float32Array | undefined
}

function referenceOf({ tensors }: Golden): Reference {
  const tensor = (name: string): Float32Array | undefined => tensors.get(name)?.f32()
  const shape = tensors.get("input_ids")?.shape ?? []
  const count = shape.length === 2 ? (shape[0] as number) : 1
  const split = <T extends Float32Array | Int32Array>(values: T | undefined): T[] => {
    if (values === undefined) return []
    const size = values.length / count
    return Array.from({ length: count }, (_, i) => values.slice(i * size, (i + 1) * size) as T)
  }
  const ints = (name: string): Int32Array | undefined => {
    const bytes = tensors.get(name)?.bytes
    return bytes === undefined ? undefined : new Int32Array(bytes.buffer)
  }
  return {
    prompts: split(ints("input_ids")),
    logits: split(tensor("logits")),
    greedyIds: split(ints("greedy_ids")),
    greedyLogits: split(tensor("greedy_logits")),
    margins: tensor("greedy_margin"),
    hidden: tensor("hidden_states"),
  }
}

function argmax(row: Float32Array): number {
  let best = 0
  for (let i = 1; i < row.length; i++) if ((row[i] as number) > (row[best] as number)) best = i
  return best
}

interface Run {
  readonly logits: Float32Array[]
  readonly greedyIds: number[][]
  readonly greedyLogits: Float32Array[]
}

/** All prompts in one ragged step, then greedy decoding of all of them together. */
function run(sequences: Sequences, { prompts, greedyIds }: Reference): Run {
  const logits = sequences.step(prompts.map((ids, sequence) => ({ sequence, ids })))
  const vocab = (logits[0] as Float32Array).length / (prompts[0] as Int32Array).length
  const steps = (greedyIds[0] as Int32Array).length
  let rows = logits.map((all) => all.subarray(all.length - vocab))
  const ids: number[][] = prompts.map(() => [])
  const kept: Float32Array[][] = prompts.map(() => [])
  for (let step = 0; step < steps; step++) {
    rows.forEach((row, i) => {
      ids[i]?.push(argmax(row))
      kept[i]?.push(row)
    })
    if (step + 1 < steps) {
      rows = sequences.step(ids.map((own, sequence) => ({ sequence, ids: [own.at(-1) as number] })))
    }
  }
  const greedyLogits = kept.map((own) => {
    const out = new Float32Array(steps * vocab)
    own.forEach((row, i) => out.set(row, i * vocab))
    return out
  })
  return { logits, greedyIds: ids, greedyLogits }
}

async function withModel(
  source: Golden,
  options: { backend: Backend; host?: Backend; fuse: boolean; count: number },
  body: (sequences: Sequences, reference: Reference) => void,
): Promise<void> {
  const reference = referenceOf(source)
  const { model, loaded } = await loadModel(source.config, source.weights, options)
  const promptLength = (reference.prompts[0] as Int32Array).length
  const maxTokens = promptLength + (reference.greedyIds[0] as Int32Array).length
  const { backend, count } = options
  const sequences = new Sequences(model, backend, { count, maxTokens, promptLength })
  try {
    body(sequences, reference)
  } finally {
    sequences[Symbol.dispose]()
    loaded[Symbol.dispose]()
  }
}

const SOURCES: readonly (readonly [string, () => Golden])[] = [
  ...HF_GOLDENS.map((name) => [`hf/${name}`, () => openHfGolden(name)] as const),
  ...GGUF_GOLDENS.map(
    ([file, name]) => [`gguf/${name}`, () => openGgufGolden(file, name)] as const,
  ),
]

for (const [place, source, open] of PLACES.flatMap((place) =>
  SOURCES.map(([source, open]) => [place, source, open] as const),
)) {
  const title = `${source}${place.name} with float activations`
  const problem = await problemOf(place, open)
  if (problem === undefined) describe(title, () => floatTests(open, place))
  else describe.skip(`${title}: ${problem}`, () => {})
}

function floatTests(open: () => Golden, { backends }: Place): void {
  for (const fuse of [false, true]) {
    const form = fuse ? "fused" : "plain"

    test(`${form}: logits and greedy ids are the reference's`, async () => {
      const source = open()
      const count = referenceOf(source).prompts.length
      await withModel(source, { ...backends(), fuse, count }, (sequences, reference) => {
        const got = run(sequences, reference)
        reference.logits.forEach((want, i) => {
          expect(relativeError(got.logits[i] as Float32Array, want)).toBeLessThan(F32_TOLERANCE)
        })
        expect(got.greedyIds).toEqual(reference.greedyIds.map((ids) => [...ids]))
        reference.greedyLogits.forEach((want, i) => {
          const own = got.greedyLogits[i] as Float32Array
          expect(relativeError(own, want)).toBeLessThan(F32_TOLERANCE)
        })
      })
      source.weights.close()
    })

    test(`${form}: prefill at once, in chunks and token by token agree`, async () => {
      const source = open()
      await withModel(source, { ...backends(), fuse, count: 3 }, (sequences, { prompts }) => {
        const prompt = prompts[0] as Int32Array
        const [whole] = sequences.step([{ sequence: 0, ids: prompt }]) as [Float32Array]
        for (const [sequence, chunk] of [
          [1, 5],
          [2, 1],
        ] as const) {
          const rows: number[] = []
          for (let i = 0; i < prompt.length; i += chunk) {
            const [part] = sequences.step([{ sequence, ids: prompt.subarray(i, i + chunk) }])
            rows.push(...(part as Float32Array))
          }
          expect(relativeError(rows, whole)).toBeLessThan(ORDER_TOLERANCE)
        }
      })
      source.weights.close()
    })
  }

  test("fused and plain modules agree", async () => {
    const source = open()
    const results: Float32Array[] = []
    for (const fuse of [false, true]) {
      await withModel(source, { ...backends(), fuse, count: 1 }, (sequences, { prompts }) => {
        const ids = prompts[0] as Int32Array
        results.push(...sequences.step([{ sequence: 0, ids }]))
      })
    }
    const [plain, fused] = results as [Float32Array, Float32Array]
    expect(relativeError(fused, plain)).toBeLessThan(ORDER_TOLERANCE)
    source.weights.close()
  })
}

describe.each(HF_GOLDENS.map((name) => [name] as const))("hf/%s", (name) => {
  test("hidden states of every layer are the reference's", async () => {
    const source = openHfGolden(name)
    for (const fuse of [false, true]) {
      await withModel(source, { backend: f32, fuse, count: 1 }, (sequences, reference) => {
        const states: HiddenStates = []
        sequences.step([{ sequence: 0, ids: reference.prompts[0] as Int32Array }], states)
        const want = reference.hidden as Float32Array
        const size = want.length / states.length
        expect(states).toHaveLength(source.config.num_hidden_layers + 1)
        states.forEach((state, i) => {
          const layer = want.subarray(i * size, (i + 1) * size)
          expect(relativeError(state, layer), `layer ${i}`).toBeLessThan(F32_TOLERANCE)
        })
      })
    }
    source.weights.close()
  })

  test("fast: within the bounds for 16-bit activations", async () => {
    const source = openHfGolden(name)
    await withModel(source, { backend: fast, fuse: true, count: 2 }, (sequences, reference) => {
      const { logits } = run(sequences, reference)
      logits.forEach((own, i) => {
        const want = reference.logits[i] as Float32Array
        if (source.config.num_experts === 0) expect(relativeError(own, want)).toBeLessThan(2.5e-2)
        else expect(medianError(own, want, source.config.vocab_size)).toBeLessThan(3e-2)
        expect(agreement(own, want, source.config.vocab_size)).toBeGreaterThanOrEqual(0.9)
      })
    })
    source.weights.close()
  })
})

/** Median over positions of |difference| / |logits|. */
function medianError(got: Float32Array, want: Float32Array, vocab: number): number {
  const errors: number[] = []
  for (let i = 0; i < want.length; i += vocab) {
    errors.push(relativeError(got.subarray(i, i + vocab), want.subarray(i, i + vocab)))
  }
  errors.sort((a, b) => a - b)
  return errors[Math.floor(errors.length / 2)] as number
}

/** Share of positions with the same best token. */
function agreement(got: Float32Array, want: Float32Array, vocab: number): number {
  let same = 0
  for (let i = 0; i < want.length; i += vocab) {
    if (argmax(got.subarray(i, i + vocab)) === argmax(want.subarray(i, i + vocab))) same++
  }
  return same / (want.length / vocab)
}

/** `int8_median_rel` of a GGUF golden's metadata. */
function int8MedianOf(name: string): number {
  const file = readFileSync(golden("gguf", `${name}.golden.safetensors`))
  const header = JSON.parse(file.toString("utf8", 8, 8 + Number(file.readBigUInt64LE(0)))) as {
    __metadata__: { int8_median_rel: string }
  }
  return Number(header.__metadata__.int8_median_rel)
}

describe.each(GGUF_GOLDENS)("gguf/%s", (file, name) => {
  test("fast: within the bounds for int8 activations", async () => {
    const source = openGgufGolden(file, name)
    const median = int8MedianOf(name)
    await withModel(source, { backend: fast, fuse: true, count: 1 }, (sequences, reference) => {
      const got = run(sequences, reference)
      const want = reference.logits[0] as Float32Array
      const own = got.logits[0] as Float32Array
      expect(medianError(own, want, source.config.vocab_size)).toBeLessThan(1.5 * median + 0.005)
      const rms = Math.hypot(...want) / Math.sqrt(want.length)
      const wanted = reference.greedyIds[0] as Int32Array
      for (const [i, id] of (got.greedyIds[0] ?? []).entries()) {
        if (id === wanted[i]) continue
        // a choice this close may fall either way; what follows is another text
        expect((reference.margins as Float32Array)[i]).toBeLessThan(8 * median * rms)
        break
      }
    })
    source.weights.close()
  })
})

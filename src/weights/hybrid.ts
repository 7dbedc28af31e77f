import { FormatError } from "../errors.ts"
import { dtypeById, type DTypeInfo, isComputable } from "../tensor/dtype.ts"
import { GGUF_ARCHITECTURES, ggufName, hfName } from "./names.ts"
import type { SafetensorsFile } from "./safetensors.ts"
import type { WeightEntry } from "./source.ts"

/** Says the GGML number of the blocks that lie beside it as bytes. */
const TYPE = /\.ggml_type$/
/** What may follow a module's name beside weight and bias. */
const SUFFIX = /\.(weight_scale(?:_inv)?|input_scale|ggml_type)$/

/**
 * KTransformers' hybrid folders by Hugging Face's names: their tensors have GGUF names, linear layers
 * are what the Hugging Face folder had, and experts are stacks of GGML blocks as bytes `….weight` with
 * the type's number in `….ggml_type` (its merge_tensors/merge_safetensor_gguf.py). Others pass through.
 * @throws FormatError that names file and tensor
 */
export function withHybridNames(weights: SafetensorsFile): SafetensorsFile {
  const stored = [...weights.names()]
  if (!stored.some((name) => TYPE.test(name))) return weights
  const architecture = architectureOf(stored)
  const entries = new Map<string, WeightEntry>()
  const places = new Map<string, string>()
  for (const name of stored) {
    if (TYPE.test(name)) continue
    const entry = weights.get(name) as WeightEntry
    const typed = weights.get(`${name.replace(/\.weight$/, "")}.ggml_type`)
    const path = hybridPath(architecture, name) ?? name
    places.set(path, name)
    const known = typed === undefined ? entry : blocks(entry, typed, weights)
    entries.set(path, { ...known, name: path })
  }
  const bytes = (name: string): Uint8Array => weights.bytes(places.get(name) ?? name)
  return {
    ...weights,
    names: () => entries.keys(),
    get: (name) => entries.get(name),
    bytes,
    drop: (name) => weights.drop(places.get(name) ?? name),
  }
}

/** The GGUF name of a Hugging Face tensor, what quantisation adds to the module's name kept. */
export function hybridName(architecture: string, name: string): string | undefined {
  const [suffix] = SUFFIX.exec(name) ?? []
  if (suffix === undefined) return ggufName(architecture, name)
  const module = ggufName(architecture, name.replace(SUFFIX, ".weight"))
  return module?.replace(/\.weight$/, suffix)
}

function hybridPath(architecture: string, name: string): string | undefined {
  const [suffix] = SUFFIX.exec(name) ?? []
  if (suffix === undefined) return hfName(architecture, name)
  const module = hfName(architecture, name.replace(SUFFIX, ".weight"))
  return module === undefined ? undefined : `${module.replace(/\.weight$/, "")}${suffix}`
}

/** Nothing says it: the one that knows most of the names. */
function architectureOf(names: readonly string[]): string {
  let [best, most] = ["", -1]
  for (const architecture of GGUF_ARCHITECTURES) {
    const count = names.filter((name) => hybridPath(architecture, name) !== undefined).length
    if (count > most) [best, most] = [architecture, count]
  }
  return best
}

function blocks(entry: WeightEntry, typed: WeightEntry, weights: SafetensorsFile): WeightEntry {
  const dtype = typeOf(typed, weights)
  const { byteLength, name, file } = entry
  if (byteLength % dtype.blockBytes !== 0) {
    throw new FormatError(
      file,
      `tensor "${name}": holds ${byteLength} bytes, expected whole blocks of ${dtype.blockBytes} bytes (${dtype.name})`,
    )
  }
  const count = (byteLength / dtype.blockBytes) * dtype.blockSize
  return { ...entry, dtype, shape: [count], isFlat: true }
}

function typeOf(entry: WeightEntry, weights: SafetensorsFile): DTypeInfo {
  const { name, file, byteLength, dtype } = entry
  const stored = weights.bytes(name)
  const view = new DataView(stored.buffer, stored.byteOffset, stored.byteLength)
  const isWhole = /^[IU]\d+$/.test(dtype.name) && byteLength === dtype.blockBytes
  const number = !isWhole
    ? -1
    : byteLength === 8
      ? Number(view.getBigInt64(0, true))
      : byteLength === 4
        ? view.getInt32(0, true)
        : view.getUint8(0)
  const type = dtypeById(number)
  if (type === undefined || !isComputable(type)) {
    const found = isWhole ? String(number) : `${dtype.name} [${entry.shape.join(", ")}]`
    throw new FormatError(file, `tensor "${name}": is ${found}, expected the number of a GGML type`)
  }
  return type
}

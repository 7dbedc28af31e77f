import { createHash } from "node:crypto"
import { createReadStream, existsSync } from "node:fs"
import { basename, dirname, resolve } from "node:path"
import { Readable } from "node:stream"

import { engineConfig } from "../config.ts"
import { ConfigError, UsageError } from "../errors.ts"
import type { KnownModel } from "../server/models/library.ts"
import { findModel } from "../server/models/names.ts"
import type { ModelStore } from "../server/models/store.ts"
import { optionsSchema } from "../server/ollama/schema.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { readText } from "./files.ts"
import { createdFolder, modelsFolder } from "./home.ts"
import { Catalog } from "./library/catalog.ts"
import { parseModelfile } from "./library/modelfile.ts"
import { Store } from "./library/store.ts"
import { logger } from "./log.ts"
import { write, writeJson } from "./output.ts"

interface OwnModels {
  readonly catalog: Catalog
  readonly store: ModelStore
}

/** The models of the models folder and those made of them. */
export function ownModels(): OwnModels {
  const folder = modelsFolder()
  const store = new Store(createdFolder(), folder)
  const catalog = new Catalog({ folder, config: engineConfig({}), store })
  return { catalog, store: catalog.store as ModelStore }
}

/** @throws ConfigError that lists what there is */
function named(catalog: Catalog, name: string): KnownModel {
  const models = catalog.list()
  const found = findModel(name, models, [])
  if (found !== undefined) return found
  const names = models.map((model) => model.name)
  throw new ConfigError(`unknown model "${name}"`, {
    hint: names.length === 0 ? "there are none" : `known are ${names.slice(0, 12).join(", ")}`,
  })
}

export const remove = defineCommand({
  name: "rm",
  summary: "Delete models that were pulled or created",
  details: `Only what \`kt pull\` brought or \`kt create\` made is deleted, never a file that was put there
otherwise. A model that others are made of stays until these are gone.`,
  positionals: [{ name: "MODEL", help: "a name from `kt list`", required: true }],
  flags: { ...JSON_FLAG },
  examples: [
    { command: "kt rm pirate", says: "a created model; what it was made of stays" },
    { command: "kt rm Qwen3-8B-Q4_K_M", says: "the files that kt pull brought" },
  ],
  async run({ args, flags }) {
    const { catalog, store } = ownModels()
    const model = named(catalog, args[0] as string)
    await store.remove(model)
    if (flags.json) return writeJson({ deleted: model.name })
    await write(`${model.name} is deleted\n`)
  },
})

export const copy = defineCommand({
  name: "cp",
  summary: "Give a model another name",
  details: "The copy shares the weights, and takes no more place than a small file.",
  positionals: [
    { name: "MODEL", help: "a name from `kt list`", required: true },
    { name: "NAME", help: "the new name", required: true },
  ],
  flags: { ...JSON_FLAG },
  examples: [{ command: "kt cp Qwen3-8B-Q4_K_M qwen3", says: "a short name for requests" }],
  async run({ args, flags }) {
    const { catalog, store } = ownModels()
    const [source = "", name = ""] = args
    await store.copy(named(catalog, source), name)
    if (flags.json) return writeJson({ name })
    await write(`${name}\n`)
  },
})

export const create = defineCommand({
  name: "create",
  summary: "Make a model of another one, with a Modelfile",
  details: `A Modelfile has FROM (a model's name, or a GGUF file), and what is wanted of SYSTEM, PARAMETER,
TEMPLATE (Jinja), MESSAGE and LICENSE. \`kt serve\` offers the model under its name.`,
  positionals: [{ name: "NAME", help: "the new model's name, perhaps name:tag", required: true }],
  flags: {
    file: { type: "string", short: "f", hint: "file", help: "the Modelfile (default ./Modelfile)" },
    quantize: { type: "string", short: "q", hint: "type", help: "a file type of `kt quantize`" },
    ...JSON_FLAG,
  },
  logLevel: "info",
  examples: [
    { command: "kt create pirate -f Modelfile", says: "with FROM qwen3 and a SYSTEM line in it" },
    { command: "kt create small -f Modelfile -q Q4_K_M", says: "with smaller weights" },
  ],
  async run({ args, flags }) {
    const name = args[0] as string
    const file = flags.file ?? "Modelfile"
    const { catalog, store } = ownModels()
    const { from, system, template, parameters, messages, license } = parseModelfile(
      file,
      readText(file),
    )
    const checked = optionsSchema.safeParse(parameters)
    if (!checked.success) {
      const [issue] = checked.error.issues
      throw new UsageError(`${file}: PARAMETER ${issue?.path.join(".") ?? ""}: ${issue?.message}`)
    }
    const path = resolve(dirname(file), from)
    const isFile = /[\\/]|\.gguf$/i.test(from) && existsSync(path)
    const model = {
      name,
      ...(isFile ? { files: await asBlob(store, path) } : { from: named(catalog, from) }),
      ...(system === undefined ? {} : { system }),
      ...(template === undefined ? {} : { template }),
      ...(Object.keys(parameters).length === 0 ? {} : { parameters }),
      ...(messages.length === 0 ? {} : { messages }),
      ...(license.length === 0 ? {} : { license }),
      ...(flags.quantize === undefined ? {} : { quantize: flags.quantize }),
    }
    store.checkNew(model)
    await store.create(model, ({ status }) => logger("create").info(status))
    if (flags.json) return writeJson({ name })
    await write(`${name}\n`)
  },
})

/** A file of the user's own, kept as clients' files are. */
async function asBlob(store: ModelStore, path: string): Promise<Record<string, string>> {
  const hash = createHash("sha256")
  for await (const chunk of createReadStream(path)) hash.update(chunk as Uint8Array)
  const digest = `sha256:${hash.digest("hex")}`
  const body = Readable.toWeb(createReadStream(path)) as unknown as ReadableStream<Uint8Array>
  await store.putBlob(digest, body)
  return { [basename(path)]: digest }
}

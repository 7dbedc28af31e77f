import { engineConfig } from "../config.ts"
import { withOwnMessages } from "../server/chat.ts"
import { findModel } from "../server/models/names.ts"
import { stopParameter } from "../server/models/parameters.ts"
import type { TemplateMessage } from "../server/types.ts"
import { createdFolder, modelsFolder } from "./home.ts"
import { Catalog } from "./library/catalog.ts"
import { type CreatedModel, Store } from "./library/store.ts"
import { resolveModel } from "./model-resolve.ts"
import type { Session } from "./session.ts"

/** The model that `kt create` (or Ollama's API) made under this name, unless a file or a model of the folder has it. */
export function createdModel(
  name: string | undefined,
  folder: string = modelsFolder(),
): CreatedModel | undefined {
  if (name === undefined || /[\\/]|\.(gguf|safetensors)$/i.test(name)) return undefined
  const store = new Store(createdFolder(), folder)
  const created = store.created()
  if (created.length === 0) return undefined
  const catalog = new Catalog({ folder, config: engineConfig({}), store })
  const found = findModel(name, catalog.list(), [])
  return created.find((one) => one.name === found?.name)
}

/** MODEL of the command line as a path, models that were created included. @throws KtError as resolveModel() does */
export function resolveNamed(model: string, folder?: string): string {
  return createdModel(model, folder)?.path ?? resolveModel(model, folder)
}

/** A session in which a created model's template is used. */
export function withSettings(session: Session, own: CreatedModel | undefined): Session {
  const template = own?.settings.template
  if (template === undefined) return session
  return { ...session, tokenizer: session.withTemplate(template) }
}

/** A conversation with a created model's own messages before it. */
export function ownMessages(
  own: CreatedModel | undefined,
  messages: readonly TemplateMessage[],
): readonly TemplateMessage[] {
  return withOwnMessages(own?.settings, messages)
}

/** Texts that end an answer: those given, else the created model's. */
export function stopsOf(
  own: CreatedModel | undefined,
  given: readonly string[] = [],
): readonly string[] {
  return given.length > 0 ? given : stopParameter(own?.settings.parameters)
}

import { RequestError } from "../../errors.ts"
import type { KnownModel } from "./library.ts"

/** Name under which every client finds the model that was given at the start, or the one that is loaded. */
export const MODEL_ALIAS = "default"

/** `--alias NAME=MODEL`; NAME may hold "*" for any letters. */
export interface Alias {
  readonly name: string
  readonly model: string
}

const MAX_NAME = 256

/** Without Ollama's "latest" and the hub's host, in lower case: what names are compared by. */
export function plainName(name: string): string {
  return name
    .toLowerCase()
    .replace(/^(https?:\/\/)?(hf\.co|huggingface\.co)\//, "")
    .replace(/\.gguf$/, "")
    .replace(/:latest$/, "")
}

/**
 * Names are only ever compared with those that there are, never made a path of; one that looks like a path is refused
 * in so many words all the same. RequestError 400.
 */
export function checkName(name: string, param = "model"): void {
  const reason =
    name.length > MAX_NAME
      ? `longer than ${MAX_NAME} letters`
      : /[\\\0-\x1f\x7f]/.test(name) || /^[/~.]/.test(name) || /(^|\/)\.{1,2}(\/|$)/.test(name)
        ? "a path is no model name"
        : undefined
  if (reason === undefined) return
  throw new RequestError(400, `${param} ${JSON.stringify(name.slice(0, 80))}: ${reason}`, {
    code: "invalid_model_name",
    param,
  })
}

/** The model that a name means, through an alias where no model has it. */
export function findModel(
  name: string,
  models: readonly KnownModel[],
  aliases: readonly Alias[],
): KnownModel | undefined {
  const direct = byName(name, models)
  if (direct !== undefined) return direct
  const wanted = plainName(name)
  const alias =
    aliases.find((one) => plainName(one.name) === wanted) ??
    aliases.find((one) => one.name.includes("*") && pattern(one.name).test(wanted))
  return alias === undefined ? undefined : aliased(alias, models)
}

/** What an alias stands for: a name, or the only beginning of one. */
export function aliased(alias: Alias, models: readonly KnownModel[]): KnownModel | undefined {
  const exact = byName(alias.model, models)
  if (exact !== undefined) return exact
  const begun = models.filter(({ name }) => plainName(name).startsWith(plainName(alias.model)))
  return begun.length === 1 ? begun[0] : undefined
}

function byName(name: string, models: readonly KnownModel[]): KnownModel | undefined {
  const exact = models.find((model) => model.name === name)
  if (exact !== undefined) return exact
  const wanted = plainName(name)
  const named = models.filter((model) => plainName(model.name) === wanted)
  if (named.length > 0) return named[0]
  const others = models.filter((model) => model.otherNames?.includes(wanted) === true)
  return others.length === 1 ? others[0] : undefined
}

function pattern(alias: string): RegExp {
  const parts = alias.toLowerCase().split("*")
  return new RegExp(`^${parts.map((part) => RegExp.escape(part)).join(".*")}$`)
}

import { read, write } from "./local-storage.ts"
import { readSettings } from "./settings.ts"
import { EMPTY_SETTINGS, type Settings } from "./types.ts"

export type Theme = "system" | "light" | "dark"

const THEME = "kt.theme"
const API_KEY = "kt.apiKey"
const DEFAULTS = "kt.defaults"
const MODEL = "kt.model"

const PROMPTS = "kt.prompts"

/** More would be a list that nobody reads, and could fill what a browser grants. */
export const MAX_PROMPTS = 100
export const MAX_PROMPT_NAME_CHARS = 80

/** A system prompt kept under a name. */
export interface SavedPrompt {
  name: string
  text: string
}

export function loadTheme(): Theme {
  const value = read(THEME)
  return value === "light" || value === "dark" ? value : "system"
}

export function saveTheme(theme: Theme): void {
  write(THEME, theme === "system" ? "" : theme)
}

export function loadApiKey(): string {
  return read(API_KEY) ?? ""
}

export function saveApiKey(key: string): void {
  write(API_KEY, key)
}

export function loadModel(): string {
  return read(MODEL) ?? ""
}

export function saveModel(id: string): void {
  write(MODEL, id)
}

/** The settings that new conversations start with. */
export function loadDefaults(): Settings {
  const text = read(DEFAULTS)
  if (text === null) return { ...EMPTY_SETTINGS }
  try {
    return readSettings(JSON.parse(text))
  } catch {
    return { ...EMPTY_SETTINGS }
  }
}

export function saveDefaults(settings: Settings): void {
  write(DEFAULTS, JSON.stringify(settings))
}

/** In the order of their names; entries that are none are left out. */
export function loadPrompts(): readonly SavedPrompt[] {
  try {
    const data: unknown = JSON.parse(read(PROMPTS) ?? "[]")
    if (!Array.isArray(data)) return []
    return data
      .filter(
        (each: unknown): each is SavedPrompt =>
          typeof each === "object" &&
          each !== null &&
          typeof (each as SavedPrompt).name === "string" &&
          typeof (each as SavedPrompt).text === "string",
      )
      .slice(0, MAX_PROMPTS)
      .map(({ name, text }) => ({ name, text }))
  } catch {
    return []
  }
}

export function savePrompts(prompts: readonly SavedPrompt[]): void {
  write(PROMPTS, prompts.length === 0 ? "" : JSON.stringify(prompts))
}

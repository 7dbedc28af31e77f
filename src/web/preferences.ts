import { read, write } from "./local-storage.ts"
import { readSettings } from "./settings.ts"
import { EMPTY_SETTINGS, type Settings } from "./types.ts"

export type Theme = "system" | "light" | "dark"

const THEME = "kt.theme"
const API_KEY = "kt.apiKey"
const DEFAULTS = "kt.defaults"
const MODEL = "kt.model"

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

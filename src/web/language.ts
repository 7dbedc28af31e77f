import { signal } from "@preact/signals"

import { read, write } from "./local-storage.ts"
import { en, type StringKey } from "./strings/en.ts"
import { zh } from "./strings/zh.ts"

/** As the `lang` attribute has it. */
export type Language = "en" | "zh"

const KEY = "kt.language"
const STRINGS: Readonly<Record<Language, Readonly<Record<StringKey, string>>>> = { en, zh }
export const LANGUAGES: readonly (readonly [Language, string])[] = [
  ["en", "English"],
  ["zh", "中文"],
]

export const language = signal<Language>(initial())

/** The page's sentence of that name; components that ask for one follow the language. */
export function t(key: StringKey, values: Readonly<Record<string, string | number>> = {}): string {
  return STRINGS[language.value][key].replace(/\{(\w+)\}/g, (whole, name: string) =>
    String(values[name] ?? whole),
  )
}

export function chooseLanguage(choice: Language): void {
  language.value = choice
  write(KEY, choice)
}

/** The one chosen before, else the first of the browser's that is known. */
function initial(): Language {
  const wanted = [read(KEY) ?? "", ...(globalThis.navigator?.languages ?? [])]
  for (const tag of wanted) {
    const known = LANGUAGES.find(([code]) => tag.toLowerCase().split("-")[0] === code)
    if (known !== undefined) return known[0]
  }
  return "en"
}

import { t } from "../language.ts"
import { announcement } from "../state.ts"

/** Copies text; the clipboard API is missing on plain HTTP pages outside localhost, where the old command still works. */
export async function copyText(text: string): Promise<boolean> {
  let isCopied: boolean
  try {
    await navigator.clipboard.writeText(text)
    isCopied = true
  } catch {
    isCopied = copyBySelection(text)
  }
  announcement.value = t(isCopied ? "copied" : "copyRefused")
  return isCopied
}

function copyBySelection(text: string): boolean {
  const focused = document.activeElement
  const area = document.createElement("textarea")
  area.value = text
  area.className = "visually-hidden"
  document.body.append(area)
  area.select()
  const isCopied = document.execCommand("copy")
  area.remove()
  if (focused instanceof HTMLElement) focused.focus()
  return isCopied
}

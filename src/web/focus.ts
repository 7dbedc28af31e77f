/** Where one writes, for when what had the focus goes away. On a touch screen that would bring up the keyboard unasked. */
export function backToPrompt(): void {
  if (matchMedia("(pointer: fine)").matches) document.getElementById("prompt")?.focus()
}

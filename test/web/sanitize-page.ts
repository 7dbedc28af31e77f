import { renderBlocks } from "../../src/web/markdown.ts"
import { sanitizeHtml } from "../../src/web/sanitize.ts"

/** Gives the tests the sanitiser as it runs in a browser. */
declare global {
  interface Window {
    sanitizeHtml: typeof sanitizeHtml
    renderBlocks: typeof renderBlocks
  }
}

window.sanitizeHtml = sanitizeHtml
window.renderBlocks = renderBlocks

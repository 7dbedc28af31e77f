import DOMPurify from "dompurify"

import { isSafeLink } from "./markdown.ts"

const FORBIDDEN_TAGS = [
  "style",
  "form",
  "textarea",
  "select",
  "option",
  "img",
  "picture",
  "source",
  "video",
  "audio",
  "track",
  "image",
  "map",
  "area",
  "dialog",
]

/** Schemes for attributes of any name, as DOMPurify applies it; links are held to isSafeLink as well. */
const ALLOWED_VALUES = /^(?:(?:https?|mailto):|[^a-z]|[a-z+.-]+(?:[^a-z+.\-:]|$))/i

let purifier: typeof DOMPurify | undefined

function makePurifier(): typeof DOMPurify {
  const made = DOMPurify(window)
  made.addHook("afterSanitizeAttributes", (element) => {
    const href = element.getAttribute("href")
    if (href === null) return
    if (isSafeLink(href)) {
      element.setAttribute("target", "_blank")
      element.setAttribute("rel", "noopener noreferrer nofollow")
    } else element.removeAttribute("href")
  })
  return made
}

/**
 * The last gate before HTML reaches the page. Links keep only web and mail addresses; nothing that loads, submits or runs
 * passes. KaTeX needs MathML with its annotation, SVG and style attributes.
 */
export function sanitizeHtml(html: string): string {
  purifier ??= makePurifier()
  return purifier.sanitize(html, {
    USE_PROFILES: { html: true, mathMl: true, svg: true },
    ADD_TAGS: ["semantics", "annotation"],
    ADD_ATTR: ["encoding"],
    FORBID_TAGS: FORBIDDEN_TAGS,
    FORBID_ATTR: [
      "id",
      "name",
      "srcset",
      "action",
      "formaction",
      "background",
      "poster",
      "xlink:href",
    ],
    ALLOWED_URI_REGEXP: ALLOWED_VALUES,
    ALLOW_DATA_ATTR: false,
  })
}

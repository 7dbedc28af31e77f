import DOMPurify from "dompurify"

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

/**
 * The last gate before HTML reaches the page. Links keep only web and mail addresses; nothing that loads, submits or runs
 * passes. KaTeX needs MathML with its annotation, SVG and style attributes.
 */
export function sanitizeHtml(html: string): string {
  return DOMPurify.sanitize(html, {
    USE_PROFILES: { html: true, mathMl: true, svg: true },
    ADD_TAGS: ["semantics", "annotation"],
    ADD_ATTR: ["target", "encoding"],
    FORBID_TAGS: FORBIDDEN_TAGS,
    FORBID_ATTR: ["id", "name", "srcset", "action", "formaction", "background", "poster"],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|#)/i,
    ALLOW_DATA_ATTR: false,
  })
}

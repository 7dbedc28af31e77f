import type { JSX } from "preact"

/** Line icons on a 20-unit grid, drawn in the text's colour and hidden from screen readers: buttons carry their own labels. */
const PATHS = {
  menu: "M3 6h14M3 10h14M3 14h9",
  plus: "M10 4v12M4 10h12",
  search: "M9 14.5a5.5 5.5 0 1 0 0-11 5.5 5.5 0 0 0 0 11ZM13 13l4 4",
  close: "M5 5l10 10M15 5 5 15",
  send: "M10 16V4.5M5 9.5l5-5 5 5",
  copy: "M7 7V4.5A1.5 1.5 0 0 1 8.5 3h7A1.5 1.5 0 0 1 17 4.5v7a1.5 1.5 0 0 1-1.5 1.5H13M4.5 7h7A1.5 1.5 0 0 1 13 8.5v7a1.5 1.5 0 0 1-1.5 1.5h-7A1.5 1.5 0 0 1 3 15.5v-7A1.5 1.5 0 0 1 4.5 7Z",
  check: "M4 10.5l4 4 8-9",
  edit: "M12.5 4.5l3 3L7 16H4v-3l8.5-8.5ZM11 6l3 3",
  trash: "M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10",
  retry: "M15.5 8A6 6 0 1 0 16 11.5M16 4v4h-4",
  sliders: "M4 6h7M15 6h1M4 14h1M9 14h7M13 4v4M7 12v4",
  up: "M10 15.5V4M5 9l5-5 5 5",
  down: "M10 4v11.5M5 11l5 5 5-5",
  branch:
    "M6 4v12M6 11c0-3.5 8-1.5 8-6M6 4a1.4 1.4 0 1 0 .01 0M14 4a1.4 1.4 0 1 0 .01 0M6 16a1.4 1.4 0 1 0 .01 0",
  grip: "M7.5 5v.2M12.5 5v.2M7.5 10v.2M12.5 10v.2M7.5 15v.2M12.5 15v.2",
  chevron: "M8 5l5 5-5 5",
  back: "M12 5l-5 5 5 5",
  clip: "M15.5 9.5l-5.8 5.8a3.5 3.5 0 0 1-5-5l6.3-6.3a2.4 2.4 0 0 1 3.4 3.4l-6.2 6.2a1.2 1.2 0 0 1-1.7-1.7l5.3-5.3",
  file: "M6 3h5.5L15 6.5V17H6ZM11.5 3v3.5H15",
  tool: "M13.5 3.5a3.5 3.5 0 0 0-3.3 4.7L4 14.4 5.6 16l6.2-6.2a3.5 3.5 0 0 0 4.5-4.5L14 7.6 12.4 6l2.3-2.3a3.5 3.5 0 0 0-1.2-.2Z",
  play: "M6.5 4.5v11l9-5.5Z",
  download: "M10 3v9M6 8.5l4 4 4-4M4 16.5h12",
  upload: "M10 13V4M6 7.5l4-4 4 4M4 16.5h12",
  sun: "M10 13a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM10 2.5v1.5M10 16v1.5M2.5 10H4M16 10h1.5M4.7 4.7l1 1M14.3 14.3l1 1M4.7 15.3l1-1M14.3 5.7l1-1",
  moon: "M16 11.5A6.5 6.5 0 0 1 8.5 4 6.5 6.5 0 1 0 16 11.5Z",
  screen: "M3 4.5h14v9H3zM7.5 17h5M10 13.5V17",
  box: "M10 2.8 16.5 6v8L10 17.2 3.5 14V6L10 2.8ZM3.5 6l6.5 3.2L16.5 6M10 9.2v8",
  chip: "M6 6h8v8H6zM8 3v3M12 3v3M8 14v3M12 14v3M3 8h3M3 12h3M14 8h3M14 12h3",
  chat: "M4 4.5h12v9H9l-3.5 3v-3H4z",
  power: "M10 3v7M6 5.5a6 6 0 1 0 8 0",
  warning: "M10 4l7 12H3l7-12ZM10 9v3M10 14v.2",
} as const

export type IconName = keyof typeof PATHS | "stop"

export function Icon({ name }: { name: IconName }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
      {name === "stop" ? (
        <rect x="4" y="4" width="12" height="12" rx="2.5" fill="currentColor" stroke="none" />
      ) : (
        <path d={PATHS[name]} />
      )}
    </svg>
  )
}

/** The mark of the project: a K whose arm passes from one device to the other. */
export function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <path class="mark-stem" d="M10 7v18" />
      <path class="mark-arm" d="M22.5 7 13.5 16l9 9" />
    </svg>
  )
}

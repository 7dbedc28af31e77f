import type { JSX } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"

import { attach, setUnsentFiles } from "../actions.ts"
import { formatBytes } from "../format.ts"
import { t } from "../language.ts"
import type { TextFile } from "../types.ts"
import { IconButton } from "./icon-button.tsx"
import { Icon } from "./icons.tsx"

/** Files that go with the message being written. */
export function UnsentFiles(props: {
  conversation: string
  files: readonly TextFile[]
}): JSX.Element {
  const { conversation, files } = props
  return (
    <ul class="files" aria-label={t("attachedFiles")}>
      {files.map((file, index) => (
        <li key={index} class="file">
          <Name file={file} />
          <IconButton
            icon="close"
            label={t("removeFile", { name: file.name })}
            onClick={() => setUnsentFiles(conversation, files.toSpliced(index, 1))}
          />
        </li>
      ))}
    </ul>
  )
}

/** Files of a message that was sent; each unfolds to its text. */
export function SentFiles({ files }: { files: readonly TextFile[] }): JSX.Element {
  return (
    <ul class="files is-sent" aria-label={t("attachedFiles")}>
      {files.map((file, index) => (
        <li key={index}>
          <details class="file-text">
            <summary class="file">
              <Name file={file} />
            </summary>
            <pre>{file.text}</pre>
          </details>
        </li>
      ))}
    </ul>
  )
}

function Name({ file }: { file: TextFile }): JSX.Element {
  return (
    <>
      <Icon name="file" />
      <span class="file-name" title={file.name}>
        {file.name}
      </span>
      <span class="file-size">{formatBytes(new Blob([file.text]).size)}</span>
    </>
  )
}

export function AttachButton(): JSX.Element {
  const picker = useRef<HTMLInputElement>(null)
  return (
    <>
      <IconButton
        icon="clip"
        label={t("attachFiles")}
        class="attach"
        onClick={() => picker.current?.click()}
      />
      <input
        ref={picker}
        id="attach-file"
        type="file"
        multiple
        hidden
        onChange={(event) => {
          const input = event.currentTarget
          void attach([...(input.files ?? [])])
          input.value = ""
        }}
      />
    </>
  )
}

/** Takes files dropped anywhere on the page, and shows so while they are over it. */
export function DropZone(): JSX.Element | null {
  const [isOver, setOver] = useState(false)
  useEffect(() => {
    const hasFiles = (event: DragEvent): boolean =>
      event.dataTransfer?.types.includes("Files") === true
    const over = (event: DragEvent): void => {
      if (!hasFiles(event)) return
      event.preventDefault()
      setOver(true)
    }
    const leave = (event: DragEvent): void => {
      // Without a target that is entered the files have left the window.
      if (event.relatedTarget === null) setOver(false)
    }
    const drop = (event: DragEvent): void => {
      setOver(false)
      if (!hasFiles(event)) return
      event.preventDefault()
      void attach([...(event.dataTransfer?.files ?? [])])
    }
    window.addEventListener("dragover", over)
    window.addEventListener("dragleave", leave)
    window.addEventListener("drop", drop)
    return () => {
      window.removeEventListener("dragover", over)
      window.removeEventListener("dragleave", leave)
      window.removeEventListener("drop", drop)
    }
  }, [])
  return isOver ? (
    <div class="drop-zone">
      <p>
        <Icon name="file" /> {t("dropFiles")}
      </p>
    </div>
  ) : null
}

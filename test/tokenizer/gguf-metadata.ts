import { closeSync, fstatSync, openSync, readSync } from "node:fs"

import { openGguf } from "../../src/weights/gguf.ts"
import type { GgufMetadata } from "../../src/weights/metadata.ts"
import type { ByteSource } from "../../src/weights/source.ts"

/** A file read piece by piece, so that these tests need no native library. */
function openPlain(path: string): ByteSource & { close(): void } {
  const handle = openSync(path, "r")
  const { size } = fstatSync(handle)
  return {
    path,
    size,
    address: 0,
    read(offset, length) {
      const bytes = new Uint8Array(length)
      if (readSync(handle, bytes, 0, length, offset) !== length)
        throw new Error(`${path}: short read`)
      return bytes
    },
    close: () => closeSync(handle),
  }
}

/** The key-value section of a GGUF file. */
export function readGgufMetadata(path: string): GgufMetadata {
  const opened: (ByteSource & { close(): void })[] = []
  try {
    return openGguf(path, (file) => {
      const source = openPlain(file)
      opened.push(source)
      return source
    }).metadata
  } finally {
    for (const source of opened) source.close()
  }
}

import { expect, test } from "bun:test"

import { fenced, MAX_FILE_BYTES, readTextFile } from "../../src/web/attachments.ts"

const read = (name: string, ...parts: BlobPart[]): Promise<unknown> =>
  readTextFile(new File(parts, name))

test("texts are read, whatever their marks", async () => {
  expect(await read("a.txt", "h\u00e9\n")).toEqual({ name: "a.txt", text: "h\u00e9\n" })
  const utf16 = new Uint8Array([0xff, 0xfe, 0x68, 0, 0x69, 0])
  expect(await read("b.txt", utf16)).toEqual({ name: "b.txt", text: "hi" })
  expect(await read("a`\n`b", "x")).toEqual({ name: "a b", text: "x" })
})

test("what is no text, empty or too large is refused with a sentence", async () => {
  const image = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])
  expect(await read("a.png", image)).toBe("a.png is not a text file and was not attached.")
  expect(await read("a.bin", "a\0b")).toBe("a.bin is not a text file and was not attached.")
  expect(await read("a.txt", " \n")).toBe("a.txt is empty and was not attached.")
  expect(await read("a.txt", "x".repeat(MAX_FILE_BYTES + 1))).toBe(
    "a.txt is larger than 500 kB and was not attached.",
  )
})

test("a fence is longer than those within", () => {
  expect(fenced("a.md", "x")).toBe("```a.md\nx\n```")
  expect(fenced("a.md", "````\nx\n````\n")).toBe("`````a.md\n````\nx\n````\n`````")
})

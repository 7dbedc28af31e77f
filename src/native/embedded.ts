/**
 * The CPU library inside a compiled binary: the build of the binary replaces this module by one that imports the
 * library of its platform with `{ type: "file" }` and gives its path. From source there is none.
 */
export function embeddedLibrary(): string | undefined {
  return undefined
}

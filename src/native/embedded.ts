/**
 * The CPU library inside a compiled binary. `bun run compile` defines KT_EMBEDDED_LIBRARY as the path that
 * `import(..., { with: { type: "file" } })` gave the library of the target platform; from source there is none.
 */
declare const KT_EMBEDDED_LIBRARY: string | undefined

export function embeddedLibrary(): string | undefined {
  const registered = (globalThis as { ktEmbeddedLibrary?: string }).ktEmbeddedLibrary
  return registered ?? (typeof KT_EMBEDDED_LIBRARY === "string" ? KT_EMBEDDED_LIBRARY : undefined)
}

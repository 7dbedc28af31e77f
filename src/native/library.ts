import { dlopen } from "bun:ffi"
import { existsSync, readdirSync } from "node:fs"
import { dirname, join } from "node:path"

import { KtError } from "../errors.ts"
import { KT_ABI_HASH, KT_ERR_UNSUPPORTED, symbols } from "./abi.generated.ts"
import { embeddedLibrary } from "./embedded.ts"

type Kind = "ptr" | "i32" | "i64" | "u32" | "u64" | "f32" | "f64" | "cstring" | "void"
interface Signature {
  readonly args: readonly Kind[]
  readonly returns: Kind
}

/** Native address; 0 is NULL. */
export type Address = number
/** What a pointer argument may be: an address, or a view that is protected for the length of the call. */
export type PointerArg = Address | ArrayBufferView | null

type Value<K> = K extends "ptr"
  ? PointerArg
  : K extends "cstring"
    ? string
    : K extends "u64"
      ? bigint
      : K extends "void"
        ? void
        : number
type Arguments<A extends readonly unknown[]> = { -readonly [I in keyof A]: Value<A[I]> }
type Functions = {
  readonly [N in keyof typeof symbols]: (
    ...args: Arguments<(typeof symbols)[N]["args"]>
  ) => Value<(typeof symbols)[N]["returns"]>
}

/** The functions of one kernel library, typed from kt.h. */
export type Library = Functions & { readonly path: string }

/** A backend's library, or the reason why it is not there. */
export type Probe =
  | { readonly available: true; readonly library: Library }
  | { readonly available: false; readonly path: string | undefined; readonly reason: string }

const loaded = new Map<string, Probe>()

/** File name of a backend's library on this platform. */
export function libraryFileName(backend: string): string {
  if (process.platform === "win32") return `kt_${backend}.dll`
  return process.platform === "darwin" ? `libkt_${backend}.dylib` : `libkt_${backend}.so`
}

/** Where a backend's library is looked for, in order: KT_LIB_DIR, inside the binary, beside it, the build's output. */
export function libraryCandidates(backend: string): string[] {
  const file = libraryFileName(backend)
  const fromEnv = process.env["KT_LIB_DIR"]
  const embedded = backend === "cpu" ? embeddedLibrary() : undefined
  const built = join(
    import.meta.dir,
    "..",
    "..",
    "zig-out",
    process.platform === "win32" ? "bin" : "lib",
    file,
  )
  return [
    ...(fromEnv ? [join(fromEnv, file)] : []),
    ...(embedded !== undefined ? [embedded] : []),
    join(dirname(process.execPath), file),
    built,
  ]
}

/** Backends whose libraries lie in the folders that are searched, by file name; the CPU's is always among them. */
export function backendNames(): string[] {
  const name = /^(?:lib)?kt_([a-z][a-z0-9]*)\.(?:so|dylib|dll)$/
  const names = new Set(["cpu"])
  for (const folder of new Set(libraryCandidates("none").map((path) => dirname(path)))) {
    let files: string[] = []
    try {
      files = readdirSync(folder)
    } catch {
      continue // a folder that is searched need not exist
    }
    for (const file of files) {
      const backend = name.exec(file)?.[1]
      if (backend !== undefined && file === libraryFileName(backend)) names.add(backend)
    }
  }
  return [...names]
}

/** Finds, opens and checks a backend's library once per process; never throws. */
export function probeLibrary(backend: string): Probe {
  const known = loaded.get(backend)
  if (known !== undefined) return known
  // what is inside the binary has a path of its own kind on every platform
  const embedded = embeddedLibrary()
  const path = libraryCandidates(backend).find(
    (candidate) => candidate === embedded || existsSync(candidate),
  )
  const probe: Probe =
    path === undefined
      ? { available: false, path, reason: `${libraryFileName(backend)} was not found` }
      : openLibrary(path)
  loaded.set(backend, probe)
  return probe
}

/** The library of a backend that must be there. */
export function requireLibrary(backend: string): Library {
  const probe = probeLibrary(backend)
  if (probe.available) return probe.library
  throw new KtError(`the ${backend} backend is not available: ${probe.reason}`, {
    hint: "build it with `zig build` (or `bun run setup`), or set KT_LIB_DIR to the folder that holds it",
  })
}

/** Names of the functions of kt.h. */
export type FunctionName = keyof typeof symbols

/** Whether a library has no op of this name: it says so before it looks at what it was called with. */
export function lacksOp(library: Library, name: FunctionName): boolean {
  const { args } = symbols[name] as Signature
  const nothing = args.map((kind) => (kind === "ptr" ? null : kind === "u64" ? 0n : 0))
  const call = library[name] as (...args: readonly unknown[]) => unknown
  return call(...nothing) === KT_ERR_UNSUPPORTED
}

/** Opens one file and checks that it was built from the header this program was built from, before any other call. */
export function openLibrary(path: string): Probe {
  const absent = (reason: string): Probe => ({ available: false, path, reason })
  try {
    const check = dlopen(path, {
      kt_abi_version: symbols.kt_abi_version,
      kt_abi_hash: symbols.kt_abi_hash,
    } as never).symbols as unknown as Functions
    const hash = check.kt_abi_hash()
    if (hash !== KT_ABI_HASH) {
      return absent(
        `${path} was built from another kt.h (ABI hash ${hash.toString(16)}, expected ${KT_ABI_HASH.toString(16)}); rebuild with \`zig build\``,
      )
    }
    const functions = dlopen(path, symbols as unknown as Record<string, never>)
      .symbols as unknown as Functions
    const traced = process.env["KT_TRACE_FFI"] ? traceCalls(functions) : functions
    return { available: true, library: Object.freeze({ ...traced, path }) }
  } catch (error) {
    return absent(`${path}: ${error instanceof Error ? error.message : String(error)}`)
  }
}

/** KT_TRACE_FFI=1: counts and times every call, and prints the table at exit. */
function traceCalls(functions: Functions): Functions {
  const stats = new Map<string, { calls: number; ns: number; max: number }>()
  const traced: Record<string, unknown> = {}
  for (const [name, call] of Object.entries(functions) as [
    string,
    (...args: unknown[]) => unknown,
  ][]) {
    const entry = { calls: 0, ns: 0, max: 0 }
    stats.set(name, entry)
    traced[name] = (...args: unknown[]): unknown => {
      const start = Bun.nanoseconds()
      const result = call(...args)
      const ns = Bun.nanoseconds() - start
      entry.calls++
      entry.ns += ns
      entry.max = Math.max(entry.max, ns)
      return result
    }
  }
  process.on("exit", () => {
    const rows = [...stats].filter(([, s]) => s.calls > 0).sort((a, b) => b[1].ns - a[1].ns)
    const lines = rows.map(
      ([name, s]) =>
        `${name.padEnd(24)} ${String(s.calls).padStart(9)} calls ${(s.ns / s.calls / 1000).toFixed(1).padStart(10)} us mean ${(s.max / 1000).toFixed(1).padStart(10)} us max ${(s.ns / 1e6).toFixed(1).padStart(10)} ms\n`,
    )
    process.stderr.write(lines.join(""))
  })
  return traced as unknown as Functions
}

export type { Kind, Signature }

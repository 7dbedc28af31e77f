import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs"
import { basename, dirname, join, resolve } from "node:path"

import { KtError } from "../../src/errors.ts"
import { lastLines, removeLeftovers, runCommand } from "../setup/process.ts"
import { runStep } from "../setup/progress.ts"
import { findZig, ZIG_VERSION } from "../setup/zig.ts"

interface Target {
  /** What `zig build -Dtarget` takes. */
  readonly zig: string
  readonly bun: Bun.Build.CompileTarget
  /** The library below zig's prefix. */
  readonly library: string
  readonly suffix: string
}

/** Platforms that a binary can be made for, from any of them. */
export const TARGETS = {
  "linux-x64": {
    zig: "x86_64-linux",
    bun: "bun-linux-x64",
    library: "lib/libkt_cpu.so",
    suffix: "",
  },
  "linux-arm64": {
    zig: "aarch64-linux",
    bun: "bun-linux-arm64",
    library: "lib/libkt_cpu.so",
    suffix: "",
  },
  "windows-x64": {
    zig: "x86_64-windows",
    bun: "bun-windows-x64",
    library: "bin/kt_cpu.dll",
    suffix: ".exe",
  },
  "darwin-arm64": {
    zig: "aarch64-macos",
    bun: "bun-darwin-arm64",
    library: "lib/libkt_cpu.dylib",
    suffix: "",
  },
} as const satisfies Record<string, Target>

export type TargetName = keyof typeof TARGETS

export function isTarget(name: string): name is TargetName {
  return name in TARGETS
}

/** This machine's own, whether or not it is one of TARGETS. */
export function hostTarget(): string {
  return `${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`
}

/** Files that the bundler must have put into the binary. */
const ENTRIES = [
  "src/cli/main.ts",
  "src/worker/engine-worker.ts",
  "src/kvcache/disk-worker.ts",
  "src/engine/grammar-worker.ts",
  "src/cli/library/metadata-worker.ts",
] as const

/** Makes the binary of a target. @throws KtError when anything that belongs into it is not in it */
export async function compile(
  root: string,
  name: TargetName,
  outfile?: string,
): Promise<{ outfile: string; bytes: number }> {
  const target: Target = TARGETS[name]
  const isHost = name === hostTarget()
  const file = resolve(
    outfile ?? join(root, "dist", `${isHost ? "kt" : `kt-${name}`}${target.suffix}`),
  )
  let library = ""
  await runStep(`CPU library for ${name}`, async (report) => {
    report("zig build")
    library = await buildLibrary(root, name)
    return { skipped: false, detail: library }
  })
  await runStep(`binary for ${name}`, async (report) => {
    report("bundling")
    await bundle(root, target, library, file)
    return { skipped: false, detail: file }
  })
  if (isHost) await checkRuns(file)
  return { outfile: file, bytes: statSync(file).size }
}

/** Builds a target's library below .zig-cache and gives its path. */
export async function buildLibrary(root: string, name: TargetName): Promise<string> {
  const { path: zig } = await findZig(root)
  if (zig === undefined)
    throw new KtError(`Zig ${ZIG_VERSION} was not found`, { hint: "bun run setup" })
  const target: Target = TARGETS[name]
  const prefix = join(root, ".zig-cache", "kt-targets", name)
  const { code, output } = await runCommand(
    [zig, "build", `-Dtarget=${target.zig}`, "--prefix", prefix],
    { cwd: root },
  )
  if (code !== 0)
    throw new KtError(`zig build -Dtarget=${target.zig} failed:\n${lastLines(output, 30)}`)
  const library = join(prefix, target.library)
  if (!existsSync(library)) throw new KtError(`zig build -Dtarget=${target.zig} made no ${library}`)
  return library
}

async function bundle(root: string, target: Target, library: string, file: string): Promise<void> {
  mkdirSync(dirname(file), { recursive: true })
  // the file's name is part of the binary, so it is made under its own name in a folder beside its place
  removeLeftovers(dirname(file), "partial-")
  const folder = join(dirname(file), `partial-${process.pid}`)
  const partial = join(folder, basename(file))
  mkdirSync(folder)
  try {
    await makeBinary(root, target, library, partial)
    assertEmbedded(partial, library)
    renameSync(partial, file)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

async function makeBinary(
  root: string,
  target: Target,
  library: string,
  outfile: string,
): Promise<void> {
  const result = await Bun.build({
    entrypoints: ENTRIES.map((entry) => join(root, entry)),
    root: join(root, "src"),
    minify: true,
    compile: { target: target.bun, outfile },
    plugins: [embedLibrary(root, library)],
  })
  if (!result.success) throw new KtError(`bundling failed:\n${result.logs.map(String).join("\n")}`)
}

/** Replaces src/native/embedded.ts by one that imports the library as a file of the binary. */
function embedLibrary(root: string, library: string): Bun.BunPlugin {
  const module = join(root, "src", "native", "embedded.ts")
  return {
    name: "embed-cpu-library",
    setup(build): void {
      build.onLoad({ filter: /[\\/]embedded\.ts$/ }, async ({ path }) => ({
        loader: "ts",
        contents:
          path === module
            ? `import library from ${JSON.stringify(library)} with { type: "file" }\n` +
              "export function embeddedLibrary(): string | undefined {\n  return library\n}\n"
            : await Bun.file(path).text(),
      }))
    },
  }
}

/** An import of a missing file bundles without a word, and would fail only where the binary runs. */
function assertEmbedded(binary: string, library: string): void {
  const bytes = readFileSync(binary)
  if (bytes.indexOf(readFileSync(library)) < 0)
    throw new KtError(`${binary}: the CPU library is not inside`)
  for (const [what, text] of [
    ["engine Worker", "engine-worker"],
    ["prefix cache's Worker", "disk-worker"],
    ["grammars' Worker", "grammar-worker"],
    ["headers' Worker", "metadata-worker"],
    ["web page", "<!doctype html>"],
    ["rule files", "# Everything on the CPU"],
  ] as const) {
    if (bytes.indexOf(text) < 0) throw new KtError(`${binary}: the ${what} is not inside`)
  }
}

async function checkRuns(file: string): Promise<void> {
  const { code, output } = await runCommand([file, "--version"])
  if (code !== 0)
    throw new KtError(`${file} --version failed with code ${code}:\n${lastLines(output, 10)}`)
}

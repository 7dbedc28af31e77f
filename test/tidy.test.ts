/** What breaks silently: import direction, banned calls, ops without kernel or test, words that do not belong here. */
import { expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { basename, dirname, join, normalize } from "node:path"

import { ROOT } from "./setup.ts"

/**
 * Folders of src/ and what each may import besides itself and errors.ts; ARCHITECTURE.md says the same in words. "type:" allows
 * types only: they vanish, and so add nothing to load.
 */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "errors.ts": [],
  "config.ts": [],
  native: [],
  tensor: ["native"],
  ops: ["tensor", "native", "type:worker/protocol.ts"],
  nn: ["ops", "tensor", "type:native"],
  models: ["nn", "ops", "tensor", "type:weights"],
  inject: ["nn"],
  operators: ["nn", "ops", "tensor", "type:inject"],
  weights: ["native", "tensor", "nn", "type:models"],
  kvcache: ["tensor", "ops", "native", "type:nn"],
  engine: [
    "models",
    "operators",
    "inject",
    "weights",
    "kvcache",
    "nn",
    "ops",
    "tensor",
    "native",
    "config.ts",
    "type:worker/protocol.ts",
  ],
  convert: ["models", "tokenizer", "weights", "nn", "ops", "tensor", "native"],
  "worker/protocol.ts": [],
  "worker/client.ts": ["worker/protocol.ts"],
  "worker/serve.ts": ["worker/protocol.ts", "worker/turns.ts"],
  "worker/turns.ts": [],
  "worker/engine-worker.ts": ["engine", "config.ts", "worker/protocol.ts", "worker/serve.ts"],
  tokenizer: ["type:weights"],
  server: ["worker/client.ts", "worker/protocol.ts", "tokenizer", "config.ts"],
  web: [],
  pretrained: [
    "engine",
    "models",
    "operators",
    "inject",
    "weights",
    "kvcache",
    "nn",
    "ops",
    "tensor",
    "native",
    "tokenizer",
    "config.ts",
    "type:worker/protocol.ts",
  ],
  cli: ["*"],
  "index.ts": ["*"],
}

const sources = files("src/**/*.{ts,tsx}")
/** Files without their comments and strings, so that words in them do not count. */
const code = new Map(sources.map((file) => [file, withoutComments(read(file))]))

function files(pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync({ cwd: ROOT })]
    .map((file) => file.replaceAll("\\", "/"))
    .sort()
}

function read(file: string): string {
  return readFileSync(join(ROOT, file), "utf8")
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[^]*?\*\//g, "").replace(/(^|\s)\/\/.*$/gm, "$1")
}

/** Files in which a pattern occurs, as "file: what was found". */
function found(
  pattern: RegExp,
  except: (file: string) => boolean = () => false,
  within = code,
): string[] {
  return [...within]
    .filter(([file]) => !except(file))
    .flatMap(([file, text]) => {
      const match = pattern.exec(text)
      return match === null ? [] : [`${file}: ${match[0].trim()}`]
    })
}

function areaOf(path: string): string {
  const [first = "", second] = path.split("/")
  return first === "worker" && second !== undefined ? `worker/${second}` : first
}

interface Edge {
  readonly from: string
  readonly to: string
  readonly typeOnly: boolean
}

function edges(file: string): Edge[] {
  const text = code.get(file) ?? ""
  const result: Edge[] = []
  const statement =
    /(?:^|\n)\s*(?:import|export)\s+(type\s)?([^"'()]*?from\s*)?["'](\.[^"']+)["']|import\(\s*["'](\.[^"']+)["']/g
  for (const [, type, clause, path, dynamic] of text.matchAll(statement)) {
    const target = normalize(join(dirname(file), path ?? dynamic ?? "")).replaceAll("\\", "/")
    const names =
      /\{([^}]*)\}/
        .exec(clause ?? "")?.[1]
        ?.split(",")
        .filter((name) => name.trim() !== "") ?? []
    const allTypes =
      names.length > 0 &&
      !/^\s*\w+\s*,/.test(clause ?? "") &&
      names.every((name) => name.trim().startsWith("type "))
    result.push({ from: file, to: target, typeOnly: type !== undefined || allTypes })
  }
  return result
}

function isAllowed({ from, to, typeOnly }: Edge): boolean {
  // data that is bundled as text
  if (!to.startsWith("src/")) return to.startsWith("rules/") || to === "package.json"
  const target = to.slice("src/".length)
  const own = areaOf(from.slice("src/".length))
  const area = areaOf(target)
  if (own === area || area === "errors.ts") return true
  const allowed = MAY_IMPORT[own]
  if (allowed === undefined) return false
  const names = (name: string): boolean => name === "*" || name === area || name === target
  return allowed.some((entry) =>
    entry.startsWith("type:") ? typeOnly && names(entry.slice(5)) : names(entry),
  )
}

test("every folder of src is in the table of imports", () => {
  const areas = new Set(sources.map((file) => areaOf(file.slice("src/".length))))
  expect([...areas].filter((area) => MAY_IMPORT[area] === undefined)).toEqual([])
})

test("imports point downward only", () => {
  const all = sources.flatMap(edges)
  expect(all.length).toBeGreaterThan(200)
  expect(all.filter((edge) => !isAllowed(edge)).map(({ from, to }) => `${from} -> ${to}`)).toEqual(
    [],
  )
})

test("the check of imports finds what it is for", () => {
  expect(
    isAllowed({ from: "src/server/app.ts", to: "src/engine/engine.ts", typeOnly: false }),
  ).toBe(false)
  expect(isAllowed({ from: "src/native/library.ts", to: "src/ops/index.ts", typeOnly: true })).toBe(
    false,
  )
  expect(
    isAllowed({ from: "src/nn/layers.ts", to: "src/native/backend.ts", typeOnly: false }),
  ).toBe(false)
  expect(isAllowed({ from: "src/nn/layers.ts", to: "src/native/backend.ts", typeOnly: true })).toBe(
    true,
  )
})

test("bun:ffi is imported in src/native only, and pointers of views are taken in memory.ts only", () => {
  expect(found(/["']bun:ffi["']/, (file) => file.startsWith("src/native/"))).toEqual([])
  expect(found(/(?<![\w.])ptr\(/, (file) => file === "src/native/memory.ts")).toEqual([])
  expect(found(/\bJSCallback\b/)).toEqual([])
})

test("names of classes are never read: minifying changes them", () => {
  expect(found(/\bconstructor\.name\b/)).toEqual([])
})

test("no any, no enum, no default export", () => {
  expect(found(/(?:[:<,|&(]|\bas|=>)\s*any\b(?!\s*[:(])/)).toEqual([])
  expect(found(/^\s*(?:export\s+)?(?:const\s+)?enum\s+\w/m)).toEqual([])
  expect(found(/^\s*export\s+default\b/m)).toEqual([])
})

test("only the command line and its log write to the console", () => {
  expect(found(/(?<![\w.])console\.\w+/, (file) => file.startsWith("src/cli/"))).toEqual([])
})

test("byte offsets are not computed with 32-bit operators", () => {
  const weights = new Map([...code].filter(([file]) => file.startsWith("src/weights/")))
  expect(
    found(
      /\b\w*(?:[oO]ffset|[aA]ddress|[bB]yteLength)\w*\s*(?:>>>?|<<|\||&(?!&)|~)\s*\w/,
      () => false,
      weights,
    ),
  ).toEqual([])
})

test("errors are the classes of errors.ts", () => {
  expect(
    found(
      /class\s+\w+\s+extends\s+\w*Error\b/,
      (file) => file === "src/errors.ts" || file.startsWith("src/web/"),
    ),
  ).toEqual([])
})

test("files are named in kebab-case, models by their model_type", () => {
  const odd = sources.filter((file) => {
    const name = basename(file).replace(/(\.(generated|macro|d))?\.tsx?$/, "")
    return !(
      file.startsWith("src/models/") ? /^[a-z0-9][a-z0-9_-]*$/ : /^[a-z0-9][a-z0-9-]*$/
    ).test(name)
  })
  expect(odd).toEqual([])
})

/** Functions of kt.h that are no ops: what runs them is tested in test/native. */
const NOT_OPS =
  /^kt_(abi_|last_error|backend_name|slab_|file_|cpu_query|ctx_|device_|buffer_|event_|graph_|packed_bytes|measure)/

test("every op of kt.h has its kernel, its function in src and its test", () => {
  const names = [...read("kernels/include/kt.h").matchAll(/^KT_API [^(]*?\b(kt_\w+)\(/gm)].map(
    ([, name = ""]) => name,
  )
  const ops = names.filter((name) => !NOT_OPS.test(name))
  expect(ops.length).toBeGreaterThan(15)
  const text = (pattern: string): string => files(pattern).map(read).join("\n")
  const kernels = text("kernels/cpu/*.zig")
  const calls = text("src/{ops,native,nn,weights}/**/*.ts")
  const tests = text("test/{ops,native,weights,nn}/**/*.ts")
  const missing: string[] = []
  for (const name of ops) {
    if (!new RegExp(`^(?:export|pub) fn ${name}\\b`, "m").test(kernels))
      missing.push(`${name}: no kernel in kernels/cpu`)
    const wrapper = wrappers(calls, name)
    if (wrapper.length === 0) missing.push(`${name}: nothing in src calls it`)
    else if (!wrapper.some((fn) => new RegExp(`\\b${fn}\\b`).test(tests)))
      missing.push(`${name}: no test of ${wrapper.join(", ")}`)
  }
  expect(missing).toEqual([])
})

/** Exported functions and classes whose body calls a kernel. */
function wrappers(text: string, kernel: string): string[] {
  return text.split(/(?=^export (?:async )?(?:function|class) )/m).flatMap((part) => {
    const name = /^export (?:async )?(?:function|class) (\w+)/.exec(part)?.[1]
    return name !== undefined && new RegExp(`\\b${kernel}\\b`).test(part) ? [name] : []
  })
}

test("kernels include only what their folder allows", () => {
  const allowed =
    /^(isa\.h|isa_table\.h|codebook\.h|kt\.h|kt_quant\.h|kt_codebook\.h|[\w]+\.inc|std\w+\.h|string\.h|math\.h|float\.h|immintrin\.h|arm_neon\.h)$/
  const odd = files("kernels/cpu/isa/*.{c,h,inc}").flatMap((file) =>
    [...read(file).matchAll(/^\s*#\s*include\s*[<"]([^>"]+)[>"]/gm)]
      .map(([, name = ""]) => name)
      .filter((name) => !allowed.test(name))
      .map((name) => `${file}: ${name}`),
  )
  expect(odd).toEqual([])
})

/** Written in pieces, so that this file is not the first to break its own rule. */
const FORBIDDEN: readonly RegExp[] = [
  new RegExp(["/ro", "ot/"].join("")),
  new RegExp(["/wo", "rk/"].join("")),
  new RegExp(["regis", "try\\.npm", "js"].join("")),
  new RegExp(["py", "pi\\.org|python", "hosted"].join("")),
]

test("no file names this machine's folders or a package registry's host", () => {
  const all = files("{src,scripts,test,bench,kernels,rules,.ci}/**/*").concat(
    files("*"),
    files(".ci/*"),
    files(".*ignore"),
  )
  const text = new Map(
    all.filter((file) => !/\.(png|ico|woff2?)$/.test(file)).map((file) => [file, read(file)]),
  )
  expect(FORBIDDEN.flatMap((word) => found(word, () => false, text))).toEqual([])
})

test("documents point at files that exist", () => {
  const broken = files("{*.md,rules/*.md,kernels/*.md}").flatMap((file) =>
    [...read(file).matchAll(/\]\((?!https?:|#)([^)#]+)/g)]
      .map(([, path = ""]) => join(dirname(file), path))
      .filter((path) => !existsSync(join(ROOT, path)))
      .map((path) => `${file}: ${path}`),
  )
  expect(broken).toEqual([])
})

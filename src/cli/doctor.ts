import { accessSync, constants, existsSync, readdirSync, readFileSync, statfsSync } from "node:fs"
import { release } from "node:os"
import { dirname } from "node:path"

import { version } from "../../package.json" with { type: "json" }
import { NativeError } from "../errors.ts"
import {
  ARCH_ISAS,
  Backend,
  type CpuInfo,
  type DeviceInfo,
  queryCpu,
  queryDevices,
} from "../native/backend.ts"
import { backendNames, libraryCandidates, probeLibrary } from "../native/library.ts"
import { JSON_FLAG } from "./args/common.ts"
import { defineCommand } from "./args/spec.ts"
import { defaultModelPath, modelsFolder } from "./home.ts"
import { listModels } from "./model-resolve.ts"
import { formatBytes, write, writeJson } from "./output.ts"

/** One thing that was looked at. */
export interface Finding {
  readonly section: string
  readonly name: string
  readonly value: string
  /** missing: it would be used if it were there; problem: something will not work. */
  readonly state: "ok" | "missing" | "problem"
  /** Why it is missing, and what to do. */
  readonly advice?: string
}

export const doctor = defineCommand({
  name: "doctor",
  summary:
    "Show what this machine offers and what is missing: CPU, memory, GPUs, libraries, models",
  flags: { ...JSON_FLAG },
  examples: [
    { command: "kt doctor", says: "each finding, and what to do about each missing thing" },
    { command: "kt doctor --json", says: "for a bug report" },
  ],
  async run({ flags }) {
    const findings = [...versions(), ...cpu(), ...memory(), ...gpus(), ...libraries(), ...models()]
    if (flags.json) await writeJson({ findings })
    else await write(report(findings))
    if (findings.some(({ state }) => state === "problem")) process.exitCode = 1
  },
})

function report(findings: readonly Finding[]): string {
  const marks = { ok: "ok", missing: "--", problem: "!!" }
  const lines: string[] = []
  let section = ""
  for (const f of findings) {
    if (f.section !== section) lines.push(...(section === "" ? [] : [""]), f.section)
    section = f.section
    lines.push(`  ${marks[f.state]}  ${f.name.padEnd(18)} ${f.value}`)
    if (f.advice !== undefined) lines.push(`      ${"".padEnd(18)} ${f.advice}`)
  }
  return `${lines.join("\n")}\n`
}

function finding(
  section: string,
  name: string,
  value: string,
  state: Finding["state"] = "ok",
  advice?: string,
): Finding {
  return { section, name, value, state, ...(advice === undefined ? {} : { advice }) }
}

function versions(): Finding[] {
  return [
    finding("Program", "kt", version),
    finding("Program", "bun", Bun.version),
    finding("Program", "system", `${process.platform} ${release()} ${process.arch}`),
  ]
}

function cpu(): Finding[] {
  const probe = probeLibrary("cpu")
  if (!probe.available) return []
  const info = queryCpu(probe.library)
  const found = [
    finding("CPU", "model", cpuModel()),
    finding("CPU", "levels", info.isas.join(", ")),
    levelInUse(),
    finding(
      "CPU",
      "cores",
      `${info.physicalCores} physical, ${info.logicalCores} logical (what this process may use)`,
    ),
    finding("CPU", "threads", threadsInUse(info)),
    finding("CPU", "caches", `L2 ${formatBytes(info.l2Bytes)}, L3 ${formatBytes(info.l3Bytes)}`),
  ]
  if (info.cpuQuota !== undefined)
    found.push(finding("CPU", "cgroup quota", `${info.cpuQuota.toFixed(1)} CPUs`))
  const missing = ARCH_ISAS.filter((isa) => !info.isas.includes(isa))
  if (missing.length > 0)
    found.push(
      finding(
        "CPU",
        "levels it lacks",
        missing.join(", "),
        "missing",
        "the CPU or the kernel does not grant them; nothing to do",
      ),
    )
  return found
}

/** What --threads 0 comes to. */
function threadsInUse({ physicalCores, cpuQuota }: CpuInfo): string {
  const forced = process.env["KT_THREADS"]
  if (forced) return `${forced} (KT_THREADS says so)`
  const why = cpuQuota === undefined ? "one a physical core" : "what the cgroup quota is enough for"
  return `${physicalCores} by default: ${why}`
}

function levelInUse(): Finding {
  const forced = process.env["KT_CPU_ISA"]
  try {
    using backend = new Backend({ threads: 1 })
    const why = forced ? " (KT_CPU_ISA says so)" : ""
    if (backend.isa === "scalar" && process.arch === "x64")
      return finding(
        "CPU",
        "level in use",
        `scalar${why}`,
        "missing",
        forced ? "unset KT_CPU_ISA" : "the CPU has no AVX2: it will be slow",
      )
    return finding("CPU", "level in use", backend.isa + why)
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error)
    return finding(
      "CPU",
      "level in use",
      text,
      "problem",
      forced ? "unset KT_CPU_ISA or name one of the levels above" : undefined,
    )
  }
}

function memory(): Finding[] {
  const found: Finding[] = []
  const probe = probeLibrary("cpu")
  if (probe.available) {
    const { memoryBytes, memoryFreeBytes } = queryCpu(probe.library)
    found.push(
      finding("Memory", "RAM", `${formatBytes(memoryBytes)}, ${formatBytes(memoryFreeBytes)} free`),
    )
  }
  const limit = cgroupValue("memory.max")
  if (limit !== undefined && limit !== "max")
    found.push(finding("Memory", "cgroup limit", formatBytes(Number(limit))))
  if (process.platform !== "linux") return found
  const thp = readLine("/sys/kernel/mm/transparent_hugepage/enabled")
  const mode = thp === undefined ? undefined : /\[(\w+)\]/.exec(thp)?.[1]
  const isUsed = mode === "always" || mode === "madvise"
  const advice = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
  found.push(
    isUsed
      ? finding("Memory", "huge pages", `transparent, ${mode}`)
      : finding(
          "Memory",
          "huge pages",
          mode ?? "not known to this kernel",
          "missing",
          mode === "never" ? advice : "the kernel has no transparent huge pages; nothing to do",
        ),
  )
  const nodes = listFolder("/sys/devices/system/node").filter((name) => /^node\d+$/.test(name))
  found.push(finding("Memory", "NUMA nodes", String(Math.max(1, nodes.length))))
  return found
}

function gpus(): Finding[] {
  const found = devices()
  if (existsSync("/dev/kfd"))
    found.push(finding("GPUs", "AMD", "/dev/kfd is there", "missing", "no backend for it is built"))
  if (found.length === 0)
    found.push(
      finding(
        "GPUs",
        "NVIDIA, AMD",
        "none found (no nvidia-smi, no /proc/driver/nvidia, no /dev/kfd)",
        "missing",
        "nothing to do on a machine without one; otherwise install its driver",
      ),
    )
  return found
}

/** Devices of the backends that are built; without one for NVIDIA, what the system says of such cards. */
function devices(): Finding[] {
  const found: Finding[] = []
  for (const backend of backendNames()) {
    const probe = probeLibrary(backend)
    if (backend === "cpu" || !probe.available) continue
    try {
      for (const device of queryDevices(probe.library)) found.push(deviceFinding(device))
    } catch (error) {
      if (!(error instanceof NativeError)) throw error
      found.push(
        finding(
          "GPUs",
          backend,
          error.message,
          "missing",
          "nothing to do on a machine without one",
        ),
      )
    }
  }
  return found.length > 0 ? found : nvidiaCards()
}

function deviceFinding(device: DeviceInfo): Finding {
  const { model, memoryBytes, memoryFreeBytes, capability, driver, linkBytesPerSecond } = device
  const parts = [
    `${model}, ${formatBytes(memoryBytes)}, ${formatBytes(memoryFreeBytes)} free`,
    ...(capability === "" ? [] : [`compute capability ${capability}`]),
    ...(driver === "" ? [] : [`driver for CUDA ${driver}`]),
    ...(linkBytesPerSecond === 0 ? [] : [`PCIe ${formatBytes(linkBytesPerSecond)}/s`]),
  ]
  return finding("GPUs", device.name, parts.join(", "))
}

function nvidiaCards(): Finding[] {
  const cards = listFolder("/proc/driver/nvidia/gpus").length
  if (cards === 0 && Bun.which("nvidia-smi") === null) return []
  const advice = "build the backend: `KT_CUDA=1 bun run setup`"
  return [
    finding("GPUs", "NVIDIA", cards > 0 ? `${cards} cards` : "driver found", "missing", advice),
  ]
}

/** Backends that have, or may have, a library. */
const BACKENDS = ["cpu", "cuda", "hip", "sycl"] as const

function libraries(): Finding[] {
  return [...new Set([...BACKENDS, ...backendNames()])].map((backend) => {
    const probe = probeLibrary(backend)
    if (probe.available) return finding("Libraries", backend, probe.library.path)
    const state = backend === "cpu" ? "problem" : "missing"
    const searched = [...new Set(libraryCandidates(backend).map((path) => dirname(path)))].join(
      ", ",
    )
    const advice =
      backend === "cpu"
        ? `build it with \`bun run setup\` or \`zig build\`; looked in ${searched}`
        : `optional; looked in ${searched}; KT_LIB_DIR names another folder`
    return finding("Libraries", backend, probe.reason, state, advice)
  })
}

function models(): Finding[] {
  const folder = modelsFolder()
  const found: Finding[] = []
  try {
    const count = listModels(folder).length
    found.push(finding("Models", "folder", `${folder}, ${count} models`))
    accessSync(nearestFolder(folder), constants.W_OK)
    const { bavail, bsize } = statfsSync(nearestFolder(folder))
    found.push(finding("Models", "disk", `${formatBytes(bavail * bsize)} free`))
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error)
    found.push(
      finding(
        "Models",
        "folder",
        text,
        "problem",
        "set KT_HOME to a folder that can be read and written",
      ),
    )
  }
  const path = defaultModelPath()
  found.push(
    existsSync(path)
      ? finding("Models", "default model", path)
      : finding(
          "Models",
          "default model",
          `${path} is not there`,
          "missing",
          "`bun run setup` downloads it",
        ),
  )
  return found
}

function nearestFolder(path: string): string {
  let folder = path
  while (!existsSync(folder) && dirname(folder) !== folder) folder = dirname(folder)
  return folder
}

function cpuModel(): string {
  const line = readLine("/proc/cpuinfo", /^model name\s*:\s*(.+)$/m)
  return line ?? process.arch
}

/** A value of this process's control group (v2), or undefined. */
function cgroupValue(name: string): string | undefined {
  const own = readLine("/proc/self/cgroup", /^0::(.+)$/m)
  return readLine(`/sys/fs/cgroup${own ?? ""}/${name}`) ?? readLine(`/sys/fs/cgroup/${name}`)
}

function readLine(file: string, pattern?: RegExp): string | undefined {
  try {
    const text = readFileSync(file, "utf8")
    return pattern === undefined ? text.trim() : pattern.exec(text)?.[1]?.trim()
  } catch {
    return undefined
  }
}

function listFolder(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

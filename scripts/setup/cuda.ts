import { existsSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs"
import { dirname, join } from "node:path"

import { KtError } from "../../src/errors.ts"
import { runPip } from "./pip.ts"
import { lastLines, removeLeftovers, requireSpace, runCommand } from "./process.ts"
import type { Report, StepResult } from "./progress.ts"
import { hashInputs, isStamped, writeStamp } from "./stamp.ts"
import { toolchainFolder, ZIG_VERSION } from "./zig.ts"

/** Version of the compiler and the runtime; drivers since 580 run what they make. */
const CUDA_VERSION = "13.0.*"
const WHEELS = ["nvcc", "crt", "runtime", "cccl"].map((part) => `nvidia-cuda-${part}`)
const WHEELS_BYTES = 450e6

/** Whether the user asks for the CUDA library. */
export function wantsCuda(): boolean {
  return process.env["KT_CUDA"] === "1"
}

/** The CUDA library that `zig build cuda` makes. */
export function builtCudaLibrary(root: string): string {
  return join(root, "zig-out", "lib", "libkt_cuda.so")
}

/** Root of a CUDA toolkit with nvcc: CUDA_HOME, PATH, the checkout's own. */
function findToolkit(root: string): string | undefined {
  const nvcc = Bun.which("nvcc")
  const candidates = [
    process.env["CUDA_HOME"],
    nvcc === null ? undefined : dirname(dirname(nvcc)),
    join(toolchainFolder(root), "cuda", "nvidia", "cu13"),
  ]
  return candidates.find((path) => path !== undefined && existsSync(join(path, "bin", "nvcc")))
}

/** nvcc and what it needs, from what is here or through pip into .toolchain/cuda. */
export async function ensureCudaToolkit(root: string, report: Report): Promise<StepResult> {
  if (Bun.which("g++") === null)
    throw new KtError("g++ was not found on PATH: nvcc needs it for the host's part of kernels", {
      hint: "install it (Debian: apt-get install g++), or unset KT_CUDA",
    })
  const folder = toolchainFolder(root)
  removeLeftovers(folder, "cuda-partial-")
  const found = findToolkit(root)
  if (found !== undefined) return { skipped: true, detail: found }
  requireSpace(folder, WHEELS_BYTES, "free some space there (df -h), or unset KT_CUDA")
  const partial = join(folder, `cuda-partial-${process.pid}`)
  mkdirSync(partial, { recursive: true })
  try {
    await runPip(
      {
        what: "CUDA's compiler",
        args: [
          "install",
          "--no-deps",
          "--target",
          join(partial, "site"),
          ...[...WHEELS, "nvidia-nvvm"].map((name) => `${name}==${CUDA_VERSION}`),
        ],
        folder: partial,
        otherwise: "or put nvcc 13 on PATH, or name its folder with CUDA_HOME, or unset KT_CUDA",
      },
      report,
    )
    const target = join(folder, "cuda")
    rmSync(target, { recursive: true, force: true })
    renameSync(join(partial, "site"), target)
    return { skipped: false, detail: "installed into .toolchain/cuda" }
  } finally {
    rmSync(partial, { recursive: true, force: true })
  }
}

/** Builds the CUDA library unless it is there, built from these very sources. */
export async function ensureCudaKernels(
  root: string,
  zig: string,
  report: Report,
): Promise<StepResult> {
  const library = builtCudaLibrary(root)
  if (existsSync(library) && isStamped(root, "cuda", stampValue(root)))
    return { skipped: true, detail: library }
  report("zig build cuda (minutes)")
  const { code, output } = await runCommand([zig, "build", "cuda"], { cwd: root })
  if (code !== 0)
    throw new KtError(`zig build cuda failed:\n${lastLines(output, 30)}`, {
      hint: `see all of it: ${zig} build cuda`,
    })
  writeStamp(root, "cuda", stampValue(root))
  return { skipped: false, detail: library }
}

function stampValue(root: string): string {
  const parts = ["build.zig", "kernels/gpu", "kernels/core", "kernels/include", "kernels/build"]
  const sources = hashInputs(
    root,
    parts.map((part) => join(root, part)),
    [ZIG_VERSION, CUDA_VERSION],
  )
  const { size, mtimeMs } = statSync(builtCudaLibrary(root))
  return `${sources} ${size} ${mtimeMs}`
}

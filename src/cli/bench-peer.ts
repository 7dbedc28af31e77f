import { ConfigError, KtError } from "../errors.ts"

/** A program with llama-bench's flags (-m -p -n -t -r -o json) and its JSON. */
export interface PeerProgram {
  readonly program: string
  readonly args: readonly string[]
}

interface PeerRun {
  readonly model: string
  readonly kind: "pp" | "tg"
  readonly tokens: number
  readonly threads: number
}

/** One repetition of the other program, in tokens/s. @throws KtError with its own last words when it fails */
export async function runPeer(peer: PeerProgram, run: PeerRun): Promise<number> {
  const { model, kind, tokens, threads } = run
  if (!model.endsWith(".gguf"))
    throw new ConfigError(`--peer needs a GGUF model, and ${model} is none`)
  const [p, n] = kind === "pp" ? [tokens, 0] : [0, tokens]
  const flags = [
    "-m",
    model,
    "-p",
    `${p}`,
    "-n",
    `${n}`,
    "-t",
    `${threads}`,
    "-r",
    "1",
    "-o",
    "json",
  ]
  const child = start([peer.program, ...flags, ...peer.args])
  const [out, err, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (status !== 0) {
    const words = err.trim().split("\n").at(-1) ?? ""
    throw new KtError(
      `${peer.program} ended with status ${status}${words === "" ? "" : `: ${words}`}`,
    )
  }
  return rateOf(peer.program, out, p, n)
}

function start(command: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> {
  try {
    return Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" })
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause)
    throw new ConfigError(`--peer ${command[0]}: cannot be run: ${reason}`, { cause })
  }
}

function rateOf(program: string, text: string, p: number, n: number): number {
  let rows: unknown
  try {
    rows = JSON.parse(text)
  } catch (cause) {
    throw new KtError(`${program} printed no JSON: ${text.slice(0, 80)}`, { cause })
  }
  const row = (Array.isArray(rows) ? rows : []).find(
    (r: { n_prompt?: unknown; n_gen?: unknown }) => r.n_prompt === p && r.n_gen === n,
  ) as { avg_ts?: unknown } | undefined
  if (typeof row?.avg_ts !== "number" || !(row.avg_ts > 0))
    throw new KtError(`${program} printed no "avg_ts" for n_prompt ${p}, n_gen ${n}`)
  return row.avg_ts
}

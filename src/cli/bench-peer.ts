import { basename } from "node:path"

import { ConfigError, KtError } from "../errors.ts"

/** A program with llama-bench's flags (-m -p -n -t -r -o json) and its JSON. */
export interface Peer {
  readonly program: string
  /** Given with every run. */
  readonly args: readonly string[]
  /** Flags that may make it faster, of which the best are used. */
  readonly variants: readonly (readonly string[])[]
  /** How it is told to begin at a depth: -d, or for generation only -gp. */
  readonly depth: "-d" | "-gp" | undefined
}

export interface PeerRun {
  readonly model: string
  readonly kind: "pp" | "tg"
  readonly tokens: number
  readonly depth: number
  readonly repetitions: number
}

/** What made a peer fastest. */
export interface PeerChoice {
  readonly threads: number
  readonly flags: readonly string[]
}

/**
 * Reads the program's help for the flags that it knows: flash attention off and on, repacking at load, fused experts.
 * @throws ConfigError where the program cannot be run
 */
export async function openPeer(program: string, args: readonly string[]): Promise<Peer> {
  const { out, err } = await output([program, "--help"])
  const help = out + err
  const knows = (flag: string): boolean =>
    new RegExp(`(^|[\\s,])${flag}[\\s,]`, "m").test(help) && !args.includes(flag)
  let variants: string[][] = [[]]
  for (const flag of ["-fa", "-rtr"])
    if (knows(flag)) variants = variants.flatMap((v) => ["0", "1"].map((n) => [...v, flag, n]))
  if (knows("-fmoe")) variants = variants.map((variant) => [...variant, "-fmoe", "1"])
  const depth = knows("-d") ? "-d" : knows("-gp") ? "-gp" : undefined
  return { program, args, variants, depth }
}

/** Short names that tell programs apart. */
export function peerLabels(peers: readonly Peer[]): string[] {
  const names = peers.map(({ program }) => basename(program))
  const isUnique = new Set(names).size === names.length
  return isUnique ? names : peers.map(({ program }) => program)
}

/** Whether the program can be asked for this. */
export function canRun({ depth }: Peer, run: PeerRun): boolean {
  return run.depth === 0 || depth === "-d" || (depth === "-gp" && run.kind === "tg")
}

/**
 * The flags and the number of threads with which one run is fastest. Generation is tried with half of the threads too:
 * hyper-threads and waiting for each other cost some programs more than they give.
 * @throws KtError of the last variant where none runs
 */
export async function choosePeer(peer: Peer, run: PeerRun, threads: number): Promise<PeerChoice> {
  const counts = run.kind === "tg" && threads > 1 ? [threads, Math.ceil(threads / 2)] : [threads]
  const choices = counts.flatMap((n) => peer.variants.map((flags) => ({ threads: n, flags })))
  if (choices.length === 1) return choices[0] as PeerChoice
  let best: { choice: PeerChoice; rate: number } | undefined
  let failure: unknown
  for (const choice of choices) {
    try {
      const rate = await runPeer(peer, run, choice)
      if (rate > (best?.rate ?? 0)) best = { choice, rate }
    } catch (error) {
      failure = error
    }
  }
  if (best === undefined) throw failure
  return best.choice
}

/** The program's own mean, in tokens/s. @throws KtError with its own last words when it fails */
export async function runPeer(peer: Peer, run: PeerRun, choice: PeerChoice): Promise<number> {
  const { model, kind, tokens, depth, repetitions } = run
  if (!model.endsWith(".gguf"))
    throw new ConfigError(`--peer needs a GGUF model, and ${model} is none`)
  const isPair = depth > 0 && peer.depth === "-gp"
  const [p, n] = kind === "pp" ? [tokens, 0] : [isPair ? depth : 0, tokens]
  const what = isPair
    ? ["-p", "0", "-n", "0", "-gp", `${p},${n}`]
    : ["-p", `${p}`, "-n", `${n}`, ...(depth > 0 ? ["-d", `${depth}`] : [])]
  const { program, args } = peer
  const how = ["-t", `${choice.threads}`, "-r", `${repetitions}`, "-o", "json"]
  const command = [program, "-m", model, ...what, ...how, ...choice.flags, ...args]
  const { out, err, status } = await output(command)
  if (status !== 0) {
    const words = err.trim().split("\n").at(-1) ?? ""
    throw new KtError(`${program} ended with status ${status}${words === "" ? "" : `: ${words}`}`)
  }
  return rateOf(program, out, p as number, n as number)
}

async function output(
  command: string[],
): Promise<{ readonly out: string; readonly err: string; readonly status: number }> {
  const child = start(command)
  const [out, err, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { out, err, status }
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
    // some builds print their hints before it
    rows = JSON.parse(text.slice(Math.max(0, text.search(/^\[/m))))
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

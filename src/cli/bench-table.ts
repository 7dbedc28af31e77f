import { UsageError } from "../errors.ts"
import type { BenchRow } from "./bench-model.ts"
import { openPeer, type Peer, peerLabels } from "./bench-peer.ts"
import { COMPUTE_KEYS } from "./engine-options.ts"
import { table } from "./output.ts"

/** More would be a typing error. */
const MAX_TOKENS = 1_048_576

/** Options of the engine that the bench commands take as they are. */
export const benchEngine = COMPUTE_KEYS.filter((key) => key !== "threads")

export const PEER_FLAGS = {
  peer: {
    type: "list",
    hint: "program",
    help: "llama-bench, or what takes its flags (repeatable)",
  },
  "peer-args": {
    type: "string",
    hint: "flags",
    default: "",
    help: "further flags for them, as one word",
  },
} as const

export async function peersOf(flags: {
  readonly peer: readonly string[]
  readonly "peer-args": string
}): Promise<Peer[]> {
  const args = flags["peer-args"].split(/\s+/).filter((arg) => arg !== "")
  return Promise.all(flags.peer.map((program) => openPeer(program, args)))
}

/** Rows as a table; with peers, what each reached and our ratio, and below with which flags. */
export function report(rows: readonly BenchRow[]): string {
  const head = ["TEST", "THREADS", "MEDIAN t/s", "MIN", "MAX", "LIMIT", "SHARE"]
  const programs = [...new Set(rows.flatMap(({ peers = [] }) => peers.map((p) => p.program)))]
  const labels = peerLabels(programs.map((program) => ({ program }) as Peer))
  for (const label of labels) head.push(`${label} t/s`, "RATIO")
  const notes: string[] = []
  const cells = rows.map((row) => {
    const line = [
      row.test,
      row.threads,
      row.median.toFixed(1),
      row.min.toFixed(1),
      row.max.toFixed(1),
      row.limit?.toFixed(1) ?? "-",
      row.share === undefined ? "-" : `${(row.share * 100).toFixed(1)} %`,
    ]
    for (const [i, program] of programs.entries()) {
      const peer = row.peers?.find((p) => p.program === program)
      line.push(peer?.median.toFixed(1) ?? "", peer?.ratio.toFixed(2) ?? "")
      if (peer !== undefined)
        notes.push(`${row.test}: ${labels[i]} -t ${peer.threads} ${peer.flags.join(" ")}`.trim())
    }
    return line
  })
  return table(head, cells) + (notes.length === 0 ? "" : `\n${notes.join("\n")}\n`)
}

/** "1,2" as numbers. */
export function counts(flag: string, text: string, min: number): number[] {
  return text.split(",").map((word) => {
    const count = word.trim() === "" ? Number.NaN : Number(word)
    if (Number.isInteger(count) && count >= min && count <= MAX_TOKENS) return count
    throw new UsageError(
      `${flag} ${text}: expected integers in ${min}..${MAX_TOKENS} with commas between`,
    )
  })
}

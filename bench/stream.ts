import { addSequence } from "../src/cli/bench-model.ts"
import type { Engine } from "../src/engine/engine.ts"

/** A short prompt, the same on every side of a comparison. */
export const PROMPT = Int32Array.from({ length: 16 }, (_, i) => 1000 + 37 * i)

/** Tokens per second: of one sequence after its first token, of several together from their start. */
export function streamRate(engine: Engine, tokens: number, streams = 1): number {
  let first = performance.now()
  for (let id = 1; id <= streams; id++) addSequence(engine, id, PROMPT, tokens)
  let count = 0
  while (engine.hasWork) {
    for (const { token } of engine.step())
      if (token >= 0 && count++ === 0 && streams === 1) first = performance.now()
  }
  return ((streams === 1 ? count - 1 : count) / (performance.now() - first)) * 1000
}

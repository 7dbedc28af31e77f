import { addSequence } from "../src/cli/bench-model.ts"
import type { Engine } from "../src/engine/engine.ts"

/** A short prompt, the same on every side of a comparison. */
export const PROMPT = Int32Array.from({ length: 16 }, (_, i) => 1000 + 37 * i)

/** Tokens per second after the first token of one sequence, whose end is its length. */
export function streamRate(engine: Engine, tokens: number): number {
  addSequence(engine, 1, PROMPT, tokens)
  let first = 0
  let count = 0
  while (engine.hasWork) {
    for (const { token } of engine.step()) {
      if (token >= 0 && count++ === 0) first = performance.now()
    }
  }
  return ((count - 1) / (performance.now() - first)) * 1000
}

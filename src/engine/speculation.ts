import { NgramDraft } from "./ngram.ts"
import type { Sequence } from "./sequence.ts"

/** Guesses the next tokens of sequences; a step checks them with the token that it computes anyway. */
export interface Drafter {
  /** Puts guesses behind the tokens of sequences that generate, `most` tokens each. */
  propose(seqs: readonly Sequence[], most: number): void
  /** What came of a guess. */
  observe(seq: Sequence, drafted: number, accepted: number): void
}

/**
 * Tokens of all sequences in a step that checks guesses. Up to as many are computed nearly in the time of one, and each as
 * if it were alone: from the next on, products of int8 activations are summed in another order.
 */
const MAX_STEP_ROWS = 8
export const MAX_DRAFT_ROWS = MAX_STEP_ROWS - 1

export interface SpeculationStats {
  readonly draftedTokensTotal: number
  readonly acceptedTokensTotal: number
}

/** Decides which sequences get guesses and counts what comes of them. */
export class Speculation {
  readonly #drafter: Drafter
  readonly #chosen: Sequence[] = []
  #drafted = 0
  #accepted = 0

  constructor(drafter: Drafter) {
    this.#drafter = drafter
  }

  /** Before a step: guesses for sequences whose next token is wanted. `maxLength`: tokens that a sequence may have. */
  propose(running: readonly Sequence[], maxLength: number): void {
    const chosen = this.#chosen
    let rows = 0
    chosen.length = 0
    for (const seq of running) {
      seq.numDraft = 0
      if (seq.numRemaining === 1) rows++
      if (canGuess(seq, maxLength)) chosen.push(seq)
    }
    let left = MAX_STEP_ROWS - rows
    if (chosen.length === 0 || left <= 0) return
    this.#drafter.propose(chosen, left)
    // what comes after the last token that may be generated is of no use
    for (const [i, seq] of chosen.entries()) {
      seq.numDraft = Math.min(
        seq.numDraft,
        // those that have no guess leave their share to the others
        Math.ceil(left / (chosen.length - i)),
        seq.params.maxTokens - seq.numGenerated - 1,
        maxLength - seq.length - 1,
      )
      left -= seq.numDraft
    }
  }

  observe(seq: Sequence, drafted: number, accepted: number): void {
    seq.drafted += drafted
    seq.accepted += accepted
    this.#drafted += drafted
    this.#accepted += accepted
    this.#drafter.observe(seq, drafted, accepted)
  }

  stats(): SpeculationStats {
    return { draftedTokensTotal: this.#drafted, acceptedTokensTotal: this.#accepted }
  }
}

/** What a grammar or bounded reasoning allows is known for the next token only: such sequences go on token by token. */
function canGuess(seq: Sequence, maxLength: number): boolean {
  return (
    seq.numRemaining === 1 &&
    seq.numGenerated > 0 &&
    seq.grammar === undefined &&
    seq.thinking?.isInside !== true &&
    seq.params.maxTokens - seq.numGenerated > 1 &&
    maxLength - seq.length > 1
  )
}

/** Guesses by looking the last tokens up in the sequence itself. */
export class NgramDrafter implements Drafter {
  readonly #lookup: number
  readonly #most: number
  readonly #drafts = new WeakMap<Sequence, NgramDraft>()

  constructor(lookup: number, most: number) {
    this.#lookup = lookup
    this.#most = most
  }

  propose(seqs: readonly Sequence[], most: number): void {
    for (const seq of seqs) this.#of(seq).propose(seq, most)
  }

  observe(seq: Sequence, drafted: number, accepted: number): void {
    this.#of(seq).observe(drafted, accepted)
  }

  #of(seq: Sequence): NgramDraft {
    let draft = this.#drafts.get(seq)
    if (draft === undefined)
      this.#drafts.set(seq, (draft = new NgramDraft(this.#lookup, this.#most)))
    return draft
  }
}

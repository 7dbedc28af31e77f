/** After guesses that were all wrong there are steps without any, twice as many with each further one. */
const LONGEST_PAUSE = 64
/** Products take tokens in fours: a step with as many guesses costs a quarter more, one with 7 four quarters. */
const FIRST_DRAFT = 3

/** How many tokens to guess, by how the guesses before did. */
export class Pace {
  #isSure = false
  #misses = 0
  #pause = 0

  /** Of a step that could have a guess: its length, 0 for none. */
  next(most: number): number {
    if (this.#pause > 0) {
      this.#pause--
      return 0
    }
    return this.#isSure ? most : Math.min(most, FIRST_DRAFT)
  }

  /** The last guess was wrong from its first token on. */
  get isDoubtful(): boolean {
    return this.#misses > 0
  }

  observe(drafted: number, accepted: number): void {
    this.#isSure = accepted === drafted
    if (accepted > 0) {
      this.#misses = 0
      return
    }
    this.#misses++
    this.#pause = Math.min(LONGEST_PAUSE, 2 ** (this.#misses - 1))
  }
}

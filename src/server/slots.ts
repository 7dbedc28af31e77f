import { RequestError } from "../errors.ts"
import type { EngineClient } from "../worker/protocol.ts"

/** A place that a client can name: what the last sequence there was made of. */
export interface Slot {
  readonly id: number
  /** Prompt and answer. */
  tokens: readonly number[]
  promptLength: number
  /** Sequences that run there. */
  active: number
  usedMs: number
}

const books = new WeakMap<EngineClient, SlotBook>()

/** llama.cpp's slots of an engine. The scheduler knows nothing of them: they are names for what was last said there. */
export class SlotBook {
  readonly slots: readonly Slot[]
  /** Saving and restoring are done one after the other. */
  #work: Promise<unknown> = Promise.resolve()

  private constructor(count: number) {
    const fresh = { tokens: [], promptLength: 0, active: 0, usedMs: 0 }
    this.slots = Array.from({ length: count }, (_, id) => ({ id, ...fresh }))
  }

  static of(client: EngineClient): SlotBook {
    return books.getOrInsertComputed(client, () => new SlotBook(client.info.maxBatchSize))
  }

  /**
   * The slot that is asked for; without one (-1), of those with the least to do the one used longest ago. RequestError
   * 400 where there is none of that number.
   */
  take(id: number): Slot {
    if (id >= this.slots.length)
      throw new RequestError(400, `id_slot ${id}: there are ${this.slots.length} slots`, {
        code: "invalid_value",
        param: "id_slot",
      })
    const [idlest] = this.slots.toSorted((a, b) => a.active - b.active || a.usedMs - b.usedMs)
    const slot = this.slots[id] ?? idlest
    if (slot === undefined) throw new RangeError("an engine without places")
    slot.active++
    slot.usedMs = performance.now()
    return slot
  }

  /** A slot in which nothing has been begun. */
  giveBack(slot: Slot): void {
    slot.active--
  }

  /** A sequence there has ended. The last token's keys and values are not known: nothing followed it. */
  settle(slot: Slot, ids: Int32Array, generated: readonly number[]): void {
    slot.active--
    slot.usedMs = performance.now()
    slot.tokens = [...ids, ...generated.slice(0, -1)]
    slot.promptLength = ids.length
  }

  /** Tokens at the beginning of a slot that another one has too. */
  shared(slot: Slot): number {
    let most = 0
    for (const { id, tokens } of this.slots) {
      if (id === slot.id) continue
      let i = 0
      while (i < slot.tokens.length && tokens[i] === slot.tokens[i]) i++
      most = Math.max(most, i)
    }
    return most
  }

  alone<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#work.then(work)
    this.#work = done.catch(() => {})
    return done
  }
}

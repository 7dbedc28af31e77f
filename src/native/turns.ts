import { DeviceError, KtError } from "../errors.ts"
import { KT_TURN_SECONDS, layouts } from "./abi.generated.ts"
import type { Address, Library } from "./library.ts"
import { Slab } from "./memory.ts"

const HEAD_BYTES = layouts.kt_turns.size
const TURN_BYTES = layouts.kt_turn.size
/** Of one step: two for each layer whose experts the host computes. */
const MAX_POINTS = 2048

/** Points at which a device and the host wait for each other within a launch that both compute. */
export class Turns implements Disposable {
  readonly #slab: Slab
  readonly #words: Int32Array
  readonly #label: string
  #points = 0
  /** The last launch that the caller knows to have failed. */
  #failed = 0

  /** @throws NativeError where no memory can be had that both reach */
  constructor(library: Library, label: string) {
    this.#slab = new Slab(library, HEAD_BYTES + MAX_POINTS * TURN_BYTES, { pinned: true })
    this.#words = new Int32Array(this.#slab.view())
    this.#label = label
  }

  get address(): Address {
    return this.#slab.address
  }

  /** Points are given out anew: another step is recorded. */
  rewind(): void {
    this.#points = 0
  }

  next(): number {
    if (this.#points === MAX_POINTS) throw new KtError(`a step of more than ${MAX_POINTS} turns`)
    return this.#points++
  }

  /** Another launch begins. */
  begin(): void {
    const last = this.#words[0] as number
    Atomics.store(this.#words, 0, last === 0x7fffffff ? 1 : last + 1)
  }

  /** Nobody is to wait any more in this launch, which failed. */
  giveUp(): void {
    this.#failed = this.#words[0] as number
    Atomics.store(this.#words, layouts.kt_turns.fields.given_up / 4, this.#words[0] as number)
  }

  /** @throws DeviceError where the last launch, whose ops are done, was given up by one who had waited too long */
  check(): void {
    const launch = this.#words[0] as number
    if (launch === this.#failed || this.#words[layouts.kt_turns.fields.given_up / 4] !== launch)
      return
    throw new DeviceError(
      `${this.#label} and the CPU have waited ${KT_TURN_SECONDS} s for each other in vain`,
    )
  }

  /** Milliseconds that a point was waited for in the last launch. */
  waitedMs(point: number): number {
    const at = (HEAD_BYTES + point * TURN_BYTES + layouts.kt_turn.fields.waited_ns) / 4
    const [low, high] = [this.#words[at] as number, this.#words[at + 1] as number]
    return ((low >>> 0) + high * 2 ** 32) / 1e6
  }

  [Symbol.dispose](): void {
    this.#slab[Symbol.dispose]()
  }
}

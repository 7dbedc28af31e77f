/**
 * Engines of one process share its cores: a step of one uses them all. They take turns, in the order in which they ask,
 * so that none starves and their pools do not fight; an engine that is alone pays two atomic operations a step.
 */
export class Turns {
  readonly #state: Int32Array

  /** @param buffer Of `Turns.buffer()`, shared by the engines */
  constructor(buffer: SharedArrayBuffer) {
    this.#state = new Int32Array(buffer)
  }

  static buffer(): SharedArrayBuffer {
    return new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT)
  }

  /** Runs `work` when it is this engine's turn; blocks the thread until then. */
  run<T>(work: () => T): T {
    const ticket = Atomics.add(this.#state, NEXT, 1)
    for (;;) {
      const serving = Atomics.load(this.#state, SERVING)
      if (serving === ticket) break
      Atomics.wait(this.#state, SERVING, serving)
    }
    try {
      return work()
    } finally {
      Atomics.add(this.#state, SERVING, 1)
      Atomics.notify(this.#state, SERVING)
    }
  }
}

const NEXT = 0
const SERVING = 1

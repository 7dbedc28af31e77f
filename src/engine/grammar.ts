import { MessageChannel, type MessagePort } from "node:worker_threads"

import { ConfigError, KtError } from "../errors.ts"
import type { TokenTable } from "../worker/protocol.ts"
import {
  BELL,
  COMPILING,
  ENDING,
  type FromGrammars,
  GIVEN,
  type GrammarWorkerStart,
  IS_WRONG,
  MASK,
  SHARED_BYTES,
  TAKEN,
  type ToGrammars,
  TOKEN,
} from "./grammar-messages.ts"

/** Compiled grammars that are kept: a busy server sees few different schemas. */
const MAX_COMPILED = 64
/** One compiles while the sequences of the other go on. */
const MAX_THREADS = 2
/** A mask takes a fraction of a millisecond, a large grammar seconds: later than this means that the thread hangs. */
const LOST_MS = 60_000

/**
 * What sequences must match, and the masks that make them do so, by xgrammar, in threads of their own: neither the first
 * grammar nor any later one holds up a step. A grammar is a structural tag as JSON text (JSON schemas, regular
 * expressions, EBNF and fixed text in sequence); equal texts are compiled once.
 */
export class Grammars implements Disposable {
  readonly #vocabSize: number
  #table: TokenTable | undefined
  readonly #threads: GrammarThread[] = []
  /** Who has compiled a grammar; the one used last comes last. */
  readonly #owners = new Map<string, GrammarThread>()

  constructor(vocabSize: number) {
    this.#vocabSize = vocabSize
  }

  /** The first thread is made ready at once: whoever runs when the first grammar comes is not held up by that. */
  setVocabulary(table: TokenTable): void {
    this.#table = table
    if (this.#threads.length > 0) return
    const thread = new GrammarThread(table, this.#vocabSize)
    thread.prepare()
    this.#threads.push(thread)
  }

  /**
   * @param written The beginning of the text, which is there already
   * @throws ConfigError when the grammar cannot be compiled, or does not allow what is written
   */
  async matcher(
    grammar: string,
    stopTokens: readonly number[],
    written = "",
  ): Promise<SequenceGrammar> {
    const thread = this.#threadFor(grammar)
    this.#owners.delete(grammar)
    this.#owners.set(grammar, thread)
    for (const [key, owner] of this.#owners) {
      if (this.#owners.size <= MAX_COMPILED) break
      this.#owners.delete(key)
      owner.forget(key)
    }
    try {
      return await thread.matcher(grammar, stopTokens, written)
    } catch (error) {
      if (!(error instanceof ConfigError)) this.#drop(thread)
      throw error
    }
  }

  /** Who has it, else who has nothing to do, else a new one while there may be more. */
  #threadFor(grammar: string): GrammarThread {
    const owner = this.#owners.get(grammar)
    if (owner !== undefined) return owner
    const [idlest] = this.#threads.toSorted((a, b) => a.numMatchers - b.numMatchers)
    if (idlest !== undefined)
      if (idlest.numMatchers === 0 || this.#threads.length === MAX_THREADS) return idlest
    if (this.#table === undefined) throw new ConfigError("the engine has no table of tokens")
    const thread = new GrammarThread(this.#table, this.#vocabSize)
    this.#threads.push(thread)
    return thread
  }

  /** A thread that ended is not asked again. */
  #drop(thread: GrammarThread): void {
    const at = this.#threads.indexOf(thread)
    if (at >= 0) this.#threads.splice(at, 1)
    for (const [key, owner] of this.#owners) if (owner === thread) this.#owners.delete(key)
    thread[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    for (const thread of this.#threads.splice(0)) thread[Symbol.dispose]()
    this.#owners.clear()
  }
}

interface Waiting {
  readonly resolve: () => void
  readonly reject: (error: KtError) => void
}

/** A thread that compiles grammars and keeps their matchers. */
class GrammarThread implements Disposable {
  readonly #worker: Worker & { ref(): void; unref(): void }
  readonly #port: MessagePort
  readonly #bell: Int32Array
  readonly #words: number
  readonly #waiting = new Map<number, Waiting>()
  #nextId = 1
  numMatchers = 0

  constructor(table: TokenTable, vocabSize: number) {
    this.#words = Math.ceil(vocabSize / 32)
    this.#worker = new Worker(workerEntry().href, { name: "kt-grammar" }) as Worker & {
      ref(): void
      unref(): void
    }
    const { port1, port2 } = new MessageChannel()
    this.#port = port1
    const shared = new SharedArrayBuffer(SHARED_BYTES)
    this.#bell = new Int32Array(shared)
    port1.on("message", (message: FromGrammars) => this.#receive(message))
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault()
      this.#fail(new KtError(`the grammars' thread stopped: ${event.message}`))
    })
    this.#worker.addEventListener("close", () =>
      this.#fail(new KtError("the grammars' thread ended")),
    )
    const start: GrammarWorkerStart = { port: port2, shared, table, vocabSize }
    this.#worker.postMessage(start, [port2 as unknown as Transferable])
  }

  prepare(): void {
    this.#post({ type: "prepare" })
    this.#rest()
  }

  async matcher(
    grammar: string,
    stopTokens: readonly number[],
    written: string,
  ): Promise<SequenceGrammar> {
    const id = this.#nextId++
    const state = new SharedArrayBuffer((MASK + this.#words) * Int32Array.BYTES_PER_ELEMENT)
    this.numMatchers++
    try {
      // the process may end without the thread, but not while somebody waits for it
      this.#worker.ref()
      this.#port.ref()
      await new Promise<void>((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject })
        this.#post({ type: "matcher", id, grammar, stopTokens, written, state })
      })
    } catch (error) {
      this.numMatchers--
      throw error
    } finally {
      if (this.#waiting.size === 0) this.#rest()
    }
    return new SequenceGrammar(state, this.#bell, stopTokens, () => {
      this.numMatchers--
      this.#post({ type: "release", id })
    })
  }

  /** Nobody waits for it: the process may end without it. */
  #rest(): void {
    this.#worker.unref()
    this.#port.unref()
  }

  forget(grammar: string): void {
    this.#post({ type: "forget", grammar })
  }

  #receive(message: FromGrammars): void {
    const waiting = this.#waiting.get(message.id)
    this.#waiting.delete(message.id)
    if (message.type === "made") return waiting?.resolve()
    const { reason, isWritten } = message
    const why = isWritten
      ? "the text that is to be continued does not begin what the grammar or the schema allows"
      : `the grammar cannot be compiled: ${reason}`
    waiting?.reject(new ConfigError(why))
  }

  #fail(error: KtError): void {
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
  }

  #post(message: ToGrammars): void {
    this.#port.postMessage(message)
    ring(this.#bell)
  }

  [Symbol.dispose](): void {
    // it has no memory but its own, and may be ended wherever it is, once it is awake
    Atomics.store(this.#bell, ENDING, 1)
    ring(this.#bell)
    this.#fail(new KtError("the engine is closed"))
    this.#port.close()
    this.#worker.terminate()
  }
}

/** How far one sequence is in its grammar. */
export class SequenceGrammar implements Disposable {
  readonly #state: Int32Array
  readonly #mask: Int32Array
  readonly #bell: Int32Array
  readonly #stopTokens: readonly number[]
  readonly #release: () => void
  #isReleased = false
  /** The end has been reached, a stop token included. */
  isTerminated = false

  constructor(
    state: SharedArrayBuffer,
    bell: Int32Array,
    stopTokens: readonly number[],
    release: () => void,
  ) {
    this.#state = new Int32Array(state)
    this.#mask = this.#state.subarray(MASK)
    this.#bell = bell
    this.#stopTokens = stopTokens
    this.#release = release
  }

  /** Bit i % 32 of word floor(i / 32) says whether token i may come next. Waits for the thread where it is not ready. */
  get mask(): Int32Array {
    if (!this.wait(LOST_MS)) throw new KtError(`the grammars' thread gave no mask in ${LOST_MS} ms`)
    if (this.#state[IS_WRONG] === 1) {
      const token = this.#state[TOKEN]
      throw new ConfigError(`token ${token} is not what the grammar allows`)
    }
    return this.#mask
  }

  /** Moves on by a token that the mask allowed. */
  accept(token: number): void {
    if (this.isTerminated) return
    // one that was forced may follow another before its mask was looked at
    this.wait(LOST_MS)
    this.isTerminated = this.#stopTokens.includes(token)
    Atomics.store(this.#state, TOKEN, token)
    Atomics.add(this.#state, GIVEN, 1)
    ring(this.#bell)
  }

  /** The mask is there, or will be in a moment: its thread compiles nothing. */
  get isReady(): boolean {
    return Atomics.load(this.#bell, COMPILING) === 0 || this.#isTaken()
  }

  /** Whether the mask is there after at most so long. */
  wait(ms: number): boolean {
    const until = performance.now() + ms
    for (;;) {
      const taken = Atomics.load(this.#state, TAKEN)
      if (taken === Atomics.load(this.#state, GIVEN)) return true
      const left = until - performance.now()
      if (left <= 0) return false
      Atomics.wait(this.#state, TAKEN, taken, left)
    }
  }

  #isTaken(): boolean {
    return Atomics.load(this.#state, TAKEN) === Atomics.load(this.#state, GIVEN)
  }

  [Symbol.dispose](): void {
    if (this.#isReleased) return
    this.#isReleased = true
    this.#release()
  }
}

function ring(bell: Int32Array): void {
  Atomics.add(bell, BELL, 1)
  Atomics.notify(bell, BELL)
}

/** In the binary the bundle's root stands for src/, and this code lies in the program's file there or in the engine Worker's. */
function workerEntry(): URL {
  const { url } = import.meta
  if (!Bun.isStandaloneExecutable) return new URL("./grammar-worker.ts", url)
  return new URL(`${/\/worker\/[^/]*$/.test(url) ? ".." : "."}/engine/grammar-worker.ts`, url)
}

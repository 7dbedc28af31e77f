import { receiveMessageOnPort } from "node:worker_threads"

import type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from "@mlc-ai/web-xgrammar"

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
  TAKEN,
  type ToGrammars,
  TOKEN,
} from "./grammar-messages.ts"

interface Matcher {
  readonly matcher: GrammarMatcher
  readonly state: Int32Array
}

declare const self: Worker

// set before anything is awaited: messages that come before a handler exists are lost
self.onmessage = (event: MessageEvent): void => serve(event.data as GrammarWorkerStart)

/**
 * Compiles grammars and keeps their matchers. While there are matchers the thread sleeps on the bell, which a step rings
 * for each token; the masks are ready before the next step has its logits.
 */
function serve({ port, shared, table, vocabSize }: GrammarWorkerStart): void {
  const bell = new Int32Array(shared)
  const matchers = new Map<number, Matcher>()
  const compiled = new Map<string, Promise<CompiledGrammar>>()
  let compiler: Promise<GrammarCompiler> | undefined
  const messages: ToGrammars[] = []
  let isRunning = false
  const post = (message: FromGrammars): void => port.postMessage(message)

  /** Takes the tokens that were given. */
  const takeTokens = async (): Promise<void> => {
    for (const { matcher, state } of matchers.values()) {
      const given = Atomics.load(state, GIVEN)
      if (given === Atomics.load(state, TAKEN)) continue
      if (!matcher.isTerminated()) {
        if (!matcher.acceptToken(Atomics.load(state, TOKEN))) Atomics.store(state, IS_WRONG, 1)
        else if (!matcher.isTerminated()) state.set(await matcher.getNextTokenBitmask(), MASK)
      }
      Atomics.store(state, TAKEN, given)
      Atomics.notify(state, TAKEN)
    }
  }

  const prepare = (): Promise<GrammarCompiler> => (compiler ??= makeCompiler(table, vocabSize))

  const compile = async (grammar: string): Promise<CompiledGrammar> => {
    let made = compiled.get(grammar)
    made ??= prepare().then((one) => one.compileStructuralTag(grammar))
    compiled.set(grammar, made)
    return made
  }

  const makeMatcher = async (message: ToGrammars & { type: "matcher" }): Promise<void> => {
    const { id, grammar, stopTokens, written } = message
    Atomics.store(bell, COMPILING, 1)
    try {
      // whoever has not seen the flag counts on it
      await takeTokens()
      const { GrammarMatcher } = await library()
      const matcher = await GrammarMatcher.createGrammarMatcher(await compile(grammar), [
        ...stopTokens,
      ])
      if (written !== "" && !matcher._acceptString(written)) {
        matcher.dispose()
        return post({ type: "refused", id, reason: "", isWritten: true })
      }
      const state = new Int32Array(message.state)
      state.set(await matcher.getNextTokenBitmask(), MASK)
      matchers.set(id, { matcher, state })
      post({ type: "made", id })
    } catch (error) {
      compiled.delete(grammar)
      post({ type: "refused", id, reason: reasonOf(error), isWritten: false })
    } finally {
      Atomics.store(bell, COMPILING, 0)
    }
  }

  const handle = async (message: ToGrammars): Promise<void> => {
    switch (message.type) {
      case "prepare":
        // the first grammar says what is wrong
        await prepare().catch(() => {})
        return
      case "matcher":
        return makeMatcher(message)
      case "release":
        matchers.get(message.id)?.matcher.dispose()
        matchers.delete(message.id)
        return
      case "forget": {
        const made = compiled.get(message.grammar)
        compiled.delete(message.grammar)
        // matchers hold what they need of it
        void made?.then((one) => one.dispose()).catch(() => {})
      }
    }
  }

  const run = async (): Promise<void> => {
    isRunning = true
    while (Atomics.load(bell, ENDING) === 0) {
      const seen = Atomics.load(bell, BELL)
      await takeTokens()
      for (let next = receiveMessageOnPort(port); next; next = receiveMessageOnPort(port))
        messages.push(next.message as ToGrammars)
      const message = messages.shift()
      if (message !== undefined) await handle(message)
      else if (matchers.size === 0) break
      else Atomics.wait(bell, BELL, seen)
    }
    isRunning = false
  }

  port.on("message", (message: ToGrammars) => {
    messages.push(message)
    if (!isRunning) void run()
  })
}

async function makeCompiler(table: TokenTable, vocabSize: number): Promise<GrammarCompiler> {
  const { GrammarCompiler, TokenizerInfo } = await library()
  const tokens = Array.from(table.ends.subarray(0, vocabSize), (end, id) =>
    table.bytes.subarray(id === 0 ? 0 : table.ends[id - 1], end),
  )
  const info = await TokenizerInfo.createTokenizerInfo(
    // the binding takes bytes where its types say text: no text has the bytes of every token
    tokens as unknown as string[],
    "raw",
    false,
    vocabSize,
    [],
  )
  // grammars are cached here, where their number is bounded
  return GrammarCompiler.createGrammarCompiler(info, false)
}

/** A megabyte that only constrained output needs. */
function library(): Promise<typeof import("@mlc-ai/web-xgrammar")> {
  return import("@mlc-ai/web-xgrammar")
}

function reasonOf(error: unknown): string {
  if (error instanceof Error) return error.message
  return typeof error === "string" ? error : "xgrammar refuses it"
}

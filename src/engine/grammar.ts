import type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from "@mlc-ai/web-xgrammar"

import { ConfigError } from "../errors.ts"

/** Compiled grammars that are kept: a busy server sees few different schemas. */
const MAX_COMPILED = 64

/**
 * What sequences must match, and the masks that make them do so, by xgrammar. A grammar is a structural tag as JSON text
 * (JSON schemas, regular expressions, EBNF and fixed text in sequence); equal texts are compiled once.
 */
export class Grammars implements Disposable {
  readonly #vocabSize: number
  #tokens: readonly string[] | undefined
  #compiler: Promise<GrammarCompiler> | undefined
  readonly #compiled = new Map<string, Promise<CompiledGrammar>>()
  /** Matchers whose mask is of a state before their last token. */
  readonly #stale = new Set<SequenceGrammar>()

  constructor(vocabSize: number) {
    this.#vocabSize = vocabSize
  }

  /** Tokens as their bytes in GPT-2's letters, one for each byte; "" for those that no text is made of. */
  setVocabulary(tokens: readonly string[]): void {
    this.#tokens = tokens
  }

  /** @throws ConfigError when the grammar cannot be compiled */
  async matcher(grammar: string, stopTokens: readonly number[]): Promise<SequenceGrammar> {
    const compiled = await this.#compile(grammar)
    const { GrammarMatcher } = await library()
    const matcher = await GrammarMatcher.createGrammarMatcher(compiled, [...stopTokens])
    const made = new SequenceGrammar(matcher, this.#stale)
    await made.refresh()
    return made
  }

  /** Masks that need no update: true without waiting for anything. */
  get isFresh(): boolean {
    return this.#stale.size === 0
  }

  /** Brings all masks up to date. */
  async refresh(): Promise<void> {
    for (const grammar of this.#stale) await grammar.refresh()
    this.#stale.clear()
  }

  async #compile(grammar: string): Promise<CompiledGrammar> {
    let compiled = this.#compiled.get(grammar)
    this.#compiled.delete(grammar)
    compiled ??= this.#newCompiler().then((compiler) => compiler.compileStructuralTag(grammar))
    // the last in the map is the one used last
    this.#compiled.set(grammar, compiled)
    for (const key of this.#compiled.keys()) {
      if (this.#compiled.size <= MAX_COMPILED) break
      this.#forget(key)
    }
    try {
      return await compiled
    } catch (error) {
      this.#compiled.delete(grammar)
      throw new ConfigError(`the grammar cannot be compiled: ${reason(error)}`)
    }
  }

  #newCompiler(): Promise<GrammarCompiler> {
    this.#compiler ??= this.#makeCompiler()
    return this.#compiler
  }

  async #makeCompiler(): Promise<GrammarCompiler> {
    if (this.#tokens === undefined) throw new ConfigError("the engine has no table of tokens")
    const tokens = this.#tokens.slice(0, this.#vocabSize)
    const { GrammarCompiler, TokenizerInfo } = await library()
    const info = await TokenizerInfo.createTokenizerInfo(
      tokens,
      "byte_level",
      false,
      this.#vocabSize,
      [],
    )
    // grammars are cached here, where their number is bounded
    return GrammarCompiler.createGrammarCompiler(info, false)
  }

  #forget(key: string): void {
    const compiled = this.#compiled.get(key)
    this.#compiled.delete(key)
    // matchers hold what they need of it
    void compiled?.then((one) => one.dispose()).catch(() => {})
  }

  [Symbol.dispose](): void {
    for (const key of this.#compiled.keys()) this.#forget(key)
    void this.#compiler?.then((compiler) => compiler.dispose()).catch(() => {})
  }
}

/** How far one sequence is in its grammar. */
export class SequenceGrammar implements Disposable {
  readonly #matcher: GrammarMatcher
  readonly #stale: Set<SequenceGrammar>
  /** Bit i % 32 of word floor(i / 32) says whether token i may come next. */
  mask: Int32Array = new Int32Array(0)

  constructor(matcher: GrammarMatcher, stale: Set<SequenceGrammar>) {
    this.#matcher = matcher
    this.#stale = stale
  }

  /** Moves on by a token that the mask allowed. */
  accept(token: number): void {
    if (this.#matcher.isTerminated()) return
    if (!this.#matcher.acceptToken(token))
      throw new ConfigError(`token ${token} is not what the grammar allows`)
    this.#stale.add(this)
  }

  /** The end has been reached, a stop token included. */
  get isTerminated(): boolean {
    return this.#matcher.isTerminated()
  }

  async refresh(): Promise<void> {
    if (!this.#matcher.isTerminated()) this.mask = await this.#matcher.getNextTokenBitmask()
  }

  [Symbol.dispose](): void {
    this.#stale.delete(this)
    this.#matcher.dispose()
  }
}

/** A megabyte that only constrained output needs: not part of every start. */
function library(): Promise<typeof import("@mlc-ai/web-xgrammar")> {
  return import("@mlc-ai/web-xgrammar")
}

function reason(error: unknown): string {
  if (error instanceof Error) return error.message
  return typeof error === "string" ? error : "xgrammar refuses it"
}

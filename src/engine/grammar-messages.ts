import type { MessagePort } from "node:worker_threads"

import type { TokenTable } from "../worker/protocol.ts"

/** What a grammar's thread is given at the start. */
export interface GrammarWorkerStart {
  readonly port: MessagePort
  /** Int32: how often there was something to do, whether a grammar is being compiled, whether the thread is to end. */
  readonly shared: SharedArrayBuffer
  readonly table: TokenTable
  /** Logits of a row: the table may have fewer tokens. */
  readonly vocabSize: number
}

export type ToGrammars =
  /** What grammars of this vocabulary need is made before the first one comes. */
  | { readonly type: "prepare" }
  | {
      readonly type: "matcher"
      readonly id: number
      readonly grammar: string
      readonly stopTokens: readonly number[]
      /** What has been written already. */
      readonly written: string
      readonly state: SharedArrayBuffer
    }
  | { readonly type: "release"; readonly id: number }
  | { readonly type: "forget"; readonly grammar: string }

export type FromGrammars =
  | { readonly type: "made"; readonly id: number }
  /** Why there is no such matcher; `isWritten` where it is for what has been written. */
  | {
      readonly type: "refused"
      readonly id: number
      readonly reason: string
      readonly isWritten: boolean
    }

/** Places in `shared`. */
export const BELL = 0
export const COMPILING = 1
export const ENDING = 2
export const SHARED_BYTES = 12

/** Places in a matcher's state: tokens given, tokens taken, the last token, whether one was wrong; then the mask. */
export const GIVEN = 0
export const TAKEN = 1
export const TOKEN = 2
export const IS_WRONG = 3
export const MASK = 4

/** Token ids, including those given to texts outside the vocabulary, stay below this. */
export const ID_SPAN = 2 ** 22

/** Which neighbours may merge. */
export interface PairTable {
  /** rank × ID_SPAN + id of the merged symbol, or -1 where the two do not merge. Lower ranks merge first. */
  lookup(left: number, right: number): number
}

/** Up to here a scan for the lowest rank beats a heap. */
const SCAN_LIMIT = 24
const POSITION_SPAN = 2 ** 31

/**
 * Replaces `symbols[0..count)` by what byte-pair encoding makes of it and returns the new count: the pair of
 * lowest rank merges first and, among equal ranks, the leftmost (Sennrich et al. 2016; SentencePiece's BPE with
 * ranks in the order of falling scores).
 */
export class Merger {
  #next = new Int32Array(256)
  #previous = new Int32Array(256)
  #heap = new Float64Array(512)
  #size = 0
  readonly #pairs = new Float64Array(SCAN_LIMIT)

  run(symbols: Int32Array, count: number, table: PairTable): number {
    return count <= SCAN_LIMIT
      ? this.#scan(symbols, count, table)
      : this.#queue(symbols, count, table)
  }

  #scan(symbols: Int32Array, start: number, table: PairTable): number {
    const pairs = this.#pairs
    let count = start
    for (let i = 0; i + 1 < count; i++) pairs[i] = table.lookup(symbols[i]!, symbols[i + 1]!)
    for (;;) {
      let best = -1
      let bestRank = Infinity
      for (let i = 0; i + 1 < count; i++) {
        const pair = pairs[i]!
        if (pair < 0) continue
        const rank = Math.floor(pair / ID_SPAN)
        if (rank < bestRank) {
          best = i
          bestRank = rank
        }
      }
      if (best < 0) return count
      symbols[best] = pairs[best]! - bestRank * ID_SPAN
      count--
      symbols.copyWithin(best + 1, best + 2, count + 1)
      pairs.copyWithin(best, best + 1, count)
      if (best > 0) pairs[best - 1] = table.lookup(symbols[best - 1]!, symbols[best]!)
      if (best + 1 < count) pairs[best] = table.lookup(symbols[best]!, symbols[best + 1]!)
    }
  }

  #queue(symbols: Int32Array, count: number, table: PairTable): number {
    if (this.#next.length < count) {
      this.#next = new Int32Array(count * 2)
      this.#previous = new Int32Array(count * 2)
    }
    const next = this.#next
    const previous = this.#previous
    for (let i = 0; i < count; i++) {
      next[i] = i + 1 < count ? i + 1 : -1
      previous[i] = i - 1
    }
    this.#size = 0
    const offer = (at: number): void => {
      const pair = table.lookup(symbols[at]!, symbols[next[at]!]!)
      if (pair >= 0) this.#push(Math.floor(pair / ID_SPAN) * POSITION_SPAN + at)
    }
    for (let i = 0; i + 1 < count; i++) offer(i)
    while (this.#size > 0) {
      const entry = this.#pop()
      const rank = Math.floor(entry / POSITION_SPAN)
      const at = entry - rank * POSITION_SPAN
      const right = next[at]!
      if (symbols[at]! < 0 || right < 0) continue
      // an entry whose symbols have changed since is out of date, unless they merge at the same rank again
      const pair = table.lookup(symbols[at]!, symbols[right]!)
      if (pair < 0 || Math.floor(pair / ID_SPAN) !== rank) continue
      symbols[at] = pair - rank * ID_SPAN
      symbols[right] = -1
      next[at] = next[right]!
      if (next[at]! >= 0) {
        previous[next[at]!] = at
        offer(at)
      }
      if (previous[at]! >= 0) offer(previous[at]!)
    }
    let kept = 0
    for (let i = 0; i >= 0 && i < count; i = next[i]!) symbols[kept++] = symbols[i]!
    return kept
  }

  #push(entry: number): void {
    if (this.#size === this.#heap.length) {
      const larger = new Float64Array(this.#heap.length * 2)
      larger.set(this.#heap)
      this.#heap = larger
    }
    const heap = this.#heap
    let i = this.#size++
    while (i > 0) {
      const parent = (i - 1) >> 1
      if (heap[parent]! <= entry) break
      heap[i] = heap[parent]!
      i = parent
    }
    heap[i] = entry
  }

  #pop(): number {
    const heap = this.#heap
    const top = heap[0]!
    const entry = heap[--this.#size]!
    const size = this.#size
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= size) break
      if (child + 1 < size && heap[child + 1]! < heap[child]!) child++
      if (heap[child]! >= entry) break
      heap[i] = heap[child]!
      i = child
    }
    heap[i] = entry
    return top
  }
}

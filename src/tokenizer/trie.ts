/** Texts as paths of numbers (bytes or UTF-16 units), with a value at the end of each; node 0 is the root. */
export class Trie {
  #capacity: number
  /** Per slot: node × SPAN + unit, or -1. */
  #keys: Float64Array
  #children: Int32Array
  readonly #values: number[] = [-1]
  #edges = 0

  constructor(expected = 1024) {
    this.#capacity = 2 ** Math.ceil(Math.log2(Math.max(16, expected * 2)))
    this.#keys = new Float64Array(this.#capacity).fill(-1)
    this.#children = new Int32Array(this.#capacity)
  }

  /** The last value given to a path counts. */
  insert(units: ArrayLike<number>, value: number): void {
    let node = 0
    for (let i = 0; i < units.length; i++) {
      const slot = this.#slot(node, units[i]!)
      if (this.#keys[slot] !== -1) {
        node = this.#children[slot]!
        continue
      }
      this.#keys[slot] = node * SPAN + units[i]!
      node = this.#children[slot] = this.#values.push(-1) - 1
      if (++this.#edges * 2 > this.#capacity) this.#grow()
    }
    this.#values[node] = value
  }

  insertText(text: string, value: number): void {
    this.insert(
      Array.from({ length: text.length }, (_, i) => text.charCodeAt(i)),
      value,
    )
  }

  /** The node below `node` along `unit`, or -1. */
  child(node: number, unit: number): number {
    const slot = this.#slot(node, unit)
    return this.#keys[slot] === -1 ? -1 : this.#children[slot]!
  }

  /** The value that ends at `node`, or -1. */
  value(node: number): number {
    return this.#values[node]!
  }

  #slot(node: number, unit: number): number {
    const mask = this.#capacity - 1
    const key = node * SPAN + unit
    let hash = Math.imul(node, 0x9e3779b1) ^ Math.imul(unit, 0x85ebca6b)
    hash ^= hash >>> 15
    let slot = hash & mask
    while (this.#keys[slot] !== -1 && this.#keys[slot] !== key) slot = (slot + 1) & mask
    return slot
  }

  #grow(): void {
    const keys = this.#keys
    const children = this.#children
    this.#capacity *= 2
    this.#keys = new Float64Array(this.#capacity).fill(-1)
    this.#children = new Int32Array(this.#capacity)
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i]!
      if (key === -1) continue
      const slot = this.#slot(Math.floor(key / SPAN), key % SPAN)
      this.#keys[slot] = key
      this.#children[slot] = children[i]!
    }
  }
}

const SPAN = 65536

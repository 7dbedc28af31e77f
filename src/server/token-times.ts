import { Histogram, type Registry } from "prom-client"

interface Counts {
  /** By bucket, those above the last bound at the end. */
  readonly buckets: Float64Array
  seconds: number
}

interface Options {
  readonly name: string
  readonly help: string
  readonly buckets: number[]
  readonly registers: Registry[]
}

/**
 * A histogram of what happens with every token: a look-up and an addition each, where prom-client's own takes several
 * microseconds of the thread that all streams share.
 */
export class TokenTimes extends Histogram<"model_name"> {
  readonly #bounds: readonly number[]
  readonly #models = new Map<string, Counts>()
  readonly #shown: Pick<Options, "name" | "help">

  constructor({ name, help, buckets, registers }: Options) {
    super({ name, help, labelNames: ["model_name"], buckets, registers })
    this.#bounds = buckets
    this.#shown = { name, help }
  }

  /** Where one model's are counted. */
  of(model: string): Counts {
    return this.#models.getOrInsertComputed(model, () => ({
      buckets: new Float64Array(this.#bounds.length + 1),
      seconds: 0,
    }))
  }

  /** So many tokens that took so long each. */
  add(counts: Counts, tokens: number, seconds: number): void {
    let bucket = 0
    while (bucket < this.#bounds.length && seconds > (this.#bounds[bucket] as number)) bucket++
    counts.buckets[bucket]! += tokens
    counts.seconds += tokens * seconds
  }

  /** What the registry asks for when it writes text. */
  async getForPromString(): Promise<object> {
    const { name, help } = this.#shown
    const values = [...this.#models].flatMap(([model_name, { buckets, seconds }]) => {
      const sharedLabels = { model_name }
      let value = 0
      const rows = Array.from(buckets, (tokens, i) => {
        const labels = { le: this.#bounds[i] ?? "+Inf" }
        value += tokens
        return { metricName: `${name}_bucket`, labels, sharedLabels, value }
      })
      return [
        ...rows,
        { metricName: `${name}_sum`, labels: {}, sharedLabels, value: seconds },
        { metricName: `${name}_count`, labels: {}, sharedLabels, value },
      ]
    })
    return { name, help, type: "histogram", aggregator: "sum", values }
  }
}

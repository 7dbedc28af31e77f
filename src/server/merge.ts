/**
 * Items a source may run ahead of the reader: enough to hide scheduling, small enough to bound
 * memory.
 */
const MAX_AHEAD = 16

/**
 * Items of all sources as they come. Sources run at once; leaving the loop returns all of them; the
 * first error ends the merge.
 */
export function merge<T>(sources: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const [only] = sources
  return sources.length === 1 && only !== undefined ? only : mergeSeveral(sources)
}

async function* mergeSeveral<T>(sources: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const items: T[] = []
  let running = sources.length
  let failure: { readonly error: unknown } | undefined
  let closed = false
  let wakeReader = (): void => {}
  let wakeSources: (() => void)[] = []

  const pump = async (source: AsyncGenerator<T>): Promise<void> => {
    try {
      for await (const item of source) {
        items.push(item)
        wakeReader()
        while (items.length >= MAX_AHEAD && !closed) {
          await new Promise<void>((resolve) => wakeSources.push(resolve))
        }
        if (closed) return
      }
    } catch (error) {
      failure ??= { error }
    } finally {
      running--
      wakeReader()
    }
  }

  const pumps = sources.map(pump)
  const resume = (): void => {
    for (const wake of wakeSources.splice(0)) wake()
  }
  try {
    for (;;) {
      if (failure !== undefined) throw failure.error
      const item = items.shift()
      if (item !== undefined) {
        resume()
        yield item
      } else if (running === 0) return
      else await new Promise<void>((resolve) => (wakeReader = resolve))
    }
  } finally {
    closed = true
    wakeReader = () => {}
    resume()
    void Promise.allSettled(pumps)
  }
}

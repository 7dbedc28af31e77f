import { Presets, SingleBar } from "cli-progress"

export interface Progress extends Disposable {
  update(done: number, total: number): void
}

/** A bar on stderr where that is a terminal; nothing elsewhere. */
export function progressBar(title: string, format: (value: number) => string = String): Progress {
  if (!process.stderr.isTTY) return { update: () => {}, [Symbol.dispose]: () => {} }
  const bar = new SingleBar(
    {
      stream: process.stderr,
      format: `${title} {bar} {percentage}%  {value}/{total}  {eta_formatted}`,
      formatValue: (value, _options, type) =>
        type === "value" || type === "total" ? format(value) : String(value),
      hideCursor: true,
      clearOnComplete: true,
      stopOnComplete: false,
    },
    Presets.rect,
  )
  let started = false
  return {
    update(done, total) {
      if (!started) bar.start(total, done)
      else {
        bar.setTotal(total)
        bar.update(done)
      }
      started = true
    },
    [Symbol.dispose]: () => {
      if (started) bar.stop()
    },
  }
}

import type { JSX } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"
import type uPlot from "uplot"
import scriptUrl from "uplot/dist/uPlot.iife.min.js" with { type: "file" }

import { formatCount, formatSpeed } from "../format.ts"
import { t } from "../language.ts"
import { isDark } from "../state.ts"

type Plot = typeof uPlot

let loading: Promise<Plot> | undefined

/** uPlot, fetched when a chart is first shown. A failed fetch is tried again by the next chart. */
function loadPlot(): Promise<Plot> {
  loading ??= new Promise<Plot>((resolve, reject) => {
    const script = document.createElement("script")
    script.src = scriptUrl
    script.onload = () => resolve((globalThis as unknown as { uPlot: Plot }).uPlot)
    script.onerror = () => {
      loading = undefined
      script.remove()
      reject(new Error(scriptUrl))
    }
    document.head.append(script)
  })
  return loading
}

export interface Line {
  label: string
  /** A custom property of the page's colours. */
  color: string
  values: readonly (number | null)[]
}

interface Props {
  /** What the chart shows, in words. */
  label: string
  /** Seconds since 1970. */
  times: readonly number[]
  lines: readonly Line[]
}

const HEIGHT = 170
const MIN_RANGE_S = 60

/** Lines over time. The words carry the same for those who do not see it, and the legend the newest values. */
export function Chart({ label, times, lines }: Props): JSX.Element {
  const holder = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | undefined>(undefined)
  const [library, setLibrary] = useState<{ plot: Plot } | "failed" | undefined>(undefined)
  const data = columns(times, lines)
  useEffect(() => {
    let isGone = false
    loadPlot().then(
      (loaded) => isGone || setLibrary({ plot: loaded }),
      () => isGone || setLibrary("failed"),
    )
    return () => {
      isGone = true
    }
  }, [])
  const scheme = isDark.value
  useEffect(() => {
    const element = holder.current
    if (element === null || typeof library !== "object") return
    const made = new library.plot(options(element.clientWidth, lines), data, element)
    plot.current = made
    const observer = new ResizeObserver(() =>
      made.setSize({ width: element.clientWidth, height: HEIGHT }),
    )
    observer.observe(element)
    return () => {
      observer.disconnect()
      made.destroy()
      plot.current = undefined
    }
    // colours are drawn into the canvas, so a chart is made again where they change
  }, [library, scheme])
  useEffect(() => plot.current?.setData(data))
  return (
    <figure class="chart">
      <figcaption>
        {lines.map((line) => (
          <span key={line.label} class="chart-key">
            <i style={{ background: `var(${line.color})` }} />
            {line.label} <b>{newest(line.values)}</b>
          </span>
        ))}
      </figcaption>
      {library === "failed" ? (
        <p class="hint">{t("noChart")}</p>
      ) : (
        <div class="chart-area" ref={holder} role="img" aria-label={label} />
      )}
    </figure>
  )
}

/** As uPlot takes them. Around a single point it would show whole days, so that one gets an empty one before it. */
function columns(times: readonly number[], lines: readonly Line[]): uPlot.AlignedData {
  const [only] = times
  const isSingle = times.length === 1 && only !== undefined
  const values = lines.map((line) => (isSingle ? [null, ...line.values] : [...line.values]))
  return [isSingle ? [only - MIN_RANGE_S, only] : [...times], ...values]
}

function newest(values: readonly (number | null)[]): string {
  const last = values.at(-1) ?? null
  return last === null ? "–" : Number.isInteger(last) ? formatCount(last) : formatSpeed(last)
}

function options(width: number, lines: readonly Line[]): uPlot.Options {
  const style = getComputedStyle(document.documentElement)
  const color = (name: string): string => style.getPropertyValue(name).trim()
  const axis = {
    stroke: color("--soft"),
    font: `12px ${style.getPropertyValue("--sans")}`,
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
  }
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: {
      // an axis of less than a minute would race
      x: { range: (_, min, max) => [Math.min(min, max - MIN_RANGE_S), max] },
      y: { range: (_, __, max) => [0, Math.max(1, max * 1.1)] },
    },
    axes: [
      {
        ...axis,
        size: 28,
        space: 70,
        values: (_, splits) => splits.map((seconds) => clock(seconds)),
      },
      { ...axis, size: 46, space: 36 },
    ],
    series: [
      {},
      ...lines.map((line) => ({
        label: line.label,
        stroke: color(line.color),
        width: 2,
        points: { show: line.values.length < 2, size: 5 },
      })),
    ],
  }
}

function clock(seconds: number): string {
  const time = new Date(seconds * 1000)
  return [time.getHours(), time.getMinutes(), time.getSeconds()]
    .map((part) => String(part).padStart(2, "0"))
    .join(":")
}

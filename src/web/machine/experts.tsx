import { useSignal } from "@preact/signals"
import type { JSX } from "preact"
import { useEffect, useRef } from "preact/hooks"

import { formatCount } from "../format.ts"
import { t } from "../language.ts"
import { isDark } from "../state.ts"
import type { ExpertCounts } from "./api.ts"
import { layerName } from "./modules.ts"

/** Rows and columns of the picture in CSS pixels, as large as they can be within the width. */
const MAX_CELL = 18
const ROW = 12

/** How often each expert of each layer was chosen: as a picture, and as a table with the same numbers. */
export function ExpertMap({ layers }: { layers: readonly ExpertCounts[] }): JSX.Element {
  const isTable = useSignal(false)
  const experts = Math.max(0, ...layers.map(({ counts }) => counts.length))
  const isUsed = layers.some(({ counts }) => counts.some((count) => count > 0))
  return (
    <>
      <p class="hint">{t(isUsed ? "expertsHint" : "expertsUnused")}</p>
      <HeatMap layers={layers} experts={experts} />
      <details
        class="fold"
        onToggle={(event) => (isTable.value = event.currentTarget.open)}
        open={isTable.value}
      >
        <summary>{t("asTable")}</summary>
        {isTable.value && <ExpertTable layers={layers} experts={experts} />}
      </details>
    </>
  )
}

interface Props {
  layers: readonly ExpertCounts[]
  experts: number
}

function HeatMap({ layers, experts }: Props): JSX.Element {
  const canvas = useRef<HTMLCanvasElement>(null)
  const told = useSignal("")
  useEffect(() => {
    if (canvas.current !== null) draw(canvas.current, layers, experts)
  }, [layers, experts, isDark.value])
  const point = (event: { clientX: number; clientY: number }): void => {
    const box = canvas.current?.getBoundingClientRect()
    if (box === undefined) return
    const row = layers[Math.floor(((event.clientY - box.top) / box.height) * layers.length)]
    const expert = Math.floor(((event.clientX - box.left) / box.width) * experts)
    const count = row?.counts[expert]
    if (row === undefined || count === undefined) return
    told.value = t("expertCell", {
      layer: layerName(row),
      expert,
      count: formatCount(count),
      share: (shareOf(row.counts, count) * 100).toFixed(1),
    })
  }
  return (
    <div class="heat">
      <div class="heat-layers" aria-hidden="true">
        <span>{layers[0] === undefined ? "" : layerName(layers[0])}</span>
        <span>{layers.length < 2 ? "" : layerName(layers.at(-1) as ExpertCounts)}</span>
      </div>
      <canvas
        ref={canvas}
        role="img"
        aria-label={t("expertsLabel", { experts, layers: layers.length })}
        style={{
          maxWidth: `${experts * MAX_CELL}px`,
          height: `${Math.max(ROW * 2, layers.length * ROW)}px`,
        }}
        onPointerMove={point}
        onPointerLeave={() => (told.value = "")}
      />
      <p class="hint heat-told" aria-hidden="true">
        {told.value || "\u00a0"}
      </p>
    </div>
  )
}

/** A pixel a cell; the style scales it up without smoothing. */
function draw(canvas: HTMLCanvasElement, layers: readonly ExpertCounts[], experts: number): void {
  canvas.width = Math.max(1, experts)
  canvas.height = Math.max(1, layers.length)
  const context = canvas.getContext("2d")
  if (context === null) return
  const style = getComputedStyle(document.documentElement)
  context.fillStyle = style.getPropertyValue("--hover")
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.fillStyle = style.getPropertyValue("--accent")
  layers.forEach(({ counts }, y) => {
    const most = Math.max(...counts)
    counts.forEach((count, x) => {
      context.globalAlpha = most === 0 ? 0 : count / most
      context.fillRect(x, y, 1, 1)
    })
  })
  context.globalAlpha = 1
}

function shareOf(counts: readonly number[], count: number): number {
  const sum = counts.reduce((total, each) => total + each, 0)
  return sum === 0 ? 0 : count / sum
}

function ExpertTable({ layers, experts }: Props): JSX.Element {
  return (
    <div class="table-scroll" role="group" tabIndex={0} aria-label={t("experts")}>
      <table class="table is-numbers">
        <thead>
          <tr>
            <th scope="col">{t("layer")}</th>
            {Array.from({ length: experts }, (_, expert) => (
              <th key={expert} scope="col">
                {expert}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {layers.map((row) => (
            <tr key={row.path}>
              <th scope="row">{layerName(row)}</th>
              {row.counts.map((count, expert) => (
                <td key={expert}>{formatCount(count)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

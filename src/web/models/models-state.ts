import { signal } from "@preact/signals"

import { refreshModels } from "../actions.ts"
import { t } from "../language.ts"
import { notify } from "../library.ts"
import { announcement, apiKey, openPanel } from "../state.ts"
import type { Failure } from "../types.ts"
import {
  deleteModel,
  fetchOverview,
  loadModel,
  type ModelEntry,
  type ModelOverview,
  pullModel,
  type PullProgress,
} from "./api.ts"

/** A pull that goes on, also while another view is on screen. */
export interface Pull {
  name: string
  controller: AbortController
  progress: PullProgress | undefined
}

export const overview = signal<ModelOverview | undefined>(undefined)
export const overviewProblem = signal<string | undefined>(undefined)
export const pulls = signal<readonly Pull[]>([])
/** Models that a press of a button is about to change. */
export const changing = signal<ReadonlySet<string>>(new Set())

export async function refreshOverview(): Promise<void> {
  const answer = await fetchOverview(apiKey.value)
  if ("value" in answer) {
    overview.value = answer.value
    overviewProblem.value = undefined
    return
  }
  overviewProblem.value = answer.failure.message
  if (answer.failure.kind === "auth") openPanel.value = "key"
}

export function load(model: ModelEntry): Promise<void> {
  return during(model.name, () => loadModel(model.name, apiKey.value), "wasLoaded")
}

export function unload(model: ModelEntry): Promise<void> {
  return during(model.name, () => loadModel(model.name, apiKey.value, 0), "wasUnloaded")
}

export async function remove(model: ModelEntry): Promise<void> {
  await during(model.name, () => deleteModel(model.name, apiKey.value), "removed")
}

async function during(
  name: string,
  work: () => Promise<Failure | undefined>,
  done: "wasLoaded" | "wasUnloaded" | "removed",
): Promise<void> {
  changing.value = new Set([...changing.value, name])
  // what the server says of it meanwhile, once the request has reached it
  setTimeout(() => void refreshOverview(), 150)
  const failure = await work()
  await refreshOverview()
  changing.value = new Set([...changing.value].filter((each) => each !== name))
  if (failure === undefined) announcement.value = t(done, { name })
  else report(failure)
  void refreshModels()
}

export async function pull(name: string): Promise<void> {
  if (pulls.value.some((each) => each.name === name)) return
  const one: Pull = { name, controller: new AbortController(), progress: undefined }
  pulls.value = [...pulls.value, one]
  const failure = await pullModel(name, apiKey.value, one.controller.signal, (progress) => {
    pulls.value = pulls.value.map((each) => (each.name === name ? { ...each, progress } : each))
  })
  pulls.value = pulls.value.filter((each) => each.name !== name)
  if (failure === undefined) notify(t("pulled", { name }))
  else if (one.controller.signal.aborted) notify(t("pullStopped"))
  else report(failure)
  await refreshOverview()
  void refreshModels()
}

function report(failure: Failure): void {
  notify(failure.message, { isError: true })
  if (failure.kind === "auth") openPanel.value = "key"
}

/** Where the parts of a model are to compute. */
export interface Layout {
  readonly embeddings: string
  readonly head: string
  readonly layers: readonly LayerLayout[]
}

export interface LayerLayout {
  /** Of everything in the layer but its routed experts. */
  readonly device: string
  /** Of the routed experts; undefined: the layer has none. */
  readonly experts: string | undefined
  /** Long prompts take the CPU's experts to the layer's device. */
  readonly streams?: boolean
  /** Those of the CPU's experts that the layer's device has too. */
  readonly onDevice?: readonly number[]
}

interface RuleText {
  readonly name: string
  readonly class?: string
  readonly operator: string
  readonly device: string
  /** Where it differs. */
  readonly prefill?: string
  readonly gpuExperts?: string
  readonly recursive?: boolean
}

/** A layout as a rule file: the operators of default-cpu.yaml, on the devices of each range of layers. */
export function rulesOf(layout: Layout, about: readonly string[]): string {
  const { embeddings, head, layers } = layout
  const rules: RuleText[] = [
    { name: "^model\\.embed_tokens$", operator: "default", device: embeddings },
    { name: "^lm_head$", operator: "KFusedHead", device: head },
    { name: "^(model\\.norm|score)$", operator: "default", device: head },
  ]
  const experts = groupBy(layers, ({ device, experts: own, streams, onDevice = [] }) =>
    own === undefined ? own : `${own} ${streams === true ? device : own} ${onDevice.join(", ")}`,
  )
  for (const [key, indices] of experts) {
    const [device = "cpu", prefill = device, ...ids] = key.split(" ")
    const gpuExperts = ids.join(" ")
    const name = `^model\\.layers\\.${layerPattern(indices, layers.length)}\\.(mlp|feed_forward|block_sparse_moe)\\.experts$`
    rules.push({
      name,
      operator: "KTransformersExperts",
      device,
      prefill,
      gpuExperts,
      recursive: false,
    })
  }
  for (const [device, indices] of groupBy(layers, (layer) => layer.device)) {
    const layer = `^model\\.layers\\.${layerPattern(indices, layers.length)}`
    rules.push(
      {
        name: `${layer}\\.self_attn$`,
        class: "Qwen3NextAttention",
        operator: "default",
        device,
      },
      { name: `${layer}\\.self_attn$`, operator: "KFusedAttention", device },
      {
        name: `${layer}\\.(mlp|feed_forward)(\\.shared_experts?)?$`,
        class: "LlamaMLP",
        operator: "KFusedMLP",
        device,
      },
      { name: `${layer}\\.mlp$`, class: "Phi3MLP", operator: "KFusedMLP", device },
      { name: `${layer}$`, operator: "KFusedDecoderLayer", device },
    )
  }
  const comment = about.map((line) => `# ${line}\n`).join("")
  return `${comment}\n${rules.map(ruleText).join("\n")}`
}

function ruleText(rule: RuleText): string {
  const quoted = (text: string): string => JSON.stringify(text)
  const kwargs = { generate_device: rule.device, prefill_device: rule.prefill ?? rule.device }
  return [
    "- match:",
    `    name: ${quoted(rule.name)}`,
    ...(rule.class === undefined ? [] : [`    class: ${rule.class}`]),
    "  replace:",
    `    class: ${rule.operator}`,
    "    kwargs:",
    ...Object.entries(kwargs).map(([key, value]) => `      ${key}: ${quoted(value)}`),
    ...(rule.gpuExperts ? [`      gpu_experts: [${rule.gpuExperts}]`] : []),
    ...(rule.recursive === false ? ["  recursive: false"] : []),
    "  unused: ignore",
    "",
  ].join("\n")
}

function groupBy(
  layers: readonly LayerLayout[],
  key: (layer: LayerLayout) => string | undefined,
): Map<string, number[]> {
  const groups = new Map<string, number[]>()
  for (const [i, layer] of layers.entries()) {
    const device = key(layer)
    if (device !== undefined) groups.set(device, [...(groups.get(device) ?? []), i])
  }
  return groups
}

/** A regular expression for these of `count` layers: `([3-9]|1[0-9]|2[0-7])`. */
export function layerPattern(indices: readonly number[], count: number): string {
  if (indices.length === count) return "\\d+"
  const parts: string[] = []
  for (const run of runsOf(indices)) {
    for (let tens = Math.floor(run.first / 10); tens <= Math.floor(run.last / 10); tens++) {
      const first = Math.max(run.first - 10 * tens, 0)
      const last = Math.min(run.last - 10 * tens, 9)
      const digits = first === last ? String(first) : `[${first}-${last}]`
      parts.push(`${tens === 0 ? "" : tens}${digits}`)
    }
  }
  return `(${parts.join("|")})`
}

interface Run {
  readonly first: number
  last: number
}

/** Neighbouring numbers as ranges. */
export function runsOf(indices: readonly number[]): readonly Run[] {
  const runs: Run[] = []
  for (const i of indices) {
    const run = runs.at(-1)
    if (run !== undefined && run.last === i - 1) run.last = i
    else runs.push({ first: i, last: i })
  }
  return runs
}

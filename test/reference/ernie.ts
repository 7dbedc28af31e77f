/**
 * ERNIE 4.5 with experts in float64, written down from transformers' modeling_ernie4_5_moe.py: one sequence at once, no
 * cache, every number in plain loops.
 */

export interface ErnieConfig {
  readonly hidden_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
  readonly head_dim: number
  readonly rms_norm_eps: number
  readonly rope_theta: number
  readonly moe_num_experts: number
  readonly moe_k: number
  readonly moe_layer_start_index: number
  readonly moe_layer_end_index: number
  readonly moe_layer_interval: number
}

/** A stored tensor: its values row by row. */
export type Weights = ReadonlyMap<
  string,
  { readonly shape: readonly number[]; readonly data: Float32Array }
>

type Vector = number[]

export function ernieLogits(
  config: ErnieConfig,
  weights: Weights,
  ids: ArrayLike<number>,
): Vector[] {
  const tensor = (name: string): { shape: readonly number[]; data: Float32Array } => {
    const found = weights.get(name)
    if (found === undefined) throw new Error(`no ${name}`)
    return found
  }
  const times = (x: Vector, name: string): Vector => {
    const { shape, data } = tensor(`${name}.weight`)
    const [rows = 0, columns = 0] = shape
    return Array.from({ length: rows }, (_, r) => {
      let sum = 0
      for (let c = 0; c < columns; c++) sum += (data[r * columns + c] as number) * (x[c] as number)
      return sum
    })
  }
  const norm = (x: Vector, name: string): Vector => {
    const { data } = tensor(`${name}.weight`)
    const mean = x.reduce((sum, v) => sum + v * v, 0) / x.length
    return x.map((v, i) => (v / Math.sqrt(mean + config.rms_norm_eps)) * (data[i] as number))
  }
  const mlp = (x: Vector, name: string): Vector => {
    const gate = times(x, `${name}.gate_proj`)
    const up = times(x, `${name}.up_proj`)
    return times(
      gate.map((g, i) => (g / (1 + Math.exp(-g))) * (up[i] as number)),
      `${name}.down_proj`,
    )
  }
  const moe = (x: Vector, name: string): Vector => {
    const scores = softmax(times(x, `${name}.gate`))
    const bias = tensor(`${name}.moe_statics.e_score_correction_bias`).data
    const order = scores
      .map((score, e) => ({ e, choice: score + (bias[e] as number) }))
      .toSorted((a, b) => b.choice - a.choice)
      .slice(0, config.moe_k)
    const total = order.reduce((sum, { e }) => sum + (scores[e] as number), 0)
    const parts = order.map(({ e }) =>
      mlp(x, `${name}.experts.${e}`).map((v) => (v * (scores[e] as number)) / total),
    )
    return plus(...parts, mlp(x, `${name}.shared_experts`))
  }
  /** Pairs of neighbours turn by position · theta^(-2i / dim). */
  const rotated = (head: Vector, position: number): Vector => {
    const out = [...head]
    for (let i = 0; i < head.length; i += 2) {
      const angle = position * config.rope_theta ** (-i / head.length)
      const [a, b] = [head[i] as number, head[i + 1] as number]
      out[i] = a * Math.cos(angle) - b * Math.sin(angle)
      out[i + 1] = b * Math.cos(angle) + a * Math.sin(angle)
    }
    return out
  }
  const attention = (xs: Vector[], name: string): Vector[] => {
    const { head_dim: d, num_attention_heads: heads, num_key_value_heads: kvHeads } = config
    const split = (x: Vector): Vector[] =>
      Array.from({ length: x.length / d }, (_, h) => x.slice(h * d, (h + 1) * d))
    const q = xs.map((x, t) => split(times(x, `${name}.q_proj`)).map((h) => rotated(h, t)))
    const k = xs.map((x, t) => split(times(x, `${name}.k_proj`)).map((h) => rotated(h, t)))
    const v = xs.map((x) => split(times(x, `${name}.v_proj`)))
    return xs.map((_, t) => {
      const all: Vector = []
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads))
        const query = q[t]?.[h] as Vector
        const seen = Array.from({ length: t + 1 }, (_x, s) => s)
        const p = softmax(seen.map((s) => dot(query, k[s]?.[kv] as Vector) / Math.sqrt(d)))
        const mixed = seen.map((s) => (v[s]?.[kv] as Vector).map((x) => x * (p[s] as number)))
        all.push(...plus(...mixed))
      }
      return times(all, `${name}.o_proj`)
    })
  }
  const isMoe = (layer: number): boolean => {
    const { moe_layer_start_index: first, moe_layer_end_index: end, moe_layer_interval } = config
    const last = end === -1 ? config.num_hidden_layers - 1 : end
    return (layer + 1) % moe_layer_interval === 0 && layer >= first && layer <= last
  }

  const embedding = tensor("model.embed_tokens.weight").data
  const { hidden_size: n } = config
  let xs = Array.from(ids, (id) => [...embedding.subarray(id * n, (id + 1) * n)])
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const name = `model.layers.${layer}`
    const attended = attention(
      xs.map((x) => norm(x, `${name}.input_layernorm`)),
      `${name}.self_attn`,
    )
    xs = xs.map((x, t) => plus(x, attended[t] as Vector))
    xs = xs.map((x) => {
      const h = norm(x, `${name}.post_attention_layernorm`)
      return plus(x, isMoe(layer) ? moe(h, `${name}.mlp`) : mlp(h, `${name}.mlp`))
    })
  }
  return xs.map((x) => times(norm(x, "model.norm"), "model.embed_tokens"))
}

function dot(a: Vector, b: Vector): number {
  return a.reduce((sum, x, i) => sum + x * (b[i] as number), 0)
}

function plus(...vectors: Vector[]): Vector {
  const [first = []] = vectors
  return first.map((_, i) => vectors.reduce((sum, v) => sum + (v[i] as number), 0))
}

function softmax(x: Vector): Vector {
  const top = Math.max(...x)
  const e = x.map((v) => Math.exp(v - top))
  const sum = e.reduce((a, b) => a + b, 0)
  return e.map((v) => v / sum)
}

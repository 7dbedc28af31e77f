import { afterAll, expect, test } from "bun:test"

import { parseRules } from "../../src/inject/rules.ts"
import { Backend } from "../../src/native/backend.ts"
import { Linear } from "../../src/nn/layers.ts"
import { namedModules } from "../../src/nn/module.ts"
import { Experts } from "../../src/nn/moe.ts"
import { held } from "../../src/operators/held.ts"
import { BF16, F16, F32, Q8_0 } from "../../src/tensor/dtype.ts"
import { Tensor } from "../../src/tensor/tensor.ts"
import { loadModel } from "../models/build.ts"
import { openHfGolden } from "../models/goldens.ts"
import { Sequences } from "../models/sequences.ts"
import { randomArray, relativeError } from "../ops/harness.ts"
import { dequantized } from "../ops/weights.ts"

const backend = new Backend({ threads: 2, precision: "f32" })
afterAll(() => backend[Symbol.dispose]())

const rules = (name: string): string => `
- match: { class: Experts }
  replace: { class: KTransformersExperts, kwargs: { backend: ${name} } }
- match: { name: "self_attn\\\\.[qkvo]_proj$" }
  replace: { class: KTransformersLinear, kwargs: { backend: ${name} } }
`

for (const [name, dtype, tolerance] of [
  ["AMXInt8", Q8_0, 3e-2],
  ["AMXBF16", BF16, 2e-2],
] as const) {
  test(`${name} holds float weights as ${dtype.name}`, async () => {
    const { config, weights, tensors } = openHfGolden("qwen3_moe")
    const ids = new Int32Array((tensors.get("input_ids")?.bytes as Uint8Array<ArrayBuffer>).buffer)
    const length = ids.length / 2
    const { model, loaded } = await loadModel(config, weights, {
      backend,
      rules: parseRules(rules(name), "test.yaml"),
    })
    let count = 0
    const check = (weight: Tensor): void => {
      // where rows are no whole blocks the checkpoint's type stays
      const isWhole = (weight.shape.at(-1) as number) % dtype.blockSize === 0
      expect(weight.dtype).toBe(isWhole ? dtype : BF16)
      if (isWhole) count++
    }
    for (const [path, module] of namedModules(model)) {
      if (module instanceof Experts) {
        for (const w of [module.gate_proj, module.up_proj, module.down_proj]) check(w)
      } else if (module instanceof Linear && /self_attn\.[qkvo]_proj$/.test(path)) {
        check(module.weight)
      }
    }
    expect(count).toBeGreaterThan(3)
    using sequences = new Sequences(model, backend, {
      count: 2,
      maxTokens: length,
      promptLength: length,
    })
    const parts = sequences.step([
      { sequence: 0, ids: ids.subarray(0, length) },
      { sequence: 1, ids: ids.subarray(length) },
    ])
    const got = Float32Array.from(parts.flatMap((part) => [...part]))
    loaded[Symbol.dispose]()
    weights.close()
    expect(relativeError(got, tensors.get("logits")?.f32() as Float32Array)).toBeLessThan(tolerance)
  })
}

test("values keep their precision, in matrices and stacks", () => {
  const values = randomArray(3 * 40 * 96, 5)
  const source = Tensor.from(backend, values, [3, 40, 96], { persistent: true })
  for (const [dtype, tolerance] of [
    [Q8_0, 6e-3],
    [BF16, 3e-3],
    [F16, 1e-3],
  ] as const) {
    for (const weight of [source, source.select(1)]) {
      using out = held(weight, dtype) as Tensor
      expect(out.shape).toEqual(weight.shape)
      expect(relativeError(dequantized(out), weight.toFloat32Array())).toBeLessThan(tolerance)
    }
  }
  expect(held(source, F32)).toBeNull()
  // 40 values are no whole blocks
  expect(held(Tensor.from(backend, randomArray(80, 1), [2, 40]), Q8_0)).toBeNull()
})

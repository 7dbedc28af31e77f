import { expect, test } from "bun:test"

import { EXTRA_KEY } from "../../src/models/config-extra.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import { F32 } from "../../src/tensor/dtype.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { f32, ggufBytes } from "../fixtures/gguf.ts"
import { memoryFiles } from "../fixtures/sources.ts"

/** The configuration of a model of two layers with this text beyond the format's keys. */
function read(extra: string): ReturnType<typeof configFromGguf> {
  const bytes = ggufBytes(
    {
      "general.architecture": "llama",
      "llama.block_count": 2,
      "llama.context_length": 64,
      "llama.embedding_length": 32,
      "llama.feed_forward_length": 64,
      "llama.attention.head_count": 4,
      "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
      [EXTRA_KEY]: extra,
    },
    [{ name: "token_embd.weight", dtype: F32, shape: [16, 32] }],
  )
  return configFromGguf(openGguf("model.gguf", memoryFiles({ "model.gguf": bytes })))
}

test("what the format has no keys for is read from a text of its own", () => {
  const config = read('{"rope_layers":[true,false],"attention_scale":0.5}')
  expect(config.rope_layers).toEqual([true, false])
  expect(config.attention_scale).toBe(0.5)
  expect(config.hidden_size).toBe(32)
})

test.each([
  ["{", /kt\.config: is no valid JSON/],
  ["[]", /kt\.config\.: .*expected object/i],
  ['{"attention_scale":-1}', /kt\.config\.attention_scale: /],
  ['{"hidden_size":64}', /kt\.config\.: .*hidden_size/],
  ['{"rope":{"type":"spiral"}}', /kt\.config\.rope\.type: /],
  ['{"rope_layers":[true]}', /1 entries for 2 layers/],
  [`{"layer_types":["sliding_attention","full_attention"]}`, /sliding_window: missing/],
])("%s is refused", (extra, message) => {
  expect(() => read(extra)).toThrow(message)
})

import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"

import { FloatRows } from "../../src/convert/float-rows.ts"
import { configFromGguf } from "../../src/models/config-gguf.ts"
import type { Backend } from "../../src/native/backend.ts"
import { tokenizerJsonFromGguf } from "../../src/tokenizer/tokenizer-json.ts"
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts"
import { openGguf } from "../../src/weights/gguf.ts"
import { hfName } from "../../src/weights/names.ts"
import { SafetensorsWriter } from "../../src/weights/safetensors-writer.ts"

/**
 * Writes a GGUF of architecture llama as the Hugging Face folder that it may have come from: every tensor in F32, rows of
 * q and k in halves, the vocabulary as tokenizer.json.
 */
export async function ggufToFolder(path: string, folder: string, backend: Backend): Promise<void> {
  const gguf = openGguf(path)
  try {
    const config = configFromGguf(gguf)
    mkdirSync(folder, { recursive: true })
    const { rope } = config
    writeFileSync(
      join(folder, "config.json"),
      JSON.stringify({
        architectures: ["LlamaForCausalLM"],
        model_type: "llama",
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        rms_norm_eps: config.rms_norm_eps,
        rope_theta: rope.theta,
        hidden_act: config.hidden_act,
        tie_word_embeddings: config.tie_word_embeddings,
        bos_token_id: config.bos_token_id,
        eos_token_id: config.eos_token_id,
        torch_dtype: "float32",
      }),
    )
    const names = new Map(
      [...gguf.names()].flatMap((name) => {
        const hf = hfName(gguf.architecture, name)
        return hf === undefined ? [] : [[hf, name] as const]
      }),
    )
    using rows = new FloatRows(backend)
    using writer = new SafetensorsWriter(
      join(folder, "model.safetensors"),
      [...names].map(([name, stored]) => ({
        name,
        dtype: "F32",
        shape: gguf.get(stored)!.shape,
      })),
      { format: "pt" },
    )
    for (const { name } of writer.tensors) {
      const entry = gguf.get(names.get(name)!)!
      if (!/\.(q|k)_proj\.weight$/.test(name)) {
        rows.forEach(entry, (piece) => writer.write(name, piece.bytes()))
        continue
      }
      const dim = config.head_dim
      for (let first = 0; first < entry.shape[0]!; first += dim) {
        rows.forEach(
          entry,
          (piece) => {
            const values = piece.toFloat32Array()
            const width = entry.shape[1]!
            const out = new Float32Array(values.length)
            for (let i = 0; i < dim; i++) {
              const to = Math.floor(i / 2) + (i % 2) * (dim / 2)
              out.set(values.subarray(i * width, (i + 1) * width), to * width)
            }
            writer.write(name, new Uint8Array(out.buffer))
          },
          { first, count: dim },
        )
      }
    }
    writer.finish()
    const tokenizer = Tokenizer.fromGguf(gguf.metadata, path)
    writeFileSync(
      join(folder, "tokenizer.json"),
      JSON.stringify(tokenizerJsonFromGguf(gguf.metadata, path)),
    )
    const text = (id: number | undefined): string | null =>
      id === undefined ? null : tokenizer.tokenText(id)
    writeFileSync(
      join(folder, "tokenizer_config.json"),
      JSON.stringify({
        bos_token: text(tokenizer.bosId),
        eos_token: text(tokenizer.eosId),
        pad_token: text(tokenizer.padId),
        chat_template: tokenizer.chatTemplate,
      }),
    )
  } finally {
    gguf.close()
  }
}

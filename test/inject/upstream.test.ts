import { describe, expect, test } from "bun:test"

import { applyInjection, type InjectionPlan, planInjection } from "../../src/inject/inject.ts"
import { parseRules } from "../../src/inject/rules.ts"
import { createModel } from "../../src/models/registry.ts"
import { operators } from "../../src/operators/builtin.ts"
import { openAllGoldens } from "../models/goldens.ts"

const OPS = "ktransformers.operators"
const MODELS = "ktransformers.models"
const configs = new Map(openAllGoldens().map(({ name, config }) => [name, config]))

/** Plans and carries out a file as KTransformers' users write them, for a model of `layers` layers. */
async function place(family: string, text: string, layers = 4): Promise<InjectionPlan> {
  const golden = configs.get(`hf/${family}`)
  if (golden === undefined) throw new Error(`no golden ${family}`)
  const model = await createModel({ ...golden, num_hidden_layers: layers })
  const plan = planInjection(model, parseRules(text, "up.yaml"), operators)
  applyInjection(model, plan, (original, entry) =>
    operators.create(entry.operator, original, entry.kwargs, { path: entry.path, root: model }),
  )
  return plan
}

function standsIn(plan: InjectionPlan): string[] {
  return plan.warnings.map((line) => line.replace(/^up\.yaml:\d+: /, ""))
}

/** Devices and the implementation of both phases, as flow mappings. */
const on = (device: string, more = ""): string =>
  `kwargs: { generate_device: "${device}", prefill_device: "${device}"${more} }`
const linear = (op: string): string => `, generate_op: "${op}", prefill_op: "KLinearTorch"`

describe("constructs of KTransformers' rule files", () => {
  test("layers by ranges, on several devices, the rest of the model on the last", async () => {
    const half = (range: string, device: string): string => `
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.", class: ${MODELS}.modeling_deepseek_v3.DeepseekV3RotaryEmbedding }
  replace: { class: ${OPS}.RoPE.YarnRotaryEmbeddingV3, ${on(device)} }
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.(?!self_attn\\\\.kv_b_proj).*$", class: torch.nn.Linear }
  replace: { class: ${OPS}.linear.KTransformersLinear, ${on(device, linear("KLinearMarlin"))} }
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.mlp$", class: ${MODELS}.modeling_deepseek_v3.DeepseekV3MoE }
  replace: { class: ${OPS}.experts.KDeepseekV3MoE, ${on(device)} }
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.mlp\\\\.gate$", class: ${MODELS}.modeling_deepseek_v3.MoEGate }
  replace: { class: ${OPS}.gate.KMoEGate, ${on(device)} }
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.mlp\\\\.experts$" }
  replace:
    class: ${OPS}.experts.KTransformersExperts
    kwargs: { prefill_device: "${device}", prefill_op: "KExpertsTorch", generate_device: "cpu", generate_op: "KExpertsCPU", out_device: "${device}" }
  recursive: False
- match: { name: "^model\\\\.layers\\\\.${range}\\\\.self_attn$" }
  replace: { class: ${OPS}.attention.KDeepseekV2Attention, ${on(device, ", absorb_for_prefill: False")} }
`
    const plan = await place(
      "deepseek_v3",
      `
- match: { name: "^model.embed_tokens" }
  replace: { class: "default", kwargs: { generate_device: "cpu", prefill_device: "cpu" } }
${half("(0|[1-9])", "cuda:0")}${half("([1][0-9])", "cuda:1")}
- match: { name: "^lm_head", class: torch.nn.Linear }
  replace: { class: ${OPS}.linear.KTransformersLinear, ${on("cuda:1", linear("VLinearMarlin"))} }
- match: { name: "(^model\\\\.layers\\\\.([1][0-9])\\\\.)|(^model.norm)" }
  replace: { class: "default", ${on("cuda:1")} }
- match: { name: "^model$" }
  replace:
    class: "${OPS}.models.KDeepseekV2Model"
    kwargs:
      per_layer_prefill_intput_threshold: 0 # 0 is close layer wise prefill
      transfer_map:
        10: "cuda:1" # Layers 10+ on GPU 1
`,
      12,
    )
    const device = (path: string): unknown => plan.entries.get(path)?.kwargs["generate_device"]
    expect(device("model.layers.9.self_attn")).toBe("cuda:0")
    expect(device("model.layers.10.self_attn")).toBe("cuda:1")
    expect(device("model.layers.9.mlp.experts")).toBe("cpu")
    expect(device("model.layers.11.input_layernorm")).toBe("cuda:1")
    expect(device("model.layers.9.input_layernorm")).toBeUndefined()
    expect(plan.entries.get("model.layers.9.mlp.gate")?.operator).toBe("KMoEGate")
    expect(plan.entries.get("model.layers.9.self_attn.kv_b_proj")).toBeUndefined()
    expect(plan.entries.get("model")?.kwargs["transfer_map"]).toEqual({ "10": "cuda:1" })
    const lines = standsIn(plan)
    // one line an operator, whatever the number of rules that name it
    expect(lines).toContain("rule 3: KLinearMarlin: KLinearCPU stands in (and 1 more rule)")
    expect(lines.filter((line) => line.includes("KDeepseekV3MoE:"))).toHaveLength(1)
    expect(lines).toContain("rule 16: transfer_map: all layers are on one device")
  })

  test("experts of the servers: prefill_op: None, a backend, and blocks of their own", async () => {
    const plan = await place(
      "qwen3_moe",
      `
- match: { class: ${MODELS}.modeling_qwen2_moe.Qwen2MoeRotaryEmbedding }
  replace: { class: ${OPS}.RoPE.KQwen3MoeRotaryEmbedding, ${on("cuda")} }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp$", class: ${MODELS}.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock }
  replace: { class: ${OPS}.experts.KQwen3MoeSparseMoeBlockV2, ${on("cuda")} }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp\\\\.experts$" }
  replace:
    class: ${OPS}.experts.KTransformersExpertsV2     # custom MoE Kernel with expert paralleism
    kwargs:
      prefill_device: "cuda"
      prefill_op: None
      generate_device: "cpu"
      generate_op:  "KExpertsCPU"
      out_device: "cuda"
      backend: "AMXInt8" # or "AMXBF16" or "llamafile" (default)
  recursive: False # don't recursively inject submodules of this module
- match: { name: "^model\\\\.layers\\\\..*\\\\.self_attn$" }
  replace: { class: ${OPS}.balance_serve_attention.KQwen3MoeAttention, ${on("cuda")} }
- match: { name: "^model$" }
  replace: { class: "${OPS}.models.KQwen3MoeModel", kwargs: { per_layer_prefill_intput_threshold: 0 } }
- match: { class: ${MODELS}.modeling_qwen3_moe.Qwen3MoeRMSNorm }
  replace: { class: ${OPS}.layernorm.KQwen3MoeRMSNorm, ${on("cuda")} }
- match: { class: ${MODELS}.modeling_qwen3_moe.Qwen3MoeMLP }
  replace: { class: ${OPS}.mlp.KQwen2MoeMLP, ${on("cuda")} }
`,
    )
    const experts = plan.entries.get("model.layers.0.mlp.experts")
    expect(experts?.operator).toBe("KTransformersExperts")
    expect(experts?.kwargs).toMatchObject({ prefill_op: "None", backend: "AMXInt8" })
    expect(plan.entries.get("model")?.operator).toBe("KQwen3MoeModel")
    expect(plan.entries.get("model.layers.0.self_attn.k_norm")?.operator).toBe("KQwen3MoeRMSNorm")
    expect(standsIn(plan)).toContain("rule 4: KQwen3MoeAttention: the model's own module stands in")
    expect(standsIn(plan).some((line) => line.includes("KExpertsCPU:"))).toBe(false)
  })

  test.each(["KLinearMarlin", "VLinearMarlin", "KLinearTorch", "KLinearQ8", "KLinearFP8"])(
    "linear layers as %s",
    async (op) => {
      const plan = await place(
        "llama",
        `
- match: { name: "^model\\\\.layers\\\\..*$", class: torch.nn.Linear }
  replace:
    class: ${OPS}.linear.KTransformersLinear
    kwargs: { generate_device: "cuda", prefill_device: "cuda", generate_op: "${op}", prefill_op: "${op}" }
`,
      )
      expect(standsIn(plan)).toEqual([
        "rule 1: device cuda: the CPU stands in",
        `rule 1: ${op}: KLinearCPU stands in`,
      ])
    },
  )

  test.each([
    ["xpu", "linear.KTransformersLinear", "KLinearIPEXLLM"],
    ["xpu:0", "linear.KTransformersLinear", "KLinearTorch"],
    ["npu:0", "ascend.ascend_linear.KTransformersLinearW8A8A2", "KLinearTorchW8A8A2"],
    ["hip", "linear.KTransformersLinear", "KLinearCPUInfer"],
  ])("other makers' devices: %s with %s as %s", async (device, operator, op) => {
    const plan = await place(
      "llama",
      `
- match: { name: "^lm_head$", class: torch.nn.Linear }
  replace:
    class: ${OPS}.${operator}
    kwargs: { generate_device: "${device}", prefill_device: "${device}", generate_op: "${op}", prefill_op: "${op}", out_device: "${device}" }
`,
    )
    expect(plan.entries.get("lm_head")?.operator).toBe("KTransformersLinear")
    expect(standsIn(plan)).toEqual([
      `rule 1: device ${device}: the CPU stands in`,
      `rule 1: ${op}: KLinearCPU stands in`,
    ])
  })

  test.each([
    ["KExpertsTorch", "KExpertsCPU"],
    ["KExpertsMarlin", "KExpertsMarlin"],
    ["KExpertsTorch", "KSFTExpertsCPU"],
    ["KExpertsCPUW8A8", "KExpertsCPUW8A8"],
  ])("experts as %s in prefill and %s in generation", async (prefill, generate) => {
    const plan = await place(
      "mixtral",
      `
- match: { name: "^model\\\\.layers\\\\..*\\\\.block_sparse_moe\\\\.experts$" }
  replace:
    class: ${OPS}.experts.KTransformersExperts
    kwargs: { prefill_device: "cpu", generate_device: "cpu", prefill_op: "${prefill}", generate_op: "${generate}", out_device: "cpu" }
  recursive: False
`,
    )
    const others = new Set([generate, prefill])
    others.delete("KExpertsCPU")
    expect(standsIn(plan)).toEqual([...others].map((op) => `rule 1: ${op}: KExpertsCPU stands in`))
  })

  test("modules of an accelerator's own and their debugging kwargs", async () => {
    const dump = `, dump_enable: False, dump_dir: "/tmp/dump"`
    const plan = await place(
      "deepseek_v3",
      `
- match: { class: ${MODELS}.modeling_deepseek_v3.DeepseekV3RMSNorm }
  replace: { class: ${OPS}.ascend.ascend_layernorm.KDeepseekV3RMSNormW8A8, ${on("npu")} }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp$", class: ${MODELS}.modeling_deepseek_v3.DeepseekV3MLP }
  replace: { class: ${OPS}.ascend.ascend_mlp.KDeepseekV3MLPW8A8A2V1, ${on("npu")} }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp$", class: ${MODELS}.modeling_deepseek_v3.DeepseekV3MoE }
  replace: { class: ${OPS}.ascend.ascend_experts.KDeepseekV3MoEW8A8, ${on("npu", dump)} }
- match: { class: ${MODELS}.modeling_deepseek_v3.MoEGate }
  replace: { class: ${OPS}.ascend.ascend_gate.KDeepseekV3GateA2, ${on("npu:0")} }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp\\\\.experts$", class: ${OPS}.experts.KExpertsCPU }
  replace: { class: ${OPS}.ascend.ascend_experts.KExpertsCPUW8A8, kwargs: { prefill_device: "npu", prefill_op: "None", generate_device: "cpu", generate_op: "KExpertsCPUW8A8", out_device: "npu" } }
- match: { name: "^model\\\\.layers\\\\..*\\\\.self_attn$" }
  replace: { class: ${OPS}.ascend.ascend_attention.KDeepseekV2AttentionW8A8A2Serve, ${on("npu", ", absorb_for_prefill: False")} }
`,
    )
    // a rule for a class that only an injected model has: no error, but a line
    expect(standsIn(plan).some((line) => line.startsWith("rule 5: matches no module"))).toBe(true)
    expect(plan.entries.get("model.norm")?.operator).toBe("KDeepseekV3RMSNormW8A8")
    expect(plan.entries.get("model.layers.3.mlp.gate")?.operator).toBe("KDeepseekV3GateA2")
  })

  test("Llama's model with sparse attention on the CPU", async () => {
    const plan = await place(
      "internlm2",
      `
- match: { class: ${MODELS}.modeling_llama.LlamaRotaryEmbedding }
  replace: { class: ${OPS}.RoPE.RotaryEmbeddingV2 }
- match: { name: "^model$", class: ${MODELS}.modeling_llama.LlamaModel }
  replace: { class: ${OPS}.models.KLlamaModel, kwargs: { per_layer_prefill_intput_threshold: 0 } }
- match: { name: "^model\\\\.layers\\\\..*\\\\.self_attn$" }
  replace: { class: ${OPS}.attention.KLlamaAttention, ${on("cuda")} }
`,
    )
    expect(plan.entries.get("model")?.operator).toBe("KLlamaModel")
    expect(plan.entries.get("model.rotary_emb")?.operator).toBe("RotaryEmbeddingV2")
  })

  test.each([
    ["qwen3_next", "modeling_qwen3_next.Qwen3NextGatedDeltaNet", "KQwen3NextGatedDeltaNet"],
    ["qwen3_next", "modeling_qwen3_next.Qwen3NextAttention", "KQwen3NextAttention"],
    ["deepseek_v2", "modeling_deepseek.DeepseekV2YarnRotaryEmbedding", "YarnRotaryEmbedding"],
    ["deepseek_v2", "modeling_deepseek.DeepseekV2MoE", "KDeepseekV2MoE"],
    ["deepseek_v2", "modeling_deepseek.DeepseekV2RMSNorm", "KDeepseekRMSNormIPEXLLM"],
    ["deepseek_v3", "modeling_deepseek_v3.DeepseekV3MLP", "kDeepseekV3MLP"],
    ["deepseek_v3", "modeling_deepseek_v3.DeepseekV3RMSNorm", "RMSNorm"],
    ["moonlight", "modeling_deepseek_v3.DeepseekV3MoE", "KDeepseekV3MoEV2"],
    ["kimi_k2", "modeling_deepseek_v3.DeepseekV3MoE", "KDeepseekV3MoEV2"],
    ["kimi_k2", "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", "YarnRotaryEmbeddingV3"],
    ["qwen3_moe", "modeling_qwen3_moe.Qwen3MoeRMSNorm", "KQwen3MoeRMSNormW8A8"],
    ["mixtral", "modeling_mixtral.MixtralRotaryEmbedding", "RotaryEmbedding"],
  ])("%s: %s becomes %s", async (family, className, operator) => {
    const plan = await place(
      family,
      `- { match: { class: ${MODELS}.${className} }, replace: { class: ${OPS}.x.${operator} } }`,
    )
    expect([...plan.entries.values()].map((entry) => entry.operator)).toContain(operator)
    expect(standsIn(plan)).toEqual([`rule 1: ${operator}: the model's own module stands in`])
  })
})

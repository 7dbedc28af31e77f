import { describe, expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"

import { z } from "zod"

import { ConfigError } from "../../src/errors.ts"
import {
  applyInjection,
  explainPlan,
  type InjectionPlan,
  planInjection,
  type PlanOptions,
} from "../../src/inject/inject.ts"
import { parseRules, readRules, type RuleSet } from "../../src/inject/rules.ts"
import { configFromJson } from "../../src/models/config-hf.ts"
import { isLinearLayer, isMoeLayer } from "../../src/models/config.ts"
import { createModel, modelTypes } from "../../src/models/registry.ts"
import { Linear } from "../../src/nn/layers.ts"
import { Module, ModuleList, namedModules } from "../../src/nn/module.ts"
import { operators } from "../../src/operators/builtin.ts"
import { OperatorRegistry } from "../../src/operators/registry.ts"
import { buildModel, defaultRules } from "../models/build.ts"
import { ERNIE } from "../models/ernie.ts"
import { openAllGoldens } from "../models/goldens.ts"
import { ROOT } from "../setup.ts"

const goldens = openAllGoldens()
const configs = new Map(goldens.map(({ name, config }) => [name, config]))
configs.set("ernie4_5_moe", configFromJson("config.json", ERNIE))
const LLAMA = "hf/llama"
const MOE = "hf/qwen3_moe"

async function modelOf(name: string): Promise<Module> {
  const config = configs.get(name)
  if (config === undefined) throw new Error(`no golden ${name}`)
  return createModel(config)
}

async function plan(
  text: string,
  model = LLAMA,
  options: PlanOptions = {},
): Promise<InjectionPlan> {
  return planInjection(await modelOf(model), parseRules(text, "test.yaml"), operators, options)
}

async function failure(text: string, model = LLAMA): Promise<string> {
  try {
    await plan(text, model)
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError)
    return (error as ConfigError).message
  }
  throw new Error("expected a ConfigError")
}

function operatorAt(result: InjectionPlan, path: string): string | undefined {
  return result.entries.get(path)?.operator
}

/** KTransformers' README has this rule. */
const README_RULE = `
- match:
    name: "^model\\\\.layers\\\\..*$"  # regular expression
    class: torch.nn.Linear  # only match modules matching name and class simultaneously
  replace:
    class: ktransformers.operators.linear.KTransformerLinear  # optimized Kernel on quantized data types
    device: "cpu"   # which devices to load this module when initializing
    kwargs:
      generate_device: "cuda"
      generate_linear_type: "QuantizedLinearMarlin"
`

describe("rule files", () => {
  const read = (text: string): RuleSet => parseRules(text, "r.yaml")
  const problem = (text: string): string => {
    try {
      read(text)
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError)
      return (error as ConfigError).message
    }
    throw new Error("expected a ConfigError")
  }

  test("fields, defaults and Python's spellings", () => {
    const { rules } = read(`
- match: { name: "^lm_head$", class: torch.nn.Linear }
  replace:
    class: ktransformers.operators.linear.KTransformersLinear
    kwargs: { prefill_op: None, absorb_for_prefill: True, transfer_map: { 30: "cuda:1" }, answer: no }
  recursive: False
- match: { class: Experts }
  replace: { class: default }
  unused: warn
`)
    expect(rules).toHaveLength(2)
    const [first, second] = rules
    expect(first?.line).toBe(2)
    expect(first?.match.className).toBe("Linear")
    expect(first?.match.name?.source).toBe("^lm_head$")
    expect(first?.replace.className).toBe("KTransformersLinear")
    expect(first?.replace.kwargs).toEqual({
      prefill_op: "None",
      absorb_for_prefill: true,
      transfer_map: { "30": "cuda:1" },
      answer: "no",
    })
    expect(first?.recursive).toBe(false)
    expect(second).toMatchObject({ index: 2, line: 7, recursive: true, unused: "warn" })
  })

  test.each([
    ["match: {}", "r.yaml:1: a rule file is a list"],
    ["", "a rule file is a list"],
    ["- match: { name: x }", "r.yaml:1: rule 1: replace is missing"],
    ["- match: {}\n  replace: { class: default }", "rule 1: match needs name, class or both"],
    ["- match: { name: x }\n  replace: {}", "rule 1: replace needs class"],
    [
      "- match: { nam: x }\n  replace: { class: default }",
      'r.yaml:1: rule 1: unknown key "nam" in match',
    ],
    [
      "- match: { name: a }\n  replace: { class: default }\n- match: { name: b }\n  replace: { class: default }\n  recursive: maybe",
      'r.yaml:5: rule 2: recursive is "maybe", expected true or false',
    ],
    ["- match: { name: '(?P<layer>x)' }\n  replace: { class: default }", "named groups of Python"],
    ["- match: { name: '(x' }\n  replace: { class: default }", "is no regular expression"],
    ["- match: { name: '\\Ax' }\n  replace: { class: default }", "Python's anchor"],
    [
      "- match: { name: x }\n  replace: { class: default, kwargs: [1] }",
      "replace.kwargs is a list",
    ],
    ["- match: {name: x\n", "r.yaml:"],
  ])("%j is an error", (text, message) => {
    expect(problem(text)).toContain(message)
  })
})

describe("planning", () => {
  test("the first rule that matches wins", async () => {
    const result = await plan(`
- match: { name: "q_proj$" }
  replace: { class: default }
- match: { class: Linear }
  replace: { class: KTransformersLinear }
`)
    expect(operatorAt(result, "model.layers.0.self_attn.q_proj")).toBe("default")
    expect(operatorAt(result, "model.layers.0.self_attn.k_proj")).toBe("KTransformersLinear")
    expect(operatorAt(result, "lm_head")).toBe("KTransformersLinear")
    expect(operatorAt(result, "model.layers.0")).toBeUndefined()
  })

  test("names are searched, not anchored; name and class must both match", async () => {
    const result = await plan(`
- match: { name: "layers.1.", class: torch.nn.Linear }
  replace: { class: KTransformersLinear }
`)
    for (const path of result.entries.keys()) expect(path).toContain("layers.1.")
    expect([...result.entries.keys()]).toContain("model.layers.1.mlp.down_proj")
    expect([...result.entries.keys()]).not.toContain("model.layers.1.mlp")
  })

  test("a class matches through its bases and through the names other code gives it", async () => {
    const text = (name: string): string =>
      `[{ match: { class: ${name} }, replace: { class: default } }]`
    const base = await plan(text("transformers.models.llama.modeling_llama.LlamaMLP"), "hf/mistral")
    expect(operatorAt(base, "model.layers.0.mlp")).toBe("default")
    const alias = await plan(text("ktransformers.models.modeling_qwen3_moe.Qwen3MoeRMSNorm"), MOE)
    expect(operatorAt(alias, "model.layers.0.self_attn.q_norm")).toBe("default")
  })

  test("recursive: false leaves what is below alone", async () => {
    const result = await plan(`
- match: { name: "^model\\\\.layers\\\\.0$" }
  replace: { class: default }
  recursive: False
- match: { class: Linear }
  replace: { class: KTransformersLinear }
`)
    expect(operatorAt(result, "model.layers.0.mlp.up_proj")).toBeUndefined()
    expect(operatorAt(result, "model.layers.1.mlp.up_proj")).toBe("KTransformersLinear")
  })

  test("nothing is changed", async () => {
    const model = await modelOf(MOE)
    const before = [...namedModules(model)]
    planInjection(model, defaultRules(), operators)
    const after = [...namedModules(model)]
    expect(after.map(([path]) => path)).toEqual(before.map(([path]) => path))
    expect(after.every(([, module], i) => module === before[i]?.[1])).toBe(true)
  })

  test("the rule in KTransformers' README plans as it is", async () => {
    const result = await plan(README_RULE)
    expect(operatorAt(result, "model.layers.0.self_attn.q_proj")).toBe("KTransformersLinear")
    expect(operatorAt(result, "lm_head")).toBeUndefined()
    expect(result.warnings).toEqual([
      "test.yaml:2: rule 1: device cuda: the CPU stands in",
      "test.yaml:2: rule 1: QuantizedLinearMarlin: KLinearCPU stands in",
    ])
  })

  test.each([
    [
      "{ class: KNoSuchThing }",
      'test.yaml:1: rule 1: unknown operator "KNoSuchThing"; known are default',
    ],
    [
      "{ class: KTransformersLinear, kwargs: { colour: red } }",
      'rule 1: unknown kwarg "colour" of KTransformersLinear',
    ],
    [
      "{ class: KTransformersLinear, kwargs: { generate_op: KFast } }",
      'kwarg "generate_op" of KTransformersLinear',
    ],
    ["{ class: KTransformersLinear, device: gpu }", 'prefill_device "gpu" is no device'],
    ["{ class: KTransformersLinear, kwargs: { generate_device: 'cuda:x' } }", "is no device"],
    [
      "{ class: KTransformersExperts }",
      "lm_head: KTransformersExperts replaces modules of class Experts",
    ],
  ])("replace: %s is an error", async (replace, message) => {
    expect(await failure(`- match: { name: "^lm_head$" }\n  replace: ${replace}`)).toContain(
      message,
    )
  })

  test("a rule that matches nothing is an error, and a warning where that is asked for", async () => {
    const rule = '- match: { name: "^nowhere$", class: Linear }\n  replace: { class: default }'
    const message = 'test.yaml:1: rule 1: matches no module (name "^nowhere$", class Linear)'
    expect(await failure(rule)).toBe(message)
    expect((await plan(`${rule}\n  unused: warn`)).warnings).toEqual([message])
    expect((await plan(`${rule}\n  unused: ignore`)).warnings).toEqual([])
    expect((await plan(rule, LLAMA, { unused: "warn" })).warnings).toEqual([message])
  })

  test("a rule behind one that takes everything is told apart", async () => {
    const rule = '- match: { name: "^lm_head$" }\n  replace: { class: default }\n'
    expect(await failure(rule + rule)).toContain(
      "rule 2: matches nothing that earlier rules have left",
    )
  })

  test("files for KTransformers' own model classes are not held to that", async () => {
    const result = await plan(
      `
- match: { class: ktransformers.models.modeling_deepseek_v3.DeepseekV3RotaryEmbedding }
  replace: { class: ktransformers.operators.RoPE.YarnRotaryEmbeddingV3, kwargs: { generate_device: "cuda", prefill_device: "cuda" } }
- match: { name: "^model$" }
  replace:
    class: ktransformers.operators.models.KQwen2MoeModel
    kwargs: { per_layer_prefill_intput_threshold: 0, transfer_map: { 30: "cuda:1" } }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp$", class: ktransformers.models.modeling_deepseek_v3.DeepseekV3MoE }
  replace: { class: ktransformers.operators.experts.KDeepseekV3MoEV2 }
- match: { name: "^model\\\\.layers\\\\..*\\\\.mlp\\\\.experts$" }
  replace:
    class: ktransformers.operators.experts.KTransformersExpertsV2
    kwargs: { prefill_device: "cuda", prefill_op: None, generate_device: "cpu", generate_op: "KExpertsCPU", out_device: "cuda", backend: "AMXInt8" }
  recursive: False
`,
      MOE,
    )
    expect(operatorAt(result, "model.layers.0.mlp.experts")).toBe("KTransformersExperts")
    expect(operatorAt(result, "model")).toBe("KQwen2MoeModel")
    expect(result.warnings.some((line) => line.includes("rule 3: matches no module"))).toBe(true)
  })

  test("KTransformers' names for SmallThinker and Llama 4 find their modules", async () => {
    const cuda = `kwargs: { generate_device: "cuda", prefill_device: "cuda" }`
    const modeling = "ktransformers.models.modeling"
    const ops = "ktransformers.operators"
    const small = await plan(
      `
- match: { class: ${modeling}_smallthinker.SmallthinkerRotaryEmbedding }
  replace: { class: ${ops}.RoPE.KSmallthinkerRotaryEmbedding, ${cuda} }
- match: { name: "block_sparse_moe$", class: ${modeling}_smallthinker.SmallthinkerMoeBlock }
  replace: { class: ${ops}.experts.KSmallthinkerMoeBlock, ${cuda} }
- match: { name: "block_sparse_moe\\\\.experts$" }
  replace: { class: ${ops}.experts.KSmallthinkerExperts, kwargs: { prefill_op: None, generate_op: "KExpertsCPU" } }
  recursive: False
- match: { name: "self_attn$" }
  replace: { class: ${ops}.balance_serve_attention.KSmallthinkerAttention, ${cuda} }
- match: { class: ${modeling}_smallthinker.SmallthinkerRMSNorm }
  replace: { class: ${ops}.layernorm.KSmallthinkerRMSNorm, ${cuda} }
`,
      "hf/smallthinker_sigmoid",
    )
    expect(operatorAt(small, "model.rotary_emb")).toBe("KSmallthinkerRotaryEmbedding")
    expect(operatorAt(small, "model.layers.2.block_sparse_moe")).toBe("KSmallthinkerMoeBlock")
    expect(operatorAt(small, "model.layers.2.block_sparse_moe.experts")).toBe(
      "KTransformersExperts",
    )
    expect(operatorAt(small, "model.layers.2.self_attn")).toBe("KSmallthinkerAttention")
    expect(operatorAt(small, "model.norm")).toBe("KSmallthinkerRMSNorm")
    const llama4 = await plan(
      `
- match: { class: ${modeling}_llama4.Llama4TextRotaryEmbedding }
  replace: { class: ${ops}.RoPE.KLlama4RotaryEmbedding, ${cuda} }
- match: { name: "feed_forward$", class: ${modeling}_llama4.Llama4TextMoe }
  replace: { class: ${ops}.experts.KLlama4Moe, ${cuda} }
- match: { name: "feed_forward\\\\.experts$" }
  replace: { class: ${ops}.experts.KLlama4Experts, kwargs: { prefill_op: None, generate_op: "KExpertsCPU" } }
  recursive: False
- match: { name: "self_attn$" }
  replace: { class: ${ops}.balance_serve_attention.KLlama4Attention, ${cuda} }
- match: { name: "^model$" }
  replace: { class: ${ops}.models.KLlama4Model, kwargs: { per_layer_prefill_intput_threshold: 0 } }
- match: { class: ${modeling}_llama4.Llama4TextRMSNorm }
  replace: { class: ${ops}.layernorm.KLlama4RMSNorm, ${cuda} }
- match: { class: ${modeling}_llama4.Llama4TextMLP }
  replace: { class: ${ops}.mlp.KLlama4MLP, ${cuda} }
`,
      "hf/llama4_text",
    )
    for (const [path, operator] of [
      ["model", "KLlama4Model"],
      ["model.rotary_emb", "KLlama4RotaryEmbedding"],
      ["model.norm", "KLlama4RMSNorm"],
      ["model.layers.0.feed_forward", "KLlama4MLP"],
      ["model.layers.0.self_attn", "KLlama4Attention"],
      ["model.layers.1.feed_forward", "KLlama4Moe"],
      ["model.layers.1.feed_forward.experts", "KTransformersExperts"],
      ["model.layers.1.feed_forward.shared_expert", "KLlama4MLP"],
    ] as const) {
      expect(operatorAt(llama4, path)).toBe(operator)
    }
  })

  test("KTransformers' names for Mixtral, Qwen2-MoE and GLM-4.5 find their modules", async () => {
    const cuda = `kwargs: { generate_device: "cuda", prefill_device: "cuda" }`
    const modeling = "ktransformers.models.modeling"
    const ops = "ktransformers.operators"
    const experts = `{ prefill_device: "cuda", prefill_op: "KExpertsTorch", generate_op: "KExpertsCPU", out_device: "cuda" }`
    const expected = async (
      model: string,
      text: string,
      places: Readonly<Record<string, string | undefined>>,
    ): Promise<void> => {
      const result = await plan(text, model)
      for (const [path, operator] of Object.entries(places))
        expect(operatorAt(result, path), path).toBe(operator as string)
      expect(result.warnings.filter((line) => line.includes("matches no module"))).toEqual([])
    }
    await expected(
      "hf/mixtral",
      `
- match: { class: ${modeling}_mixtral.MixtralRotaryEmbedding }
  replace: { class: ${ops}.RoPE.RotaryEmbedding, ${cuda} }
- match: { name: "^model\\\\.layers\\\\..*$", class: torch.nn.Linear }
  replace: { class: ${ops}.linear.KTransformersLinear, ${cuda} }
- match: { name: "block_sparse_moe$", class: ${modeling}_mixtral.MixtralSparseMoeBlock }
  replace: { class: ${ops}.experts.KMistralSparseMoEBlock }
- match: { name: "block_sparse_moe\\\\.experts$" }
  replace: { class: ${ops}.experts.KTransformersExperts, kwargs: ${experts} }
  recursive: False
- match: { class: ${modeling}_mixtral.MixtralRMSNorm }
  replace: { class: default, ${cuda} }
`,
      {
        "model.rotary_emb": "RotaryEmbedding",
        "model.layers.0.self_attn.q_proj": "KTransformersLinear",
        "model.layers.1.block_sparse_moe": "KMistralSparseMoEBlock",
        "model.layers.1.block_sparse_moe.gate": "KTransformersLinear",
        "model.layers.1.block_sparse_moe.experts": "KTransformersExperts",
        "model.norm": "default",
      },
    )
    await expected(
      "hf/qwen2_moe",
      `
- match: { name: "^model\\\\.layers\\\\.(?!.*mlp\\\\.shared_expert_gate).*$", class: torch.nn.Linear }
  replace: { class: ${ops}.linear.KTransformersLinear, ${cuda} }
- match: { name: "\\\\.mlp$", class: ${modeling}_qwen2_moe.Qwen2MoeSparseMoeBlock }
  replace: { class: ${ops}.experts.KQwen2MoeSparseMoeBlockV2, ${cuda} }
- match: { name: "\\\\.mlp\\\\.experts$" }
  replace: { class: ${ops}.experts.KTransformersExpertsV2, kwargs: ${experts} }
  recursive: False
- match: { name: "self_attn$" }
  replace: { class: ${ops}.balance_serve_attention.KQwen2MoeAttention, ${cuda} }
- match: { name: "^model$" }
  replace: { class: ${ops}.models.KQwen2MoeModel, kwargs: { per_layer_prefill_intput_threshold: 0 } }
- match: { class: ${modeling}_qwen2_moe.Qwen2MoeRMSNorm }
  replace: { class: ${ops}.layernorm.KQwen2MoeRMSNorm, ${cuda} }
- match: { class: ${modeling}_qwen2_moe.Qwen2MoeMLP }
  replace: { class: ${ops}.mlp.KQwen2MoeMLP, ${cuda} }
`,
      {
        model: "KQwen2MoeModel",
        "model.layers.0.mlp": "KQwen2MoeSparseMoeBlockV2",
        "model.layers.0.mlp.shared_expert": "KQwen2MoeMLP",
        "model.layers.0.mlp.shared_expert.up_proj": "KTransformersLinear",
        "model.layers.0.mlp.shared_expert_gate": undefined,
        "model.layers.0.mlp.experts": "KTransformersExperts",
        "model.layers.1.mlp": "KQwen2MoeMLP",
        "model.layers.1.self_attn": "KQwen2MoeAttention",
        "model.norm": "KQwen2MoeRMSNorm",
      },
    )
    await expected(
      "hf/glm4_moe",
      `
- match: { class: ${modeling}_glm4_moe.Glm4MoeRotaryEmbedding }
  replace: { class: ${ops}.RoPE.KGlm4MoeRotaryEmbedding, ${cuda} }
- match: { name: "\\\\.mlp$", class: ${modeling}_glm4_moe.Glm4MoeMoE }
  replace: { class: ${ops}.experts.KGlm4MoeMoE, ${cuda} }
- match: { class: ${modeling}_glm4_moe.Glm4MoeTopkRouter }
  replace: { class: ${ops}.gate.KMoEGate, ${cuda} }
- match: { name: "\\\\.mlp\\\\.experts$" }
  replace: { class: ${ops}.experts.KGlm4Experts, kwargs: { prefill_op: None, generate_op: "KExpertsCPU" } }
  recursive: False
- match: { name: "self_attn$" }
  replace: { class: ${ops}.balance_serve_attention.KGlm4MoeAttention, ${cuda} }
- match: { class: ${modeling}_glm4_moe.Glm4MoeRMSNorm }
  replace: { class: ${ops}.layernorm.KGlm4MoeRMSNorm, ${cuda} }
- match: { class: ${modeling}_glm4_moe.Glm4MoeMLP }
  replace: { class: ${ops}.mlp.KGlm4MoeMLP, ${cuda} }
`,
      {
        "model.rotary_emb": "KGlm4MoeRotaryEmbedding",
        "model.layers.0.mlp": "KGlm4MoeMLP",
        "model.layers.1.mlp": "KGlm4MoeMoE",
        "model.layers.1.mlp.gate": "KMoEGate",
        "model.layers.1.mlp.experts": "KTransformersExperts",
        "model.layers.1.mlp.shared_experts": "KGlm4MoeMLP",
        "model.layers.0.self_attn": "KGlm4MoeAttention",
        "model.layers.0.self_attn.q_norm": "KGlm4MoeRMSNorm",
      },
    )
  })

  test("explain lists every module with what becomes of it", async () => {
    const model = await modelOf(LLAMA)
    const result = planInjection(model, parseRules(README_RULE, "test.yaml"), operators)
    const rows = explainPlan(model, result)
    expect(rows.map((row) => row.path)).toEqual(
      [...namedModules(model)].map(([path]) => path).slice(1),
    )
    expect(rows.find((row) => row.path === "model.layers.2.mlp.up_proj")).toMatchObject({
      original: "Linear",
      replacement: "KTransformersLinear",
      rule: "test.yaml:2: rule 1",
    })
    expect(rows.find((row) => row.path === "model.norm")).toMatchObject({
      original: "RMSNorm",
      replacement: "RMSNorm",
      rule: "",
    })
  })
})

describe("injection", () => {
  test("is bottom-up: an operator finds final children", async () => {
    const registry = new OperatorRegistry()
    const seen: string[] = []
    const log = (original: Module, path: string): Module => {
      seen.push(
        `${path}: ${original
          .children()
          .map(([, child]) => child.classNames()[0])
          .join(" ")}`,
      )
      return original
    }
    registry.register("Outer", {
      schema: z.object({}),
      create: (original, _kwargs, { path }) => log(original, path),
    })
    registry.register("Inner", {
      schema: z.object({ size: z.number() }),
      create: (_original, { size }) => new ModuleList([new Linear(size, size)]),
    })
    const model = await modelOf(LLAMA)
    const rules = parseRules(
      `
- match: { name: "^model\\\\.layers\\\\.0\\\\.mlp$" }
  replace: { class: Outer }
- match: { name: "^model\\\\.layers\\\\.0\\\\.mlp\\\\.up_proj$" }
  replace: { class: Inner, kwargs: { size: 7 } }
`,
      "test.yaml",
    )
    applyInjection(model, planInjection(model, rules, registry), (original, entry) =>
      registry.create(entry.operator, original, entry.kwargs, { path: entry.path, root: model }),
    )
    expect(seen).toEqual(["model.layers.0.mlp: Linear ModuleList Linear"])
  })

  test("an operator's name can be registered once", () => {
    const registry = new OperatorRegistry()
    const spec = { schema: z.object({}), create: (original: Module): Module => original }
    registry.register("Mine", { ...spec, aliases: ["Yours"] })
    expect(() => registry.register("Yours", spec)).toThrow('operator "Yours" is registered already')
    expect(() => registry.register("not a name", spec)).toThrow("is no identifier")
  })
})

describe("the files in rules/", () => {
  const all = readdirSync(join(ROOT, "rules")).filter((name) => name.endsWith(".yaml"))
  const files = all.filter((name) => !name.endsWith("-gpu.yaml") && !name.startsWith("xpu-"))
  const setOf = (file: string): RuleSet =>
    parseRules(readFileSync(join(ROOT, "rules", file), "utf8"), `rules/${file}`)
  /** The model each file is for. */
  const HOME: Readonly<Record<string, string>> = {
    "llama.yaml": LLAMA,
    "mistral.yaml": "hf/mistral",
    "qwen2.yaml": "hf/qwen2",
    "qwen3.yaml": "hf/qwen3",
    "gemma3.yaml": "hf/gemma3_text",
    "phi3.yaml": "hf/phi3",
    "qwen3-moe.yaml": MOE,
    "smallthinker.yaml": "hf/smallthinker_sigmoid",
    "llama4.yaml": "hf/llama4_text",
    "gpt-oss.yaml": "hf/gpt_oss",
    "smollm3.yaml": "hf/smollm3",
    "internlm2.yaml": "hf/internlm2",
    "mixtral.yaml": "hf/mixtral",
    "qwen2-moe.yaml": "hf/qwen2_moe",
    "glm4-moe.yaml": "hf/glm4_moe",
    "minimax-m2.yaml": "hf/minimax_m2",
    "ernie4-5-moe.yaml": "ernie4_5_moe",
    "qwen3-next.yaml": "hf/qwen3_next",
    "deepseek-v2.yaml": "hf/deepseek_v2",
    "deepseek-v3.yaml": "hf/deepseek_v3",
    "kimi-k2.yaml": "hf/kimi_k2",
  }

  const gpuForm = (file: string): string => file.replace(/\.yaml$/, "-gpu.yaml")
  /** Files for a GPU, its name and their models. */
  const GPU_FORMS = Object.entries(HOME).flatMap(([file, name]) => {
    const forms = [[gpuForm(file), "cuda", name]] as [string, string, string][]
    if (all.includes(`xpu-${file}`)) forms.push([`xpu-${file}`, "xpu", name])
    return forms
  })

  test("forms for SYCL are of these models", () => {
    const xpu = GPU_FORMS.filter(([, device]) => device === "xpu").map(([file]) => file)
    expect(xpu.toSorted()).toEqual(all.filter((file) => file.startsWith("xpu-")).toSorted())
    expect(xpu.length).toBe(3)
  })

  test("each but the default is for a model", () => {
    expect(files.filter((file) => file !== "default-cpu.yaml").toSorted()).toEqual(
      Object.keys(HOME).toSorted(),
    )
  })

  test("each has a form for a machine with a GPU", () => {
    expect(all.filter((file) => file.endsWith("-gpu.yaml")).toSorted()).toEqual(
      Object.keys(HOME)
        .map((file) => gpuForm(file))
        .toSorted(),
    )
  })

  test("every family has one", () => {
    const types = new Set<string | undefined>(
      Object.values(HOME).map((name) => configs.get(name)?.model_type),
    )
    expect(modelTypes().filter((type) => !types.has(type))).toEqual([])
  })

  test.each(GPU_FORMS)(
    "%s places every weight on the CPU and %s of %s",
    async (file, gpu, name) => {
      const set = setOf(file)
      const model = await modelOf(name)
      const cpuOnly = planInjection(model, set, operators)
      expect(cpuOnly.warnings).toEqual([
        expect.stringContaining(`device ${gpu}: the CPU stands in`),
      ])
      const result = planInjection(model, set, operators, { device: () => undefined })
      expect(result.warnings).toEqual([])
      const device = (path: string): unknown => result.entries.get(path)?.kwargs["generate_device"]
      expect(device("model.embed_tokens")).toBe("cpu")
      expect(device("lm_head")).toBe(gpu)
      for (const [path, module] of namedModules(model)) {
        if (module.classNames()[0] === "Experts") {
          expect(device(path), path).toBe("cpu")
          expect(result.entries.get(path)?.kwargs["out_device"]).toBe(gpu)
        } else if (module.parameters().length > 0 && path !== "model.embed_tokens") {
          const above = path.split(".").map((_, i, parts) => parts.slice(0, i + 1).join("."))
          const placed = above.toReversed().find((at) => device(at) !== undefined)
          expect(device(placed ?? ""), path).toBe(gpu)
        }
      }
      applyInjection(model, result, (original, entry) =>
        operators.create(entry.operator, original, entry.kwargs, { path: entry.path, root: model }),
      )
    },
  )

  test.each(Object.entries(HOME))("%s plans for %s without a warning", async (file, name) => {
    const result = planInjection(await modelOf(name), setOf(file), operators)
    expect(result.warnings).toEqual([])
    expect(operatorAt(result, "model.layers.0")).toBe("KFusedDecoderLayer")
  })

  for (const file of files) {
    test.each([...configs.keys()])(
      `${file} plans for %s when unused rules are warnings`,
      async (name) => {
        const result = planInjection(await modelOf(name), setOf(file), operators, {
          unused: "warn",
        })
        expect(operatorAt(result, "lm_head")).toBe("KFusedHead")
      },
    )
  }

  test.each([...configs])("the default fuses every layer of %s", async (_name, config) => {
    const { model, plan: result } = await buildModel(config)
    expect(result.warnings).toEqual([])
    const classes = new Map([...namedModules(model)].map(([path, m]) => [path, m.classNames()[0]]))
    const attention = config.mla === undefined ? /^KFusedAttention$/ : /^KFusedLatentAttention$/
    for (let i = 0; i < config.num_hidden_layers; i++) {
      expect(classes.get(`model.layers.${i}`)).toBe("KFusedDecoderLayer")
      if (config.model_type === "qwen3_next") {
        const [mixer, name] = isLinearLayer(config, i)
          ? ["linear_attn", "Qwen3NextGatedDeltaNet"]
          : ["self_attn", "Qwen3NextAttention"]
        expect(classes.get(`model.layers.${i}.${mixer}`)).toBe(name as string)
      } else expect(classes.get(`model.layers.${i}.self_attn`)).toMatch(attention)
      const names = ["mlp", "feed_forward", "block_sparse_moe"]
      const [path = ""] = names
        .map((name) => `model.layers.${i}.${name}`)
        .filter((name) => classes.has(name))
      if (isMoeLayer(config, i)) {
        expect(classes.get(`${path}.experts`)).toBe("KTransformersExperts")
      } else expect(classes.get(path)).toBe("KFusedMLP")
    }
    expect(classes.get("lm_head")).toBe("KFusedHead")
  })

  test.each([...configs])("without fusing, %s keeps its plain modules", async (_name, config) => {
    const { model } = await buildModel(config, { fuse: false })
    for (const [, module] of namedModules(model)) {
      expect(module.classNames()[0]).not.toStartWith("KFused")
    }
  })
})

test("a rule file that is not there is an error that names it", () => {
  expect(() => readRules("/nonexistent/rules.yaml")).toThrow(
    "/nonexistent/rules.yaml: no such rule file",
  )
  expect(() => readRules(ROOT)).toThrow("a rule file is a file, this is not")
})

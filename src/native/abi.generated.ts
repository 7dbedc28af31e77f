// Generated from kernels/include/kt.h by `zig build abi`. Do not edit.

export const symbols = {
  kt_abi_version: { args: [], returns: "u32" },
  kt_abi_hash: { args: [], returns: "u64" },
  kt_last_error: { args: [], returns: "cstring" },
  kt_backend_name: { args: [], returns: "cstring" },
  kt_device_count: { args: ["ptr"], returns: "i32" },
  kt_device_query: { args: ["u32", "ptr"], returns: "i32" },
  kt_slab_create: { args: ["i64", "u32", "ptr"], returns: "i32" },
  kt_slab_destroy: { args: ["ptr", "i64"], returns: "void" },
  kt_file_map: { args: ["ptr", "ptr"], returns: "i32" },
  kt_file_unmap: { args: ["ptr", "i64"], returns: "i32" },
  kt_file_advise: { args: ["ptr", "i64", "u32"], returns: "i32" },
  kt_cpu_query: { args: ["ptr"], returns: "i32" },
  kt_ctx_create: { args: ["ptr", "ptr"], returns: "i32" },
  kt_ctx_destroy: { args: ["ptr"], returns: "void" },
  kt_ctx_query: { args: ["ptr", "ptr"], returns: "i32" },
  kt_ctx_set_precision: { args: ["ptr", "u32"], returns: "i32" },
  kt_buffer_create: { args: ["ptr", "i64", "ptr"], returns: "i32" },
  kt_buffer_destroy: { args: ["ptr", "ptr", "i64"], returns: "void" },
  kt_buffer_copy: { args: ["ptr", "ptr", "ptr", "i64"], returns: "i32" },
  kt_ctx_synchronize: { args: ["ptr"], returns: "i32" },
  kt_event_create: { args: ["ptr", "ptr"], returns: "i32" },
  kt_event_destroy: { args: ["ptr"], returns: "void" },
  kt_event_record: { args: ["ptr", "ptr"], returns: "i32" },
  kt_event_wait: { args: ["ptr", "ptr"], returns: "i32" },
  kt_event_elapsed: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_graph_begin: { args: ["ptr"], returns: "i32" },
  kt_graph_end: { args: ["ptr", "ptr"], returns: "i32" },
  kt_graph_launch: { args: ["ptr", "ptr"], returns: "i32" },
  kt_graph_destroy: { args: ["ptr"], returns: "void" },
  kt_graph_start: { args: ["ptr", "ptr"], returns: "i32" },
  kt_turn_signal: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  kt_turn_wait: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  kt_packed_bytes: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_pack_weight: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_quantize: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_copy: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_add: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_act_mul: { args: ["ptr", "ptr", "ptr", "u32", "ptr"], returns: "i32" },
  kt_act: { args: ["ptr", "ptr", "u32", "ptr"], returns: "i32" },
  kt_embedding: { args: ["ptr", "ptr", "ptr", "f32", "ptr"], returns: "i32" },
  kt_linear: { args: ["ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_head_linear: { args: ["ptr", "ptr", "ptr", "u32", "ptr"], returns: "i32" },
  kt_rms_norm: { args: ["ptr", "ptr", "ptr", "f32", "f32", "ptr"], returns: "i32" },
  kt_add_rms_norm: { args: ["ptr", "ptr", "ptr", "ptr", "f32", "f32", "ptr"], returns: "i32" },
  kt_layer_norm: { args: ["ptr", "ptr", "ptr", "ptr", "f32", "ptr"], returns: "i32" },
  kt_rope_table: { args: ["ptr", "ptr", "ptr", "f32", "ptr"], returns: "i32" },
  kt_rope: { args: ["ptr", "ptr", "ptr", "u32"], returns: "i32" },
  kt_store_kv: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_paged_attention: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_causal_conv1d: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_gated_delta_rule: { args: ["ptr", "ptr"], returns: "i32" },
  kt_gated_rms_norm: { args: ["ptr", "ptr", "ptr", "ptr", "f32", "ptr"], returns: "i32" },
  kt_sigmoid_mul: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_moe_router: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_norm_router: { args: ["ptr", "ptr", "ptr", "f32", "f32", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_fused_experts: { args: ["ptr", "ptr"], returns: "i32" },
  kt_qkv_rope_store: { args: ["ptr", "ptr"], returns: "i32" },
  kt_linear_residual: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "f32", "f32", "ptr"], returns: "i32" },
  kt_gate_up_act: { args: ["ptr", "ptr", "ptr", "f32", "f32", "ptr", "ptr", "u32", "ptr"], returns: "i32" },
  kt_norm_linear: { args: ["ptr", "ptr", "ptr", "f32", "f32", "ptr", "ptr"], returns: "i32" },
  kt_argmax: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_mask_logits: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  kt_sample: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_logprobs: { args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  kt_measure: { args: ["ptr", "u32", "i64", "f32", "ptr"], returns: "i32" },
} as const

export const layouts = {
  kt_tensor: { size: 88, align: 8, fields: { data: 0, shape: 8, stride: 40, dtype: 72, ndim: 76, device: 80, flags: 84 } },
  kt_ctx_options: { size: 36, align: 4, fields: { struct_size: 0, abi_version: 4, num_threads: 8, isa: 12, precision: 16, pin_threads: 20, spin_us: 24, numa_nodes: 28, device: 32 } },
  kt_ctx_info: { size: 24, align: 4, fields: { struct_size: 0, abi_version: 4, num_threads: 8, isa: 12, precision: 16, num_nodes: 20 } },
  kt_cpu_info: { size: 56, align: 8, fields: { struct_size: 0, abi_version: 4, isa_mask: 8, physical_cores: 12, logical_cores: 16, quota_millis: 20, memory_bytes: 24, memory_free_bytes: 32, l2_bytes: 40, l3_bytes: 48 } },
  kt_device_info: { size: 104, align: 8, fields: { struct_size: 0, abi_version: 4, memory_bytes: 8, memory_free_bytes: 16, compute_units: 24, capability: 28, driver_version: 32, link_mbytes: 36, name: 40 } },
  kt_file_map: { size: 16, align: 8, fields: { data: 0, size: 8 } },
  kt_turns: { size: 128, align: 4, fields: { launch: 0, given_up: 4, reserved: 8 } },
  kt_turn: { size: 128, align: 8, fields: { launch: 0, reserved: 4, waited_ns: 64, reserved2: 72 } },
  kt_attention_params: { size: 36, align: 4, fields: { struct_size: 0, abi_version: 4, scale: 8, soft_cap: 12, sliding_window: 16, chunk_size: 20, temperature_scale: 24, temperature_floor: 28, bidirectional: 32 } },
  kt_state_segments: { size: 32, align: 8, fields: { struct_size: 0, abi_version: 4, start: 8, source: 16, target: 24 } },
  kt_delta_rule_args: { size: 96, align: 8, fields: { struct_size: 0, abi_version: 4, q: 8, k: 16, v: 24, b: 32, a: 40, decay: 48, dt_bias: 56, segments: 64, state: 72, out: 80, scale: 88, eps: 92 } },
  kt_router_params: { size: 32, align: 4, fields: { struct_size: 0, abi_version: 4, score: 8, norm: 12, num_groups: 16, topk_groups: 20, group_score: 24, scale: 28 } },
  kt_experts_args: { size: 96, align: 8, fields: { struct_size: 0, abi_version: 4, x: 8, ids: 16, weights: 24, gate: 32, up: 40, down: 48, gate_bias: 56, up_bias: 64, down_bias: 72, out: 80, act: 88, flags: 92 } },
  kt_qkv_args: { size: 152, align: 8, fields: { struct_size: 0, abi_version: 4, x: 8, norm_weight: 16, wq: 24, wk: 32, wv: 40, bq: 48, bk: 56, bv: 64, q_norm: 72, k_norm: 80, rope_table: 88, slot_mapping: 96, k_cache: 104, v_cache: 112, q_out: 120, eps: 128, norm_offset: 132, qk_eps: 136, qk_norm_offset: 140, interleaved: 144, unit_qk_norm: 148 } },
  kt_sampling_row: { size: 144, align: 8, fields: { temperature: 0, top_p: 4, min_p: 8, repetition_penalty: 12, presence_penalty: 16, frequency_penalty: 20, uniform: 24, top_k: 28, history: 32, history_len: 40, prompt_len: 44, bias_ids: 48, bias_values: 56, bias_len: 64, dry_len: 68, dry_ids: 72, dry_penalties: 80, typical_p: 88, top_n_sigma: 92, xtc_probability: 96, xtc_threshold: 100, xtc_uniform: 104, dynatemp_range: 108, dynatemp_exponent: 112, mirostat: 116, mirostat_tau: 120, mirostat_eta: 124, mirostat_mu: 128, reserved: 132, order: 136 } },
} as const

export const KT_ABI_MAJOR = 1
export const KT_ABI_MINOR = 0
export const KT_OK = 0
export const KT_ERR_INVALID_ARG = -1
export const KT_ERR_UNSUPPORTED = -2
export const KT_ERR_OUT_OF_MEMORY = -3
export const KT_ERR_DEVICE = -4
export const KT_ERR_CANCELLED = -5
export const KT_ERR_INTERNAL = -6
export const KT_F32 = 0
export const KT_F16 = 1
export const KT_Q4_0 = 2
export const KT_Q4_1 = 3
export const KT_Q5_0 = 6
export const KT_Q5_1 = 7
export const KT_Q8_0 = 8
export const KT_Q2_K = 10
export const KT_Q3_K = 11
export const KT_Q4_K = 12
export const KT_Q5_K = 13
export const KT_Q6_K = 14
export const KT_Q8_K = 15
export const KT_IQ2_XXS = 16
export const KT_IQ2_XS = 17
export const KT_IQ3_XXS = 18
export const KT_IQ1_S = 19
export const KT_IQ4_NL = 20
export const KT_IQ3_S = 21
export const KT_IQ2_S = 22
export const KT_IQ4_XS = 23
export const KT_I8 = 24
export const KT_I16 = 25
export const KT_I32 = 26
export const KT_I64 = 27
export const KT_F64 = 28
export const KT_IQ1_M = 29
export const KT_BF16 = 30
export const KT_TQ1_0 = 34
export const KT_TQ2_0 = 35
export const KT_MXFP4 = 39
export const KT_NVFP4 = 40
export const KT_Q1_0 = 41
export const KT_Q2_0 = 42
export const KT_F8_E4M3 = 1001
export const KT_I4_BF16 = 1002
export const KT_I4_ZERO = 1003
export const KT_TENSOR_PACKED = 1
export const KT_ISA_AUTO = 0
export const KT_ISA_SCALAR = 1
export const KT_ISA_AVX2 = 2
export const KT_ISA_AVX512 = 3
export const KT_ISA_AVX512BF16 = 4
export const KT_ISA_AMX = 5
export const KT_ISA_NEON = 6
export const KT_ISA_DOTPROD = 7
export const KT_ISA_I8MM = 8
export const KT_ISA_COUNT = 9
export const KT_PRECISION_FAST = 0
export const KT_PRECISION_F32 = 1
export const KT_SLAB_HUGE_PAGES = 1
export const KT_SLAB_PINNED = 2
export const KT_ADVISE_WILLNEED = 1
export const KT_ADVISE_DONTNEED = 2
export const KT_TURN_SECONDS = 60
export const KT_ACT_SILU = 0
export const KT_ACT_GELU_TANH = 1
export const KT_ACT_GELU_ERF = 2
export const KT_ACT_RELU = 3
export const KT_ACT_SWIGLU_OAI = 4
export const KT_ACT_TANH = 5
export const KT_SCORE_SOFTMAX = 0
export const KT_SCORE_SIGMOID = 1
export const KT_SCORE_CHOSEN_SOFTMAX = 2
export const KT_GROUP_MAX = 0
export const KT_GROUP_TOP2_SUM = 1
export const KT_EXPERTS_SCALE_INPUT = 1
export const KT_EXPERTS_ADD = 2
export const KT_SAMPLER_PENALTIES = 1
export const KT_SAMPLER_DRY = 2
export const KT_SAMPLER_TOP_N_SIGMA = 3
export const KT_SAMPLER_TOP_K = 4
export const KT_SAMPLER_TYPICAL_P = 5
export const KT_SAMPLER_TOP_P = 6
export const KT_SAMPLER_MIN_P = 7
export const KT_SAMPLER_XTC = 8
export const KT_SAMPLER_TEMPERATURE = 9
export const KT_MEASURE_READ = 0
export const KT_MEASURE_INT_DOT = 1
export const KT_MEASURE_FMA = 2
export const KT_MEASURE_INT4_DOT = 3
export const KT_MEASURE_BF16_DOT = 4

export const KT_ABI_HASH = 0xdfd2f4d6b33b6df5n

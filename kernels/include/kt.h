/* The C ABI of every KTransformers kernel library (libkt_cpu, libkt_cuda, ...). See kernels/README.md for ownership rules.
 *
 * Only <stdint.h> types and pointers cross it. Every function but kt_abi_*, kt_last_error, kt_backend_name and *_destroy
 * returns a kt_status_t; the text of the last failure of the calling thread is kt_last_error(). All libraries export the
 * same symbols; an op that a library lacks returns KT_ERR_UNSUPPORTED.
 */
#ifndef KT_H
#define KT_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define KT_STATIC_ASSERT(c, m) static_assert(c, m)
#else
#define KT_STATIC_ASSERT(c, m) _Static_assert(c, m)
#endif

#if defined(_WIN32)
#define KT_API __declspec(dllexport)
#else
#define KT_API __attribute__((visibility("default")))
#endif

#define KT_ABI_MAJOR 1
#define KT_ABI_MINOR 0

typedef int32_t kt_status_t;
#define KT_OK 0
#define KT_ERR_INVALID_ARG (-1)
#define KT_ERR_UNSUPPORTED (-2)
#define KT_ERR_OUT_OF_MEMORY (-3)
#define KT_ERR_DEVICE (-4)
#define KT_ERR_CANCELLED (-5)
#define KT_ERR_INTERNAL (-6)

/* Element types: GGML's numbers. */
#define KT_F32 0
#define KT_F16 1
#define KT_Q4_0 2
#define KT_Q4_1 3
#define KT_Q5_0 6
#define KT_Q5_1 7
#define KT_Q8_0 8
#define KT_Q2_K 10
#define KT_Q3_K 11
#define KT_Q4_K 12
#define KT_Q5_K 13
#define KT_Q6_K 14
#define KT_Q8_K 15
#define KT_IQ2_XXS 16
#define KT_IQ2_XS 17
#define KT_IQ3_XXS 18
#define KT_IQ1_S 19
#define KT_IQ4_NL 20
#define KT_IQ3_S 21
#define KT_IQ2_S 22
#define KT_IQ4_XS 23
#define KT_I8 24
#define KT_I16 25
#define KT_I32 26
#define KT_I64 27
#define KT_F64 28
#define KT_IQ1_M 29
#define KT_BF16 30
#define KT_TQ1_0 34
#define KT_TQ2_0 35
#define KT_MXFP4 39
#define KT_NVFP4 40
#define KT_Q1_0 41
#define KT_Q2_0 42
/* What safetensors' quantised weights become; no file holds these. */
#define KT_F8_E4M3 1001 /* scale in f32 and 128 E4M3 values */
#define KT_I4_BF16 1002 /* scale in bf16 and 32 signed 4-bit values */
#define KT_I4_ZERO 1003 /* scale in f16, zero point and 32 4-bit values */

/* Tensor flags. */
#define KT_TENSOR_PACKED 1 /* data is in kt_pack_weight's layout for this context's ISA level */

/* A tensor by descriptor. Shapes run from the outermost dimension; strides are bytes; a row of a quantised type is a
 * sequence of blocks, so its innermost stride is the block's size. Unused dimensions are 1. */
typedef struct kt_tensor {
  void *data;
  int64_t shape[4];
  int64_t stride[4];
  uint32_t dtype;
  uint32_t ndim;
  int32_t device; /* 0 is the CPU */
  uint32_t flags;
} kt_tensor_t;
KT_STATIC_ASSERT(sizeof(kt_tensor_t) == 88, "kt_tensor_t is 88 bytes on every platform");

typedef struct kt_ctx kt_ctx_t;

/* Instruction-set levels of the CPU library, weakest first. */
#define KT_ISA_AUTO 0
#define KT_ISA_SCALAR 1 /* x86-64-v2, or the baseline of another architecture */
#define KT_ISA_AVX2 2
#define KT_ISA_AVX512 3 /* with VNNI */
#define KT_ISA_AVX512BF16 4
#define KT_ISA_AMX 5
#define KT_ISA_NEON 6    /* every 64-bit ARM */
#define KT_ISA_DOTPROD 7 /* with int8 dot products and half floats */
#define KT_ISA_I8MM 8    /* with int8 matrix products and bfloat16 */
#define KT_ISA_COUNT 9

#define KT_PRECISION_FAST 0 /* activations quantised to int8 for quantised weights */
#define KT_PRECISION_F32 1  /* float activations on dequantised weights */

typedef struct kt_ctx_options {
  uint32_t struct_size, abi_version;
  uint32_t num_threads; /* the caller included; 0 = physical cores available to the process */
  uint32_t isa;         /* KT_ISA_*; AUTO honours KT_CPU_ISA and else takes the best */
  uint32_t precision;   /* KT_PRECISION_* */
  uint32_t pin_threads; /* 1: one core a thread */
  uint32_t spin_us;     /* how long an idle worker spins before it parks; 0 = default */
  uint32_t numa_nodes;  /* 0 = those of the machine; 1 = none told apart; another number only divides work and memory */
  uint32_t device;      /* index below kt_device_count */
} kt_ctx_options_t;

typedef struct kt_ctx_info {
  uint32_t struct_size, abi_version;
  uint32_t num_threads, isa, precision, num_nodes;
} kt_ctx_info_t;

/* What the machine has; filled without a context. */
typedef struct kt_cpu_info {
  uint32_t struct_size, abi_version;
  uint32_t isa_mask; /* bit KT_ISA_x: this machine runs the level and the library holds it */
  uint32_t physical_cores, logical_cores; /* available to the process (affinity, cgroup quota) */
  uint32_t quota_millis;                  /* CPU time the cgroup grants, in thousandths of a CPU; 0 = no limit */
  int64_t memory_bytes, memory_free_bytes;
  int64_t l2_bytes, l3_bytes;
} kt_cpu_info_t;

/* ---- library ---- */
KT_API uint32_t kt_abi_version(void);
KT_API uint64_t kt_abi_hash(void);
KT_API const char *kt_last_error(void);
KT_API const char *kt_backend_name(void);

/* ---- devices ---- */
typedef struct kt_device_info {
  uint32_t struct_size, abi_version;
  int64_t memory_bytes, memory_free_bytes;
  uint32_t compute_units;  /* multiprocessors of a GPU, cores of a CPU */
  uint32_t capability;     /* CUDA: 10 * major + minor; else 0 */
  uint32_t driver_version; /* CUDA: 1000 * major + 10 * minor of the newest version that the driver knows; else 0 */
  uint32_t link_mbytes;    /* MB/s that the link to the host can do in one direction by its generation and width; 0: unknown */
  char name[64];           /* NUL-terminated */
} kt_device_info_t;
/* Devices of this library. KT_ERR_DEVICE, and kt_last_error says why, where there can be none: no driver, no permission. */
KT_API kt_status_t kt_device_count(uint32_t *out_count);
KT_API kt_status_t kt_device_query(uint32_t index, kt_device_info_t *out);

/* ---- memory ---- */
#define KT_SLAB_HUGE_PAGES 1
#define KT_SLAB_PINNED 2 /* page-locked: this library's devices read and write it at the same address */
/* Zeroed, 64-byte aligned (2 MiB with huge pages). *out receives the address. With KT_SLAB_PINNED and *out not NULL no memory is
 * taken: the whole pages of the memory there, which may be a mapped file, are page-locked until kt_slab_destroy with 0 bytes. */
KT_API kt_status_t kt_slab_create(int64_t bytes, uint32_t flags, void **out);
KT_API void kt_slab_destroy(void *slab, int64_t bytes);

typedef struct kt_file_map {
  void *data;
  int64_t size;
} kt_file_map_t;
/* Read-only mapping of a whole file. path is UTF-8, NUL-terminated. */
KT_API kt_status_t kt_file_map(const char *path, kt_file_map_t *out);
KT_API kt_status_t kt_file_unmap(void *data, int64_t size);
#define KT_ADVISE_WILLNEED 1
#define KT_ADVISE_DONTNEED 2 /* drop resident pages of the range */
KT_API kt_status_t kt_file_advise(void *data, int64_t size, uint32_t advice);

/* ---- context ---- */
KT_API kt_status_t kt_cpu_query(kt_cpu_info_t *out);
KT_API kt_status_t kt_ctx_create(const kt_ctx_options_t *options, kt_ctx_t **out);
KT_API void kt_ctx_destroy(kt_ctx_t *ctx);
KT_API kt_status_t kt_ctx_query(kt_ctx_t *ctx, kt_ctx_info_t *out);
KT_API kt_status_t kt_ctx_set_precision(kt_ctx_t *ctx, uint32_t precision);

/* ---- memory and order of a context's device ---- */
/* Zeroed memory of the device, 256-byte aligned; KT_ERR_OUT_OF_MEMORY names what was asked for and what is free. */
KT_API kt_status_t kt_buffer_create(kt_ctx_t *ctx, int64_t bytes, void **out);
KT_API void kt_buffer_destroy(kt_ctx_t *ctx, void *buffer, int64_t bytes);
/* to = from, either in memory of the device or of the host; comes after the context's earlier ops and before its later ones. It is
 * done on return unless both are of the device or pinned. */
KT_API kt_status_t kt_buffer_copy(kt_ctx_t *ctx, void *to, const void *from, int64_t bytes);
/* Waits until all ops of the context are done; the failure of one that was under way is reported here. */
KT_API kt_status_t kt_ctx_synchronize(kt_ctx_t *ctx);
/* Points in a context's order of ops. */
typedef struct kt_event kt_event_t;
KT_API kt_status_t kt_event_create(kt_ctx_t *ctx, kt_event_t **out);
KT_API void kt_event_destroy(kt_event_t *event);
KT_API kt_status_t kt_event_record(kt_ctx_t *ctx, kt_event_t *event);
/* Later ops of the context wait for the event, which another context of the library may have recorded. */
KT_API kt_status_t kt_event_wait(kt_ctx_t *ctx, kt_event_t *event);
/* Milliseconds between two recorded events; waits for the second. */
KT_API kt_status_t kt_event_elapsed(kt_event_t *start, kt_event_t *end, double *out_ms);
/* Ops between begin and end are not computed but kept, with the addresses, sizes and options they were called with (descriptors and
 * option structs are copied); launch computes them all, on what lies at the addresses then, in the context's precision. An op that
 * writes to its option struct cannot be kept. KT_ERR_UNSUPPORTED from launch, before anything is computed: memory of the context
 * that the graph uses has been given back since, and it must be made again. */
typedef struct kt_graph kt_graph_t;
KT_API kt_status_t kt_graph_begin(kt_ctx_t *ctx);
KT_API kt_status_t kt_graph_end(kt_ctx_t *ctx, kt_graph_t **out);
KT_API kt_status_t kt_graph_launch(kt_ctx_t *ctx, kt_graph_t *graph);
KT_API void kt_graph_destroy(kt_graph_t *graph);
/* As launch, but returns while ops are computed, also where others are done on return; until kt_ctx_synchronize, which reports their
 * failure, or the context's next op, which waits for them. */
KT_API kt_status_t kt_graph_start(kt_ctx_t *ctx, kt_graph_t *graph);
/* Graphs of two contexts, of one library or two, take turns while both are computed: one signals a point, the other waits for it. The
 * points lie in zeroed memory that both reach (KT_SLAB_PINNED): a kt_turns_t, and a kt_turn_t for each. `launch` is another number
 * before each launch, which nothing has to take back after. */
#define KT_TURN_SECONDS 60 /* that a point is waited for at most: the launch is given up then */
typedef struct kt_turns {
  uint32_t launch;   /* the launch's number, not 0: written by the caller before it */
  uint32_t given_up; /* the number of a launch in which nobody is to wait any more, written by whoever fails */
  uint32_t reserved[30];
} kt_turns_t;
typedef struct kt_turn {
  uint32_t launch; /* the last one that has signalled the point */
  uint32_t reserved[15];
  uint64_t waited_ns; /* how long it was waited for in the last launch */
  uint64_t reserved2[7];
} kt_turn_t;
KT_STATIC_ASSERT(sizeof(kt_turns_t) == 128 && sizeof(kt_turn_t) == 128, "turns lie on cache lines of their own");
/* The point is reached once the context's earlier ops are done, and what they wrote is seen by who waits for it. */
KT_API kt_status_t kt_turn_signal(kt_ctx_t *ctx, void *turns, uint32_t point);
/* The context's later ops come after the point. In a launch that is given up they are computed all the same where ops are done
 * after the call returns, on what is there; elsewhere KT_ERR_CANCELLED. */
KT_API kt_status_t kt_turn_wait(kt_ctx_t *ctx, void *turns, uint32_t point);

/* ---- weights ---- */
/* Bytes kt_pack_weight needs for w [out, in] or [experts, out, in]; KT_ERR_UNSUPPORTED where the type has no packed layout. */
KT_API kt_status_t kt_packed_bytes(kt_ctx_t *ctx, const kt_tensor_t *w, int64_t *out_bytes);
/* Rearranges w into out (same shape and dtype, KT_TENSOR_PACKED set by the caller). */
KT_API kt_status_t kt_pack_weight(kt_ctx_t *ctx, const kt_tensor_t *w, const kt_tensor_t *out);

/* out = src in out's type, with little squared error, each column's weighed by importance [n] f32 >= 0 or all alike (NULL).
 * src, out [rows, n]; out: any weight type but Q8_K. KT_ERR_INVALID_ARG where a value of src is not finite. */
KT_API kt_status_t kt_quantize(kt_ctx_t *ctx, const kt_tensor_t *src, const kt_tensor_t *importance, const kt_tensor_t *out);

/* ---- elementwise ---- */
/* out = src, converting between F32, F16, BF16, I32 and from any weight type to F32; both may be strided views. */
KT_API kt_status_t kt_copy(kt_ctx_t *ctx, const kt_tensor_t *src, const kt_tensor_t *out);
/* out = a + b, same shapes, f32; out may be a. */
KT_API kt_status_t kt_add(kt_ctx_t *ctx, const kt_tensor_t *a, const kt_tensor_t *b, const kt_tensor_t *out);
#define KT_ACT_SILU 0
#define KT_ACT_GELU_TANH 1
#define KT_ACT_GELU_ERF 2
#define KT_ACT_RELU 3
#define KT_ACT_SWIGLU_OAI 4 /* gpt-oss: g = min(gate, 7), u = clamp(up, -7, 7), out = g * sigmoid(1.702 g) * (u + 1) */
#define KT_ACT_TANH 5 /* of kt_act only */
/* out = act(gate) * up; [tokens, n] f32, rows may be strided. */
KT_API kt_status_t kt_act_mul(kt_ctx_t *ctx, const kt_tensor_t *gate, const kt_tensor_t *up, uint32_t act, const kt_tensor_t *out);
/* out = act(x), act being any but KT_ACT_SWIGLU_OAI; [tokens, n] f32, rows may be strided; out may be x. */
KT_API kt_status_t kt_act(kt_ctx_t *ctx, const kt_tensor_t *x, uint32_t act, const kt_tensor_t *out);

/* ---- embedding ---- */
/* out[t] = table[ids[t]] * scale; table [vocab, hidden] of any weight type, ids [tokens] i32, out [tokens, hidden] f32. */
KT_API kt_status_t kt_embedding(kt_ctx_t *ctx, const kt_tensor_t *table, const kt_tensor_t *ids, float scale, const kt_tensor_t *out);

/* ---- linear ---- */
/* out = x . w^T (+ bias); x [tokens, in] f32, w [out, in] of any weight type, bias [out] f32 or NULL, out [tokens, out] f32. */
KT_API kt_status_t kt_linear(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias, const kt_tensor_t *out);

/* out[t][h] = x[t][h] . w[h]^T, or x[t][h] . w[h] if transposed is 1, in f32 at every precision; x [tokens, heads, in] f32,
 * w [heads, out, in] ([heads, in, out] if transposed) of any weight type, not packed, out [tokens, heads, out] f32; tokens,
 * heads and rows may be strided. */
KT_API kt_status_t kt_head_linear(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *w, uint32_t transposed, const kt_tensor_t *out);

/* ---- norm ---- */
/* out = x / sqrt(mean(x^2) + eps) * (weight + offset), over the innermost dimension; x [..., n], weight [n] f32 or NULL
 * (all ones, offset ignored); out may be x. */
KT_API kt_status_t kt_rms_norm(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *weight, float eps, float offset, const kt_tensor_t *out);
/* residual += x, then out = rms_norm(residual). */
KT_API kt_status_t kt_add_rms_norm(kt_ctx_t *ctx, const kt_tensor_t *residual, const kt_tensor_t *x, const kt_tensor_t *weight,
                                   float eps, float offset, const kt_tensor_t *out);
/* out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, over the innermost dimension; x [..., n], weight [n],
 * bias [n] or NULL, f32; out may be x. */
KT_API kt_status_t kt_layer_norm(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *weight, const kt_tensor_t *bias, float eps,
                                 const kt_tensor_t *out);

/* ---- rope ---- */
/* out[t] = [cos(a) * scale ..., sin(a) * scale ...] with a = positions[t] * inv_freq; positions [tokens] i32,
 * inv_freq [1 or tokens, n] f32, out [tokens, 2n] f32. */
KT_API kt_status_t kt_rope_table(kt_ctx_t *ctx, const kt_tensor_t *positions, const kt_tensor_t *inv_freq, float scale, const kt_tensor_t *out);
/* Rotates the first 2n values of each head in place; x [tokens, heads, dim] f32, table [tokens, 2n].
 * interleaved 0: pairs (i, i + n); 1: pairs (2i, 2i + 1). */
KT_API kt_status_t kt_rope(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *table, uint32_t interleaved);

/* ---- attention ---- */
/* k [tokens, kv_heads, k_dim], v [tokens, kv_heads, v_dim] f32 into caches [pages, kv_heads, page_size, dim] F16, F32 or Q8_0 at
 * slot_mapping [tokens] i32 = page * page_size + offset. */
KT_API kt_status_t kt_store_kv(kt_ctx_t *ctx, const kt_tensor_t *k, const kt_tensor_t *v, const kt_tensor_t *slot_mapping,
                               const kt_tensor_t *k_cache, const kt_tensor_t *v_cache);
typedef struct kt_attention_params {
  uint32_t struct_size, abi_version;
  float scale;
  float soft_cap;         /* 0: none; else cap * tanh(score / cap) */
  int32_t sliding_window; /* 0: none; W: a query at p sees keys p-W+1 .. p */
  int32_t chunk_size;     /* 0: none; C: a query at p sees keys floor(p/C)*C .. p */
  float temperature_scale; /* 0: none; S: a query at p is multiplied by 1 + S * ln(1 + floor((p+1) / floor)) */
  float temperature_floor; /* positive where temperature_scale is not 0 */
  uint32_t bidirectional;  /* 1: a query sees all keys of its sequence, later ones too; no window, no chunks */
} kt_attention_params_t;
/* Causal attention of ragged sequences over their pages. q [tokens, heads, k_dim] f32, block_tables [seqs, max_pages] i32,
 * query_start [seqs+1] i32, seq_lens [seqs] i32 (cached tokens, the new ones included), sinks [heads] f32 or NULL (one more
 * logit per head without a value), out [tokens, heads, v_dim] f32. */
KT_API kt_status_t kt_paged_attention(kt_ctx_t *ctx, const kt_tensor_t *q, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache,
                                      const kt_tensor_t *block_tables, const kt_tensor_t *query_start, const kt_tensor_t *seq_lens,
                                      const kt_tensor_t *sinks, const kt_attention_params_t *params, const kt_tensor_t *out);

/* ---- linear attention with a state per sequence ---- */
/* A batch's tokens as segments: segment g is rows start[g] .. start[g+1] of x, begins with the state in slot source[g] (-1:
 * zeros) and leaves its own in slot target[g]. A segment whose source is the target of the one before it continues it; all
 * others are independent, and no slot is a target twice. */
typedef struct kt_state_segments {
  uint32_t struct_size, abi_version;
  const kt_tensor_t *start;          /* [segments + 1] i32: ascending, from 0 to the number of tokens */
  const kt_tensor_t *source, *target; /* [segments] i32 */
} kt_state_segments_t;
/* Depthwise causal convolution and SiLU: out[t] = silu(sum_j weight[j] * x[t - kernel + 1 + j]). x [tokens, groups, n] f32,
 * weight [kernel, groups * n] f32, state [slots, kernel - 1, groups * n] f32 (the last inputs, oldest first), out as x;
 * kernel 2 .. 16. */
KT_API kt_status_t kt_causal_conv1d(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *weight, const kt_state_segments_t *segments,
                                    const kt_tensor_t *state, const kt_tensor_t *out);
typedef struct kt_delta_rule_args {
  uint32_t struct_size, abi_version;
  const kt_tensor_t *q, *k;      /* [tokens, k_heads, k_dim]; L2-normalised here */
  const kt_tensor_t *v;          /* [tokens, k_heads, group, v_dim] */
  const kt_tensor_t *b, *a;      /* [tokens, k_heads, group]: beta = sigmoid(b), g = decay * softplus(a + dt_bias) */
  const kt_tensor_t *decay;      /* [k_heads * group], negative: -exp(A_log) */
  const kt_tensor_t *dt_bias;    /* [k_heads * group] */
  const kt_state_segments_t *segments;
  const kt_tensor_t *state;      /* [slots, k_heads * group, k_dim, v_dim] */
  const kt_tensor_t *out;        /* [tokens, k_heads, group, v_dim] */
  float scale;                   /* of q, after its norm */
  float eps;                     /* x / sqrt(sum(x^2) + eps) */
} kt_delta_rule_args_t;
/* Gated delta rule, all f32: S = S * e^g; S += k (x) beta * (v - S^T k); out = S^T q. k_dim up to 256. */
KT_API kt_status_t kt_gated_delta_rule(kt_ctx_t *ctx, const kt_delta_rule_args_t *args);
/* out = x / sqrt(mean(x^2) + eps) * weight * silu(gate), over the innermost dimension; x, gate, out of one shape f32, weight [n]; out may be x. */
KT_API kt_status_t kt_gated_rms_norm(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *gate, const kt_tensor_t *weight, float eps,
                                     const kt_tensor_t *out);
/* out = x * sigmoid(gate); gate as x, or with an innermost dimension of 1; f32; out may be x. */
KT_API kt_status_t kt_sigmoid_mul(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *gate, const kt_tensor_t *out);

/* ---- mixture of experts ---- */
#define KT_SCORE_SOFTMAX 0        /* over all experts */
#define KT_SCORE_SIGMOID 1
#define KT_SCORE_CHOSEN_SOFTMAX 2 /* the logits choose; the weights are the softmax over the chosen */
#define KT_GROUP_MAX 0
#define KT_GROUP_TOP2_SUM 1
typedef struct kt_router_params {
  uint32_t struct_size, abi_version;
  uint32_t score;       /* KT_SCORE_* */
  uint32_t norm;        /* 1: weights are divided by their sum + 1e-20 */
  int32_t num_groups;   /* of neighbouring experts, equally many; 1: none */
  int32_t topk_groups;  /* groups that experts are chosen from */
  uint32_t group_score; /* KT_GROUP_*: what a group is judged by */
  float scale;          /* multiplies the weights, last */
} kt_router_params_t;
/* The k best experts of each token (ties: lower id first) and their weights. logits [tokens, experts] f32, bias [experts] f32
 * or NULL: added to the scores for the choice only; ids [tokens, k] i32, best first, weights [tokens, k] f32. */
KT_API kt_status_t kt_moe_router(kt_ctx_t *ctx, const kt_tensor_t *logits, const kt_tensor_t *bias, const kt_router_params_t *params,
                                 const kt_tensor_t *ids, const kt_tensor_t *weights);
/* The same of logits = normed . w^T (+ logit_bias), normed = rms_norm(x) as kt_rms_norm: the way from a layer's residual to its
 * experts in one parallel launch. x and normed [tokens, hidden] f32, w [experts, hidden] of any weight type, logit_bias [experts]
 * f32 or NULL. */
KT_API kt_status_t kt_norm_router(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                  const kt_tensor_t *w, const kt_tensor_t *logit_bias, const kt_tensor_t *bias,
                                  const kt_router_params_t *params, const kt_tensor_t *normed, const kt_tensor_t *ids,
                                  const kt_tensor_t *weights);
#define KT_EXPERTS_SCALE_INPUT 1 /* weights[t][j] multiplies the expert's input and not its output */
#define KT_EXPERTS_ADD 2         /* the sum is added to out */
typedef struct kt_experts_args {
  uint32_t struct_size, abi_version;
  const kt_tensor_t *x;                   /* [tokens, hidden] */
  const kt_tensor_t *ids, *weights;       /* [tokens, k] i32 and f32 */
  const kt_tensor_t *gate, *up, *down;    /* [experts, inter, hidden] twice, [experts, hidden, inter] */
  const kt_tensor_t *gate_bias, *up_bias; /* [experts, inter] f32 or NULL */
  const kt_tensor_t *down_bias;           /* [experts, hidden] f32 or NULL */
  const kt_tensor_t *out;                 /* [tokens, hidden] */
  uint32_t act, flags;
} kt_experts_args_t;
/* out[t] = sum_j weights[t][j] * (down[e] . act(gate[e] . x[t] + gate_bias[e], up[e] . x[t] + up_bias[e]) + down_bias[e]), e = ids[t][j]. */
KT_API kt_status_t kt_fused_experts(kt_ctx_t *ctx, const kt_experts_args_t *args);

/* ---- fused steps of a dense layer (one parallel launch each) ---- */
typedef struct kt_qkv_args {
  uint32_t struct_size, abi_version;
  const kt_tensor_t *x;            /* [tokens, hidden] */
  const kt_tensor_t *norm_weight;  /* [hidden] or NULL: no norm */
  const kt_tensor_t *wq, *wk, *wv; /* [heads*k_dim, hidden], [kv_heads*k_dim, hidden], [kv_heads*v_dim, hidden] */
  const kt_tensor_t *bq, *bk, *bv; /* or NULL */
  const kt_tensor_t *q_norm, *k_norm; /* before rope: [k_dim] per head, or [heads*k_dim] and [kv_heads*k_dim] over all heads; or NULL */
  const kt_tensor_t *rope_table;   /* [tokens, 2n] or NULL */
  const kt_tensor_t *slot_mapping; /* [tokens] */
  const kt_tensor_t *k_cache, *v_cache;
  const kt_tensor_t *q_out;        /* [tokens, heads, k_dim] */
  float eps, norm_offset, qk_eps, qk_norm_offset;
  uint32_t interleaved;
  uint32_t unit_qk_norm; /* 1: q and k are normed with weights of one; q_norm and k_norm are NULL */
} kt_qkv_args_t;
/* norm, q/k/v projections, q/k norm, rope, K and V into the cache, q into q_out. */
KT_API kt_status_t kt_qkv_rope_store(kt_ctx_t *ctx, const kt_qkv_args_t *args);
/* residual += x . w^T + bias; with post_norm: residual += rms_norm(x . w^T + bias). residual [tokens, out] f32. */
KT_API kt_status_t kt_linear_residual(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *w, const kt_tensor_t *bias,
                                      const kt_tensor_t *post_norm, float eps, float offset, const kt_tensor_t *residual);
/* out = act(norm(x) . wg^T) * (norm(x) . wu^T); norm_weight may be NULL. */
KT_API kt_status_t kt_gate_up_act(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                  const kt_tensor_t *wg, const kt_tensor_t *wu, uint32_t act, const kt_tensor_t *out);
/* out = norm(x) . w^T: the last norm and the head. */
KT_API kt_status_t kt_norm_linear(kt_ctx_t *ctx, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                  const kt_tensor_t *w, const kt_tensor_t *out);

/* ---- sampling ---- */
/* out[r] = index of the greatest logit (the lowest index of equals); logits [rows, vocab] f32, out [rows] i32. */
KT_API kt_status_t kt_argmax(kt_ctx_t *ctx, const kt_tensor_t *logits, const kt_tensor_t *out);
/* Samplers by their place in kt_sampling_row_t.order. */
#define KT_SAMPLER_PENALTIES 1
#define KT_SAMPLER_DRY 2
#define KT_SAMPLER_TOP_N_SIGMA 3
#define KT_SAMPLER_TOP_K 4
#define KT_SAMPLER_TYPICAL_P 5
#define KT_SAMPLER_TOP_P 6
#define KT_SAMPLER_MIN_P 7
#define KT_SAMPLER_XTC 8
#define KT_SAMPLER_TEMPERATURE 9
typedef struct kt_sampling_row {
  float temperature; /* 0: greedy */
  float top_p;       /* 1: off */
  float min_p;       /* 0: off */
  float repetition_penalty; /* 1: off */
  float presence_penalty, frequency_penalty; /* 0: off */
  float uniform;     /* the draw, in [0, 1) */
  int32_t top_k;     /* 0: off */
  const int32_t *history; /* prompt ids, then output ids */
  int32_t history_len, prompt_len;
  const int32_t *bias_ids;
  const float *bias_values;
  int32_t bias_len;
  int32_t dry_len;
  const int32_t *dry_ids; /* tokens that would go on with a repetition, none twice, */
  const float *dry_penalties; /* and what is subtracted from their logits */
  float typical_p;       /* 1: off */
  float top_n_sigma;     /* 0: off */
  float xtc_probability; /* 0: off */
  float xtc_threshold;   /* above 0.5: off */
  float xtc_uniform;     /* the draw whether xtc acts, in [0, 1) */
  float dynatemp_range;  /* 0: off */
  float dynatemp_exponent;
  int32_t mirostat; /* 0: off; 1 and 2: the versions; then only bias, penalties, dry and temperature act besides */
  float mirostat_tau, mirostat_eta;
  float mirostat_mu; /* updated by the call */
  uint32_t reserved;
  uint64_t order; /* samplers, 4 bits each, the first in the lowest; 0: penalties, dry, top-n-sigma, temperature, top-k, typical, top-p, min-p, xtc */
} kt_sampling_row_t;
/* logits [rows, vocab] f32 in place: minus infinity where bit t % 32 of bits[r][t / 32] is 0 for token t; bits [rows, ceil(vocab / 32)] i32. */
KT_API kt_status_t kt_mask_logits(kt_ctx_t *ctx, const kt_tensor_t *logits, const kt_tensor_t *bits);
/* Bias, the samplers in their order, draw. logits [rows, vocab] f32 are not changed; rows: one kt_sampling_row_t each; out [rows] i32. */
KT_API kt_status_t kt_sample(kt_ctx_t *ctx, const kt_tensor_t *logits, kt_sampling_row_t *rows, const kt_tensor_t *out);
/* Log-probabilities under softmax(logits). tokens [rows] i32 -> out_token [rows] f32; the n best -> out_ids [rows, n] i32, out_logprobs [rows, n] f32 (both NULL for none). */
KT_API kt_status_t kt_logprobs(kt_ctx_t *ctx, const kt_tensor_t *logits, const kt_tensor_t *tokens, const kt_tensor_t *out_token,
                               const kt_tensor_t *out_ids, const kt_tensor_t *out_logprobs);

/* ---- measuring the machine ---- */
#define KT_MEASURE_READ 0    /* sequential read, bytes/s, of `bytes` in all */
/* In registers, operations/s (2 a multiply-add), by the level's fastest legal instructions: */
#define KT_MEASURE_INT_DOT 1  /* weights of 8 bits by int8 */
#define KT_MEASURE_FMA 2      /* f32 */
#define KT_MEASURE_INT4_DOT 3 /* weights of at most 4 bits by int8, whose sums may stay 16 bits wide for a while */
#define KT_MEASURE_BF16_DOT 4 /* bf16 by bf16; what FMA gives where the level has no such product */
KT_API kt_status_t kt_measure(kt_ctx_t *ctx, uint32_t what, int64_t bytes, float seconds, double *out_rate);

#ifdef __cplusplus
}
#endif
#endif

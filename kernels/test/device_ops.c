/* Calls a library's ops from C, for tools that watch a device's kernels and are too slow for the tests: every family of kernels that
 * shares memory between threads once, at sizes that take each way through it.
 *
 *   gcc -O1 -Ikernels/include kernels/test/device_ops.c -o device-ops -ldl -lm
 *   compute-sanitizer --tool racecheck ./device-ops zig-out/lib/libkt_cuda.so moe
 *
 * Families: mla attention linear moe sampling norm delta; `time-mla` and `time-linear` measure. What the fast kernels of attention and
 * products give is compared with precision f32, so that a run says that something was computed. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kt.h"

#define FUNCTIONS(F)                                                                                                                         \
  F(kt_backend_name) F(kt_last_error) F(kt_ctx_create) F(kt_ctx_set_precision) F(kt_ctx_synchronize) F(kt_buffer_create) F(kt_buffer_destroy)      \
  F(kt_buffer_copy) F(kt_event_create) F(kt_event_record) F(kt_event_elapsed) F(kt_graph_begin) F(kt_graph_end) F(kt_graph_launch)            \
  F(kt_packed_bytes) F(kt_pack_weight) F(kt_slab_create) F(kt_linear) F(kt_paged_attention) F(kt_store_kv) F(kt_fused_experts) F(kt_moe_router)   \
  F(kt_norm_router) F(kt_rms_norm) F(kt_layer_norm) F(kt_gate_up_act) F(kt_norm_linear) F(kt_argmax) F(kt_sample) F(kt_logprobs)              \
  F(kt_gated_delta_rule) F(kt_causal_conv1d) F(kt_head_linear) F(kt_linear_residual)
#define DECLARE(name) static __typeof__(&name) p_##name;
FUNCTIONS(DECLARE)

/* Weights are quantised by the CPU's library, which lies beside the other: devices have no kt_quantize. */
static __typeof__(&kt_quantize) quantize_on_host;
static kt_ctx_t *ctx, *host;
static int failures, device; /* as descriptors count: 0 is the CPU */

#define CALL(name, ...)                                                                     \
  do {                                                                                      \
    if (p_##name(__VA_ARGS__) != KT_OK) {                                                   \
      printf("%s: %s\n", #name, p_kt_last_error());                                         \
      exit(1);                                                                              \
    }                                                                                       \
  } while (0)

/* ---- tensors, which are never given back ---- */
static const struct {
  uint32_t type;
  int values, bytes;
} BLOCKS[] = {{KT_F32, 1, 4}, {KT_F16, 1, 2}, {KT_BF16, 1, 2}, {KT_I32, 1, 4}, {KT_Q4_0, 32, 18}, {KT_Q8_0, 32, 34}, {KT_Q4_K, 256, 144}, {KT_Q6_K, 256, 210}, {KT_F8_E4M3, 128, 132}};

static int block_of(uint32_t type) {
  for (int i = 0; i < (int)(sizeof BLOCKS / sizeof *BLOCKS); i++)
    if (BLOCKS[i].type == type) return i;
  abort();
}

static kt_tensor_t tensor(uint32_t type, int ndim, int64_t a, int64_t b, int64_t c, int64_t d) {
  const int64_t shape[4] = {a, b, c, d};
  const int block = block_of(type);
  kt_tensor_t t = {.dtype = type, .ndim = (uint32_t)ndim, .device = device};
  int64_t stride = BLOCKS[block].bytes;
  for (int i = 0; i < 4; i++) t.shape[i] = i < ndim ? shape[i] : 1;
  for (int i = ndim - 1; i >= 0; i--) {
    t.stride[i] = stride;
    stride *= i == ndim - 1 ? t.shape[i] / BLOCKS[block].values : t.shape[i];
  }
  CALL(kt_buffer_create, ctx, stride, &t.data);
  return t;
}

static int64_t count_of(const kt_tensor_t *t) { return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3]; }

static uint32_t state = 12345;
static float random_value(void) {
  float sum = 0;
  for (int i = 0; i < 3; i++) sum += (float)((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24);
  return sum * 2 - 3;
}

static kt_tensor_t floats(float scale, int ndim, int64_t a, int64_t b, int64_t c) {
  kt_tensor_t t = tensor(KT_F32, ndim, a, b, c, 1);
  const int64_t n = count_of(&t);
  float *values = malloc((size_t)n * 4);
  for (int64_t i = 0; i < n; i++) values[i] = scale * random_value();
  CALL(kt_buffer_copy, ctx, t.data, values, n * 4);
  free(values);
  return t;
}

static kt_tensor_t ints(const int32_t *values, int ndim, int64_t a, int64_t b) {
  kt_tensor_t t = tensor(KT_I32, ndim, a, b, 1, 1);
  CALL(kt_buffer_copy, ctx, t.data, values, count_of(&t) * 4);
  return t;
}

/* A weight as files hold it. */
static kt_tensor_t weight(uint32_t type, int ndim, int64_t a, int64_t b, int64_t c) {
  kt_tensor_t to = tensor(type, ndim, a, b, c, 1);
  const int64_t columns = to.shape[ndim - 1], rows = count_of(&to) / columns, most = 1 << 20, piece = rows * columns < most ? rows : most / columns;
  const int block = block_of(type);
  const int64_t row_bytes = columns / BLOCKS[block].values * BLOCKS[block].bytes;
  /* a few rows again and again: large weights are made to be timed */
  float *values = malloc((size_t)(piece * columns) * 4);
  uint8_t *blocks = malloc((size_t)(piece * row_bytes));
  for (int64_t i = 0; i < piece * columns; i++) values[i] = 0.05f * random_value();
  if (type == KT_F8_E4M3) {
    /* codes of magnitudes about 1 */
    for (int64_t i = 0; i < piece * row_bytes; i++) blocks[i] = (uint8_t)(random_value() > 0 ? 0x30 + i % 9 : 0xb0 + i % 9);
    for (int64_t i = 0; i < piece * row_bytes; i += BLOCKS[block].bytes) memcpy(blocks + i, &(float){0.03f}, 4);
  } else if (type == KT_F32) {
    memcpy(blocks, values, (size_t)(piece * row_bytes));
  } else {
    kt_tensor_t from = {.data = values, .dtype = KT_F32, .ndim = 2, .shape = {piece, columns, 1, 1}, .stride = {columns * 4, 4, 0, 0}};
    kt_tensor_t into = {.data = blocks, .dtype = type, .ndim = 2, .shape = {piece, columns, 1, 1}, .stride = {row_bytes, BLOCKS[block].bytes, 0, 0}};
    if (quantize_on_host(host, &from, NULL, &into) != KT_OK) exit(printf("no blocks of type %u\n", type));
  }
  for (int64_t first = 0; first < rows; first += piece)
    CALL(kt_buffer_copy, ctx, (uint8_t *)to.data + first * row_bytes, blocks, (rows - first < piece ? rows - first : piece) * row_bytes);
  free(values), free(blocks);
  return to;
}

/* The same as engines hold it. */
static kt_tensor_t packed(kt_tensor_t w) {
  kt_tensor_t to = w;
  int64_t bytes = 0;
  if (p_kt_packed_bytes(ctx, &w, &bytes) != KT_OK || bytes == 0) return w;
  CALL(kt_buffer_create, ctx, bytes, &to.data);
  to.flags = KT_TENSOR_PACKED;
  CALL(kt_pack_weight, ctx, &w, &to);
  return to;
}

static float *read_back(const kt_tensor_t *t) {
  const int64_t n = count_of(t);
  float *values = malloc((size_t)n * 4);
  CALL(kt_buffer_copy, ctx, values, t->data, n * 4);
  return values;
}

/* Relative error of two results. */
static void compare(const char *what, const kt_tensor_t *got, const kt_tensor_t *want, double allowed) {
  float *a = read_back(got), *b = read_back(want);
  double error = 0, norm = 0;
  for (int64_t i = 0; i < count_of(got); i++) error += (a[i] - b[i]) * (double)(a[i] - b[i]), norm += b[i] * (double)b[i];
  const double relative = sqrt(error / norm);
  if (!(relative <= allowed)) failures++;
  printf("%s: %.1e%s\n", what, relative, relative <= allowed ? "" : " TOO MUCH");
  free(a), free(b);
}

/* ---- families ---- */
typedef struct {
  kt_tensor_t q, k, v, table, starts, lens, out, exact;
  kt_attention_params_t params;
} attention_case;

static attention_case attention(uint32_t type, int sequences, int length, int queries, int heads, int kv_heads, int k_dim, int v_dim, int page) {
  attention_case a;
  const int latent = k_dim != v_dim, pages = (length + page - 1) / page, tokens = sequences * queries;
  a.q = floats(1, 3, tokens, heads, k_dim);
  a.k = tensor(type, 4, (int64_t)pages * sequences, kv_heads, page, k_dim);
  a.v = latent ? a.k : tensor(type, 4, (int64_t)pages * sequences, kv_heads, page, v_dim);
  if (latent) a.v.shape[3] = v_dim;
  int32_t *table = malloc((size_t)pages * sequences * 4), *starts = malloc((size_t)(sequences + 1) * 4), *lens = malloc((size_t)sequences * 4);
  for (int i = 0; i < pages * sequences; i++) table[i] = (int32_t)((int64_t)i * 7919 % (pages * sequences)); /* 7919 is prime */
  for (int i = 0; i <= sequences; i++) starts[i] = i * queries;
  for (int i = 0; i < sequences; i++) lens[i] = length - (length > 1000 ? 0 : i * 3 % 7);
  a.table = ints(table, 2, sequences, pages);
  a.starts = ints(starts, 1, sequences + 1, 1);
  a.lens = ints(lens, 1, sequences, 1);
  /* all of the cache filled, some pages at a time */
  const int64_t slots = (int64_t)pages * sequences * page, part = slots < 4096 ? slots : 4096;
  kt_tensor_t keys = floats(1, 3, part, kv_heads, k_dim), values = latent ? keys : floats(1, 3, part, kv_heads, v_dim);
  if (latent) values.shape[2] = v_dim;
  int32_t *map = malloc((size_t)part * 4);
  for (int64_t from = 0; from < slots; from += part) {
    const int64_t n = slots - from < part ? slots - from : part;
    for (int64_t i = 0; i < n; i++) map[i] = (int32_t)(from + i);
    kt_tensor_t slot = ints(map, 1, part, 1), k = keys, v = values;
    k.shape[0] = v.shape[0] = slot.shape[0] = n;
    CALL(kt_store_kv, ctx, &k, &v, &slot, &a.k, &a.v);
  }
  a.out = tensor(KT_F32, 3, tokens, heads, v_dim, 1);
  a.exact = tensor(KT_F32, 3, tokens, heads, v_dim, 1);
  a.params = (kt_attention_params_t){.struct_size = sizeof a.params, .abi_version = KT_ABI_MAJOR, .scale = latent ? 0.04f : 1 / sqrtf((float)k_dim)};
  free(table), free(starts), free(lens), free(map);
  return a;
}

static void attend(attention_case *a, kt_tensor_t *out) {
  CALL(kt_paged_attention, ctx, &a->q, &a->k, &a->v, &a->table, &a->starts, &a->lens, NULL, &a->params, out);
}

static void check_attention(const char *what, attention_case a) {
  attend(&a, &a.out);
  CALL(kt_ctx_set_precision, ctx, KT_PRECISION_F32);
  attend(&a, &a.exact);
  CALL(kt_ctx_set_precision, ctx, KT_PRECISION_FAST);
  CALL(kt_ctx_synchronize, ctx);
  compare(what, &a.out, &a.exact, 5e-3);
}

static void mla_family(void) {
  check_attention("latents, 16 heads, parts", attention(KT_F16, 2, 700, 1, 16, 1, 576, 512, 64));
  check_attention("latents, 128 heads", attention(KT_F16, 3, 150, 1, 128, 1, 576, 512, 64));
  check_attention("latents, 5 tokens, pages of 16", attention(KT_F16, 2, 200, 5, 16, 1, 576, 512, 16));
}

static void attention_family(void) {
  const uint32_t types[] = {KT_F16, KT_Q8_0, KT_F32, KT_BF16, KT_F8_E4M3};
  for (int i = 0; i < (device ? 5 : 3); i++) {
    check_attention("one token", attention(types[i], 2, 300, 1, 8, 2, 128, 128, 64));
    check_attention("prompt", attention(types[i], 2, 150, 70, 8, 2, 128, 128, 32));
  }
  check_attention("heads of 64", attention(KT_F16, 1, 130, 130, 4, 2, 64, 64, 64));
}

static void linear_family(void) {
  const uint32_t types[] = {KT_Q4_K, KT_Q6_K, KT_Q8_0, KT_F16, KT_F8_E4M3};
  for (int i = 0; i < 5; i++) {
    kt_tensor_t plain = weight(types[i], 2, 512, 1024, 1), w = packed(plain), bias = floats(1, 1, 512, 1, 1);
    const int tokens[] = {1, 3, 16, 40, 300};
    for (int j = 0; j < 5; j++) {
      kt_tensor_t x = floats(1, 2, tokens[j], 1024, 1), out = tensor(KT_F32, 2, tokens[j], 512, 1, 1), exact = tensor(KT_F32, 2, tokens[j], 512, 1, 1);
      CALL(kt_linear, ctx, &x, &w, &bias, &out);
      CALL(kt_ctx_set_precision, ctx, KT_PRECISION_F32);
      CALL(kt_linear, ctx, &x, &plain, &bias, &exact);
      CALL(kt_ctx_set_precision, ctx, KT_PRECISION_FAST);
      char what[64];
      snprintf(what, sizeof what, "type %u, %d tokens", types[i], tokens[j]);
      compare(what, &out, &exact, 0.03);
      kt_tensor_t gates = tensor(KT_F32, 2, tokens[j], 512, 1, 1), norm = floats(1, 1, 1024, 1, 1);
      CALL(kt_gate_up_act, ctx, &x, &norm, 1e-5f, 0, &w, &w, KT_ACT_SILU, &gates);
      CALL(kt_linear_residual, ctx, &x, &w, NULL, NULL, 0, 0, &out);
      CALL(kt_norm_linear, ctx, &x, &norm, 1e-5f, 0, &w, &out);
    }
  }
}

static void moe_family(void) {
  const uint32_t types[] = {KT_Q4_K, KT_Q6_K};
  for (int i = 0; i < 2; i++) {
    kt_tensor_t plain[3] = {weight(types[i], 3, 16, 256, 512), weight(types[i], 3, 16, 256, 512), weight(types[i], 3, 16, 512, 256)}, own[3];
    for (int j = 0; j < 3; j++) own[j] = packed(plain[j]);
    kt_tensor_t router = floats(1, 2, 16, 512, 1), norm = floats(1, 1, 512, 1, 1);
    const int tokens[] = {1, 4, 33, 300};
    for (int j = 0; j < 4; j++) {
      kt_tensor_t x = floats(1, 2, tokens[j], 512, 1), normed = tensor(KT_F32, 2, tokens[j], 512, 1, 1);
      kt_tensor_t ids = tensor(KT_I32, 2, tokens[j], 4, 1, 1), weights = tensor(KT_F32, 2, tokens[j], 4, 1, 1);
      kt_router_params_t params = {.struct_size = sizeof params, .abi_version = KT_ABI_MAJOR, .norm = 1, .num_groups = 1, .topk_groups = 1, .scale = 1};
      CALL(kt_norm_router, ctx, &x, &norm, 1e-5f, 0, &router, NULL, NULL, &params, &normed, &ids, &weights);
      kt_tensor_t out = tensor(KT_F32, 2, tokens[j], 512, 1, 1), exact = tensor(KT_F32, 2, tokens[j], 512, 1, 1);
      kt_experts_args_t args = {.struct_size = sizeof args, .abi_version = KT_ABI_MAJOR, .x = &normed, .ids = &ids, .weights = &weights, .gate = &own[0], .up = &own[1], .down = &own[2], .out = &out, .act = KT_ACT_SILU};
      CALL(kt_fused_experts, ctx, &args);
      CALL(kt_ctx_set_precision, ctx, KT_PRECISION_F32);
      args.out = &exact, args.gate = &plain[0], args.up = &plain[1], args.down = &plain[2];
      CALL(kt_fused_experts, ctx, &args);
      CALL(kt_ctx_set_precision, ctx, KT_PRECISION_FAST);
      char what[64];
      snprintf(what, sizeof what, "experts of type %u, %d tokens", types[i], tokens[j]);
      compare(what, &out, &exact, 0.03);
    }
  }
}

static void sampling_family(void) {
  kt_tensor_t logits = floats(4, 2, 4, 9000, 1), out = tensor(KT_I32, 1, 4, 1, 1, 1);
  /* rows and what they point to are read by the device */
  struct {
    kt_sampling_row_t rows[4];
    int32_t history[8];
  } *pinned = NULL;
  CALL(kt_slab_create, sizeof *pinned, KT_SLAB_PINNED, (void **)&pinned);
  memcpy(pinned->history, (const int32_t[]){1, 2, 3, 4, 5, 1, 2, 3}, sizeof pinned->history);
  kt_sampling_row_t *rows = pinned->rows;
  for (int i = 0; i < 4; i++)
    rows[i] = (kt_sampling_row_t){.temperature = 0.8f, .top_p = 1, .repetition_penalty = 1, .typical_p = 1, .uniform = 0.4f, .xtc_threshold = 1, .history = pinned->history, .history_len = 8, .prompt_len = 5};
  rows[0].top_p = 0.9f, rows[0].top_k = 40, rows[0].min_p = 0.02f;
  rows[1].typical_p = 0.7f, rows[1].repetition_penalty = 1.2f;
  rows[2].top_n_sigma = 1, rows[2].xtc_probability = 1, rows[2].xtc_threshold = 0.1f;
  rows[3].mirostat = 2, rows[3].mirostat_tau = 5, rows[3].mirostat_eta = 0.1f, rows[3].mirostat_mu = 10;
  CALL(kt_sample, ctx, &logits, rows, &out);
  CALL(kt_argmax, ctx, &logits, &out);
  kt_tensor_t token = tensor(KT_F32, 1, 4, 1, 1, 1), ids = tensor(KT_I32, 2, 4, 10, 1, 1), best = tensor(KT_F32, 2, 4, 10, 1, 1);
  CALL(kt_logprobs, ctx, &logits, &out, &token, &ids, &best);
  CALL(kt_ctx_synchronize, ctx);
  printf("sampled, the best and their probabilities\n");
}

static void norm_family(void) {
  const int widths[] = {96, 1024, 5000};
  for (int i = 0; i < 3; i++) {
    kt_tensor_t x = floats(1, 2, 5, widths[i], 1), w = floats(1, 1, widths[i], 1, 1), out = tensor(KT_F32, 2, 5, widths[i], 1, 1);
    CALL(kt_rms_norm, ctx, &x, &w, 1e-5f, 0, &out);
    CALL(kt_layer_norm, ctx, &x, &w, &w, 1e-5f, &out);
  }
  kt_tensor_t x = floats(1, 3, 3, 16, 128), w = weight(KT_F16, 3, 16, 512, 128), out = tensor(KT_F32, 3, 3, 16, 512, 1);
  CALL(kt_head_linear, ctx, &x, &w, 0, &out);
  CALL(kt_ctx_synchronize, ctx);
  printf("norms and products by head\n");
}

static void delta_family(void) {
  const int tokens = 150, heads = 2, group = 2, dim = 128;
  kt_tensor_t q = floats(1, 3, tokens, heads, dim), k = floats(1, 3, tokens, heads, dim), v = tensor(KT_F32, 4, tokens, heads, group, dim), out = v;
  kt_tensor_t b = floats(1, 3, tokens, heads, group), a = floats(1, 3, tokens, heads, group), decay = floats(0, 1, heads * group, 1, 1), bias = floats(1, 1, heads * group, 1, 1);
  CALL(kt_buffer_create, ctx, count_of(&v) * 4, &out.data);
  kt_tensor_t states = tensor(KT_F32, 4, 3, heads * group, dim, dim);
  const int32_t start[] = {0, 149, 150}, source[] = {-1, 0}, target[] = {0, 1};
  kt_tensor_t starts = ints(start, 1, 3, 1), sources = ints(source, 1, 2, 1), targets = ints(target, 1, 2, 1);
  kt_state_segments_t segments = {.struct_size = sizeof segments, .abi_version = KT_ABI_MAJOR, .start = &starts, .source = &sources, .target = &targets};
  kt_delta_rule_args_t args = {.struct_size = sizeof args, .abi_version = KT_ABI_MAJOR, .q = &q, .k = &k, .v = &v, .b = &b, .a = &a, .decay = &decay, .dt_bias = &bias, .segments = &segments, .state = &states, .out = &out, .scale = 0.1f, .eps = 1e-6f};
  CALL(kt_gated_delta_rule, ctx, &args);
  kt_tensor_t x = floats(1, 3, tokens, 1, 256), w = floats(1, 2, 4, 256, 1), conv = tensor(KT_F32, 3, 3, 3, 256, 1), y = tensor(KT_F32, 3, tokens, 1, 256, 1);
  CALL(kt_causal_conv1d, ctx, &x, &w, &segments, &conv, &y);
  CALL(kt_ctx_synchronize, ctx);
  printf("delta rule and convolution\n");
}

/* Microseconds of one of `calls` calls made as one graph: the median of nine launches. */
static double time_calls(void (*call)(void *, int), void *what, int calls) {
  call(what, 0), call(what, 1);
  CALL(kt_ctx_synchronize, ctx);
  kt_graph_t *graph;
  CALL(kt_graph_begin, ctx);
  for (int c = 0; c < calls; c++) call(what, c);
  CALL(kt_graph_end, ctx, &graph);
  kt_event_t *from, *to;
  CALL(kt_event_create, ctx, &from);
  CALL(kt_event_create, ctx, &to);
  double times[9];
  for (int r = 0; r < 9; r++) {
    CALL(kt_event_record, ctx, from);
    CALL(kt_graph_launch, ctx, graph);
    CALL(kt_event_record, ctx, to);
    CALL(kt_event_elapsed, from, to, &times[r]);
    for (int j = r; j > 0 && times[j] < times[j - 1]; j--) {
      const double other = times[j];
      times[j] = times[j - 1], times[j - 1] = other;
    }
  }
  return times[4] * 1000 / calls;
}

static void attend_in_turns(void *cases, int call) {
  attention_case *a = (attention_case *)cases + call % 2;
  attend(a, &a->out);
}

/* Latent attention over two caches in turns: microseconds a call, bytes of the cache and operations a second. */
static void time_mla(void) {
  const int shapes[][4] = {{8, 32768, 16, 1}, {8, 32768, 128, 1}, {1, 32768, 16, 1}, {1, 32768, 128, 1}, {8, 4096, 16, 1}, {8, 4096, 128, 1}, {32, 4096, 16, 1}, {1, 139264, 128, 1}, {1, 8192, 128, 1024}};
  for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) {
    const int sequences = shapes[i][0], length = shapes[i][1], heads = shapes[i][2], queries = shapes[i][3];
    attention_case cases[2];
    for (int c = 0; c < 2; c++) cases[c] = attention(KT_F16, sequences, length, queries, heads, 1, 576, 512, 64);
    const double us = time_calls(attend_in_turns, cases, queries > 1 ? 4 : 20), keys = queries > 1 ? length - queries / 2.0 : length;
    printf("latents %dx%d, %d heads, %d tokens each: %.1f us, %.0f GB/s, %.0f TFLOPS\n", sequences, length, heads, queries, us, sequences * (double)length * 1152 / us / 1e3,
           sequences * keys * queries * heads * 2.0 * 1088 / us / 1e6);
    for (int c = 0; c < 2; c++) p_kt_buffer_destroy(ctx, cases[c].k.data, cases[c].k.stride[0] * cases[c].k.shape[0]);
  }
}

typedef struct {
  kt_tensor_t w, x, out;
} linear_case;
static void multiply(void *what, int call) {
  (void)call;
  linear_case *c = what;
  CALL(kt_linear, ctx, &c->x, &c->w, NULL, &c->out);
}

/* A DeepSeek-V3 layer's output product, larger than a GPU's second cache. */
static void time_linear(void) {
  const uint32_t types[] = {KT_F8_E4M3, KT_Q8_0, KT_BF16, KT_Q4_K};
  const int tokens[] = {1, 4, 32, 512, 2048};
  for (int i = 0; i < 4; i++) {
    kt_tensor_t plain = weight(types[i], 2, 7168, 16384, 1), w = packed(plain);
    for (int j = 0; j < 5; j++) {
      linear_case c = {w, floats(1, 2, tokens[j], 16384, 1), tensor(KT_F32, 2, tokens[j], 7168, 1, 1)};
      const double us = time_calls(multiply, &c, 10);
      printf("type %u, 7168x16384, %d tokens: %.1f us, %.0f GB/s, %.0f TFLOPS\n", types[i], tokens[j], us, 7168.0 * plain.stride[0] / us / 1e3, 2.0 * 7168 * 16384 * tokens[j] / us / 1e6);
    }
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return printf("device-ops LIBRARY FAMILY...\n"), 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) return printf("%s\n", dlerror()), 1;
#define RESOLVE(name)                                                            \
  if ((*(void **)&p_##name = dlsym(library, #name)) == NULL) return printf("no %s\n", #name), 1;
  FUNCTIONS(RESOLVE)
  device = strcmp(p_kt_backend_name(), "cpu") != 0;
  char beside[4096];
  const char *slash = strrchr(argv[1], '/');
  snprintf(beside, sizeof beside, "%.*slibkt_cpu.so", slash == NULL ? 0 : (int)(slash - argv[1] + 1), argv[1]);
  void *cpu = dlopen(beside, RTLD_NOW);
  if (cpu == NULL) return printf("%s\n", dlerror()), 1;
  __typeof__(&kt_ctx_create) create_on_host;
  *(void **)&create_on_host = dlsym(cpu, "kt_ctx_create");
  *(void **)&quantize_on_host = dlsym(cpu, "kt_quantize");
  const kt_ctx_options_t options = {.struct_size = sizeof options, .abi_version = KT_ABI_MAJOR};
  if (create_on_host(&options, &host) != KT_OK) return 1;
  CALL(kt_ctx_create, &options, &ctx);
  const struct {
    const char *name;
    void (*run)(void);
  } families[] = {{"mla", mla_family}, {"attention", attention_family}, {"linear", linear_family}, {"moe", moe_family}, {"sampling", sampling_family}, {"norm", norm_family}, {"delta", delta_family}, {"time-mla", time_mla}, {"time-linear", time_linear}};
  for (int i = 2; i < argc; i++)
    for (int f = 0; f < (int)(sizeof families / sizeof *families); f++)
      if (strcmp(argv[i], families[f].name) == 0) families[f].run();
  CALL(kt_ctx_synchronize, ctx);
  printf("%d results were wrong\n", failures);
  return failures > 0;
}

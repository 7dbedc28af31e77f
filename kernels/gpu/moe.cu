/* kt_moe_router, kt_norm_router, kt_fused_experts.
 * SHAPES       logits [tokens, experts], ids and weights [tokens, k], stacks [experts, inter, hidden] and [experts, hidden, inter]
 * DEFINITION   see kt.h and, for the choice, the scores, groups and ties in kernels/cpu/isa/router.inc's terms: softmax, sigmoid or
 *              chosen softmax; bias for the choice only; the best groups by their greatest or the sum of their two greatest
 * REGULARITIES 8 .. 512 experts, k 1 .. 16. Up to 4 tokens: each pair of token and expert reads its own weights (stream.cu). More: pairs are
 *              grouped by expert, for int8 products while an expert has a few tokens (grouped.cu), else for tensor cores */
#include "async.cuh"
#include "products.cuh"

#include <math.h>

#define MAX_EXPERTS 1024
/* Most tokens whose pairs each read their own expert. */
#define STREAM_TOKENS 4

/* The greatest values of a list, one after the other: of equals the lower index; NaN is none. All lanes of a warp, each with its own of them. */
struct picker {
  float *values;
  int n;
  uint32_t key;
  int index;
  __device__ __forceinline__ void look() {
    key = 0, index = n;
    for (int i = threadIdx.x; i < n; i += KT_WARP) {
      const float v = values[i] + 0.0f;
      const uint32_t bits = __float_as_uint(v), order = v != v ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
      if (order > key) key = order, index = i;
    }
  }
  /* Its index, or n where there is none; it is NaN from then on. */
  __device__ __forceinline__ int next() {
    const uint32_t most = __reduce_max_sync(KT_FULL_MASK, key);
    const int found = (int)__reduce_min_sync(KT_FULL_MASK, most != 0 && key == most ? (uint32_t)index : (uint32_t)n);
    if (found == index && index < n) {
      values[found] = __int_as_float(0x7fc00000);
      look();
    }
    return found;
  }
};

struct router_job {
  const float *logits, *bias;
  int64_t logits_stride, ids_stride, weights_stride;
  int experts, k;
  kt_router_params_t params;
  int32_t *ids;
  float *weights;
};

/* The choice of one token by the first warp of a block. SHARED: its logits lie in shared memory. */
template <bool SHARED> __device__ void choose(const router_job &job, int64_t token, const float *logits) {
  __shared__ float choice[MAX_EXPERTS], scores[MAX_EXPERTS], groups[MAX_EXPERTS];
  __shared__ uint8_t kept[MAX_EXPERTS];
  const int lane = threadIdx.x, n = job.experts;
  int32_t *ids = job.ids + token * job.ids_stride;
  float *weights = job.weights + token * job.weights_stride;
  float most = -INFINITY;
  double sum = 0;
  for (int i = lane; i < n; i += KT_WARP) {
    const float x = SHARED ? logits[i] : __ldcg(logits + i);
    choice[i] = x == x ? x : -INFINITY;
    most = fmaxf(most, choice[i]);
  }
  most = kt_warp_max(most);
  for (int i = lane; i < n; i += KT_WARP) {
    const float x = choice[i];
    if (job.params.score == KT_SCORE_SIGMOID) scores[i] = (float)(1.0 / (1.0 + exp(-(double)x)));
    else if (job.params.score == KT_SCORE_SOFTMAX) scores[i] = x == most ? 1.0f : (float)exp((double)x - (double)most);
    else scores[i] = x;
    sum += scores[i];
  }
#pragma unroll
  for (int other = KT_WARP / 2; other > 0; other /= 2) sum += __shfl_xor_sync(KT_FULL_MASK, sum, other);
  double inverse = job.params.score == KT_SCORE_SOFTMAX ? 1.0 / sum : 1.0;
  if (job.bias != NULL)
    for (int i = lane; i < n; i += KT_WARP) {
      const float x = (float)(scores[i] * inverse) + job.bias[i];
      choice[i] = x == x ? x : -INFINITY;
    }
  __syncwarp();
  if (job.params.num_groups > 1) {
    const int count = job.params.num_groups, size = n / count;
    for (int g = lane; g < count; g += KT_WARP) {
      float first = -INFINITY, second = -INFINITY;
      for (int i = g * size; i < (g + 1) * size; i++) {
        const float x = job.params.group_score == KT_GROUP_TOP2_SUM && job.bias == NULL ? (float)(scores[i] * inverse) : choice[i];
        if (x > first) second = first, first = x;
        else if (x > second) second = x;
      }
      groups[g] = job.params.group_score == KT_GROUP_TOP2_SUM ? first + (size > 1 ? second : 0.0f) : first;
      kept[g] = 0;
    }
    __syncwarp();
    picker best = {groups, count, 0, 0};
    best.look();
    for (int j = 0; j < job.params.topk_groups; j++) {
      const int g = best.next();
      if (lane == 0 && g < count) kept[g] = 1;
    }
    __syncwarp();
    for (int i = lane; i < n; i += KT_WARP)
      if (!kept[i / size]) choice[i] = __int_as_float(0x7fc00000);
  }
  double chosen = 0;
  float greatest = -INFINITY;
  picker best = {choice, n, 0, 0};
  best.look();
  for (int j = 0; j < job.k; j++) {
    const int found = best.next(), id = found < n ? found : 0;
    if (lane == 0) ids[j] = id, weights[j] = scores[id];
    greatest = fmaxf(greatest, scores[id]);
    chosen += scores[id] * inverse;
  }
  if (lane != 0) return;
  if (job.params.score == KT_SCORE_CHOSEN_SOFTMAX) {
    double total = 0;
    for (int j = 0; j < job.k; j++) total += weights[j] = weights[j] == greatest ? 1.0f : (float)exp((double)weights[j] - (double)greatest);
    inverse = 1.0 / total;
    chosen = 1.0;
  }
  double factor = inverse * job.params.scale;
  if (job.params.norm) factor /= chosen + 1e-20;
  for (int j = 0; j < job.k; j++) weights[j] = (float)(weights[j] * factor);
}

/* One warp a token. */
__global__ void router_kernel(const router_job job) {
  kt_start_next();
  kt_wait_previous();
  choose<false>(job, blockIdx.x, job.logits + blockIdx.x * job.logits_stride);
}

/* Norm, logits and choice of a few tokens: a warp an expert. Where a cluster of blocks has all experts of a token its first block gets their
 * logits and chooses, else the last block of a token does. */
#define ROUTER_CLUSTER 8
#define CLUSTERS 8 /* of more tokens each block would read more weights than its smaller ones do */
struct norm_router_job {
  router_job router;
  kt_frows x, normed;
  kt_norm norm;
  const float *w, *bias;
  int64_t w_stride;
  float *logits;
  uint32_t *arrived;
};

template <bool CLUSTER> struct router_shape {
  static constexpr int WARPS = CLUSTER ? 16 : 8, THREADS = WARPS * KT_WARP, HELD = CLUSTER ? 16 : 8; /* HELD: four weights a lane each */
};

template <bool CLUSTER> __global__ void __launch_bounds__(router_shape<CLUSTER>::THREADS) norm_router_kernel(const __grid_constant__ norm_router_job job) {
  constexpr int WARPS = router_shape<CLUSTER>::WARPS, HELD = router_shape<CLUSTER>::HELD;
  extern __shared__ float4 row[]; /* [n / 4] */
  __shared__ float shared[32];
  __shared__ bool is_last;
  const int lane = threadIdx.x % KT_WARP, expert = (int)(blockIdx.x * WARPS + threadIdx.x / KT_WARP), quads = (int)(job.x.n / 4);
  const int64_t token = blockIdx.y;
  const float4 *w = (const float4 *)(job.w + min(expert, job.router.experts - 1) * job.w_stride);
  kt_start_next();
  /* weights do not wait */
  float4 held[HELD];
#pragma unroll
  for (int i = 0; i < HELD; i++) held[i] = lane + i * KT_WARP < quads ? __ldg(w + lane + i * KT_WARP) : make_float4(0, 0, 0, 0);
  const float4 first = (int)threadIdx.x < quads ? __ldg((const float4 *)job.norm.weight + threadIdx.x) : make_float4(0, 0, 0, 0);
  const float bias = job.bias != NULL && expert < job.router.experts ? __ldg(job.bias + expert) : 0.0f, o = job.norm.offset;
  kt_wait_previous();
  const float4 *x = (const float4 *)(job.x.data + token * job.x.stride);
  const auto weight_of = [&](int i) { return i < (int)blockDim.x ? first : __ldg((const float4 *)job.norm.weight + i); };
  float sum = 0;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    const float4 v = __ldcg(x + i);
    row[i] = v;
    sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
  }
  const float scale = 1.0f / sqrtf(kt_block_sum(sum, shared) / (float)job.x.n + job.norm.eps);
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    const float4 v = row[i], m = weight_of(i);
    const float4 y = make_float4(v.x * scale * (m.x + o), v.y * scale * (m.y + o), v.z * scale * (m.z + o), v.w * scale * (m.w + o));
    row[i] = y;
    if (blockIdx.x == 0) ((float4 *)(job.normed.data + token * job.normed.stride))[i] = y;
  }
  __syncthreads();
  float acc = 0;
#pragma unroll
  for (int i = 0; i < HELD; i++)
    if (lane + i * KT_WARP < quads) {
      const float4 v = row[lane + i * KT_WARP], m = held[i];
      acc += v.x * m.x + v.y * m.y + (v.z * m.z + v.w * m.w);
    }
  for (int i = lane + HELD * KT_WARP; i < quads; i += KT_WARP) {
    const float4 v = row[i], m = __ldg(w + i);
    acc += v.x * m.x + v.y * m.y + (v.z * m.z + v.w * m.w);
  }
  acc = kt_warp_sum(acc) + bias;
  if constexpr (CLUSTER) {
#if __CUDA_ARCH__ >= 900
    __shared__ float all[ROUTER_CLUSTER * WARPS];
    if (lane == 0) kt_store_remote(all + expert, 0, acc);
    kt_cluster_sync();
    if (blockIdx.x == 0 && threadIdx.x < KT_WARP) choose<true>(job.router, token, all);
#endif
  } else {
    if (lane == 0 && expert < job.router.experts) __stcg(job.logits + token * job.router.experts + expert, acc);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      is_last = atomicAdd(job.arrived + token, 1u) + 1 == gridDim.x;
      if (is_last) job.arrived[token] = 0;
    }
    __syncthreads();
    if (!is_last || threadIdx.x >= KT_WARP) return;
    __threadfence();
    choose<false>(job.router, token, job.router.logits + token * job.router.logits_stride);
  }
}

static kt_status_t route(kt_ctx *ctx, kt_frows logits, const kt_tensor_t *bias, const kt_router_params_t *params, const kt_tensor_t *ids, const kt_tensor_t *weights,
                         norm_router_job *fused) {
  if (params == NULL) return KT_INVALID("params are NULL");
  if (params->struct_size < sizeof *params) return KT_INVALID("params.struct_size is %u", params->struct_size);
  KT_TRY(kt_gpu_typed(ctx, "ids", ids, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "weights", weights, 2, KT_F32));
  if (logits.n > MAX_EXPERTS) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld experts, at most %d", (long long)logits.n, MAX_EXPERTS);
  if (params->score > KT_SCORE_CHOSEN_SOFTMAX) return KT_INVALID("params.score is %u", params->score);
  if (params->group_score > KT_GROUP_TOP2_SUM) return KT_INVALID("params.group_score is %u", params->group_score);
  if (params->num_groups < 1 || logits.n % params->num_groups != 0)
    return KT_INVALID("params.num_groups is %d for %lld experts", params->num_groups, (long long)logits.n);
  if (params->topk_groups < 1 || params->topk_groups > params->num_groups)
    return KT_INVALID("params.topk_groups is %d of %d groups", params->topk_groups, params->num_groups);
  const int64_t k = ids->shape[1], available = logits.n / params->num_groups * params->topk_groups;
  if (k > available) return KT_INVALID("ids has %lld columns, there are %lld experts to choose from", (long long)k, (long long)available);
  KT_TRY(kt_gpu_size("ids", ids, 0, logits.count));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("weights", weights, i, ids->shape[i]));
  router_job job = {};
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, logits.n, &job.bias));
  job.logits = logits.data;
  job.logits_stride = logits.stride;
  job.ids_stride = ids->stride[0] / 4;
  job.weights_stride = weights->stride[0] / 4;
  job.experts = (int)logits.n;
  job.k = (int)k;
  job.params = *params;
  job.ids = (int32_t *)ids->data;
  job.weights = (float *)weights->data;
  if (fused == NULL) return kt_launch_early(ctx, router_kernel, dim3((unsigned)logits.count), dim3(KT_WARP), 0, job);
  fused->router = job;
  fused->logits = logits.data;
  const size_t bytes = (size_t)fused->x.n * 4;
  if (kt_has_bulk(ctx) && logits.count <= CLUSTERS && logits.n <= ROUTER_CLUSTER * router_shape<true>::WARPS)
    return kt_launch_clusters(ctx, norm_router_kernel<true>, ROUTER_CLUSTER, dim3(ROUTER_CLUSTER, (unsigned)logits.count), dim3(router_shape<true>::THREADS), bytes, *fused);
  KT_TRY(kt_gpu_counters(ctx, logits.count, &fused->arrived));
  return kt_launch_early(ctx, norm_router_kernel<false>, dim3((unsigned)kt_div_up(logits.n, router_shape<false>::WARPS), (unsigned)logits.count), dim3(router_shape<false>::THREADS), bytes, *fused);
}

extern "C" kt_status_t kt_moe_router(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *bias, const kt_router_params_t *params,
                                     const kt_tensor_t *ids, const kt_tensor_t *weights) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows;
  KT_TRY(kt_gpu_frows(ctx, "logits", logits, 2, &rows));
  return route(ctx, rows, bias, params, ids, weights, NULL);
}

extern "C" kt_status_t kt_norm_router(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *w, const kt_tensor_t *logit_bias, const kt_tensor_t *bias,
                                      const kt_router_params_t *params, const kt_tensor_t *normed, const kt_tensor_t *ids, const kt_tensor_t *weights) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  kt_norm norm = {NULL, eps, offset};
  const float *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_frows(ctx, "normed", normed, 2, &to));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("normed", normed, i, x->shape[i]));
  KT_TRY(kt_gpu_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "norm_weight", norm_weight, from.n, &norm.weight));
  if (norm.weight == NULL) return KT_INVALID("norm_weight is NULL");
  KT_TRY(kt_gpu_vector(ctx, "logit_bias", logit_bias, w->shape[0], &b));
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_ROUTE, from.count * w->shape[0] * 4, &memory));
  const kt_frows logits = {(float *)memory, from.count, w->shape[0], w->shape[0]};
  const auto aligned = [](const void *p) { return (uintptr_t)p % 16 == 0; };
  if (w->dtype == KT_F32 && from.count <= KT_FEW_TOKENS && from.n % 4 == 0 && from.n <= 8192 && from.stride % 4 == 0 && to.stride % 4 == 0 && w->stride[0] % 16 == 0 &&
      aligned(from.data) && aligned(to.data) && aligned(norm.weight) && aligned(w->data)) {
    norm_router_job job = {};
    job.x = from, job.normed = to, job.norm = norm, job.w = (const float *)w->data, job.bias = b, job.w_stride = w->stride[0] / 4;
    return route(ctx, logits, bias, params, ids, weights, &job);
  }
  KT_TRY(kt_gpu_rms_norm(ctx, from, norm, to));
  KT_TRY(kt_gpu_matmul(ctx, to, w, b, false, logits));
  return route(ctx, logits, bias, params, ids, weights, NULL);
}

/* ---- experts ---- */
/* rows[pair] = x[pair / k] * weights[pair] where weights multiply the input. */
__global__ void scale_rows_kernel(kt_frows x, const float *weights, int64_t weights_stride, int64_t k, float *out) {
  const int64_t pair = blockIdx.x, token = pair / k;
  const float weight = weights[token * weights_stride + pair % k];
  for (int64_t i = threadIdx.x; i < x.n; i += blockDim.x) out[pair * x.n + i] = x.data[token * x.stride + i] * weight;
}

/* out[t] (+)= sum_j weights[t][j] * rows[t * k + j]; weights NULL: ones. */
__global__ void combine_experts_kernel(const float *rows, const float *weights, int64_t weights_stride, int64_t k, bool add, kt_frows out) {
  const int64_t token = blockIdx.y;
  kt_start_next();
  kt_wait_previous();
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < out.n; i += (int64_t)gridDim.x * blockDim.x) {
    float sum = 0;
    for (int64_t j = 0; j < k; j++) sum += (weights != NULL ? __ldcg(weights + token * weights_stride + j) : 1.0f) * __ldcg(rows + (token * k + j) * out.n + i);
    float *to = out.data + token * out.stride + i;
    *to = add ? __ldcg(to) + sum : sum;
  }
}

/* Pairs grouped by expert: `list` holds them, tiles say which are one expert's. One block; the order within an expert is the pairs'. */
__global__ void group_kernel(const int32_t *ids, int64_t ids_stride, int k, int pairs, int experts, int32_t *list, kt_gemm_tile *tiles, int num_tiles) {
  __shared__ int counts[MAX_EXPERTS], starts[MAX_EXPERTS], first_tile[MAX_EXPERTS];
  for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
  for (int i = threadIdx.x; i < num_tiles; i += blockDim.x) tiles[i] = {0, 0, 0, 0};
  __syncthreads();
  for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
    const int e = ids[p / k * ids_stride + p % k];
    if (e >= 0 && e < experts) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int start = 0, tile = 0;
    for (int e = 0; e < experts; e++) {
      starts[e] = start, first_tile[e] = tile;
      start += counts[e];
      tile += (counts[e] + KT_GEMM_ROWS - 1) / KT_GEMM_ROWS;
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    for (int i = 0; i * KT_GEMM_ROWS < counts[e]; i++)
      tiles[first_tile[e] + i] = {e, starts[e] + i * KT_GEMM_ROWS, min(KT_GEMM_ROWS, counts[e] - i * KT_GEMM_ROWS), 0};
  __syncthreads();
  for (int p = threadIdx.x; p < pairs; p += blockDim.x) {
    const int e = ids[p / k * ids_stride + p % k];
    if (e >= 0 && e < experts) list[atomicAdd(&starts[e], 1)] = p;
  }
}

/* A stack operand [experts, rows, columns]. */
static kt_status_t check_stack(kt_ctx *ctx, const char *name, const kt_tensor_t *w, int64_t experts, int64_t rows, int64_t columns) {
  KT_TRY(kt_gpu_weight(ctx, name, w, 3, columns));
  if (experts > 0) KT_TRY(kt_gpu_size(name, w, 0, experts));
  if (rows > 0) KT_TRY(kt_gpu_size(name, w, 1, rows));
  return KT_OK;
}

static kt_status_t check_bias(kt_ctx *ctx, const char *name, const kt_tensor_t *b, int64_t experts, int64_t n, const float **out) {
  *out = NULL;
  if (b == NULL) return KT_OK;
  KT_TRY(kt_gpu_typed(ctx, name, b, 2, KT_F32));
  KT_TRY(kt_gpu_size(name, b, 0, experts));
  KT_TRY(kt_gpu_size(name, b, 1, n));
  if (b->stride[0] != 4 * n) return KT_INVALID("%s has rows %lld bytes apart", name, (long long)b->stride[0]);
  *out = (const float *)b->data;
  return KT_OK;
}

static bool stack_takes_int8(const kt_tensor_t *w) {
  const kt_weight of = kt_weight_of(w);
  return kt_has_int8(of.type) && w->shape[2] % 32 == 0 && ((uintptr_t)of.data | (uintptr_t)of.row_stride | (uintptr_t)kt_matrix_stride(w)) % 16 == 0;
}

struct experts_job {
  const kt_experts_args_t *a;
  kt_frows x;
  kt_expert_pairs pairs;
  const float *weights;
  int64_t weights_stride, inter;
  const float *gate_bias, *up_bias, *down_bias;
};

static kt_product stack_product(const kt_tensor_t *w, const float *bias, float *out) {
  kt_product p = {};
  p.w = kt_weight_of(w);
  p.rows = w->shape[1];
  p.n = w->shape[2];
  p.bias = bias;
  p.out = out;
  p.out_stride = w->shape[1];
  return p;
}

/* x . w of each pair's expert. */
static kt_status_t pair_product(kt_ctx *ctx, experts_job &job, const kt_tensor_t *w, const float *bias, kt_frows x, bool by_pair, float *out) {
  job.pairs.matrix_stride = kt_matrix_stride(w);
  job.pairs.rows_by_pair = by_pair;
  if (ctx->precision == KT_PRECISION_FAST && stack_takes_int8(w)) {
    kt_int8_rows codes;
    KT_TRY(kt_gpu_quantize(ctx, x, &codes));
    return kt_gpu_experts_int8(ctx, stack_product(w, bias, out), codes, job.pairs);
  }
  return kt_gpu_experts_float(ctx, stack_product(w, bias, out), x, job.pairs);
}

static kt_status_t by_pairs(kt_ctx *ctx, experts_job &job, float *h, float *h_up, float *rows) {
  const kt_experts_args_t *a = job.a;
  const bool by_pair = a->flags & KT_EXPERTS_SCALE_INPUT;
  const int64_t pairs = job.pairs.tokens * job.pairs.k;
  const kt_frows gated = {h, pairs, job.inter, job.inter};
  if (ctx->precision == KT_PRECISION_FAST && stack_takes_int8(a->gate) && stack_takes_int8(a->up) && a->gate->dtype == a->up->dtype &&
      kt_matrix_stride(a->gate) == kt_matrix_stride(a->up)) {
    kt_int8_rows codes;
    KT_TRY(kt_gpu_quantize(ctx, job.x, &codes));
    kt_product p = stack_product(a->gate, job.gate_bias, h);
    p.up = kt_weight_of(a->up);
    p.up_bias = job.up_bias;
    p.act = a->act;
    job.pairs.matrix_stride = kt_matrix_stride(a->gate);
    job.pairs.rows_by_pair = by_pair;
    KT_TRY(kt_gpu_experts_int8(ctx, p, codes, job.pairs));
  } else {
    KT_TRY(pair_product(ctx, job, a->gate, job.gate_bias, job.x, by_pair, h));
    KT_TRY(pair_product(ctx, job, a->up, job.up_bias, job.x, by_pair, h_up));
    KT_TRY(kt_gpu_act_mul(ctx, gated, {h_up, pairs, job.inter, job.inter}, a->act, gated));
  }
  return pair_product(ctx, job, a->down, job.down_bias, gated, true, rows);
}

/* Both steps by the kernels that copy weights ahead, where activations of all pairs fit their shared memory. */
static bool by_stream(kt_ctx *ctx, experts_job &job, float *h, kt_frows out, kt_status_t *status) {
  const kt_experts_args_t *a = job.a;
  if (ctx->precision != KT_PRECISION_FAST || !stack_takes_int8(a->gate) || !stack_takes_int8(a->up) || !stack_takes_int8(a->down) || a->gate->dtype != a->up->dtype ||
      kt_matrix_stride(a->gate) != kt_matrix_stride(a->up) || job.pairs.tokens > STREAM_TOKENS)
    return false;
  kt_product p = stack_product(a->gate, job.gate_bias, h);
  p.up = kt_weight_of(a->up);
  p.up_bias = job.up_bias;
  p.act = a->act;
  const bool scaled = a->flags & KT_EXPERTS_SCALE_INPUT;
  job.pairs.matrix_stride = kt_matrix_stride(a->gate);
  job.pairs.rows_by_pair = scaled;
  if (!kt_gpu_stream_fits(job.pairs.tokens * job.pairs.k, job.inter, a->down) || !kt_gpu_stream_pairs(ctx, p, job.x, job.pairs, status)) return false;
  if (*status != KT_OK) return true;
  const int64_t pairs = job.pairs.tokens * job.pairs.k;
  kt_product down = stack_product(a->down, job.down_bias, out.data);
  down.out_stride = out.stride;
  down.add = a->flags & KT_EXPERTS_ADD;
  job.pairs.matrix_stride = kt_matrix_stride(a->down);
  job.pairs.rows_by_pair = true;
  return kt_gpu_stream_down(ctx, down, {h, pairs, job.inter, job.inter}, job.pairs, scaled ? NULL : job.weights, job.weights_stride, true, status);
}

/* The stack as bf16 in scratch memory, unless it is. */
static kt_status_t bf16_stack(kt_ctx *ctx, const kt_tensor_t *w, const __nv_bfloat16 **out) {
  const int64_t rows = w->shape[0] * w->shape[1], n = w->shape[2];
  if (w->dtype == KT_BF16 && w->stride[1] == 2 * n && w->stride[0] == w->shape[1] * 2 * n && (uintptr_t)w->data % 16 == 0) {
    *out = (const __nv_bfloat16 *)w->data;
    return KT_OK;
  }
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_WEIGHT, rows * n * 2, &memory));
  *out = (const __nv_bfloat16 *)memory;
  if ((w->flags & KT_TENSOR_PACKED) || w->stride[0] == w->shape[1] * w->stride[1]) return kt_gpu_dequantize(ctx, w, 0, rows, KT_BF16, memory);
  for (int64_t e = 0; e < w->shape[0]; e++) {
    kt_tensor_t one = *w;
    one.data = (char *)w->data + e * w->stride[0];
    KT_TRY(kt_gpu_dequantize(ctx, &one, 0, w->shape[1], KT_BF16, (__nv_bfloat16 *)memory + e * w->shape[1] * n));
  }
  return KT_OK;
}

static kt_status_t by_groups(kt_ctx *ctx, experts_job &job, float *h, float *h_up, float *rows) {
  const kt_experts_args_t *a = job.a;
  const int64_t pairs = job.pairs.tokens * job.pairs.k, experts = job.pairs.experts;
  const int64_t num_tiles = kt_div_up(pairs, KT_GEMM_ROWS) + (experts < pairs ? experts : pairs);
  void *memory = NULL, *halves = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_ROUTE, pairs * 4 + 256 + num_tiles * (int64_t)sizeof(kt_gemm_tile), &memory));
  kt_gemm_tile *tiles = (kt_gemm_tile *)memory;
  int32_t *list = (int32_t *)((char *)memory + kt_div_up(num_tiles * (int64_t)sizeof(kt_gemm_tile), 256) * 256);
  group_kernel<<<1, 1024, 0, ctx->stream>>>(job.pairs.ids, job.pairs.ids_stride, (int)job.pairs.k, (int)pairs, (int)experts, list, tiles, (int)num_tiles);
  KT_LAUNCHED("fused_experts");
  const bool by_pair = a->flags & KT_EXPERTS_SCALE_INPUT;
  const int64_t widest = job.x.n > job.inter ? job.x.n : job.inter;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_QUANT, pairs * widest * 2, &halves));
  KT_TRY(kt_gpu_to_bf16(ctx, job.x, job.x.n, halves));
  kt_gemm g = {};
  g.a = (const __nv_bfloat16 *)halves;
  g.m = pairs;
  g.tiles = tiles;
  g.num_tiles = num_tiles;
  g.list = list;
  g.a_divisor = by_pair ? 1 : (int32_t)job.pairs.k;
  g.rows = job.inter;
  g.n = job.x.n;
  g.c_stride = job.inter;
  KT_TRY(bf16_stack(ctx, a->gate, &g.b));
  g.bias = job.gate_bias;
  g.c = h;
  KT_TRY(kt_gpu_gemm(ctx, g));
  KT_TRY(bf16_stack(ctx, a->up, &g.b));
  g.bias = job.up_bias;
  g.c = h_up;
  KT_TRY(kt_gpu_gemm(ctx, g));
  const kt_frows gated = {h, pairs, job.inter, job.inter};
  KT_TRY(kt_gpu_act_mul(ctx, gated, {h_up, pairs, job.inter, job.inter}, a->act, gated));
  KT_TRY(kt_gpu_to_bf16(ctx, gated, job.inter, halves));
  KT_TRY(bf16_stack(ctx, a->down, &g.b));
  g.a_divisor = 1;
  g.rows = a->down->shape[1];
  g.n = job.inter;
  g.bias = job.down_bias;
  g.c = rows;
  g.c_stride = g.rows;
  return kt_gpu_gemm(ctx, g);
}

/* Pairs grouped by expert as panels take them: an expert begins at a multiple of `align`, list[position] is a pair, -1 between experts. An
 * expert's tile has up to `width` pairs, or the multiple of `align` below it where it has several. One block. */
__global__ void group_panels_kernel(const int32_t *ids, int64_t ids_stride, int k, int pairs, int experts, int32_t *list, int positions, kt_gemm_tile *tiles, int num_tiles, int align, int width) {
  __shared__ int counts[MAX_EXPERTS], starts[MAX_EXPERTS], sums[2][KT_WARP];
  const int thread = threadIdx.x, piece = width / align * align;
  kt_wait_previous();
  for (int e = thread; e < MAX_EXPERTS; e += blockDim.x) counts[e] = 0;
  for (int i = thread; i < num_tiles; i += blockDim.x) tiles[i] = {0, 0, 0, 0};
  for (int i = thread; i < positions; i += blockDim.x) list[i] = -1;
  __syncthreads();
  for (int p = thread; p < pairs; p += blockDim.x) {
    const int e = __ldcg(ids + p / k * ids_stride + p % k);
    if (e >= 0 && e < experts) atomicAdd(&counts[e], 1);
  }
  __syncthreads();
  /* a thread an expert: sums of what lies before it */
  const int count = counts[thread], room = (count + align - 1) / align * align, needed = count <= width ? count > 0 : (count + piece - 1) / piece;
  int before = room, before_tiles = needed;
#pragma unroll
  for (int lane = 1; lane < KT_WARP; lane *= 2) {
    const int a = __shfl_up_sync(KT_FULL_MASK, before, lane), b = __shfl_up_sync(KT_FULL_MASK, before_tiles, lane);
    if (thread % KT_WARP >= lane) before += a, before_tiles += b;
  }
  if (thread % KT_WARP == KT_WARP - 1) sums[0][thread / KT_WARP] = before, sums[1][thread / KT_WARP] = before_tiles;
  __syncthreads();
  int start = before - room, tile = before_tiles - needed;
  for (int warp = 0; warp < thread / KT_WARP; warp++) start += sums[0][warp], tile += sums[1][warp];
  starts[thread] = start;
  for (int i = 0; i < needed; i++) {
    const int at = i * piece;
    tiles[tile + i] = {thread, start + at, needed == 1 ? count : min(piece, count - at), 0};
  }
  __syncthreads();
  for (int p = thread; p < pairs; p += blockDim.x) {
    const int e = __ldcg(ids + p / k * ids_stride + p % k);
    if (e >= 0 && e < experts) list[atomicAdd(&starts[e], 1)] = p;
  }
}

static bool stack_takes_panels(kt_ctx *ctx, const kt_tensor_t *w, bool few) {
  const kt_weight of = kt_weight_of(w);
  return (few ? kt_gpu_takes_few(of, w->shape[2]) : kt_gpu_takes_tiles(ctx, of, w->shape[2])) && kt_matrix_stride(w) % 16 == 0;
}

/* How many pairs an expert hardly ever exceeds where each token chooses at random: the mean and three times its root. */
static double likely_pairs(const experts_job &job) {
  const double mean = (double)(job.pairs.tokens * job.pairs.k) / (double)job.pairs.experts;
  return mean + 3 * sqrt(mean);
}

/* Straight from packed stacks, gate and up to activated panels in one launch. False: not for these operands. */
static bool takes_panels(kt_ctx *ctx, const experts_job &job, bool few) {
  const kt_experts_args_t *a = job.a;
  return ctx->precision == KT_PRECISION_FAST && stack_takes_panels(ctx, a->gate, few) && stack_takes_panels(ctx, a->up, few) && stack_takes_panels(ctx, a->down, few) &&
         a->gate->dtype == a->up->dtype && kt_matrix_stride(a->gate) == kt_matrix_stride(a->up) && job.inter % 128 == 0;
}

static kt_status_t by_panels(kt_ctx *ctx, experts_job &job, bool few, float *rows) {
  const kt_experts_args_t *a = job.a;
  const int64_t pairs = job.pairs.tokens * job.pairs.k, experts = job.pairs.experts, used = experts < pairs ? experts : pairs;
  kt_product p = stack_product(a->gate, job.gate_bias, NULL);
  p.up = kt_weight_of(a->up);
  p.up_bias = job.up_bias;
  p.act = a->act;
  kt_product down = stack_product(a->down, job.down_bias, rows);
  const double likely = likely_pairs(job);
  int width = likely <= 8 ? 8 : likely <= 16 ? 16 : 32, down_width = width;
  if (!few) width = kt_tile_width(p.w, true, likely), down_width = kt_tile_width(down.w, false, likely);
  const int least = width < down_width ? width : down_width, align = few ? width : 64, piece = least / align * align;
  const int64_t positions = kt_div_up(pairs + (align - 1) * used, 64) * 64, num_tiles = pairs / piece + used;
  void *memory = NULL, *panels = NULL, *gated = NULL;
  const int64_t tile_bytes = kt_div_up(num_tiles * (int64_t)sizeof(kt_gemm_tile), 256) * 256;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_ROUTE, tile_bytes + positions * 4, &memory));
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PANELS, kt_panel_bytes(positions, job.x.n), &panels));
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PANELS2, kt_panel_bytes(positions, job.inter), &gated));
  kt_gemm_tile *tiles = (kt_gemm_tile *)memory;
  int32_t *list = (int32_t *)((char *)memory + tile_bytes);
  KT_TRY(kt_launch_early(ctx, group_panels_kernel, dim3(1), dim3(MAX_EXPERTS), 0, job.pairs.ids, job.pairs.ids_stride, (int)job.pairs.k, (int)pairs, (int)experts, list, (int)positions,
                         tiles, (int)num_tiles, align, least));
  KT_TRY(kt_gpu_to_panels(ctx, job.x, list, a->flags & KT_EXPERTS_SCALE_INPUT ? 1 : (int)job.pairs.k, positions, panels));
  kt_tiles t = {};
  t.product = p;
  t.matrix_stride = kt_matrix_stride(a->gate);
  t.panels = panels;
  t.tiles = tiles;
  t.num_tiles = num_tiles;
  t.width = width;
  t.out_panels = gated;
  KT_TRY(few ? kt_gpu_few(ctx, t) : kt_gpu_tiles(ctx, t));
  t.product = down;
  t.matrix_stride = kt_matrix_stride(a->down);
  t.panels = gated;
  t.width = down_width;
  t.list = list;
  t.out_panels = NULL;
  return few ? kt_gpu_few(ctx, t) : kt_gpu_tiles(ctx, t);
}

static bool takes_grouped(kt_ctx *ctx, const experts_job &job) {
  const kt_experts_args_t *a = job.a;
  return ctx->precision == KT_PRECISION_FAST && a->gate->dtype == a->up->dtype && kt_matrix_stride(a->gate) == kt_matrix_stride(a->up) && (uintptr_t)a->up->data % 16 == 0 &&
         (uintptr_t)job.x.data % 16 == 0 && job.x.stride % 4 == 0 && kt_gpu_takes_grouped(ctx, a->gate, true) && kt_gpu_takes_grouped(ctx, a->down, false);
}

/* Experts' weights read once for their few tokens, activations as int8 codes. */
static kt_status_t by_grouped(kt_ctx *ctx, experts_job &job, float *rows) {
  const kt_experts_args_t *a = job.a;
  const int64_t pairs = job.pairs.tokens * job.pairs.k, experts = job.pairs.experts, num_tiles = pairs / KT_GROUPED_TOKENS + (experts < pairs ? experts : pairs);
  const int64_t tile_bytes = kt_div_up(num_tiles * (int64_t)sizeof(kt_gemm_tile), 256) * 256;
  void *memory = NULL, *records = NULL, *gated = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_ROUTE, tile_bytes + pairs * 4, &memory));
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PANELS, kt_grouped_bytes(job.x.count, job.x.n), &records));
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PANELS2, kt_grouped_bytes(pairs, job.inter), &gated));
  kt_gemm_tile *tiles = (kt_gemm_tile *)memory;
  int32_t *list = (int32_t *)((char *)memory + tile_bytes);
  KT_TRY(kt_launch_early(ctx, group_panels_kernel, dim3(1), dim3(MAX_EXPERTS), 0, job.pairs.ids, job.pairs.ids_stride, (int)job.pairs.k, (int)pairs, (int)experts, list, (int)pairs, tiles,
                         (int)num_tiles, 1, KT_GROUPED_TOKENS));
  KT_TRY(kt_gpu_code_rows(ctx, job.x, records));
  kt_grouped g = {};
  g.w = a->gate, g.up = a->up;
  g.bias = job.gate_bias, g.up_bias = job.up_bias, g.act = a->act;
  g.tiles = tiles, g.num_tiles = num_tiles, g.list = list;
  g.records = records, g.divisor = a->flags & KT_EXPERTS_SCALE_INPUT ? 1 : job.pairs.k;
  g.out_records = gated;
  KT_TRY(kt_gpu_grouped(ctx, g));
  g.w = a->down, g.up = NULL;
  g.bias = job.down_bias, g.up_bias = NULL;
  g.records = gated, g.divisor = 0;
  g.out_records = NULL, g.out = rows;
  return kt_gpu_grouped(ctx, g);
}

extern "C" kt_status_t kt_fused_experts(kt_ctx_t *handle, const kt_experts_args_t *a) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (a == NULL) return KT_INVALID("args are NULL");
  if (a->struct_size < sizeof *a) return KT_INVALID("args.struct_size is %u", a->struct_size);
  if (a->act > KT_ACT_SWIGLU_OAI) return KT_INVALID("args.act is %u", a->act);
  if (a->flags > (KT_EXPERTS_SCALE_INPUT | KT_EXPERTS_ADD)) return KT_INVALID("args.flags is %u", a->flags);
  experts_job job = {};
  job.a = a;
  kt_frows out;
  KT_TRY(kt_gpu_frows(ctx, "x", a->x, 2, &job.x));
  KT_TRY(kt_gpu_frows(ctx, "out", a->out, 2, &out));
  KT_TRY(kt_gpu_typed(ctx, "ids", a->ids, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "weights", a->weights, 2, KT_F32));
  const int64_t tokens = job.x.count, hidden = job.x.n, k = a->ids->shape[1];
  KT_TRY(kt_gpu_size("ids", a->ids, 0, tokens));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("weights", a->weights, i, a->ids->shape[i]));
  KT_TRY(kt_gpu_size("out", a->out, 0, tokens));
  KT_TRY(kt_gpu_size("out", a->out, 1, hidden));
  KT_TRY(check_stack(ctx, "gate", a->gate, 0, 0, hidden));
  const int64_t experts = a->gate->shape[0];
  job.inter = a->gate->shape[1];
  KT_TRY(check_stack(ctx, "up", a->up, experts, job.inter, hidden));
  KT_TRY(check_stack(ctx, "down", a->down, experts, hidden, job.inter));
  if (experts > MAX_EXPERTS) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld experts, at most %d", (long long)experts, MAX_EXPERTS);
  KT_TRY(check_bias(ctx, "gate_bias", a->gate_bias, experts, job.inter, &job.gate_bias));
  KT_TRY(check_bias(ctx, "up_bias", a->up_bias, experts, job.inter, &job.up_bias));
  KT_TRY(check_bias(ctx, "down_bias", a->down_bias, experts, hidden, &job.down_bias));
  job.pairs = {(const int32_t *)a->ids->data, a->ids->stride[0] / 4, k, tokens, experts, 0, false};
  job.weights = (const float *)a->weights->data;
  job.weights_stride = a->weights->stride[0] / 4;
  const int64_t pairs = tokens * k;
  const bool scaled = a->flags & KT_EXPERTS_SCALE_INPUT;
  /* gate, up and down results, and the scaled inputs */
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP, pairs * (2 * job.inter + hidden * (scaled ? 2 : 1)) * 4, &memory));
  float *h = (float *)memory, *h_up = h + pairs * job.inter, *rows = h_up + pairs * job.inter;
  if (scaled) {
    float *inputs = rows + pairs * hidden;
    scale_rows_kernel<<<(unsigned)pairs, 256, 0, ctx->stream>>>(job.x, job.weights, job.weights_stride, k, inputs);
    KT_LAUNCHED("fused_experts");
    job.x = {inputs, pairs, hidden, hidden};
  }
  kt_status_t status = KT_OK;
  if (by_stream(ctx, job, h, out, &status)) return status;
  const bool plain = a->gate->dtype == KT_F32 || a->up->dtype == KT_F32 || a->down->dtype == KT_F32;
  const bool few = tokens > 1 && likely_pairs(job) <= KT_FEW_TOKENS && takes_panels(ctx, job, true), tiles = few || (tokens > KT_FEW_TOKENS && takes_panels(ctx, job, false));
  const bool groups = ctx->precision == KT_PRECISION_FAST && !plain && hidden % 32 == 0 && job.inter % 32 == 0 && tokens > 32;
  const bool grouped = tokens > 1 && likely_pairs(job) <= KT_GROUPED_TOKENS && takes_grouped(ctx, job);
  if (!groups && !tiles && !grouped && pairs > 65535) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld pairs of tokens and experts in one call, at most 65535", (long long)pairs);
  KT_TRY(grouped ? by_grouped(ctx, job, rows) : tiles ? by_panels(ctx, job, few, rows) : groups ? by_groups(ctx, job, h, h_up, rows) : by_pairs(ctx, job, h, h_up, rows));
  return kt_launch_early(ctx, combine_experts_kernel, dim3((unsigned)kt_div_up(hidden, 256), (unsigned)tokens), dim3(256), 0, rows, scaled ? NULL : job.weights, job.weights_stride, k,
                         (a->flags & KT_EXPERTS_ADD) != 0, out);
}

/* kt_argmax, kt_mask_logits, kt_sample, kt_logprobs.
 * SHAPES       logits [rows, vocab] f32
 * DEFINITION   see kt.h. Candidates are ordered by logit, of equals by the lower id; NaN comes last and weighs nothing. What top-k, top-p,
 *              min-p and the draw keep is a prefix of that order, found by bisection over 64-bit keys of logit and id; weights are
 *              whole numbers of 2^-40, so that sums do not depend on the order of addition
 * REGULARITIES vocab 32 000 .. 260 000; one block a row */
#include <math.h>
#include "gpu.h"

#define THREADS 1024
#define UNIT 1099511627776.0f /* 2^40 */

/* Greater for greater logits, and for lower ids of equal ones; NaN is 0. */
__device__ __forceinline__ unsigned long long key_of(float value, uint32_t id) {
  value += 0.0f; /* no negative zero */
  const uint32_t bits = __float_as_uint(value);
  const uint32_t order = value != value ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)order << 32 | (0xffffffffu - id);
}
__device__ __forceinline__ uint32_t id_of(unsigned long long key) { return 0xffffffffu - (uint32_t)key; }

template <typename T, typename F> __device__ T block_reduce(T v, F join, T *shared) {
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v = join(v, __shfl_xor_sync(KT_FULL_MASK, v, lane));
  __syncthreads();
  if (threadIdx.x % KT_WARP == 0) shared[threadIdx.x / KT_WARP] = v;
  __syncthreads();
  v = shared[threadIdx.x % KT_WARP]; /* as many warps as lanes */
#pragma unroll
  for (int lane = KT_WARP / 2; lane > 0; lane /= 2) v = join(v, __shfl_xor_sync(KT_FULL_MASK, v, lane));
  return v;
}

typedef unsigned long long u64;
struct max_u64 {
  __device__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};
struct sum_u64 {
  __device__ u64 operator()(u64 a, u64 b) const { return a + b; }
};
struct sum_f64 {
  __device__ double operator()(double a, double b) const { return a + b; }
};

__device__ u64 best_key(const float *logits, int64_t vocab, u64 below, u64 *shared) {
  u64 best = 0;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
    const u64 key = key_of(logits[i], (uint32_t)i);
    if (key < below && key > best) best = key;
  }
  return block_reduce(best, max_u64(), shared);
}

__global__ void argmax_kernel(kt_frows logits, int32_t *out) {
  __shared__ u64 shared[32];
  const u64 best = best_key(logits.data + blockIdx.x * logits.stride, logits.n, ~0ull, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = (int32_t)id_of(best);
}

static kt_status_t logits_of(kt_ctx *ctx, const kt_tensor_t *logits, kt_frows *rows) {
  KT_TRY(kt_gpu_frows(ctx, "logits", logits, 2, rows));
  if (rows->n > INT32_MAX) return KT_INVALID("a vocabulary of %lld", (long long)rows->n);
  return KT_OK;
}

static kt_status_t ids_out(kt_ctx *ctx, const char *name, const kt_tensor_t *out, int64_t rows) {
  KT_TRY(kt_gpu_typed(ctx, name, out, 1, KT_I32));
  return kt_gpu_size(name, out, 0, rows);
}

extern "C" kt_status_t kt_argmax(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows;
  KT_TRY(logits_of(ctx, logits, &rows));
  KT_TRY(ids_out(ctx, "out", out, rows.count));
  argmax_kernel<<<(unsigned)rows.count, THREADS, 0, ctx->stream>>>(rows, (int32_t *)out->data);
  KT_LAUNCHED("argmax");
  return KT_OK;
}

__global__ void mask_kernel(kt_frows logits, const int32_t *bits, int64_t bits_stride) {
  float *row = logits.data + blockIdx.y * logits.stride;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < logits.n; i += (int64_t)gridDim.x * blockDim.x)
    if (!((uint32_t)bits[blockIdx.y * bits_stride + i / 32] >> (i % 32) & 1)) row[i] = -INFINITY;
}

extern "C" kt_status_t kt_mask_logits(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *bits) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows;
  KT_TRY(logits_of(ctx, logits, &rows));
  KT_TRY(kt_gpu_typed(ctx, "bits", bits, 2, KT_I32));
  KT_TRY(kt_gpu_size("bits", bits, 0, rows.count));
  KT_TRY(kt_gpu_size("bits", bits, 1, kt_div_up(rows.n, 32)));
  mask_kernel<<<dim3((unsigned)kt_div_up(rows.n, 1024), (unsigned)rows.count), 256, 0, ctx->stream>>>(rows, (const int32_t *)bits->data, bits->stride[0] / 4);
  KT_LAUNCHED("mask_logits");
  return KT_OK;
}

/* The candidates of a row, and which of them are kept: those of keys of at least `floor`. */
struct candidates {
  const u64 *keys, *weights;
  int count;
};

__device__ u64 mass_from(const candidates &c, u64 floor, u64 *shared) {
  u64 sum = 0;
  for (int i = threadIdx.x; i < c.count; i += THREADS)
    if (c.keys[i] >= floor) sum += c.weights[i];
  return block_reduce(sum, sum_u64(), shared);
}

__device__ u64 count_from(const candidates &c, u64 floor, u64 *shared) {
  u64 sum = 0;
  for (int i = threadIdx.x; i < c.count; i += THREADS) sum += c.keys[i] >= floor;
  return block_reduce(sum, sum_u64(), shared);
}

/* The greatest floor whose prefix reaches `wanted`, in weight or in number; 0 where none does. */
template <bool COUNTS> __device__ u64 floor_for(const candidates &c, u64 wanted, u64 *shared) {
  u64 low = 0, high = ~0ull; /* reached at low, not reached beyond high */
  if ((COUNTS ? count_from(c, 1, shared) : mass_from(c, 1, shared)) < wanted) return 0;
  low = 1;
  while (low < high) {
    const u64 middle = high - (high - low) / 2;
    if ((COUNTS ? count_from(c, middle, shared) : mass_from(c, middle, shared)) >= wanted) low = middle;
    else high = middle - 1;
  }
  return low;
}

__global__ void __launch_bounds__(THREADS) sample_kernel(kt_frows logits, const kt_sampling_row_t *rows, float *work, int32_t *counts, u64 *keys, u64 *weights, int32_t *out) {
  __shared__ u64 shared[32];
  __shared__ int count;
  const kt_sampling_row_t row = rows[blockIdx.x];
  const int64_t n = logits.n;
  const int vocab = (int)n;
  const float *from = logits.data + blockIdx.x * logits.stride;
  float *values = work + blockIdx.x * n;
  int32_t *seen = counts + blockIdx.x * n;
  keys += blockIdx.x * n;
  weights += blockIdx.x * n;
  for (int i = threadIdx.x; i < vocab; i += THREADS) values[i] = from[i], seen[i] = 0;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < row.bias_len; i++)
      if (row.bias_ids[i] >= 0 && row.bias_ids[i] < vocab) values[row.bias_ids[i]] += row.bias_values[i];
  /* how often in the output, and a bit for those of the prompt */
  for (int i = threadIdx.x; i < row.history_len; i += THREADS) {
    const int32_t token = row.history[i];
    if (token < 0 || token >= vocab) continue;
    if (i < row.prompt_len) atomicOr(&seen[token], 1 << 30);
    else atomicAdd(&seen[token], 1);
  }
  __syncthreads();
  if (row.history_len > 0)
    for (int i = threadIdx.x; i < vocab; i += THREADS) {
      if (seen[i] == 0) continue;
      const int times = seen[i] & ((1 << 30) - 1);
      float x = values[i];
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
      if (times > 0) x -= row.presence_penalty + __fmul_rn((float)times, row.frequency_penalty);
      values[i] = x;
    }
  __syncthreads();
  const u64 best = best_key(values, n, ~0ull, shared);
  const float most = values[id_of(best)];
  if (row.temperature == 0 || !(most > -INFINITY)) {
    if (threadIdx.x == 0) out[blockIdx.x] = (int32_t)id_of(best);
    return;
  }
  /* with a top-k those of no weight count too */
  for (int i = threadIdx.x; i < vocab; i += THREADS) {
    const float x = values[i], weight = x == most ? 1.0f : expf((x - most) / row.temperature);
    const u64 units = x == x ? (u64)(weight * UNIT) : 0;
    if (units == 0) continue;
    const int at = atomicAdd(&count, 1);
    keys[at] = key_of(x, (uint32_t)i);
    weights[at] = units;
  }
  __syncthreads();
  const candidates c = {keys, weights, count};
  u64 floor = 1;
  if (row.top_k > 0 && row.top_k < c.count) floor = floor_for<true>(c, (u64)row.top_k, shared);
  if (row.top_p < 1) {
    const double total = (double)mass_from(c, floor, shared);
    const u64 wanted = (u64)ceil((double)row.top_p * total);
    const u64 cut = floor_for<false>(c, wanted > 0 ? wanted : 1, shared);
    if (cut > floor) floor = cut;
  }
  if (row.min_p > 0) {
    /* weights grow with keys: what is heavy enough is a prefix too */
    const u64 least = (u64)ceil((double)row.min_p * (double)UNIT);
    u64 lowest = best;
    for (int i = threadIdx.x; i < c.count; i += THREADS)
      if (weights[i] >= least && keys[i] < lowest) lowest = keys[i];
    lowest = ~block_reduce(~lowest, max_u64(), shared);
    if (lowest > floor) floor = lowest;
  }
  const u64 total = mass_from(c, floor, shared);
  u64 wanted = (u64)((double)row.uniform * (double)total) + 1;
  if (wanted > total) wanted = total;
  const u64 drawn = floor_for<false>(c, wanted, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = (int32_t)id_of(drawn);
}

static kt_status_t wrong(int64_t row, const char *field, double value) {
  return KT_INVALID("rows[%lld].%s is %g", (long long)row, field, value);
}

static kt_status_t check_ids(int64_t row, const char *field, const int32_t *ids, int32_t count, int64_t vocab) {
  for (int32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      return KT_INVALID("rows[%lld].%s[%d] is %d, the vocabulary has ids 0 to %lld", (long long)row, field, i, ids[i], (long long)vocab - 1);
  return KT_OK;
}

/* Samplers that this library has; a row that asks for another is refused, since nothing may be left out silently. */
static kt_status_t check_row(int64_t i, const kt_sampling_row_t &row, int64_t vocab) {
  if (!(row.temperature >= 0) || isinf(row.temperature)) return wrong(i, "temperature", row.temperature);
  if (!(row.top_p >= 0 && row.top_p <= 1)) return wrong(i, "top_p", row.top_p);
  if (!(row.min_p >= 0 && row.min_p <= 1)) return wrong(i, "min_p", row.min_p);
  if (!(row.repetition_penalty > 0) || isinf(row.repetition_penalty)) return wrong(i, "repetition_penalty", row.repetition_penalty);
  if (!isfinite(row.presence_penalty)) return wrong(i, "presence_penalty", row.presence_penalty);
  if (!isfinite(row.frequency_penalty)) return wrong(i, "frequency_penalty", row.frequency_penalty);
  if (!(row.uniform >= 0 && row.uniform < 1)) return wrong(i, "uniform", row.uniform);
  if (row.top_k < 0) return wrong(i, "top_k", row.top_k);
  if (row.history_len < 0 || (row.history_len > 0 && row.history == NULL)) return wrong(i, "history_len", row.history_len);
  if (row.prompt_len < 0 || row.prompt_len > row.history_len) return wrong(i, "prompt_len", row.prompt_len);
  if (row.bias_len < 0 || (row.bias_len > 0 && (row.bias_ids == NULL || row.bias_values == NULL))) return wrong(i, "bias_len", row.bias_len);
  const bool penalises = row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0;
  if (penalises) KT_TRY(check_ids(i, "history", row.history, row.history_len, vocab));
  KT_TRY(check_ids(i, "bias_ids", row.bias_ids, row.bias_len, vocab));
  const char *other = row.dry_len != 0                                        ? "dry"
                      : row.typical_p != 1                                    ? "typical_p"
                      : row.top_n_sigma != 0                                  ? "top_n_sigma"
                      : row.xtc_probability != 0 && row.xtc_threshold <= 0.5f ? "xtc"
                      : row.dynatemp_range != 0                               ? "dynatemp"
                      : row.mirostat != 0                                     ? "mirostat"
                      : row.order != 0                                        ? "samplers in another order"
                                                                              : NULL;
  if (other != NULL) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "rows[%lld]: the cuda library has no %s yet", (long long)i, other);
  return KT_OK;
}

extern "C" kt_status_t kt_sample(kt_ctx_t *handle, const kt_tensor_t *logits, kt_sampling_row_t *rows, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from;
  KT_TRY(logits_of(ctx, logits, &from));
  KT_TRY(ids_out(ctx, "out", out, from.count));
  if (rows == NULL) return KT_INVALID("rows are NULL");
  for (int64_t i = 0; i < from.count; i++) KT_TRY(check_row(i, rows[i], from.n));
  void *memory = NULL;
  const int64_t each = from.count * from.n;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP, each * (8 + 8 + 4 + 4), &memory));
  u64 *keys = (u64 *)memory, *weights = keys + each;
  float *work = (float *)(weights + each);
  sample_kernel<<<(unsigned)from.count, THREADS, 0, ctx->stream>>>(from, rows, work, (int32_t *)(work + each), keys, weights, (int32_t *)out->data);
  KT_LAUNCHED("sample");
  return KT_OK;
}

__global__ void logprobs_kernel(kt_frows logits, const int32_t *tokens, float *out_token, int32_t *out_ids, float *out_values, int n, int64_t ids_stride, int64_t values_stride) {
  __shared__ u64 shared[32];
  __shared__ double sums[32];
  const float *row = logits.data + blockIdx.x * logits.stride;
  u64 key = best_key(row, logits.n, ~0ull, shared);
  const float most = row[id_of(key)];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < logits.n; i += THREADS) {
    const float x = row[i];
    if (x == x) sum += x == most ? 1.0 : exp((double)x - (double)most);
  }
  const double log_sum = log(block_reduce(sum, sum_f64(), sums));
  const auto logprob = [&](float x) { return x == x ? (float)((x == most ? 0.0 : (double)x - (double)most) - log_sum) : -INFINITY; };
  if (threadIdx.x == 0) {
    const int32_t token = tokens[blockIdx.x];
    out_token[blockIdx.x] = token >= 0 && token < logits.n ? logprob(row[token]) : __int_as_float(0x7fc00000);
  }
  for (int j = 0; j < n; j++) {
    if (threadIdx.x == 0) {
      out_ids[blockIdx.x * ids_stride + j] = (int32_t)id_of(key);
      out_values[blockIdx.x * values_stride + j] = logprob(row[id_of(key)]);
    }
    if (j + 1 < n) key = best_key(row, logits.n, key, shared);
  }
}

extern "C" kt_status_t kt_logprobs(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *tokens, const kt_tensor_t *out_token,
                                   const kt_tensor_t *out_ids, const kt_tensor_t *out_logprobs) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows, values = {};
  KT_TRY(logits_of(ctx, logits, &rows));
  KT_TRY(ids_out(ctx, "tokens", tokens, rows.count));
  KT_TRY(kt_gpu_typed(ctx, "out_token", out_token, 1, KT_F32));
  KT_TRY(kt_gpu_size("out_token", out_token, 0, rows.count));
  if ((out_ids == NULL) != (out_logprobs == NULL)) return KT_INVALID("%s is NULL and the other is not", out_ids == NULL ? "out_ids" : "out_logprobs");
  if (out_ids != NULL) {
    KT_TRY(kt_gpu_typed(ctx, "out_ids", out_ids, 2, KT_I32));
    KT_TRY(kt_gpu_frows(ctx, "out_logprobs", out_logprobs, 2, &values));
    KT_TRY(kt_gpu_size("out_ids", out_ids, 0, rows.count));
    for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("out_logprobs", out_logprobs, i, out_ids->shape[i]));
    if (values.n > rows.n) return KT_INVALID("%lld best of %lld tokens", (long long)values.n, (long long)rows.n);
  }
  logprobs_kernel<<<(unsigned)rows.count, THREADS, 0, ctx->stream>>>(rows, (const int32_t *)tokens->data, (float *)out_token->data, out_ids == NULL ? NULL : (int32_t *)out_ids->data,
                                                                   values.data, out_ids == NULL ? 0 : (int)values.n, out_ids == NULL ? 0 : out_ids->stride[0] / 4, values.stride);
  KT_LAUNCHED("logprobs");
  return KT_OK;
}

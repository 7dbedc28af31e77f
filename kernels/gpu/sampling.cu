/* kt_argmax, kt_mask_logits, kt_logprobs.
 * SHAPES       logits [rows, vocab] f32
 * DEFINITION   see kt.h. Of equal logits the lower id comes first; NaN comes last and weighs nothing
 * REGULARITIES vocab 32 000 .. 260 000; one block a row */
#include "async.cuh"
#include "sampling.cuh"

#define THREADS KT_SAMPLING_THREADS

__device__ u64 best_key(const float *logits, int64_t vocab, u64 below, u64 *shared) {
  u64 best = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
    const u64 key = key_of(logits[i], (uint32_t)i);
    if (key < below && key > best) best = key;
  }
  return block_reduce(best, max_u64(), shared);
}

/* A row is PARTS blocks'. */
#define CLUSTER 8
template <int PARTS> __global__ void __launch_bounds__(THREADS) argmax_kernel(kt_frows logits, int32_t *out) {
  __shared__ u64 shared[32];
  kt_wait_previous();
  const int64_t share = (logits.n + PARTS - 1) / PARTS, begin = blockIdx.x * share, end = min(begin + share, logits.n);
  const float *row = logits.data + blockIdx.y * logits.stride;
  u64 best = 0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    const u64 key = key_of(__ldcg(row + i), (uint32_t)i);
    best = key > best ? key : best;
  }
  best = block_reduce(best, max_u64(), shared);
#if __CUDA_ARCH__ >= 900
  if constexpr (PARTS > 1) {
    __shared__ u64 parts[PARTS];
    kt_cluster_sync(); /* all blocks are there */
    if (threadIdx.x == 0) kt_store_remote(parts + blockIdx.x, 0, best);
    kt_cluster_sync();
    if (blockIdx.x == 0)
      for (int p = 0; p < PARTS; p++) best = parts[p] > best ? parts[p] : best;
  }
#endif
  if (blockIdx.x == 0 && threadIdx.x == 0) out[blockIdx.y] = (int32_t)id_of(best);
}

kt_status_t kt_gpu_logits(kt_ctx *ctx, const kt_tensor_t *logits, kt_frows *rows) {
  KT_TRY(kt_gpu_frows(ctx, "logits", logits, 2, rows));
  if (rows->n > INT32_MAX) return KT_INVALID("a vocabulary of %lld", (long long)rows->n);
  return KT_OK;
}

kt_status_t kt_gpu_ids_out(kt_ctx *ctx, const char *name, const kt_tensor_t *out, int64_t rows) {
  KT_TRY(kt_gpu_typed(ctx, name, out, 1, KT_I32));
  return kt_gpu_size(name, out, 0, rows);
}

extern "C" kt_status_t kt_argmax(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows;
  KT_TRY(kt_gpu_logits(ctx, logits, &rows));
  KT_TRY(kt_gpu_ids_out(ctx, "out", out, rows.count));
  int32_t *to = (int32_t *)out->data;
  if (kt_has_bulk(ctx)) return kt_launch_clusters(ctx, argmax_kernel<CLUSTER>, CLUSTER, dim3(CLUSTER, (unsigned)rows.count), dim3(THREADS), 0, rows, to);
  return kt_launch_early(ctx, argmax_kernel<1>, dim3(1, (unsigned)rows.count), dim3(THREADS), 0, rows, to);
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
  KT_TRY(kt_gpu_logits(ctx, logits, &rows));
  KT_TRY(kt_gpu_typed(ctx, "bits", bits, 2, KT_I32));
  KT_TRY(kt_gpu_size("bits", bits, 0, rows.count));
  KT_TRY(kt_gpu_size("bits", bits, 1, kt_div_up(rows.n, 32)));
  mask_kernel<<<dim3((unsigned)kt_div_up(rows.n, 1024), (unsigned)rows.count), 256, 0, ctx->stream>>>(rows, (const int32_t *)bits->data, bits->stride[0] / 4);
  KT_LAUNCHED("mask_logits");
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
  KT_TRY(kt_gpu_logits(ctx, logits, &rows));
  KT_TRY(kt_gpu_ids_out(ctx, "tokens", tokens, rows.count));
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

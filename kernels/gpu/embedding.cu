/* kt_embedding.
 * SHAPES       table [vocab, n] of any weight type, ids [tokens] i32, out [tokens, n] f32
 * DEFINITION   out[t] = table[ids[t]] * scale; a row of NaN where the id is outside the table, which the host does not see
 * REGULARITIES n is a hidden size, a multiple of 8 for block types */
#include "blocks.cuh"

#define THREADS 128

template <uint32_t TYPE>
__global__ void embedding_kernel(const uint8_t *table, int64_t stride, int64_t vocab, const int32_t *ids, float scale, float *out, int64_t out_stride, int64_t n) {
  const int64_t id = ids[blockIdx.x];
  float *to = out + blockIdx.x * out_stride;
  const bool known = id >= 0 && id < vocab;
  const uint8_t *row = table + (known ? id : 0) * stride;
  const float factor = known ? scale : __int_as_float(0x7fc00000);
  for (int64_t i = 8 * threadIdx.x; i < n; i += 8 * THREADS) {
    float values[8];
    if (i + 8 <= n) {
      kt_load8<TYPE>(row, i, n, values);
#pragma unroll
      for (int j = 0; j < 8; j++) to[i + j] = values[j] * factor;
    } else if constexpr (TYPE == KT_F32 || TYPE == KT_F16 || TYPE == KT_BF16) {
      for (int64_t j = i; j < n; j++) {
        float value;
        if constexpr (TYPE == KT_F32) value = ((const float *)row)[j];
        else if constexpr (TYPE == KT_F16) value = __half2float(((const __half *)row)[j]);
        else value = __uint_as_float((uint32_t)((const uint16_t *)row)[j] << 16);
        to[j] = value * factor;
      }
    }
  }
}

extern "C" kt_status_t kt_embedding(kt_ctx_t *handle, const kt_tensor_t *table, const kt_tensor_t *ids, float scale, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_tensor(ctx, "table", table, 2));
  KT_TRY(kt_gpu_typed(ctx, "ids", ids, 1, KT_I32));
  kt_frows to;
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &to));
  if (table->flags & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "table is packed: rows are gathered from the plain layout");
  KT_TRY(kt_gpu_size("out", out, 0, ids->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 1, table->shape[1]));
  bool done = false;
#define CASE(TYPE)                                                                                                                   \
  if (table->dtype == (TYPE)) {                                                                                                      \
    embedding_kernel<TYPE><<<(unsigned)to.count, THREADS, 0, ctx->stream>>>((const uint8_t *)table->data, table->stride[0], table->shape[0], \
                                                                           (const int32_t *)ids->data, scale, to.data, to.stride, to.n); \
    done = true;                                                                                                                     \
  }
  KT_EACH_TYPE(CASE)
#undef CASE
  if (!done) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "table has type %u, which is no weight type", table->dtype);
  KT_LAUNCHED("embedding");
  return KT_OK;
}

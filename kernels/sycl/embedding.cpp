/* kt_embedding.
 * SHAPES       table [vocab, n] of any weight type, ids [tokens] i32, out [tokens, n] f32
 * DEFINITION   out[t] = table[ids[t]] * scale; a row of NaN where the id is outside the table, which the host does not see
 * REGULARITIES n is a hidden size, a multiple of 8 for block types */
#include "blocks.hpp"

struct embedding_job {
  const uint8_t *table;
  int64_t stride, vocab;
  const int32_t *ids;
  float scale;
  kt_frows out;
};

template <uint32_t TYPE> static kt_status_t gather(kt_ctx *ctx, const embedding_job &job) {
  const int64_t pieces = kt_div_up(job.out.n, 8);
  return kt_sycl_each(ctx, "embedding", job.out.count * pieces, [=](int64_t i) {
    const int64_t token = i / pieces, col = i % pieces * 8, id = job.ids[token];
    const bool known = id >= 0 && id < job.vocab;
    const float factor = known ? job.scale : kt_float_of(0x7fc00000);
    float values[8];
    kt_load<TYPE>(job.table + (known ? id : 0) * job.stride, col, job.out.n, values);
    float *to = job.out.data + token * job.out.stride + col;
    for (int j = 0; j < 8; j++)
      if (col + j < job.out.n) to[j] = values[j] * factor;
  });
}

extern "C" kt_status_t kt_embedding(kt_ctx_t *handle, const kt_tensor_t *table, const kt_tensor_t *ids, float scale, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_tensor(ctx, "table", table, 2));
  KT_TRY(kt_gpu_typed(ctx, "ids", ids, 1, KT_I32));
  embedding_job job = {(const uint8_t *)table->data, table->stride[0], table->shape[0], (const int32_t *)ids->data, scale, {}};
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &job.out));
  if (table->flags & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "table is packed: rows are gathered from the plain layout");
  KT_TRY(kt_gpu_size("out", out, 0, ids->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 1, table->shape[1]));
#define CASE(TYPE) \
  if (table->dtype == (TYPE)) return gather<TYPE>(ctx, job);
  KT_EACH_FILE_TYPE(CASE)
#undef CASE
  return kt_gpu_fail(KT_ERR_UNSUPPORTED, "table has type %u, which is no weight type", table->dtype);
}

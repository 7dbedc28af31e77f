/* What the kernels of attention share: operands, what a token sees, sums of several sets of keys. */
#ifndef KT_GPU_ATTENTION_H
#define KT_GPU_ATTENTION_H
#include "gpu.h"

struct cache_view {
  char *data;
  int64_t page_stride, head_stride, slot_stride;
};

static inline cache_view view_of(const kt_tensor_t *t) { return {(char *)t->data, t->stride[0], t->stride[1], t->stride[2]}; }

struct attention_job {
  kt_heads q;
  cache_view k, v;
  const int32_t *block_tables, *query_start, *seq_lens;
  int64_t table_stride, out_token_stride, out_head_stride;
  int sequences, page_size, kv_heads, group, chunks, v_dim, splits;
  int segment, max_segments; /* keys whose results are added up by themselves, so that sums do not depend on the number of blocks */
  int64_t max_keys; /* that a sequence's pages hold */
  const float *sinks;
  kt_attention_params_t params;
  float *out;
  float *partials; /* [tokens][heads][max_segments][v_dim + 2]: sums, then the greatest score and the sum of weights */
};

/* Keys begin .. end that a token sees, and its position. */
struct sight {
  int sequence, position, begin, end;
};

__device__ __forceinline__ sight sight_of(const attention_job &job, int sequence, int64_t token) {
  const int length = job.seq_lens[sequence];
  sight s = {sequence, length - (job.query_start[sequence + 1] - (int)token), 0, 0};
  s.end = job.params.bidirectional ? length : s.position + 1;
  if (job.params.sliding_window > 0) s.begin = max(s.begin, s.position - job.params.sliding_window + 1);
  if (job.params.chunk_size > 0) s.begin = max(s.begin, s.position / job.params.chunk_size * job.params.chunk_size);
  return s;
}

/* Joins the sums of two sets of keys, rounding alike wherever that is done. */
struct join {
  float before, after;
};
__device__ __forceinline__ join join_of(float most, float other, float *joined) {
  *joined = fmaxf(most, other);
  return {expf(most - *joined), expf(other - *joined)};
}
__device__ __forceinline__ float joined(float sum, float other, join j) { return __fmaf_rn(other, j.after, __fmul_rn(sum, j.before)); }

__device__ __forceinline__ void copy_async16(uint32_t shared, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING)); }
__device__ __forceinline__ void multiply_halves(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t halves(float a, float b) {
  const __half2 both = __floats2half2_rn(a, b);
  return *(const uint32_t *)&both;
}

/* Latent attention over half caches by Hopper's tensor cores (mla.cu): values are the first 512 of keys of 576. */
bool kt_gpu_takes_mla(kt_ctx *ctx, const attention_job &job);
kt_status_t kt_gpu_mla(kt_ctx *ctx, attention_job job);
#endif

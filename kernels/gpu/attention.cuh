/* What the kernels of attention share: operands, what a token sees, sums of several sets of keys. */
#ifndef KT_GPU_ATTENTION_H
#define KT_GPU_ATTENTION_H
#include "blocks.cuh"
#include "mma.cuh"

/* Types of caches; 0: none. F8 has a scale every 128 values. */
enum { CACHE_NONE, CACHE_F32, CACHE_F16, CACHE_BF16, CACHE_Q8_0, CACHE_F8 };
static inline int kt_cache_kind(uint32_t dtype) {
  switch (dtype) {
    case KT_F32: return CACHE_F32;
    case KT_F16: return CACHE_F16;
    case KT_BF16: return CACHE_BF16;
    case KT_Q8_0: return CACHE_Q8_0;
    case KT_F8_E4M3: return CACHE_F8;
    default: return CACHE_NONE;
  }
}

/* The nearest E4M3 of a value of at most 448. */
__device__ __forceinline__ uint32_t kt_to_e4m3(float v) {
  const float magnitude = fminf(fabsf(v), 448.0f);
  int exponent = (int)(__float_as_uint(magnitude) >> 23) - 127;
  exponent = exponent < -6 ? -6 : exponent;
  int steps = __float2int_rn(magnitude * __uint_as_float((uint32_t)(127 + 3 - exponent) << 23));
  if (steps == 16) steps = 8, exponent++;
  const uint32_t code = steps < 8 ? (uint32_t)steps : (uint32_t)((exponent + 7) * 8 + steps - 8);
  return code | (v < 0 ? 128u : 0u);
}

/* A warp writes a row of a cache; lane i has values i, i + 32 ... of `from`. */
__device__ __forceinline__ void kt_store_row(const float *from, int dim, int kind, char *to) {
  const int lane = threadIdx.x % KT_WARP;
  if (kind == CACHE_F8) {
    for (int start = 0; start < dim; start += 128) {
      float v[4], most = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        v[j] = from[start + j * KT_WARP + lane];
        most = fmaxf(most, fabsf(v[j]));
      }
      const float d = kt_warp_max(most) / 448.0f;
      char *block = to + start / 128 * 132;
      if (lane == 0) *(float *)block = d;
#pragma unroll
      for (int j = 0; j < 4; j++) block[4 + j * KT_WARP + lane] = (char)(d == 0 ? 0 : kt_to_e4m3(v[j] / d));
    }
    return;
  }
  for (int i = lane; i < dim; i += KT_WARP) {
    const float v = from[i];
    if (kind == CACHE_F32) ((float *)to)[i] = v;
    else if (kind == CACHE_F16) ((__half *)to)[i] = __float2half_rn(v);
    else if (kind == CACHE_BF16) ((__nv_bfloat16 *)to)[i] = __float2bfloat16_rn(v);
    else {
      /* a lane a value: the warp is one block of 32 */
      const float most = kt_warp_max(fabsf(v));
      const __half scale = __float2half_rn(most / 127.0f);
      const float d = __half2float(scale);
      char *block = to + i / 32 * 34;
      if (lane == 0) *(__half *)block = scale;
      ((int8_t *)block)[2 + lane] = (int8_t)(d == 0 ? 0 : max(-127, min(127, __float2int_rn(v / d))));
    }
  }
}

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
  int64_t pages, max_keys; /* pages of the cache, keys that a sequence's hold */
  const float *sinks;
  kt_attention_params_t params;
  float *out;
  float *partials; /* [tokens][heads][max_segments][v_dim + 2]: sums, then the greatest score and the sum of weights */
};

/* Keys begin .. end that a token sees, and its position. */
struct sight {
  int sequence, position, begin, end;
};

/* `length` keys of the sequence, whose queries end before number `last`. */
__device__ __forceinline__ sight sight_from(const attention_job &job, int sequence, int length, int last, int64_t token) {
  sight s = {sequence, length - (last - (int)token), 0, 0};
  s.end = job.params.bidirectional ? length : s.position + 1;
  if (job.params.sliding_window > 0) s.begin = max(s.begin, s.position - job.params.sliding_window + 1);
  if (job.params.chunk_size > 0) s.begin = max(s.begin, s.position / job.params.chunk_size * job.params.chunk_size);
  return s;
}
__device__ __forceinline__ sight sight_of(const attention_job &job, int sequence, int64_t token) {
  return sight_from(job, sequence, job.seq_lens[sequence], job.query_start[sequence + 1], token);
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

#if KT_HAS_MMA
__device__ __forceinline__ void copy_async16(uint32_t shared, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING)); }
/* Of halves, or of bf16. */
template <bool BF16 = false> __device__ __forceinline__ void multiply_halves(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
  if constexpr (BF16)
    kt_mma(c, a, b0, b1);
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <bool BF16 = false> __device__ __forceinline__ uint32_t halves(float a, float b) {
  if constexpr (BF16) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    return *(const uint32_t *)&both;
  } else {
    const __half2 both = __floats2half2_rn(a, b);
    return *(const uint32_t *)&both;
  }
}
#endif

/* Latent attention over caches of half or bf16 by Hopper's tensor cores (mla.cu): values are the first 512 of keys of 576. */
bool kt_gpu_takes_mla(kt_ctx *ctx, const attention_job &job);
kt_status_t kt_gpu_mla(kt_ctx *ctx, attention_job job, bool bf16);
#endif

/* int8 codes of activations as the kernels that copy weights ahead have them in shared memory, and their products with packed weights: what
 * stream.cu and grouped.cu share. */
#ifndef KT_GPU_CODES_H
#define KT_GPU_CODES_H
#include "products.cuh"

/* Bytes of a row of n codes, and of its scales behind them. */
static inline __host__ __device__ int kt_code_bytes(int n) { return (n + 511) / 512 * 512; }
static inline __host__ __device__ int kt_code_row_bytes(int n) { return kt_code_bytes(n) + n / 32 * 16; }

#if defined(__CUDACC__) && KT_HAS_MMA
__device__ __forceinline__ float half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ int dot4(uint32_t q, uint32_t x, int sum) { return __dp4a((int)q, (int)x, sum); }
__device__ __forceinline__ int dot16(uint4 q, uint4 x) { return dot4(q.w, x.w, dot4(q.z, x.z, dot4(q.y, x.y, dot4(q.x, x.x, 0)))); }
__device__ __forceinline__ uint4 nibbles(uint4 q, int shift) {
  return make_uint4(q.x >> shift & 0x0f0f0f0f, q.y >> shift & 0x0f0f0f0f, q.z >> shift & 0x0f0f0f0f, q.w >> shift & 0x0f0f0f0f);
}
/* Where 16 codes lie: moved about so that lanes that read codes 32, 64 or 128 apart find them in different banks. */
__device__ __forceinline__ int place16(int i) {
  const int v = i >> 3 & 3;
  return i ^ (v << 1 | (v & 1));
}
/* Activations of one piece: 32 codes (Q8_0: 16) and, of their block of 32, the scale, the scale times the sum of codes, and the sums of both
 * halves as integers. x and s: of piece c, which is the lane's of its segment or KT_WARP pieces on. */
template <uint32_t TYPE> struct inputs {
  uint4 a, b;
  float4 s;
  __device__ __forceinline__ void load(const uint8_t *x, const uint8_t *s_, int x0, int x1, int scale) {
    a = *(const uint4 *)(x + x0);
    if constexpr (TYPE != KT_Q8_0) b = *(const uint4 *)(x + x1);
    s = *(const float4 *)(s_ + scale);
  }
};
/* Byte offsets of these. */
template <uint32_t TYPE> __device__ __forceinline__ int first_place(int c) { return place16(TYPE == KT_Q8_0 ? c : 2 * c) * 16; }
template <uint32_t TYPE> __device__ __forceinline__ int second_place(int c) { return place16(2 * c + 1) * 16; }
template <uint32_t TYPE> __device__ __forceinline__ int scale_place(int c) { return (TYPE == KT_Q8_0 ? c >> 1 : c) * 16; }

/* Weights of one piece, taken apart: w is the segment of `columns` columns, c the piece. */
template <uint32_t TYPE> struct kt_piece;
template <> struct kt_piece<KT_Q4_K> {
  uint4 low, high;
  float scale, minimum;
  __device__ __forceinline__ void load(const uint8_t *w, int columns, int c) {
    const uint4 q = *(const uint4 *)(w + c * 16);
    const int blocks = columns >> 8;
    const uint32_t scales = *(const uint16_t *)(w + blocks * 128 + c * 2), both = *(const uint32_t *)(w + blocks * 144 + (c >> 3) * 4);
    low = nibbles(q, 0), high = nibbles(q, 4);
    scale = half_of(both & 0xffff) * (float)(int)(scales & 255), minimum = half_of(both >> 16) * (float)(int)(scales >> 8);
  }
  __device__ __forceinline__ float dot(const inputs<KT_Q4_K> &x) const {
    const int sum = dot4(low.y, x.a.z, dot4(high.x, x.a.y, dot4(low.x, x.a.x, 0))) + dot4(high.z, x.b.y, dot4(low.z, x.b.x, dot4(high.y, x.a.w, 0))) + dot4(high.w, x.b.w, dot4(low.w, x.b.z, 0));
    return scale * (x.s.x * (float)sum) - minimum * x.s.y;
  }
};
template <> struct kt_piece<KT_Q6_K> {
  uint32_t even[2][2], odd[2][2];
  int first, second;
  float d;
  __device__ __forceinline__ void load(const uint8_t *w, int columns, int c) {
    const uint4 q = *(const uint4 *)(w + c * 16);
    const int blocks = columns >> 8;
    const uint2 high = *(const uint2 *)(w + blocks * 128 + c * 8);
    const uint32_t scales = *(const uint16_t *)(w + blocks * 192 + c * 2);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t bits = h == 0 ? high.x : high.y, one = h == 0 ? q.x : q.z, two = h == 0 ? q.y : q.w;
      even[h][0] = (one & 0x0f0f0f0f) | (bits << 4 & 0x30303030), even[h][1] = (two & 0x0f0f0f0f) | (bits & 0x30303030);
      odd[h][0] = (one >> 4 & 0x0f0f0f0f) | (bits << 2 & 0x30303030), odd[h][1] = (two >> 4 & 0x0f0f0f0f) | (bits >> 2 & 0x30303030);
    }
    first = (int)(int8_t)scales, second = (int)(int8_t)(scales >> 8);
    d = half_of(*(const uint16_t *)(w + blocks * 208 + (c >> 3) * 2));
  }
  __device__ __forceinline__ float dot(const inputs<KT_Q6_K> &x) const {
    int sum[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint4 codes = h == 0 ? x.a : x.b;
      sum[h] = dot4(even[h][1], codes.z, dot4(even[h][0], codes.x, 0)) + dot4(odd[h][1], codes.w, dot4(odd[h][0], codes.y, 0)) - 32 * __float_as_int(h == 0 ? x.s.z : x.s.w);
    }
    return d * (x.s.x * (float)(sum[0] * first + sum[1] * second));
  }
};
template <> struct kt_piece<KT_Q4_0> {
  uint4 low, high;
  float d;
  __device__ __forceinline__ void load(const uint8_t *w, int columns, int c) {
    const uint4 q = *(const uint4 *)(w + c * 16);
    low = nibbles(q, 0), high = nibbles(q, 4);
    d = half_of(*(const uint16_t *)(w + columns / 2 + c * 2));
  }
  __device__ __forceinline__ float dot(const inputs<KT_Q4_0> &x) const { return d * (x.s.x * (float)(dot16(low, x.a) + dot16(high, x.b)) - 8.0f * x.s.y); }
};
template <> struct kt_piece<KT_Q4_1> {
  uint4 low, high;
  float d, minimum;
  __device__ __forceinline__ void load(const uint8_t *w, int columns, int c) {
    const uint4 q = *(const uint4 *)(w + c * 16);
    low = nibbles(q, 0), high = nibbles(q, 4);
    const uint32_t both = *(const uint32_t *)(w + columns / 2 + c * 4);
    d = half_of(both & 0xffff), minimum = half_of(both >> 16);
  }
  __device__ __forceinline__ float dot(const inputs<KT_Q4_1> &x) const { return d * (x.s.x * (float)(dot16(low, x.a) + dot16(high, x.b))) + minimum * x.s.y; }
};
template <> struct kt_piece<KT_Q8_0> {
  uint4 q;
  float d;
  __device__ __forceinline__ void load(const uint8_t *w, int columns, int c) {
    q = *(const uint4 *)(w + c * 16);
    d = half_of(*(const uint16_t *)(w + columns + (c >> 1) * 2));
  }
  __device__ __forceinline__ float dot(const inputs<KT_Q8_0> &x) const { return d * x.s.x * (float)dot16(q, x.a); }
};

/* Four values of a row of activations as codes, by eight lanes a block of 32: into `codes` and `scales` of the row. All lanes of a warp; those
 * beyond the row are not `own`. */
__device__ __forceinline__ void kt_store_codes(float4 y, int quad, bool own, uint8_t *codes, float4 *scales) {
  float most = fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w)));
#pragma unroll
  for (int lane = 4; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(KT_FULL_MASK, most, lane));
  const float d = most * (1.0f / 127.0f), inverse = d == 0 ? 0.0f : __fdividef(1.0f, d);
  const int q0 = __float2int_rn(y.x * inverse), q1 = __float2int_rn(y.y * inverse), q2 = __float2int_rn(y.z * inverse), q3 = __float2int_rn(y.w * inverse);
  int sum = q0 + q1 + q2 + q3;
  sum += __shfl_xor_sync(KT_FULL_MASK, sum, 1);
  sum += __shfl_xor_sync(KT_FULL_MASK, sum, 2);
  const int other = __shfl_xor_sync(KT_FULL_MASK, sum, 4);
  if (!own) return;
  *(char4 *)(codes + place16(quad >> 2) * 16 + (quad & 3) * 4) = make_char4((signed char)q0, (signed char)q1, (signed char)q2, (signed char)q3);
  if (quad % 8 == 0) scales[quad / 8] = make_float4(d, d * (float)(sum + other), __int_as_float(sum), __int_as_float(other));
}
#endif
#endif

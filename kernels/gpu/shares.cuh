/* Packed weights as the left operands of mma.m16n8k16 and of wgmma, and panels of activations as their right ones.
 * A panel is 64 positions x 64 columns of bf16, 8 KiB, as shared memory wants it: rows of 128 bytes whose 16-byte pieces are moved by the
 * row, columns permuted within 32 so that eight neighbouring codes of a row of weights are one thread's. */
#ifndef KT_GPU_SHARES_H
#define KT_GPU_SHARES_H
#include "blocks.cuh"

#define KT_PANEL_BYTES 8192
#define KT_UNIT 128 /* columns that a thread copies its share of at once */

#if defined(__CUDACC__) && KT_HAS_MMA
/* Where a column of 64 lies in its row of a panel (in values): see kt_four_of. */
__device__ __forceinline__ int kt_panel_column(int column) {
  const int q = column >> 3 & 3, s = column >> 2 & 1, e = column & 3;
  return (column & 32) + 16 * s + 2 * q + (e & 1) + (e >> 1) * 8;
}

__device__ __forceinline__ void kt_copy4(uint32_t to, const void *from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from)); }
__device__ __forceinline__ void kt_copy8(uint32_t to, const void *from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from)); }
__device__ __forceinline__ void kt_copy16(uint32_t to, const void *from) { asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from)); }

/* Four values of bytes: d * (base + byte) + c, where `magic` is base as a float's upper byte and PLACE the byte that counts ones. */
template <int PLACE> __device__ __forceinline__ void kt_four_of(uint32_t v, uint32_t magic, float d, float c, uint32_t *low, uint32_t *high) {
  float f[4];
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const uint32_t select = PLACE == 2 ? 0x7044u | (uint32_t)e << 8 : 0x7404u | (uint32_t)e << 4;
    f[e] = __uint_as_float(__byte_perm(v, magic, select)) * d + c;
  }
  const __nv_bfloat162 a = __floats2bfloat162_rn(f[0], f[1]), b = __floats2bfloat162_rn(f[2], f[3]);
  *low = *(const uint32_t *)&a, *high = *(const uint32_t *)&b;
}
#define KT_MAGIC_128 0x43000000u
#define KT_MAGIC_32768 0x47000000u
__device__ __forceinline__ float kt_half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }

/* A thread's share of two rows of a unit: columns 8 q .. 8 q + 7 of each 32. `fetch` copies it, piece i of it `PITCH` bytes behind the last;
 * `left` makes 64 columns of it (half h) the left operands of four products. */
template <uint32_t TYPE, int PITCH> struct kt_share;

template <int PITCH> struct kt_share<KT_Q4_K, PITCH> {
  static constexpr int CHUNKS = 4;
  __device__ static __forceinline__ void fetch(uint32_t to, const uint8_t *const *rows, int unit, int n, int q) {
    const int segment = unit / (KT_SEGMENT / KT_UNIT), v = unit % (KT_SEGMENT / KT_UNIT), blocks = min(KT_SEGMENT, n - segment * KT_SEGMENT) / 256;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *from = rows[r] + segment * kt_segment_bytes(KT_PACKED(KT_Q4_K));
#pragma unroll
      for (int g = 0; g < 4; g++) kt_copy4(to + r * PITCH + 4 * g, from + v * 64 + g * 16 + 4 * q);
      kt_copy8(to + 2 * PITCH + 8 * r, from + blocks * 128 + v * 8);
      kt_copy4(to + 3 * PITCH + 4 * r, from + blocks * 144 + v / 2 * 4);
    }
  }
  __device__ static __forceinline__ void left(const uint8_t *from, int h, int unit, uint32_t *a) {
    const uint4 scales = *(const uint4 *)(from + 2 * PITCH);
    const uint2 both = *(const uint2 *)(from + 3 * PITCH);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint2 codes = *(const uint2 *)(from + r * PITCH + 8 * h);
      const uint32_t pair = r == 0 ? both.x : both.y, s = r == 0 ? (h == 0 ? scales.x : scales.y) : (h == 0 ? scales.z : scales.w);
      const float d = kt_half_of(pair & 0xffff), m = kt_half_of(pair >> 16);
#pragma unroll
      for (int g = 0; g < 2; g++) {
        const uint32_t word = g == 0 ? codes.x : codes.y;
        const float scale = d * (float)(s >> (16 * g) & 255), c = -128.0f * scale - m * (float)(s >> (16 * g + 8) & 255);
        kt_four_of<2>(word & 0x0f0f0f0f, KT_MAGIC_128, scale, c, &a[8 * g + r], &a[8 * g + 2 + r]);
        kt_four_of<2>(word >> 4 & 0x0f0f0f0f, KT_MAGIC_128, scale, c, &a[8 * g + 4 + r], &a[8 * g + 6 + r]);
      }
    }
  }
};

template <int PITCH> struct kt_share<KT_Q6_K, PITCH> {
  static constexpr int CHUNKS = 6;
  __device__ static __forceinline__ void fetch(uint32_t to, const uint8_t *const *rows, int unit, int n, int q) {
    const int segment = unit / (KT_SEGMENT / KT_UNIT), v = unit % (KT_SEGMENT / KT_UNIT), blocks = min(KT_SEGMENT, n - segment * KT_SEGMENT) / 256;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *from = rows[r] + segment * kt_segment_bytes(KT_PACKED(KT_Q6_K));
#pragma unroll
      for (int g = 0; g < 4; g++) {
        kt_copy4(to + r * PITCH + 4 * g, from + v * 64 + g * 16 + 4 * q);
        kt_copy4(to + (2 + r) * PITCH + 4 * g, from + blocks * 128 + v * 32 + g * 8 + q / 2 * 4);
      }
      kt_copy8(to + 4 * PITCH + 8 * r, from + blocks * 192 + v * 8);
      kt_copy4(to + 5 * PITCH + 4 * r, from + blocks * 208 + v / 4 * 4);
    }
  }
  __device__ static __forceinline__ void left(const uint8_t *from, int h, int unit, uint32_t *a) {
    const uint4 scales = *(const uint4 *)(from + 4 * PITCH);
    const uint2 both = *(const uint2 *)(from + 5 * PITCH);
    const int odd = unit % (KT_SEGMENT / KT_UNIT) / 2 % 2, q = threadIdx.x % 4, shift = q % 2 * 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint2 low = *(const uint2 *)(from + r * PITCH + 8 * h), high = *(const uint2 *)(from + (2 + r) * PITCH + 8 * h);
      const uint32_t s = r == 0 ? (h == 0 ? scales.x : scales.y) : (h == 0 ? scales.z : scales.w);
      const float d = kt_half_of((r == 0 ? both.x : both.y) >> (16 * odd));
#pragma unroll
      for (int g = 0; g < 2; g++) {
        const uint32_t word = g == 0 ? low.x : low.y, bits = (g == 0 ? high.x : high.y) >> shift;
        const float scale = d * (float)(int8_t)(s >> (16 * g + q / 2 * 8)), c = -160.0f * scale;
        kt_four_of<2>((word & 0x0f0f0f0f) | (bits & 0x03030303) << 4, KT_MAGIC_128, scale, c, &a[8 * g + r], &a[8 * g + 2 + r]);
        kt_four_of<2>((word >> 4 & 0x0f0f0f0f) | (bits >> 2 & 0x03030303) << 4, KT_MAGIC_128, scale, c, &a[8 * g + 4 + r], &a[8 * g + 6 + r]);
      }
    }
  }
};

template <int PITCH> struct kt_share<KT_Q8_0, PITCH> {
  static constexpr int CHUNKS = 5;
  __device__ static __forceinline__ void fetch(uint32_t to, const uint8_t *const *rows, int unit, int n, int q) {
    const int segment = unit / (KT_SEGMENT / KT_UNIT), v = unit % (KT_SEGMENT / KT_UNIT), columns = min(KT_SEGMENT, n - segment * KT_SEGMENT);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *from = rows[r] + segment * kt_segment_bytes(KT_PACKED(KT_Q8_0));
#pragma unroll
      for (int g = 0; g < 4; g++) kt_copy8(to + (2 * r + g / 2) * PITCH + g % 2 * 8, from + v * KT_UNIT + 32 * g + 8 * q);
      kt_copy8(to + 4 * PITCH + 8 * r, from + columns + v * 8);
    }
  }
  __device__ static __forceinline__ void left(const uint8_t *from, int h, int unit, uint32_t *a) {
    const uint4 scales = *(const uint4 *)(from + 4 * PITCH);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint4 codes = *(const uint4 *)(from + (2 * r + h) * PITCH);
      const uint32_t s = r == 0 ? (h == 0 ? scales.x : scales.y) : (h == 0 ? scales.z : scales.w);
#pragma unroll
      for (int g = 0; g < 2; g++) {
        const float d = kt_half_of(s >> (16 * g) & 0xffff), c = -32896.0f * d;
        kt_four_of<1>((g == 0 ? codes.x : codes.z) ^ 0x80808080, KT_MAGIC_32768, d, c, &a[8 * g + r], &a[8 * g + 2 + r]);
        kt_four_of<1>((g == 0 ? codes.y : codes.w) ^ 0x80808080, KT_MAGIC_32768, d, c, &a[8 * g + 4 + r], &a[8 * g + 6 + r]);
      }
    }
  }
};

template <int PITCH> struct kt_share<KT_Q4_0, PITCH> {
  static constexpr int CHUNKS = 5;
  __device__ static __forceinline__ void fetch(uint32_t to, const uint8_t *const *rows, int unit, int n, int q) {
    const int segment = unit / (KT_SEGMENT / KT_UNIT), v = unit % (KT_SEGMENT / KT_UNIT), columns = min(KT_SEGMENT, n - segment * KT_SEGMENT);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *from = rows[r] + segment * kt_segment_bytes(KT_PACKED(KT_Q4_0));
#pragma unroll
      for (int g = 0; g < 4; g++) kt_copy8(to + (2 * r + g / 2) * PITCH + g % 2 * 8, from + v * 64 + 16 * g + q % 2 * 8);
      kt_copy8(to + 4 * PITCH + 8 * r, from + columns / 2 + v * 8);
    }
  }
  __device__ static __forceinline__ void left(const uint8_t *from, int h, int unit, uint32_t *a) {
    const uint4 scales = *(const uint4 *)(from + 4 * PITCH);
    const int shift = threadIdx.x % 4 / 2 * 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint4 codes = *(const uint4 *)(from + (2 * r + h) * PITCH);
      const uint32_t s = r == 0 ? (h == 0 ? scales.x : scales.y) : (h == 0 ? scales.z : scales.w);
#pragma unroll
      for (int g = 0; g < 2; g++) {
        const float d = kt_half_of(s >> (16 * g) & 0xffff), c = -136.0f * d;
        kt_four_of<2>((g == 0 ? codes.x : codes.z) >> shift & 0x0f0f0f0f, KT_MAGIC_128, d, c, &a[8 * g + r], &a[8 * g + 2 + r]);
        kt_four_of<2>((g == 0 ? codes.y : codes.w) >> shift & 0x0f0f0f0f, KT_MAGIC_128, d, c, &a[8 * g + 4 + r], &a[8 * g + 6 + r]);
      }
    }
  }
};
#endif
#endif

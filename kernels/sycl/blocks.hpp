/* Weights as kernels see them; device/blocks.h has their values in SYCL's words. */
#ifndef KT_SYCL_BLOCKS_HPP
#define KT_SYCL_BLOCKS_HPP
#include "sycl.hpp"

#define KT_DEVICE inline
#define KT_TABLE inline constexpr
KT_DEVICE float kt_half_of(uint16_t bits) { return (float)sycl::bit_cast<sycl::half>(bits); }
KT_DEVICE float kt_float_of(uint32_t bits) { return sycl::bit_cast<float>(bits); }
KT_DEVICE int kt_count_bits(uint32_t bits) { return (int)sycl::popcount(bits); }
#include "../device/blocks.h"

constexpr bool kt_is_plain(uint32_t type) { return type == KT_F32 || type == KT_F16 || type == KT_BF16; }

/* Column `col` of a row of plain values. */
template <uint32_t TYPE> inline float kt_plain_at(const uint8_t *row, int64_t col) {
  if constexpr (TYPE == KT_F32) return ((const float *)row)[col];
  else if constexpr (TYPE == KT_F16) return kt_half_of(((const uint16_t *)row)[col]);
  else return kt_float_of((uint32_t)((const uint16_t *)row)[col] << 16);
}

/* out[0..8) = columns from col on of a row of n, zeros behind its end, which only rows of plain values have within a multiple of 8. */
template <uint32_t TYPE> inline void kt_load(const uint8_t *row, int64_t col, int64_t n, float *out) {
  if constexpr (kt_is_plain(TYPE)) {
    if (col + 8 > n) {
      for (int i = 0; i < 8; i++) out[i] = col + i < n ? kt_plain_at<TYPE>(row, col + i) : 0.0f;
      return;
    }
  }
  kt_load8<TYPE>(row, col, n, out);
}

/* The nearest bf16 of a value, of two the even one. */
inline uint16_t kt_to_bf16(float v) {
  const uint32_t bits = sycl::bit_cast<uint32_t>(v);
  if (v != v) return (uint16_t)(bits >> 16 | 64);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline char *kt_row_at(const kt_view &v, int64_t row) {
  const int64_t c = row % v.shape[2], b = row / v.shape[2] % v.shape[1], a = row / v.shape[2] / v.shape[1];
  return v.data + a * v.stride[0] + b * v.stride[1] + c * v.stride[2];
}
#endif

/* Values of weight blocks. A row is a sequence of blocks as the file has them, or of planes as kt_pack_weight makes them:
 * KT_PACKED(type) cuts each row into segments of KT_SEGMENT columns (the last may be shorter), of which each keeps its codes 16-byte
 * aligned and its scales behind them, so that a thread loads 16 bytes at once and a segment is copied as one piece.
 *   Q4_0: codes [blocks][16], scales f16 [blocks]          Q8_0: codes [blocks][32], scales f16 [blocks]
 *   Q4_1: codes [blocks][16], scale and minimum f16 [blocks][2]
 *   Q4_K: codes [blocks][8][16], sub-scales and sub-minima by turns as bytes [blocks][16], scale and minimum f16 [blocks][2]: taking
 *         six bits apart for every 16 bytes of codes costs more time than reading the codes
 *   Q6_K: low bits [blocks][8][16], high bits [blocks][8][2][4], sub-scales [blocks][16], scales f16 [blocks]
 * Of both, byte 4 q + e of a sub-block's 16 holds the low bits of columns 8 q + e and 8 q + 4 + e of its 32, so that a thread's 16 bytes
 * have one scale, and 4 bytes are 8 neighbouring columns. High bits: byte e of word h has those of columns 16 h + 4 k + e at bit 2 k.
 * Compilers of devices differ in words: whoever includes this says how functions (KT_DEVICE) and tables (KT_TABLE) are declared, and has
 * kt_half_of(uint16_t) and kt_float_of(uint32_t), the floats of these bits, and kt_count_bits(uint32_t). */
#ifndef KT_DEVICE_BLOCKS_H
#define KT_DEVICE_BLOCKS_H
#include <stdint.h>
#include "kt.h"

#define KT_PACKED_BIT 0x10000u
#define KT_PACKED(type) ((type) | KT_PACKED_BIT)

#define KT_SEGMENT 2048

/* Bytes of one packed row, or of a segment of n columns; 0 where the type has no packed layout. Whole segments are multiples of 16. */
static inline int64_t kt_packed_row_bytes(uint32_t dtype, int64_t n) {
  int64_t bytes = 0;
  switch (dtype) {
    case KT_Q4_0: bytes = n / 32 * 18; break;
    case KT_Q4_1: bytes = n / 32 * 20; break;
    case KT_Q8_0: bytes = n / 32 * 34; break;
    case KT_Q6_K: bytes = n / 256 * 210; break;
    case KT_Q4_K: bytes = n / 256 * 148; break;
    default: return 0;
  }
  return (bytes + 15) / 16 * 16;
}

/* Of no alignment. */
KT_DEVICE float kt_half_at(const uint8_t *p) { return kt_half_of((uint16_t)(p[0] | p[1] << 8)); }

/* 2^(e - 128), of the smallest ones without the leading bit. */
KT_DEVICE float kt_exponent(uint32_t e) { return kt_float_of(e < 2 ? 0x200000u << e : (e - 1) << 23); }

KT_DEVICE void kt_scale_min(const uint8_t *scales, int j, int *scale, int *minimum) {
  if (j < 4) {
    *scale = scales[j] & 63;
    *minimum = scales[j + 4] & 63;
  } else {
    *scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
    *minimum = scales[j + 4] >> 4 | (scales[j] >> 6) << 4;
  }
}

KT_TABLE int8_t kt_iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
KT_TABLE int8_t kt_fp4_table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#define KT_GRID KT_TABLE uint16_t
#include "kt_codebook.h"

/* Eight values in a word, a byte each: 16 bits of 2-bit numbers, 12 bits of 3-bit numbers. */
#define KT_EACH_BYTE 0x0101010101010101ull
KT_DEVICE uint64_t kt_spread_2(uint64_t x) {
  x = (x | x << 24) & 0x000000ff000000ffull;
  x = (x | x << 12) & 0x000f000f000f000full;
  return (x | x << 6) & 0x0303030303030303ull;
}
KT_DEVICE uint64_t kt_spread_3(uint64_t x) {
  x = (x | x << 10) & 0x003f003full;
  return (x | x << 5) & 0x07070707ull;
}
/* Levels 8, 25, 43; 4, 12, 20, 28, 36, 44, 52, 62; and 1, 3, 5 ... 15. */
KT_DEVICE uint64_t kt_iq2_levels(uint32_t entry) {
  const uint64_t level = kt_spread_2(entry);
  return 8 * KT_EACH_BYTE + level * 17 + (level >> 1 & KT_EACH_BYTE);
}
KT_DEVICE uint64_t kt_iq3_xxs_levels(uint32_t low, uint32_t high) {
  const uint64_t level = kt_spread_3(low) | kt_spread_3(high) << 32;
  return 4 * KT_EACH_BYTE + level * 8 + 2 * (level & level >> 1 & level >> 2 & KT_EACH_BYTE);
}
KT_DEVICE uint64_t kt_iq3_s_levels(uint32_t low, uint32_t high) {
  return KT_EACH_BYTE + 2 * (kt_spread_3(low) | kt_spread_3(high) << 32);
}
/* Seven stored signs; the eighth makes their number even. */
KT_DEVICE uint32_t kt_even_signs(uint32_t seven) {
  seven &= 127;
  return seven | (uint32_t)(kt_count_bits(seven) & 1) << 7;
}
/* Bit i of `signs` negates value i. */
KT_DEVICE void kt_signed_values(float d, uint64_t values, uint32_t signs, float *out) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float v = d * (float)(uint32_t)(values >> (8 * i) & 255);
    out[i] = signs >> i & 1 ? -v : v;
  }
}
/* IQ1's entries in eighths: 8 times -1, 0 or 1, plus or minus 1. */
KT_DEVICE void kt_eighths(float d, uint32_t entry, bool is_negative, float *out) {
#pragma unroll
  for (int i = 0; i < 8; i++) out[i] = d * (float)(8 * (int)(entry >> (2 * i) & 3) - 8 + (is_negative ? -1 : 1));
}
KT_DEVICE uint32_t kt_u16_at(const uint8_t *p) { return *(const uint16_t *)p; }
/* Half of an unsigned E4M3; 0x7f counts as zero. */
KT_DEVICE float kt_e4m3_half(uint32_t x) {
  if (x == 0x7f) return 0.0f;
  const uint32_t exponent = x >> 3 & 15, mantissa = x & 7;
  return exponent == 0 ? (float)mantissa * 0.0009765625f : kt_float_of((exponent + 119) << 23 | mantissa << 20);
}

KT_DEVICE float kt_e4m3(uint32_t code) {
  /* the exponent's bias is 7 and a float's 127; what has no leading bit comes out right as well */
  const float value = kt_float_of((code & 128) << 24 | (code & 127) << 20) * 0x1p120f;
  return (code & 127) == 127 ? kt_float_of(0x7fc00000) : value;
}

/* Bytes of a whole segment. */
constexpr int kt_segment_bytes(uint32_t packed) {
  return packed == KT_PACKED(KT_Q4_0)   ? KT_SEGMENT / 32 * 18
         : packed == KT_PACKED(KT_Q4_1) ? KT_SEGMENT / 32 * 20
         : packed == KT_PACKED(KT_Q8_0) ? KT_SEGMENT / 32 * 34
         : packed == KT_PACKED(KT_Q6_K) ? KT_SEGMENT / 256 * 210
                                        : KT_SEGMENT / 256 * 148;
}

/* out[0..8) = columns col .. col + 7 of a row, col a multiple of 8; n columns in all. */
template <uint32_t TYPE>
KT_DEVICE void kt_load8(const uint8_t *row, int64_t col, int64_t n, float *out) {
  if constexpr ((TYPE & KT_PACKED_BIT) != 0) {
    /* within the segment */
    const int64_t segment = col / KT_SEGMENT;
    row += segment * kt_segment_bytes(TYPE);
    n = n - segment * KT_SEGMENT < KT_SEGMENT ? n - segment * KT_SEGMENT : KT_SEGMENT;
    col %= KT_SEGMENT;
  }
  if constexpr (TYPE == KT_F32) {
    const float *p = (const float *)row + col;
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = p[i];
  } else if constexpr (TYPE == KT_F16) {
    const uint16_t *p = (const uint16_t *)row + col;
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = kt_half_of(p[i]);
  } else if constexpr (TYPE == KT_BF16) {
    const uint16_t *p = (const uint16_t *)row + col;
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = kt_float_of((uint32_t)p[i] << 16);
  } else if constexpr (TYPE == KT_Q4_0 || TYPE == KT_Q4_1 || TYPE == KT_IQ4_NL || TYPE == KT_MXFP4 || TYPE == KT_I4_BF16 ||
                       TYPE == KT_I4_ZERO || TYPE == KT_PACKED(KT_Q4_0) || TYPE == KT_PACKED(KT_Q4_1)) {
    const int64_t block = col / 32, blocks = n / 32;
    const int i = (int)(col % 32);
    const uint8_t *codes;
    float d, m;
    if constexpr (TYPE == KT_Q4_0) {
      const uint8_t *p = row + block * 18;
      codes = p + 2, d = kt_half_at(p), m = -8.0f * d;
    } else if constexpr (TYPE == KT_Q4_1) {
      const uint8_t *p = row + block * 20;
      codes = p + 4, d = kt_half_at(p), m = kt_half_at(p + 2);
    } else if constexpr (TYPE == KT_PACKED(KT_Q4_0)) {
      codes = row + block * 16, d = kt_half_at(row + blocks * 16 + block * 2), m = -8.0f * d;
    } else if constexpr (TYPE == KT_PACKED(KT_Q4_1)) {
      const uint8_t *p = row + blocks * 16 + block * 4;
      codes = row + block * 16, d = kt_half_at(p), m = kt_half_at(p + 2);
    } else if constexpr (TYPE == KT_IQ4_NL) {
      const uint8_t *p = row + block * 18;
      codes = p + 2, d = kt_half_at(p), m = 0;
    } else if constexpr (TYPE == KT_MXFP4) {
      const uint8_t *p = row + block * 17;
      codes = p + 1, d = kt_exponent(p[0]), m = 0;
    } else if constexpr (TYPE == KT_I4_BF16) {
      const uint8_t *p = row + block * 18;
      codes = p + 2, d = kt_float_of((uint32_t)(p[0] | p[1] << 8) << 16), m = -8.0f * d;
    } else {
      const uint8_t *p = row + block * 19;
      codes = p + 3, d = kt_half_at(p), m = -(float)p[2] * d;
    }
    const int shift = i >= 16 ? 4 : 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int q = codes[i % 16 + j] >> shift & 15;
      if constexpr (TYPE == KT_IQ4_NL) out[j] = d * (float)kt_iq4_table[q];
      else if constexpr (TYPE == KT_MXFP4) out[j] = d * (float)kt_fp4_table[q];
      else if constexpr (TYPE == KT_Q4_1 || TYPE == KT_PACKED(KT_Q4_1)) out[j] = d * (float)q + m;
      else if constexpr (TYPE == KT_I4_ZERO) out[j] = d * (float)(q - (int)(row + block * 19)[2]);
      else out[j] = d * (float)(q - 8);
    }
  } else if constexpr (TYPE == KT_Q5_0 || TYPE == KT_Q5_1) {
    constexpr int HEAD = TYPE == KT_Q5_0 ? 2 : 4;
    const uint8_t *p = row + col / 32 * (HEAD + 20);
    const int i = (int)(col % 32);
    const uint32_t high = p[HEAD] | p[HEAD + 1] << 8 | p[HEAD + 2] << 16 | (uint32_t)p[HEAD + 3] << 24;
    const float d = kt_half_at(p), m = TYPE == KT_Q5_0 ? 0.0f : kt_half_at(p + 2);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int q = (p[HEAD + 4 + i % 16 + j] >> (i >= 16 ? 4 : 0) & 15) | (int)(high >> (i + j) & 1) << 4;
      out[j] = TYPE == KT_Q5_0 ? d * (float)(q - 16) : d * (float)q + m;
    }
  } else if constexpr (TYPE == KT_Q8_0 || TYPE == KT_PACKED(KT_Q8_0)) {
    const int64_t block = col / 32;
    const uint8_t *codes = TYPE == KT_Q8_0 ? row + block * 34 + 2 : row + block * 32;
    const float d = kt_half_at(TYPE == KT_Q8_0 ? row + block * 34 : row + n + block * 2);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(int8_t)codes[col % 32 + j];
  } else if constexpr (TYPE == KT_Q2_K) {
    const uint8_t *p = row + col / 256 * 84;
    const int i = (int)(col % 256), half = i / 128, shift = i % 128 / 32 * 2;
    const uint8_t scale = p[i / 16];
    const float d = kt_half_at(p + 80) * (float)(scale & 15), m = kt_half_at(p + 82) * (float)(scale >> 4);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(p[16 + half * 32 + i % 32 + j] >> shift & 3) - m;
  } else if constexpr (TYPE == KT_Q3_K) {
    const uint8_t *p = row + col / 256 * 110;
    const int i = (int)(col % 256), half = i / 128, quarter = i % 128 / 32, k = i / 16;
    const uint8_t *scales = p + 96;
    const int low = k < 8 ? scales[k] & 15 : scales[k - 8] >> 4;
    const int scale = (low | (scales[8 + k % 4] >> (2 * (k / 4)) & 3) << 4) - 32;
    const float d = kt_half_at(p + 108) * (float)scale;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int q = p[32 + half * 32 + i % 32 + j] >> (2 * quarter) & 3;
      out[j] = d * (float)(q - (p[i % 32 + j] >> (4 * half + quarter) & 1 ? 0 : 4));
    }
  } else if constexpr (TYPE == KT_Q4_K || TYPE == KT_Q5_K) {
    const uint8_t *p = row + col / 256 * (TYPE == KT_Q4_K ? 144 : 176);
    const int i = (int)(col % 256), sub = i / 32;
    int scale, minimum;
    kt_scale_min(p + 4, sub, &scale, &minimum);
    const float d = kt_half_at(p) * (float)scale, m = kt_half_at(p + 2) * (float)minimum;
    const uint8_t *codes = p + (TYPE == KT_Q4_K ? 16 : 48) + sub / 2 * 32 + i % 32;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      int q = codes[j] >> (sub % 2 * 4) & 15;
      if constexpr (TYPE == KT_Q5_K) q |= (p[16 + i % 32 + j] >> sub & 1) << 4;
      out[j] = d * (float)q - m;
    }
  } else if constexpr (TYPE == KT_PACKED(KT_Q4_K)) {
    const int64_t block = col / 256, blocks = n / 256;
    const int i = (int)(col % 256), sub = i / 32;
    const uint8_t *scales = row + blocks * 128 + block * 16 + sub * 2, *both = row + blocks * 144 + block * 4;
    const float d = kt_half_at(both) * (float)scales[0], m = kt_half_at(both + 2) * (float)scales[1];
    const uint8_t *codes = row + block * 128 + sub * 16 + i % 32 / 2;
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(codes[j % 4] >> (j / 4 * 4) & 15) - m;
  } else if constexpr (TYPE == KT_PACKED(KT_Q6_K)) {
    const int64_t block = col / 256, blocks = n / 256;
    const int i = (int)(col % 256), sub = i / 32, word = i % 32 / 4;
    const uint8_t *low = row + block * 128 + sub * 16 + i % 32 / 2, *high = row + blocks * 128 + block * 64 + sub * 8 + word / 4 * 4;
    const float d = kt_half_at(row + blocks * 208 + block * 2) * (float)(int8_t)row[blocks * 192 + block * 16 + i / 16];
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(((low[j % 4] >> (j / 4 * 4) & 15) | (high[j % 4] >> (2 * (word % 4 + j / 4)) & 3) << 4) - 32);
  } else if constexpr (TYPE == KT_Q6_K) {
    const uint8_t *p = row + col / 256 * 210;
    const int i = (int)(col % 256), half = i / 128, quarter = i % 128 / 32, l = i % 32;
    const uint8_t *low = p + half * 64 + quarter % 2 * 32 + l, *high = p + 128 + half * 32 + l;
    const float d = kt_half_at(p + 208) * (float)(int8_t)p[192 + i / 16];
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(((low[j] >> (quarter / 2 * 4) & 15) | (high[j] >> (2 * quarter) & 3) << 4) - 32);
  } else if constexpr (TYPE == KT_IQ4_XS) {
    const uint8_t *p = row + col / 256 * 136;
    const int i = (int)(col % 256), sub = i / 32;
    const int high = (p[2] | p[3] << 8) >> (2 * sub) & 3;
    const float d = kt_half_at(p) * (float)(((p[4 + sub / 2] >> (sub % 2 * 4) & 15) | high << 4) - 32);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)kt_iq4_table[p[8 + sub * 16 + i % 16 + j] >> (i % 32 >= 16 ? 4 : 0) & 15];
  } else if constexpr (TYPE == KT_F8_E4M3) {
    const uint32_t *block = (const uint32_t *)(row + col / 128 * 132), *codes = block + 1 + col % 128 / 4;
    const float d = kt_float_of(block[0]);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * kt_e4m3(codes[j / 4] >> (8 * (j % 4)) & 255);
  } else if constexpr (TYPE == KT_Q8_K) {
    const uint8_t *p = row + col / 256 * 292;
    const float d = *(const float *)p;
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)(int8_t)p[4 + col % 256 + j];
  } else if constexpr (TYPE == KT_NVFP4) {
    const uint8_t *p = row + col / 64 * 36;
    const int i = (int)(col % 64), sub = i / 16;
    const float d = kt_e4m3_half(p[sub]);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)kt_fp4_table[p[4 + 8 * sub + j] >> (i % 16 >= 8 ? 4 : 0) & 15];
  } else if constexpr (TYPE == KT_Q1_0) {
    const uint8_t *p = row + col / 128 * 18;
    const float d = kt_half_at(p);
    const uint32_t bits = p[2 + col % 128 / 8];
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = bits >> j & 1 ? d : -d;
  } else if constexpr (TYPE == KT_Q2_0) {
    const uint8_t *p = row + col / 64 * 18;
    const float d = kt_half_at(p);
    const uint32_t bits = kt_u16_at(p + 2 + col % 64 / 4);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)((int)(bits >> (2 * j) & 3) - 1);
  } else if constexpr (TYPE == KT_TQ1_0) {
    const uint8_t *p = row + col / 256 * 54;
    const int i = (int)(col % 256);
    const float d = kt_half_at(p + 52);
    constexpr uint32_t POWERS[5] = {1, 3, 9, 27, 81};
#pragma unroll
    for (int j = 0; j < 8; j++) {
      /* a byte has five digits, of the last four bytes four */
      const int at = i < 160 ? i % 32 + j : i < 240 ? 32 + i % 16 + j : 48 + (i + j) % 4;
      const int digit = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240 + j) / 4;
      uint32_t power = 1;
#pragma unroll
      for (int n = 1; n < 5; n++) power = digit == n ? POWERS[n] : power;
      out[j] = d * (float)((int)((p[at] * power & 255) * 3 >> 8) - 1);
    }
  } else if constexpr (TYPE == KT_TQ2_0) {
    const uint8_t *p = row + col / 256 * 66;
    const int i = (int)(col % 256);
    const float d = kt_half_at(p + 64);
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = d * (float)((int)(p[i / 128 * 32 + i % 32 + j] >> (2 * (i % 128 / 32)) & 3) - 1);
  } else if constexpr (TYPE == KT_IQ2_XXS) {
    const uint8_t *p = row + col / 256 * 66 + 2 + col % 256 / 32 * 8;
    const int l = (int)(col % 32 / 8);
    const uint32_t signs = kt_u16_at(p + 4) | kt_u16_at(p + 6) << 16;
    const float d = kt_half_at(row + col / 256 * 66) * (0.5f + (float)(signs >> 28)) * 0.25f;
    kt_signed_values(d, kt_iq2_levels(kt_grid_iq2_xxs[p[l]]), kt_even_signs(signs >> (7 * l)), out);
  } else if constexpr (TYPE == KT_IQ2_XS) {
    const uint8_t *p = row + col / 256 * 74;
    const int l = (int)(col % 256 / 8);
    const uint32_t entry = kt_u16_at(p + 2 + 2 * l);
    const float d = kt_half_at(p) * (0.5f + (float)(p[66 + l / 4] >> (l / 2 % 2 * 4) & 15)) * 0.25f;
    kt_signed_values(d, kt_iq2_levels(kt_grid_iq2_xs[entry & 511]), kt_even_signs(entry >> 9), out);
  } else if constexpr (TYPE == KT_IQ2_S) {
    const uint8_t *p = row + col / 256 * 82;
    const int l = (int)(col % 256 / 8);
    const uint32_t high = p[66 + l / 4] >> (l % 4 * 2) & 3;
    const float d = kt_half_at(p) * (0.5f + (float)(p[74 + l / 4] >> (l / 2 % 2 * 4) & 15)) * 0.25f;
    kt_signed_values(d, kt_iq2_levels(kt_grid_iq2_s[p[2 + l] | high << 8]), p[34 + l], out);
  } else if constexpr (TYPE == KT_IQ3_XXS) {
    const uint8_t *p = row + col / 256 * 98;
    const int l = (int)(col % 256 / 8);
    const uint8_t *index = p + 2 + 2 * l, *s = p + 66 + l / 4 * 4;
    const uint32_t signs = kt_u16_at(s) | kt_u16_at(s + 2) << 16;
    const float d = kt_half_at(p) * (0.5f + (float)(signs >> 28)) * 0.5f;
    kt_signed_values(d, kt_iq3_xxs_levels(kt_grid_iq3_xxs[index[0]], kt_grid_iq3_xxs[index[1]]), kt_even_signs(signs >> (7 * (l % 4))), out);
  } else if constexpr (TYPE == KT_IQ3_S) {
    const uint8_t *p = row + col / 256 * 110;
    const int l = (int)(col % 256 / 8);
    const uint8_t *index = p + 2 + 2 * l;
    const uint32_t high = p[66 + l / 4] >> (2 * (l % 4)) & 3;
    const float d = kt_half_at(p) * (float)(1 + 2 * (p[106 + l / 8] >> (l / 4 % 2 * 4) & 15));
    kt_signed_values(d, kt_iq3_s_levels(kt_grid_iq3_s[index[0] | (high & 1) << 8], kt_grid_iq3_s[index[1] | high >> 1 << 8]), p[74 + l], out);
  } else if constexpr (TYPE == KT_IQ1_S) {
    const uint8_t *p = row + col / 256 * 50;
    const int l = (int)(col % 256 / 8);
    const uint32_t high = kt_u16_at(p + 34 + l / 4 * 2);
    const float d = kt_half_at(p) * (float)(2 * (high >> 12 & 7) + 1) * 0.125f;
    kt_eighths(d, kt_grid_iq1[p[2 + l] | (high >> (3 * (l % 4)) & 7) << 8], high >> 15, out);
  } else if constexpr (TYPE == KT_IQ1_M) {
    const uint8_t *p = row + col / 256 * 56, *s = p + 48;
    const int l = (int)(col % 256 / 8), j = l / 2;
    /* the scale's nibbles lie on top of the four words */
    const uint32_t bits = s[1] >> 4 | (s[3] >> 4) << 4 | (s[5] >> 4) << 8 | (uint32_t)(s[7] >> 4) << 12;
    const float d = kt_half_of((uint16_t)bits) * (float)(2 * (kt_u16_at(s + j / 4 * 2) >> (j % 4 * 3) & 7) + 1) * 0.125f;
    const uint32_t high = p[32 + l / 2] >> (l % 2 * 4);
    kt_eighths(d, kt_grid_iq1[p[l] | (high & 7) << 8], high >> 3 & 1, out);
  }
}

/* X(TYPE) for each type that kt_load8 knows: those that files have, and the packed ones. */
#define KT_EACH_FILE_TYPE(X)                                                                                                       \
  X(KT_F32) X(KT_F16) X(KT_BF16) X(KT_Q4_0) X(KT_Q4_1) X(KT_Q5_0) X(KT_Q5_1) X(KT_Q8_0) X(KT_Q2_K) X(KT_Q3_K) X(KT_Q4_K) X(KT_Q5_K) \
  X(KT_Q6_K) X(KT_IQ4_NL) X(KT_IQ4_XS) X(KT_MXFP4) X(KT_F8_E4M3) X(KT_I4_BF16) X(KT_I4_ZERO) X(KT_Q8_K) X(KT_NVFP4) X(KT_Q1_0)      \
  X(KT_Q2_0) X(KT_TQ1_0) X(KT_TQ2_0) X(KT_IQ2_XXS) X(KT_IQ2_XS) X(KT_IQ2_S) X(KT_IQ3_XXS) X(KT_IQ3_S) X(KT_IQ1_S) X(KT_IQ1_M)
#define KT_EACH_TYPE(X)                                                                                                            \
  KT_EACH_FILE_TYPE(X) X(KT_PACKED(KT_Q4_0)) X(KT_PACKED(KT_Q4_1)) X(KT_PACKED(KT_Q8_0)) X(KT_PACKED(KT_Q6_K)) X(KT_PACKED(KT_Q4_K))
#endif

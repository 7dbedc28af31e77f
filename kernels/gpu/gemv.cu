/* Products of few rows of activations: each warp reads a row of weights once, or an equal share of it, 16 bytes a lane.
 * SHAPES       x [tokens, n] as int8 codes with scales, or f32; w [rows, n]; out [tokens, rows] f32
 * DEFINITION   out[t][r] = sum of x[t][i] w[r][i] (+ bias[r]) (+ out[t][r]), or act(gate . x, up . x) of two weights
 * REGULARITIES n is 512 .. 32768; the int8 kernels take 1 .. 8 tokens at a time, so that memory's rate decides */
#include "activation.cuh"
#include "products.cuh"

#define WARPS 8
#define THREADS (WARPS * KT_WARP)

struct gemv_args {
  kt_weight w, up; /* up: of DUAL kernels */
  int64_t rows, n;
  int parts; /* warps that share a row: 1, 2, 4 or 8 */
  const float *bias, *up_bias;
  int64_t bias_stride; /* between experts */
  bool add;
  uint32_t act;
  float *out;
  int64_t out_stride;
  /* activations */
  const int8_t *codes;
  const float2 *scales;
  const float *x;
  int64_t x_stride;
  bool vectors; /* pieces of x are 16-byte aligned */
  int tokens;
  /* experts: ids of pairs, or NULL */
  const int32_t *ids;
  int64_t ids_stride, k, experts, matrix_stride;
  bool rows_by_pair;
};

/* Weights are read once: they pass by the first cache, which keeps the activations. */
#if KT_HAS_MMA
__device__ __forceinline__ uint4 stream16(const uint8_t *p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 stream8(const uint8_t *p) {
  uint2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
#else
__device__ __forceinline__ uint4 stream16(const uint8_t *p) { return *(const uint4 *)p; }
__device__ __forceinline__ uint2 stream8(const uint8_t *p) { return *(const uint2 *)p; }
#endif
__device__ __forceinline__ float half_of(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ float half_at(const uint8_t *p) { return __half2float(__ldg((const __half *)p)); }

__device__ __forceinline__ int dot16(uint4 q, uint4 x) {
  int sum = __dp4a((int)q.x, (int)x.x, 0);
  sum = __dp4a((int)q.y, (int)x.y, sum);
  sum = __dp4a((int)q.z, (int)x.z, sum);
  return __dp4a((int)q.w, (int)x.w, sum);
}
__device__ __forceinline__ uint4 nibbles(uint4 q, int shift) {
  return make_uint4(q.x >> shift & 0x0f0f0f0f, q.y >> shift & 0x0f0f0f0f, q.z >> shift & 0x0f0f0f0f, q.w >> shift & 0x0f0f0f0f);
}
__device__ __forceinline__ uint4 codes16(const int8_t *codes, int64_t at) { return __ldg((const uint4 *)(codes + at)); }

/* One lane's 16 bytes of a row, the codes and scales of a token that belong to them (`input`), and their product. */
template <uint32_t TYPE> struct piece;
template <uint32_t TYPE> struct input;

/* Blocks of 32 codes. */
struct input32 {
  uint4 a, b;
  float2 s;
  __device__ __forceinline__ void load(const int8_t *x, const float2 *scales, int64_t c) {
    s = __ldg(scales + c);
    a = codes16(x, 32 * c), b = codes16(x, 32 * c + 16);
  }
};
template <> struct input<KT_PACKED(KT_Q4_0)> : input32 {};
template <> struct input<KT_PACKED(KT_Q4_K)> : input32 {};
template <> struct input<KT_PACKED(KT_Q6_K)> : input32 {};
template <> struct input<KT_PACKED(KT_Q4_1)> : input32 {};

template <> struct input<KT_PACKED(KT_Q8_0)> {
  uint4 a;
  float scale;
  __device__ __forceinline__ void load(const int8_t *x, const float2 *scales, int64_t c) {
    scale = __ldg(&scales[c / 2].x);
    a = codes16(x, 16 * c);
  }
};

/* Low and high nibbles of words of 4 are columns 8 q .. 8 q + 7. */
__device__ __forceinline__ int dot_nibbles(uint4 q, const input32 &x) {
  const uint4 low = nibbles(q, 0), high = nibbles(q, 4);
  return dot16(make_uint4(low.x, high.x, low.y, high.y), x.a) + dot16(make_uint4(low.z, high.z, low.w, high.w), x.b);
}

template <> struct piece<KT_PACKED(KT_Q4_K)> {
  static constexpr int VALUES = 32;
  uint4 q;
  float d, m;
  __device__ __forceinline__ void load(const uint8_t *row, int64_t c, int64_t n) {
    const int64_t blocks = n / 256;
    q = stream16(row + c * 16);
    const uint32_t scales = __ldg((const uint16_t *)(row + blocks * 128 + c * 2)), both = __ldg((const uint32_t *)(row + blocks * 144 + c / 8 * 4));
    d = half_of(both & 0xffff) * (float)(scales & 255), m = half_of(both >> 16) * (float)(scales >> 8);
  }
  __device__ __forceinline__ float times(const input32 &x) const { return d * x.s.x * (float)dot_nibbles(q, x) - m * x.s.y; }
};

template <> struct piece<KT_PACKED(KT_Q6_K)> {
  static constexpr int VALUES = 32;
  uint4 low;
  uint2 high;
  float d[2];
  __device__ __forceinline__ void load(const uint8_t *row, int64_t c, int64_t n) {
    const int64_t blocks = n / 256;
    low = stream16(row + c * 16);
    high = stream8(row + blocks * 128 + c * 8);
    const uint32_t scales = __ldg((const uint16_t *)(row + blocks * 192 + c * 2));
    const float scale = half_at(row + blocks * 208 + c / 8 * 2);
    d[0] = scale * (float)(int8_t)scales, d[1] = scale * (float)(int8_t)(scales >> 8);
  }
  __device__ __forceinline__ float times(const input32 &x) const {
    const uint4 a = nibbles(low, 0), b = nibbles(low, 4);
    float sum = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t bits = h == 0 ? high.x : high.y, words[4] = {h == 0 ? a.x : a.z, h == 0 ? b.x : b.z, h == 0 ? a.y : a.w, h == 0 ? b.y : b.w};
      const uint4 codes = h == 0 ? x.a : x.b;
      const uint32_t with[4] = {codes.x, codes.y, codes.z, codes.w};
      int dot = 0;
#pragma unroll
      for (int k = 0; k < 4; k++) dot = __dp4a((int)__vsub4(words[k] | (bits >> (2 * k) & 0x03030303) << 4, 0x20202020), (int)with[k], dot);
      sum += d[h] * (float)dot;
    }
    return sum * x.s.x;
  }
};

template <> struct piece<KT_PACKED(KT_Q4_0)> {
  static constexpr int VALUES = 32;
  uint4 q;
  float d;
  __device__ __forceinline__ void load(const uint8_t *row, int64_t c, int64_t n) {
    q = stream16(row + c * 16);
    d = half_at(row + n / 2 + c * 2);
  }
  __device__ __forceinline__ float times(const input32 &x) const {
    return d * (x.s.x * (float)(dot16(nibbles(q, 0), x.a) + dot16(nibbles(q, 4), x.b)) - 8.0f * x.s.y);
  }
};

template <> struct piece<KT_PACKED(KT_Q4_1)> {
  static constexpr int VALUES = 32;
  uint4 q;
  float d, m;
  __device__ __forceinline__ void load(const uint8_t *row, int64_t c, int64_t n) {
    q = stream16(row + c * 16);
    const uint32_t both = __ldg((const uint32_t *)(row + n / 2 + c * 4));
    d = half_of(both & 0xffff), m = half_of(both >> 16);
  }
  __device__ __forceinline__ float times(const input32 &x) const {
    return d * x.s.x * (float)(dot16(nibbles(q, 0), x.a) + dot16(nibbles(q, 4), x.b)) + m * x.s.y;
  }
};

template <> struct piece<KT_PACKED(KT_Q8_0)> {
  static constexpr int VALUES = 16;
  uint4 q;
  float d;
  __device__ __forceinline__ void load(const uint8_t *row, int64_t c, int64_t n) {
    q = stream16(row + c * 16);
    d = half_at(row + n + c / 2 * 2);
  }
  __device__ __forceinline__ float times(const input<KT_PACKED(KT_Q8_0)> &x) const { return d * x.scale * (float)dot16(q, x.a); }
};

/* What a block's blockIdx.y stands for: with experts a pair, else nothing. False: the pair's expert is outside the stack. */
__device__ __forceinline__ bool place(const gemv_args &a, int64_t *matrix, int64_t *x_row, int64_t *out_row, int64_t *expert) {
  *matrix = *x_row = *out_row = *expert = 0;
  if (a.ids == NULL) return true;
  const int64_t pair = blockIdx.y, token = pair / a.k;
  *expert = a.ids[token * a.ids_stride + pair % a.k];
  *matrix = *expert * a.matrix_stride;
  *x_row = a.rows_by_pair ? pair : token;
  *out_row = pair;
  return *expert >= 0 && *expert < a.experts;
}

/* Sums of a warp's rows over the warps that share them, and the rows' last step. */
template <int TOKENS, bool DUAL, int ROWS>
__device__ __forceinline__ void finish(const gemv_args &a, float (&acc)[ROWS][TOKENS], float (&acc_up)[ROWS][TOKENS], int64_t row, int64_t out_row, int64_t expert, bool valid) {
  __shared__ float shared[DUAL ? 2 : 1][WARPS][ROWS][TOKENS];
  const int warp = threadIdx.x / KT_WARP, lane = threadIdx.x % KT_WARP, part = warp % a.parts;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      acc[r][t] = kt_warp_sum(acc[r][t]);
      if (DUAL) acc_up[r][t] = kt_warp_sum(acc_up[r][t]);
    }
  if (a.parts > 1) {
    if (lane == 0)
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
          shared[0][warp][r][t] = acc[r][t];
          if (DUAL) shared[DUAL ? 1 : 0][warp][r][t] = acc_up[r][t];
        }
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int t = 0; t < TOKENS; t++)
        for (int other = 1; other < a.parts; other++) {
          acc[r][t] += shared[0][warp + other][r][t];
          if (DUAL) acc_up[r][t] += shared[DUAL ? 1 : 0][warp + other][r][t];
        }
  }
  /* a lane a row */
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int64_t own = row + r;
    if (own >= a.rows || lane != r) continue;
    const float bias = a.bias != NULL ? a.bias[expert * a.bias_stride + own] : 0.0f;
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
      if (t >= a.tokens) break;
      float *to = a.out + (out_row + t) * a.out_stride + own;
      float value = acc[r][t] + bias;
      if (DUAL) value = kt_activate(a.act, value, acc_up[r][t] + (a.up_bias != NULL ? a.up_bias[expert * a.bias_stride + own] : 0.0f));
      if (!valid) value = __int_as_float(0x7fc00000);
      *to = a.add ? *to + value : value;
    }
  }
}

/* ROWS rows to a warp, so that activations are loaded once for them and many loads are under way. */
template <uint32_t TYPE, int TOKENS, bool DUAL, int ROWS> __global__ void __launch_bounds__(THREADS) gemv_int8_kernel(const gemv_args a) {
  const int warp = threadIdx.x / KT_WARP, lane = threadIdx.x % KT_WARP, part = warp % a.parts;
  const int64_t row = (blockIdx.x * (int64_t)(WARPS / a.parts) + warp / a.parts) * ROWS;
  int64_t matrix, x_row, out_row, expert;
  const bool valid = place(a, &matrix, &x_row, &out_row, &expert);
  float acc[ROWS][TOKENS], acc_up[ROWS][TOKENS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int t = 0; t < TOKENS; t++) acc[r][t] = acc_up[r][t] = 0;
  if (row < a.rows && valid) {
    const uint8_t *w[ROWS], *up[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      /* beyond the last row the last is computed once more, and nothing written */
      const int64_t own = min(row + r, a.rows - 1);
      w[r] = a.w.data + matrix + own * a.w.row_stride;
      up[r] = DUAL ? a.up.data + matrix + own * a.up.row_stride : NULL;
    }
    const int64_t pieces = a.n / piece<TYPE>::VALUES;
    for (int64_t c = part * KT_WARP + lane; c < pieces; c += a.parts * KT_WARP) {
      constexpr int IN_SEGMENT = KT_SEGMENT / piece<TYPE>::VALUES;
      const int64_t segment = c / IN_SEGMENT, columns = min((int64_t)KT_SEGMENT, a.n - segment * KT_SEGMENT);
      piece<TYPE> p[ROWS], u[DUAL ? ROWS : 1];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        p[r].load(w[r] + segment * kt_segment_bytes(TYPE), c % IN_SEGMENT, columns);
        if (DUAL) u[DUAL ? r : 0].load(up[r] + segment * kt_segment_bytes(TYPE), c % IN_SEGMENT, columns);
      }
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        const int64_t token = x_row + (TOKENS == 1 ? 0 : min(t, a.tokens - 1));
        input<TYPE> x;
        x.load(a.codes + token * a.n, a.scales + token * (a.n / 32), c);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          acc[r][t] += p[r].times(x);
          if (DUAL) acc_up[r][t] += u[DUAL ? r : 0].times(x);
        }
      }
    }
  }
  finish<TOKENS, DUAL, ROWS>(a, acc, acc_up, row, out_row, expert, valid);
}

template <uint32_t TYPE, int TOKENS> __global__ void __launch_bounds__(THREADS) gemv_float_kernel(const gemv_args a) {
  const int warp = threadIdx.x / KT_WARP, lane = threadIdx.x % KT_WARP, part = warp % a.parts;
  const int64_t row = blockIdx.x * (int64_t)(WARPS / a.parts) + warp / a.parts;
  int64_t matrix, x_row, out_row, expert;
  const bool valid = place(a, &matrix, &x_row, &out_row, &expert);
  float acc[1][TOKENS], unused[1][TOKENS];
#pragma unroll
  for (int t = 0; t < TOKENS; t++) acc[0][t] = unused[0][t] = 0;
  if (row < a.rows && valid) {
    const uint8_t *w = a.w.data + matrix + row * a.w.row_stride;
    const float *x = a.x + x_row * a.x_stride;
    for (int64_t col = 8 * (part * KT_WARP + lane); col + 8 <= a.n; col += 8 * a.parts * KT_WARP) {
      float values[8];
      kt_load8<TYPE>(w, col, a.n, values);
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        const float *from = x + (TOKENS == 1 ? 0 : min(t, a.tokens - 1)) * a.x_stride + col;
        float own[8];
        if (a.vectors) {
          *(float4 *)own = *(const float4 *)from, *(float4 *)(own + 4) = *(const float4 *)(from + 4);
        } else {
#pragma unroll
          for (int j = 0; j < 8; j++) own[j] = from[j];
        }
#pragma unroll
        for (int j = 0; j < 8; j++) acc[0][t] += values[j] * own[j];
      }
    }
    if constexpr (TYPE == KT_F32 || TYPE == KT_F16 || TYPE == KT_BF16) {
      const int64_t col = a.n / 8 * 8 + lane;
      if (part == 0 && col < a.n) {
        float value;
        if constexpr (TYPE == KT_F32) value = ((const float *)w)[col];
        else if constexpr (TYPE == KT_F16) value = __half2float(((const __half *)w)[col]);
        else value = __uint_as_float((uint32_t)((const uint16_t *)w)[col] << 16);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) acc[0][t] += value * x[(TOKENS == 1 ? 0 : min(t, a.tokens - 1)) * a.x_stride + col];
      }
    }
  }
  finish<TOKENS, false, 1>(a, acc, unused, row, out_row, expert, valid);
}

/* So many warps to a row that all multiprocessors have some, each with at least 32 pieces. */
static int parts_for(kt_ctx *ctx, int64_t rows, int64_t pieces) {
  int parts = 1;
  while (parts < WARPS && rows * parts < 32 * (int64_t)ctx->multiprocessors && pieces >= 2 * parts * KT_WARP) parts *= 2;
  return parts;
}

static dim3 grid_for(const gemv_args &a, int64_t pairs) { return dim3((unsigned)kt_div_up(a.rows, WARPS / a.parts), (unsigned)pairs); }

template <uint32_t TYPE, bool DUAL> static void launch_int8(kt_ctx *ctx, gemv_args &a, int64_t pairs) {
  constexpr int SINGLE = DUAL ? 2 : 4, SEVERAL = DUAL ? 1 : 2;
  const int rows = a.tokens <= 2 ? SINGLE : SEVERAL;
  a.parts = parts_for(ctx, kt_div_up(a.rows, rows) * (a.ids != NULL ? pairs : 1), a.n / piece<TYPE>::VALUES);
  const dim3 grid((unsigned)kt_div_up(a.rows, (int64_t)rows * (WARPS / a.parts)), (unsigned)pairs);
  if (a.tokens == 1) gemv_int8_kernel<TYPE, 1, DUAL, SINGLE><<<grid, THREADS, 0, ctx->stream>>>(a);
  else if (a.tokens == 2) gemv_int8_kernel<TYPE, 2, DUAL, SINGLE><<<grid, THREADS, 0, ctx->stream>>>(a);
  else if (a.tokens <= 4) gemv_int8_kernel<TYPE, 4, DUAL, SEVERAL><<<grid, THREADS, 0, ctx->stream>>>(a);
  else gemv_int8_kernel<TYPE, 8, DUAL, SEVERAL><<<grid, THREADS, 0, ctx->stream>>>(a);
}

template <bool DUAL> static kt_status_t dispatch_int8(kt_ctx *ctx, gemv_args &a, int64_t pairs) {
  switch (a.w.type) {
    case KT_PACKED(KT_Q4_K): launch_int8<KT_PACKED(KT_Q4_K), DUAL>(ctx, a, pairs); break;
    case KT_PACKED(KT_Q6_K): launch_int8<KT_PACKED(KT_Q6_K), DUAL>(ctx, a, pairs); break;
    case KT_PACKED(KT_Q4_0): launch_int8<KT_PACKED(KT_Q4_0), DUAL>(ctx, a, pairs); break;
    case KT_PACKED(KT_Q4_1): launch_int8<KT_PACKED(KT_Q4_1), DUAL>(ctx, a, pairs); break;
    case KT_PACKED(KT_Q8_0): launch_int8<KT_PACKED(KT_Q8_0), DUAL>(ctx, a, pairs); break;
    default: return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u has no int8 product", a.w.type);
  }
  KT_LAUNCHED("gemv_int8");
  return KT_OK;
}

static kt_status_t dispatch_float(kt_ctx *ctx, gemv_args &a, int64_t pairs) {
  a.parts = parts_for(ctx, a.rows, a.n / 8);
  a.vectors = ((uintptr_t)a.x | (uintptr_t)(4 * a.x_stride)) % 16 == 0;
  const dim3 grid = grid_for(a, pairs);
  bool known = false;
#define CASE(TYPE)                                                                                       \
  if (a.w.type == (TYPE)) {                                                                              \
    if (a.tokens == 1) gemv_float_kernel<TYPE, 1><<<grid, THREADS, 0, ctx->stream>>>(a);                  \
    else if (a.tokens <= 4) gemv_float_kernel<TYPE, 4><<<grid, THREADS, 0, ctx->stream>>>(a);             \
    else gemv_float_kernel<TYPE, KT_GEMV_TOKENS><<<grid, THREADS, 0, ctx->stream>>>(a);                   \
    known = true;                                                                                        \
  }
  KT_EACH_TYPE(CASE)
#undef CASE
  if (!known) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u is not read here", a.w.type);
  KT_LAUNCHED("gemv_float");
  return KT_OK;
}

static gemv_args args_of(const kt_product &p) {
  gemv_args a = {};
  a.w = p.w;
  a.rows = p.rows;
  a.n = p.n;
  a.bias = p.bias;
  a.bias_stride = p.rows;
  a.add = p.add;
  a.out = p.out;
  a.out_stride = p.out_stride;
  a.up = p.up;
  a.up_bias = p.up_bias;
  a.act = p.act;
  return a;
}

static void set_pairs(gemv_args &a, const kt_expert_pairs &e) {
  a.ids = e.ids;
  a.ids_stride = e.ids_stride;
  a.k = e.k;
  a.experts = e.experts;
  a.matrix_stride = e.matrix_stride;
  a.rows_by_pair = e.rows_by_pair;
  a.tokens = 1;
}

kt_status_t kt_gpu_gemv_int8(kt_ctx *ctx, const kt_product &p, const kt_int8_rows &x, int64_t tokens) {
  gemv_args a = args_of(p);
  for (int64_t first = 0; first < tokens; first += KT_GEMV_TOKENS) {
    a.tokens = (int)(tokens - first < KT_GEMV_TOKENS ? tokens - first : KT_GEMV_TOKENS);
    a.codes = x.codes + first * x.n;
    a.scales = x.scales + first * (x.n / 32);
    a.out = p.out + first * p.out_stride;
    KT_TRY(p.up.data != NULL ? dispatch_int8<true>(ctx, a, 1) : dispatch_int8<false>(ctx, a, 1));
  }
  return KT_OK;
}

kt_status_t kt_gpu_gemv_float(kt_ctx *ctx, const kt_product &p, kt_frows x) {
  gemv_args a = args_of(p);
  a.x_stride = x.stride;
  for (int64_t first = 0; first < x.count; first += KT_GEMV_TOKENS) {
    a.tokens = (int)(x.count - first < KT_GEMV_TOKENS ? x.count - first : KT_GEMV_TOKENS);
    a.x = x.data + first * x.stride;
    a.out = p.out + first * p.out_stride;
    KT_TRY(dispatch_float(ctx, a, 1));
  }
  return KT_OK;
}

kt_status_t kt_gpu_experts_int8(kt_ctx *ctx, const kt_product &p, const kt_int8_rows &x, const kt_expert_pairs &e) {
  gemv_args a = args_of(p);
  set_pairs(a, e);
  a.codes = x.codes;
  a.scales = x.scales;
  const int64_t pairs = e.tokens * e.k;
  return p.up.data != NULL ? dispatch_int8<true>(ctx, a, pairs) : dispatch_int8<false>(ctx, a, pairs);
}

kt_status_t kt_gpu_experts_float(kt_ctx *ctx, const kt_product &p, kt_frows x, const kt_expert_pairs &e) {
  gemv_args a = args_of(p);
  set_pairs(a, e);
  a.x = x.data;
  a.x_stride = x.stride;
  return dispatch_float(ctx, a, e.tokens * e.k);
}

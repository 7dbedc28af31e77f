/* Weights as plain values, and into the packed layout.
 * SHAPES       w [rows, n] of any weight type, or packed; out [rows, n] bf16 or f32
 * DEFINITION   see device/blocks.h
 * REGULARITIES n is a multiple of 8, or the type is plain */
#include "blocks.cuh"

#define THREADS 256

template <uint32_t TYPE, typename D> __global__ void dequantize_kernel(const uint8_t *w, int64_t stride, int64_t n, D *out) {
  const int64_t row = blockIdx.y;
  for (int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x); i < n; i += 8 * (int64_t)gridDim.x * THREADS) {
    float values[8];
    kt_load8<TYPE>(w + row * stride, i, n, values);
    if constexpr (sizeof(D) == 2) {
      __nv_bfloat162 pairs[4];
#pragma unroll
      for (int j = 0; j < 4; j++) pairs[j] = __floats2bfloat162_rn(values[2 * j], values[2 * j + 1]);
      *(uint4 *)(out + row * n + i) = *(uint4 *)pairs;
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) out[row * n + i + j] = values[j];
    }
  }
}

kt_status_t kt_gpu_dequantize(kt_ctx *ctx, const kt_tensor_t *w, int64_t first_row, int64_t count, uint32_t dtype, void *out) {
  const int64_t n = w->shape[w->ndim - 1];
  const kt_weight from = kt_weight_of(w);
  if (n % 8 != 0) return KT_INVALID("rows of %lld values are no whole pieces of 8", (long long)n);
  for (int64_t done = 0; done < count; done += 65535) {
    const int64_t part = count - done < 65535 ? count - done : 65535;
    const uint8_t *data = from.data + (first_row + done) * from.row_stride;
    const dim3 grid((unsigned)kt_div_up(n, 8 * THREADS), (unsigned)part);
    bool known = false;
#define CASE(TYPE)                                                                                                                            \
  if (from.type == (TYPE)) {                                                                                                                  \
    if (dtype == KT_BF16) dequantize_kernel<TYPE><<<grid, THREADS, 0, ctx->stream>>>(data, from.row_stride, n, (__nv_bfloat16 *)out + done * n); \
    else dequantize_kernel<TYPE><<<grid, THREADS, 0, ctx->stream>>>(data, from.row_stride, n, (float *)out + done * n);                       \
    known = true;                                                                                                                             \
  }
    KT_EACH_TYPE(CASE)
#undef CASE
    if (!known) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u is not read here", w->dtype);
    KT_LAUNCHED("dequantize");
  }
  return KT_OK;
}

/* One thread a block. Segments of `whole` blocks and segment_bytes. */
__global__ void pack_kernel(const uint8_t *w, int64_t stride, uint8_t *out, int64_t out_stride, int64_t row_blocks, int whole, int block_bytes, int segment_bytes, uint32_t dtype) {
  const int64_t index = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
  if (index >= row_blocks) return;
  const int64_t segment = index / whole, block = index % whole, blocks = min((int64_t)whole, row_blocks - segment * whole);
  const uint8_t *row = w + blockIdx.y * stride + segment * whole * block_bytes;
  uint8_t *to = out + blockIdx.y * out_stride + segment * segment_bytes;
  if (dtype == KT_Q6_K) {
    const uint8_t *p = row + block * 210;
    const auto low = [&](int i) { return p[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15; };
    const auto high = [&](int i) { return p[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; };
    for (int sub = 0; sub < 8; sub++) {
      for (int i = 0; i < 16; i++) {
        const int column = 32 * sub + i / 4 * 8 + i % 4;
        to[block * 128 + sub * 16 + i] = (uint8_t)(low(column) | low(column + 4) << 4);
      }
      for (int i = 0; i < 8; i++) {
        int bits = 0;
        for (int k = 0; k < 4; k++) bits |= high(32 * sub + i / 4 * 16 + 4 * k + i % 4) << (2 * k);
        to[blocks * 128 + block * 64 + sub * 8 + i] = (uint8_t)bits;
      }
    }
    for (int i = 0; i < 16; i++) to[blocks * 192 + block * 16 + i] = p[192 + i];
    for (int i = 0; i < 2; i++) to[blocks * 208 + block * 2 + i] = p[208 + i];
    return;
  }
  if (dtype == KT_Q4_K) {
    const uint8_t *p = row + block * 144;
    for (int sub = 0; sub < 8; sub++)
      for (int i = 0; i < 16; i++) {
        const uint8_t *codes = p + 16 + sub / 2 * 32 + i / 4 * 8 + i % 4;
        to[block * 128 + sub * 16 + i] = (uint8_t)((codes[0] >> (sub % 2 * 4) & 15) | (codes[4] >> (sub % 2 * 4) & 15) << 4);
      }
    for (int sub = 0; sub < 8; sub++) {
      int scale, minimum;
      kt_scale_min(p + 4, sub, &scale, &minimum);
      to[blocks * 128 + block * 16 + 2 * sub] = (uint8_t)scale;
      to[blocks * 128 + block * 16 + 2 * sub + 1] = (uint8_t)minimum;
    }
    for (int i = 0; i < 4; i++) to[blocks * 144 + block * 4 + i] = p[i];
    return;
  }
  const int scales = dtype == KT_Q4_1 ? 4 : 2, codes = dtype == KT_Q8_0 ? 32 : 16;
  const uint8_t *p = row + block * (scales + codes);
  for (int i = 0; i < codes; i++) to[block * codes + i] = p[scales + i];
  for (int i = 0; i < scales; i++) to[blocks * codes + block * scales + i] = p[i];
}

static kt_status_t rows_of(kt_ctx *ctx, const kt_tensor_t *w, int64_t *rows, int64_t *n) {
  if (w == NULL) return KT_INVALID("w is NULL");
  if (w->ndim != 2 && w->ndim != 3) return KT_INVALID("w has %u dimensions, expected 2 or 3", w->ndim);
  KT_TRY(kt_gpu_tensor(ctx, "w", w, w->ndim));
  *n = w->shape[w->ndim - 1];
  *rows = w->ndim == 2 ? w->shape[0] : w->shape[0] * w->shape[1];
  return KT_OK;
}

extern "C" kt_status_t kt_packed_bytes(kt_ctx_t *handle, const kt_tensor_t *w, int64_t *out_bytes) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out_bytes == NULL) return KT_INVALID("out_bytes is NULL");
  *out_bytes = 0;
  int64_t rows = 0, n = 0;
  KT_TRY(rows_of(ctx, w, &rows, &n));
  const int64_t bytes = kt_packed_row_bytes(w->dtype, n);
  if (bytes == 0) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u has no packed layout here", w->dtype);
  *out_bytes = rows * bytes;
  return KT_OK;
}

extern "C" kt_status_t kt_pack_weight(kt_ctx_t *handle, const kt_tensor_t *w, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  int64_t rows = 0, n = 0;
  KT_TRY(rows_of(ctx, w, &rows, &n));
  if (w->flags & KT_TENSOR_PACKED) return KT_INVALID("w is packed already");
  if (out == NULL || out->data == NULL || !(out->flags & KT_TENSOR_PACKED) || out->dtype != w->dtype || out->ndim != w->ndim)
    return KT_INVALID("out is no packed tensor of w's type and dimensions");
  for (uint32_t i = 0; i < w->ndim; i++) KT_TRY(kt_gpu_size("out", out, (int)i, w->shape[i]));
  const kt_block_size size = kt_gpu_block(w->dtype);
  const int64_t bytes = kt_packed_row_bytes(w->dtype, n), blocks = n / size.values;
  if (bytes == 0) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "type %u has no packed layout here", w->dtype);
  kt_rows from;
  KT_TRY(kt_gpu_rows("w", w, &from));
  for (int64_t first = 0; first < rows; first += 65535) {
    const int64_t count = rows - first < 65535 ? rows - first : 65535;
    pack_kernel<<<dim3((unsigned)kt_div_up(blocks, 64), (unsigned)count), 64, 0, ctx->stream>>>(
        (const uint8_t *)from.data + first * from.stride, from.stride, (uint8_t *)out->data + first * bytes, bytes, blocks, KT_SEGMENT / size.values,
        size.bytes, (int)kt_packed_row_bytes(w->dtype, KT_SEGMENT), w->dtype);
    KT_LAUNCHED("pack_weight");
  }
  return KT_OK;
}

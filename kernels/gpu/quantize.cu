/* Activations as the products take them: int8 in blocks of 32 with f32 scales, or bf16.
 * SHAPES       x [rows, n] f32; codes [rows][n], scales [rows][n / 32] of (scale, scale * sum of codes)
 * DEFINITION   code = round(x / d), d = max |x| / 127 of its block
 * REGULARITIES n is a multiple of 32 */
#include "products.cuh"

__global__ void quantize_kernel(kt_frows x, int8_t *codes, float2 *scales) {
  const int64_t block = blockIdx.x * (int64_t)(blockDim.x / KT_WARP) + threadIdx.x / KT_WARP;
  const int lane = threadIdx.x % KT_WARP;
  if (block >= x.n / 32) return;
  const int64_t row = blockIdx.y;
  const float v = x.data[row * x.stride + block * 32 + lane], most = kt_warp_max(fabsf(v)), d = most / 127.0f;
  const int code = d == 0 ? 0 : __float2int_rn(v / d);
  const int sum = __reduce_add_sync(KT_FULL_MASK, code);
  codes[row * x.n + block * 32 + lane] = (int8_t)code;
  if (lane == 0) scales[row * (x.n / 32) + block] = make_float2(d, d * (float)sum);
}

kt_status_t kt_gpu_quantize(kt_ctx *ctx, kt_frows x, kt_int8_rows *out) {
  const int64_t codes = kt_div_up(x.count * x.n, 256) * 256;
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_QUANT, codes + x.count * (x.n / 32) * (int64_t)sizeof(float2), &memory));
  out->codes = (const int8_t *)memory;
  out->scales = (const float2 *)((char *)memory + codes);
  out->n = x.n;
  quantize_kernel<<<dim3((unsigned)kt_div_up(x.n / 32, 8), (unsigned)x.count), 256, 0, ctx->stream>>>(x, (int8_t *)memory, (float2 *)out->scales);
  KT_LAUNCHED("quantize");
  return KT_OK;
}

/* Codes of rms_norm(x) at once, one block a row of at most 4 values a thread; the norm goes to `normed` where that is asked for. */
__global__ void norm_quantize_kernel(kt_frows x, kt_norm norm, int8_t *codes, float2 *scales, float *normed) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x, i = threadIdx.x;
  const bool own = 4 * i < x.n;
  const float4 v = own ? ((const float4 *)(x.data + row * x.stride))[i] : make_float4(0, 0, 0, 0);
  const float4 w = own ? ((const float4 *)norm.weight)[i] : make_float4(0, 0, 0, 0);
  const float sum = kt_block_sum(v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w), shared);
  const float scale = 1.0f / sqrtf(sum / (float)x.n + norm.eps);
  const float4 y = make_float4(v.x * scale * (w.x + norm.offset), v.y * scale * (w.y + norm.offset), v.z * scale * (w.z + norm.offset), v.w * scale * (w.w + norm.offset));
  /* eight lanes a block of 32 values */
  float most = fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w)));
#pragma unroll
  for (int lane = 4; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(KT_FULL_MASK, most, lane));
  const float d = most / 127.0f;
  const int a = d == 0 ? 0 : __float2int_rn(y.x / d), b = d == 0 ? 0 : __float2int_rn(y.y / d);
  const int c = d == 0 ? 0 : __float2int_rn(y.z / d), e = d == 0 ? 0 : __float2int_rn(y.w / d);
  int total = a + b + c + e;
#pragma unroll
  for (int lane = 4; lane > 0; lane /= 2) total += __shfl_xor_sync(KT_FULL_MASK, total, lane);
  if (!own) return;
  ((char4 *)(codes + row * x.n))[i] = make_char4((signed char)a, (signed char)b, (signed char)c, (signed char)e);
  if (threadIdx.x % 8 == 0) scales[row * (x.n / 32) + i / 8] = make_float2(d, d * (float)total);
  if (normed != NULL) ((float4 *)(normed + row * x.n))[i] = y;
}

bool kt_gpu_can_norm_quantize(kt_frows x, kt_norm norm) {
  return norm.weight != NULL && x.n % 32 == 0 && x.n <= 4096 && ((uintptr_t)x.data | (uintptr_t)norm.weight) % 16 == 0 && x.stride % 4 == 0;
}

kt_status_t kt_gpu_norm_quantize(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_int8_rows *out) {
  const int64_t codes = kt_div_up(x.count * x.n, 256) * 256;
  void *memory = NULL;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_QUANT, codes + x.count * (x.n / 32) * (int64_t)sizeof(float2), &memory));
  out->codes = (const int8_t *)memory;
  out->scales = (const float2 *)((char *)memory + codes);
  out->n = x.n;
  norm_quantize_kernel<<<(unsigned)x.count, (unsigned)(kt_div_up(x.n / 4, KT_WARP) * KT_WARP), 0, ctx->stream>>>(x, norm, (int8_t *)memory, (float2 *)out->scales, NULL);
  KT_LAUNCHED("norm_quantize");
  return KT_OK;
}

__global__ void to_bf16_kernel(kt_frows x, __nv_bfloat16 *out, int64_t width) {
  const int64_t row = blockIdx.y;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < width; i += (int64_t)gridDim.x * blockDim.x)
    out[row * width + i] = __float2bfloat16_rn(i < x.n ? x.data[row * x.stride + i] : 0.0f);
}

kt_status_t kt_gpu_to_bf16(kt_ctx *ctx, kt_frows x, int64_t width, void *out) {
  for (int64_t first = 0; first < x.count; first += 65535) {
    const int64_t count = x.count - first < 65535 ? x.count - first : 65535;
    const kt_frows part = {x.data + first * x.stride, count, x.stride, x.n};
    to_bf16_kernel<<<dim3((unsigned)kt_div_up(width, 1024), (unsigned)count), 256, 0, ctx->stream>>>(part, (__nv_bfloat16 *)out + first * width, width);
    KT_LAUNCHED("to_bf16");
  }
  return KT_OK;
}

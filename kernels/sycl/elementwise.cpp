/* kt_copy, kt_add, kt_act, kt_act_mul, kt_sigmoid_mul.
 * SHAPES       tensors of 1 .. 4 dimensions, outer ones strided
 * DEFINITION   see kt.h
 * REGULARITIES rows of hidden or intermediate sizes: 16 .. 32768 values */
#include "activation.hpp"
#include "blocks.hpp"

template <uint32_t TYPE> static float load_as_float(const char *row, int64_t i) {
  if constexpr (TYPE == KT_I32) return (float)((const int32_t *)row)[i];
  else return kt_plain_at<TYPE>((const uint8_t *)row, i);
}

template <uint32_t TYPE> static void store_float(char *row, int64_t i, float v) {
  if constexpr (TYPE == KT_F32) ((float *)row)[i] = v;
  else if constexpr (TYPE == KT_F16) ((sycl::half *)row)[i] = (sycl::half)v;
  else if constexpr (TYPE == KT_BF16) ((uint16_t *)row)[i] = kt_to_bf16(v);
  /* toward zero, saturating, NaN to 0 */
  else ((int32_t *)row)[i] = v != v ? 0 : v >= 2147483648.0f ? INT32_MAX : v < -2147483648.0f ? INT32_MIN : (int32_t)v;
}

struct copy_job {
  kt_view from, to;
  int64_t rows, n;
};

template <uint32_t FROM, uint32_t TO> static kt_status_t convert(kt_ctx *ctx, const copy_job &job) {
  return kt_sycl_each(ctx, "copy", job.rows * job.n, [=](int64_t i) {
    store_float<TO>(kt_row_at(job.to, i / job.n), i % job.n, load_as_float<FROM>(kt_row_at(job.from, i / job.n), i % job.n));
  });
}

template <uint32_t FROM> static kt_status_t convert_from(kt_ctx *ctx, const copy_job &job, uint32_t to) {
  switch (to) {
    case KT_F32: return convert<FROM, KT_F32>(ctx, job);
    case KT_F16: return convert<FROM, KT_F16>(ctx, job);
    case KT_BF16: return convert<FROM, KT_BF16>(ctx, job);
    case KT_I32: return convert<FROM, KT_I32>(ctx, job);
    default: return kt_gpu_fail(KT_ERR_UNSUPPORTED, "no conversion from type %u to type %u", FROM, to);
  }
}

template <uint32_t TYPE> static kt_status_t dequantize(kt_ctx *ctx, const copy_job &job) {
  const int64_t pieces = job.n / 8;
  return kt_sycl_each(ctx, "copy", job.rows * pieces, [=](int64_t i) {
    const int64_t col = i % pieces * 8;
    float values[8];
    kt_load8<TYPE>((const uint8_t *)kt_row_at(job.from, i / pieces), col, job.n, values);
    float *to = (float *)kt_row_at(job.to, i / pieces) + col;
    for (int j = 0; j < 8; j++) to[j] = values[j];
  });
}

static kt_status_t copy_bytes(kt_ctx *ctx, const copy_job &job, int64_t bytes) {
  const bool words = bytes % 4 == 0;
  const int64_t n = words ? bytes / 4 : bytes;
  return kt_sycl_each(ctx, "copy", job.rows * n, [=](int64_t i) {
    const char *from = kt_row_at(job.from, i / n);
    char *to = kt_row_at(job.to, i / n);
    if (words && (((uintptr_t)from | (uintptr_t)to) & 3) == 0) {
      ((uint32_t *)to)[i % n] = ((const uint32_t *)from)[i % n];
      return;
    }
    const int64_t width = words ? 4 : 1;
    for (int64_t j = i % n * width; j < (i % n + 1) * width; j++) to[j] = from[j];
  });
}

extern "C" kt_status_t kt_copy(kt_ctx_t *handle, const kt_tensor_t *src, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  const uint32_t ndim = src == NULL ? 0 : src->ndim;
  if (ndim < 1 || ndim > 4) return KT_INVALID("src has %u dimensions, expected 1 to 4", ndim);
  KT_TRY(kt_gpu_tensor(ctx, "src", src, ndim));
  KT_TRY(kt_gpu_tensor(ctx, "out", out, ndim));
  for (uint32_t i = 0; i < ndim; i++) KT_TRY(kt_gpu_size("out", out, (int)i, src->shape[i]));
  if ((src->flags | out->flags) & KT_TENSOR_PACKED) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "copy of a packed weight");
  const copy_job job = {kt_view_of(src), kt_view_of(out), kt_outer(src), src->shape[ndim - 1]};
  if (src->dtype == out->dtype) {
    const kt_block_size block = kt_gpu_block(src->dtype);
    return copy_bytes(ctx, job, job.n / block.values * block.bytes);
  }
  switch (src->dtype) {
    case KT_F32: return convert_from<KT_F32>(ctx, job, out->dtype);
    case KT_F16: return convert_from<KT_F16>(ctx, job, out->dtype);
    case KT_BF16: return convert_from<KT_BF16>(ctx, job, out->dtype);
    case KT_I32: return convert_from<KT_I32>(ctx, job, out->dtype);
    default: break;
  }
#define CASE(TYPE)                                                       \
  if constexpr (!kt_is_plain(TYPE)) {                                    \
    if (src->dtype == (TYPE) && out->dtype == KT_F32) return dequantize<TYPE>(ctx, job); \
  }
  KT_EACH_FILE_TYPE(CASE)
#undef CASE
  return kt_gpu_fail(KT_ERR_UNSUPPORTED, "no conversion from type %u to type %u", src->dtype, out->dtype);
}

/* out[r][i] = f(a[r][i], b[r][i]) */
template <typename F> static kt_status_t combine(kt_ctx *ctx, const char *what, kt_frows a, kt_frows b, kt_frows out, F f) {
  return kt_sycl_each(ctx, what, out.count * out.n, [=](int64_t i) {
    const int64_t row = i / out.n, col = i % out.n;
    out.data[row * out.stride + col] = f(a.data[row * a.stride + col], b.data[row * b.stride + col]);
  });
}

extern "C" kt_status_t kt_add(kt_ctx_t *handle, const kt_tensor_t *a, const kt_tensor_t *b, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows ra, rb, ro;
  KT_TRY(kt_gpu_frows(ctx, "a", a, 0, &ra));
  KT_TRY(kt_gpu_frows(ctx, "b", b, 0, &rb));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("b", b, a));
  KT_TRY(kt_gpu_alike("out", out, a));
  return combine(ctx, "add", ra, rb, ro, [](float x, float y) { return x + y; });
}

kt_status_t kt_sycl_act_mul(kt_ctx *ctx, kt_frows gate, kt_frows up, uint32_t act, kt_frows out) {
  return combine(ctx, "act_mul", gate, up, out, [=](float g, float u) { return kt_activate(act, g, u); });
}

extern "C" kt_status_t kt_act_mul(kt_ctx_t *handle, const kt_tensor_t *gate, const kt_tensor_t *up, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rg, ru, ro;
  KT_TRY(kt_gpu_frows(ctx, "gate", gate, 2, &rg));
  KT_TRY(kt_gpu_frows(ctx, "up", up, 2, &ru));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 2, &ro));
  if (act > KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  KT_TRY(kt_gpu_alike("up", up, gate));
  KT_TRY(kt_gpu_alike("out", out, gate));
  return kt_sycl_act_mul(ctx, rg, ru, act, ro);
}

extern "C" kt_status_t kt_act(kt_ctx_t *handle, const kt_tensor_t *x, uint32_t act, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  if (act > KT_ACT_TANH || act == KT_ACT_SWIGLU_OAI) return KT_INVALID("act is %u", act);
  KT_TRY(kt_gpu_alike("out", out, x));
  return combine(ctx, "act", rx, rx, ro, [=](float v, float) { return kt_activate_one(act, v); });
}

extern "C" kt_status_t kt_sigmoid_mul(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *gate, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  const uint32_t ndim = x == NULL ? 0 : x->ndim;
  if (ndim < 1 || ndim > 4) return KT_INVALID("x has %u dimensions, expected 1 to 4", ndim);
  KT_TRY(kt_gpu_typed(ctx, "x", x, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "gate", gate, ndim, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, ndim, KT_F32));
  KT_TRY(kt_gpu_alike("out", out, x));
  const int64_t n = x->shape[ndim - 1], gate_n = gate->shape[ndim - 1];
  for (uint32_t i = 0; i + 1 < ndim; i++) KT_TRY(kt_gpu_size("gate", gate, (int)i, x->shape[i]));
  if (gate_n != 1) KT_TRY(kt_gpu_size("gate", gate, (int)ndim - 1, n));
  const kt_view from = kt_view_of(x), gates = kt_view_of(gate), to = kt_view_of(out);
  return kt_sycl_each(ctx, "sigmoid_mul", kt_outer(x) * n, [=](int64_t i) {
    const float g = ((const float *)kt_row_at(gates, i / n))[gate_n == 1 ? 0 : i % n];
    ((float *)kt_row_at(to, i / n))[i % n] = ((const float *)kt_row_at(from, i / n))[i % n] * kt_sigmoid(g);
  });
}

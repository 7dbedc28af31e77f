/* kt_rms_norm, kt_add_rms_norm, kt_layer_norm.
 * SHAPES       x, out [rows, n] f32, weight [n] f32
 * DEFINITION   out = x / sqrt(mean(x^2) + eps) * (weight + offset); of the layer norm see kt.h
 * REGULARITIES n is a hidden size (1024 .. 16384), or a head's (64 .. 256); out may be x. A work-group a row */
#include "sycl.hpp"

/* With `add`, x += add first; with `onto`, out += instead of out =. */
static kt_status_t launch(kt_ctx *ctx, kt_frows x, kt_frows add, kt_norm norm, bool onto, kt_frows out) {
  return kt_sycl_groups(ctx, "rms_norm", x.count, ctx->group_items, [=](sycl::nd_item<1> item) {
    const int64_t row = item.get_group(0), first = item.get_local_id(0), step = item.get_local_range(0);
    float *from = x.data + row * x.stride, *to = out.data + row * out.stride;
    float sum = 0;
    for (int64_t i = first; i < x.n; i += step) {
      float v = from[i];
      if (add.data != NULL) from[i] = v = v + add.data[row * add.stride + i];
      sum += v * v;
    }
    sum = sycl::reduce_over_group(item.get_group(), sum, sycl::plus<float>());
    const float scale = 1.0f / sycl::sqrt(sum / (float)x.n + norm.eps);
    for (int64_t i = first; i < x.n; i += step) {
      const float v = from[i] * scale * (norm.weight != NULL ? norm.weight[i] + norm.offset : 1.0f);
      to[i] = onto ? to[i] + v : v;
    }
  });
}

kt_status_t kt_sycl_rms_norm(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out) { return launch(ctx, x, {}, norm, false, out); }
kt_status_t kt_sycl_add_normed(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out) { return launch(ctx, x, {}, norm, true, out); }

extern "C" kt_status_t kt_rms_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, float eps, float offset, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("out", out, x));
  kt_norm norm = {NULL, eps, offset};
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rx.n, &norm.weight));
  return launch(ctx, rx, {}, norm, false, ro);
}

extern "C" kt_status_t kt_add_rms_norm(kt_ctx_t *handle, const kt_tensor_t *residual, const kt_tensor_t *x, const kt_tensor_t *weight,
                                       float eps, float offset, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rr, rx, ro;
  KT_TRY(kt_gpu_frows(ctx, "residual", residual, 0, &rr));
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("x", x, residual));
  KT_TRY(kt_gpu_alike("out", out, residual));
  kt_norm norm = {NULL, eps, offset};
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rr.n, &norm.weight));
  return launch(ctx, rr, rx, norm, false, ro);
}

extern "C" kt_status_t kt_layer_norm(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, const kt_tensor_t *bias, float eps,
                                     const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rx, ro;
  const float *w = NULL, *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 0, &rx));
  KT_TRY(kt_gpu_frows(ctx, "out", out, 0, &ro));
  KT_TRY(kt_gpu_alike("out", out, x));
  KT_TRY(kt_gpu_vector(ctx, "weight", weight, rx.n, &w));
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, rx.n, &b));
  if (w == NULL) return KT_INVALID("weight is NULL");
  return kt_sycl_groups(ctx, "layer_norm", rx.count, ctx->group_items, [=](sycl::nd_item<1> item) {
    const int64_t row = item.get_group(0), first = item.get_local_id(0), step = item.get_local_range(0);
    const float *from = rx.data + row * rx.stride;
    float sum = 0, squares = 0;
    for (int64_t i = first; i < rx.n; i += step) sum += from[i];
    const float mean = sycl::reduce_over_group(item.get_group(), sum, sycl::plus<float>()) / (float)rx.n;
    for (int64_t i = first; i < rx.n; i += step) squares += (from[i] - mean) * (from[i] - mean);
    squares = sycl::reduce_over_group(item.get_group(), squares, sycl::plus<float>());
    const float scale = 1.0f / sycl::sqrt(squares / (float)rx.n + eps);
    for (int64_t i = first; i < rx.n; i += step) ro.data[row * ro.stride + i] = (from[i] - mean) * scale * w[i] + (b != NULL ? b[i] : 0.0f);
  });
}

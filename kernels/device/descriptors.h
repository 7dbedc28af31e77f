/* What the host code of libraries with devices shares: failure, checks of descriptors, operands as kernels take them. A library's kt_ctx
 * has `int device`, and KT_BACKEND_NAME is its name. */
#ifndef KT_DEVICE_DESCRIPTORS_H
#define KT_DEVICE_DESCRIPTORS_H
#include "kt.h"

/* ---- failure ---- */
/* Records the text for kt_last_error() and returns code. */
kt_status_t kt_gpu_fail(kt_status_t code, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define KT_INVALID(...) kt_gpu_fail(KT_ERR_INVALID_ARG, __VA_ARGS__)
#define KT_TRY(call)                          \
  do {                                        \
    const kt_status_t kt_status_ = (call);    \
    if (kt_status_ != KT_OK) return kt_status_; \
  } while (0)

/* ---- descriptors ---- */
struct kt_block_size {
  int values, bytes;
};
/* {0, 0} for a type the library does not know. */
kt_block_size kt_gpu_block(uint32_t dtype);
/* Present, on the context's device, of `ndim` dimensions, positive sizes, contiguous rows of whole blocks. */
kt_status_t kt_gpu_tensor(kt_ctx *ctx, const char *name, const kt_tensor_t *t, uint32_t ndim);
kt_status_t kt_gpu_typed(kt_ctx *ctx, const char *name, const kt_tensor_t *t, uint32_t ndim, uint32_t dtype);
kt_status_t kt_gpu_size(const char *name, const kt_tensor_t *t, int dim, int64_t expected);
/* NULL, or of the shape of `like`. */
kt_status_t kt_gpu_alike(const char *name, const kt_tensor_t *t, const kt_tensor_t *like);
/* An f32 vector of n values, or NULL. */
kt_status_t kt_gpu_vector(kt_ctx *ctx, const char *name, const kt_tensor_t *t, int64_t n, const float **out);
/* All of a tensor as rows of its innermost dimension, `stride` bytes apart. */
struct kt_rows {
  char *data;
  int64_t count, stride, n;
};
kt_status_t kt_gpu_rows(const char *name, const kt_tensor_t *t, kt_rows *out);
/* The same of f32 values, its stride counted in values. */
struct kt_frows {
  float *data;
  int64_t count, stride, n;
};
kt_status_t kt_gpu_frows(kt_ctx *ctx, const char *name, const kt_tensor_t *t, uint32_t ndim, kt_frows *out);
/* The same of a product's result [tokens, n]. */
kt_status_t kt_gpu_result(kt_ctx *ctx, const char *name, const kt_tensor_t *t, int64_t tokens, int64_t n, kt_frows *out);

/* Outer dimensions and byte strides of a tensor of up to 4 dimensions, its innermost one apart. */
struct kt_view {
  char *data;
  int64_t shape[3], stride[3];
};
static inline kt_view kt_view_of(const kt_tensor_t *t) {
  kt_view v = {(char *)t->data, {1, 1, 1}, {0, 0, 0}};
  const int outer = (int)t->ndim - 1;
  for (int i = 0; i < outer; i++) v.shape[3 - outer + i] = t->shape[i], v.stride[3 - outer + i] = t->stride[i];
  return v;
}
static inline int64_t kt_outer(const kt_tensor_t *t) {
  int64_t rows = 1;
  for (uint32_t i = 0; i + 1 < t->ndim; i++) rows *= t->shape[i];
  return rows;
}

static inline int64_t kt_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A norm over rows: weight NULL is ones. */
struct kt_norm {
  const float *weight;
  float eps, offset;
};
/* Of an f32 vector of n weights, or NULL. */
kt_status_t kt_gpu_norm(kt_ctx *ctx, const char *name, const kt_tensor_t *weight, float eps, float offset, int64_t n, kt_norm *out);
/* x [tokens, heads, dim] with strides in values. */
struct kt_heads {
  float *data;
  int64_t tokens, heads, dim, token_stride, head_stride;
};
static inline kt_heads kt_heads_of(const kt_tensor_t *t) {
  return {(float *)t->data, t->shape[0], t->shape[1], t->shape[2], t->stride[0] / 4, t->stride[1] / 4};
}
#endif

/* Weights as kernels see them; device/blocks.h has their values in CUDA's words. */
#ifndef KT_GPU_BLOCKS_H
#define KT_GPU_BLOCKS_H
#include "gpu.h"

#define KT_DEVICE __device__ __forceinline__
#define KT_TABLE __device__ const
KT_DEVICE float kt_half_of(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
KT_DEVICE float kt_float_of(uint32_t bits) { return __uint_as_float(bits); }
KT_DEVICE int kt_count_bits(uint32_t bits) { return __popc(bits); }
#include "../device/blocks.h"

/* A weight as kernels see it: `type` may be KT_PACKED. */
struct kt_weight {
  const uint8_t *data;
  int64_t row_stride;
  uint32_t type;
};

static inline kt_weight kt_weight_of(const kt_tensor_t *w) {
  const int last = (int)w->ndim - 1;
  if (w->flags & KT_TENSOR_PACKED) return {(const uint8_t *)w->data, kt_packed_row_bytes(w->dtype, w->shape[last]), KT_PACKED(w->dtype)};
  return {(const uint8_t *)w->data, w->stride[last - 1], w->dtype};
}

/* Bytes from one matrix of a stack [experts, out, in] to the next. */
static inline int64_t kt_matrix_stride(const kt_tensor_t *w) {
  return w->flags & KT_TENSOR_PACKED ? w->shape[1] * kt_packed_row_bytes(w->dtype, w->shape[2]) : w->stride[0];
}
#endif

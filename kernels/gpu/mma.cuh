/* Products of 16 x 16 and 16 x 8 bf16 by a warp's tensor cores (PTX ISA, mma.m16n8k16 and ldmatrix). */
#ifndef KT_GPU_MMA_H
#define KT_GPU_MMA_H
#include "gpu.h"

#if KT_HAS_MMA
/* c += a . b, sums in f32. */
__device__ __forceinline__ void kt_mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/* Four 8 x 8 of halves from shared memory, a row's address from each lane. */
__device__ __forceinline__ void kt_load_matrix(uint32_t *r, uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared));
}
__device__ __forceinline__ void kt_load_transposed(uint32_t *r, uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared));
}
#endif
#endif

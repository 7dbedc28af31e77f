/* What GPU vendors call the same things: kernels are written in CUDA's terms. */
#ifndef KT_GPU_VENDOR_H
#define KT_GPU_VENDOR_H

#if defined(__HIP__)
#include "vendor_hip.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KT_BACKEND_NAME "cuda"
#define KT_RUNTIME_NAME "CUDA"
#define KT_NO_DRIVER "no NVIDIA driver is installed here (libcuda.so.1 was not found)"
/* Tensor cores and copies past the registers, by NVIDIA's instructions (8.0 and later). */
#define KT_HAS_MMA 1
#ifdef __CUDACC__
/* A clock that goes on at one rate, whatever the cores' is. */
__device__ __forceinline__ unsigned long long kt_device_ns() {
  unsigned long long ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}
#endif
#endif

#define KT_WARP 32
#define KT_FULL_MASK 0xffffffffu
#endif

/* What GPU vendors call the same things: kernels are written in CUDA's terms. */
#ifndef KT_GPU_VENDOR_H
#define KT_GPU_VENDOR_H
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KT_WARP 32
#define KT_FULL_MASK 0xffffffffu
#endif

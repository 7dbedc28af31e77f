/* CUDA's terms for HIP (5.2 and later). A warp is 32 lanes: half of a wave of 64 where the device has those. */
#ifndef KT_GPU_VENDOR_HIP_H
#define KT_GPU_VENDOR_HIP_H
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

#define KT_BACKEND_NAME "hip"
#define KT_RUNTIME_NAME "HIP"
#define KT_NO_DRIVER "no AMD driver answers here"
#define KT_HAS_MMA 0
#define __CUDACC__ 1
#define CUDART_VERSION HIP_VERSION_MAJOR

/* ---- runtime ---- */
#define cudaDevAttrComputeCapabilityMajor hipDeviceAttributeComputeCapabilityMajor
#define cudaDevAttrComputeCapabilityMinor hipDeviceAttributeComputeCapabilityMinor
#define cudaDevAttrMaxSharedMemoryPerBlockOptin hipDeviceAttributeMaxSharedMemoryPerBlock
#define cudaDevAttrMultiProcessorCount hipDeviceAttributeMultiprocessorCount
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDeviceGetPCIBusId hipDeviceGetPCIBusId
#define cudaDeviceProp hipDeviceProp_t
#define cudaDriverGetVersion hipDriverGetVersion
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaError_t hipError_t
#define cudaEventCreate hipEventCreate
#define cudaEventCreateWithFlags hipEventCreateWithFlags
#define cudaEventDestroy hipEventDestroy
#define cudaEventDisableTiming hipEventDisableTiming
#define cudaEventElapsedTime hipEventElapsedTime
#define cudaEventRecord hipEventRecord
#define cudaEventSynchronize hipEventSynchronize
#define cudaEvent_t hipEvent_t
#define cudaFree hipFree
#define cudaFuncAttributeMaxDynamicSharedMemorySize hipFuncAttributeMaxDynamicSharedMemorySize
#define cudaFuncSetAttribute(kernel, attribute, value) hipFuncSetAttribute((const void *)(kernel), attribute, value)
#define cudaGetDeviceCount hipGetDeviceCount
#define cudaGetDeviceProperties hipGetDeviceProperties
#define cudaGetErrorName hipGetErrorName
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaGraphDestroy hipGraphDestroy
#define cudaGraphExecDestroy hipGraphExecDestroy
#define cudaGraphExec_t hipGraphExec_t
#define cudaGraphInstantiate(out, graph, flags) hipGraphInstantiate(out, graph, NULL, NULL, 0)
#define cudaGraphLaunch hipGraphLaunch
#define cudaGraph_t hipGraph_t
#define cudaHostRegister hipHostRegister
#define cudaHostRegisterMapped hipHostRegisterMapped
#define cudaHostRegisterPortable hipHostRegisterPortable
#define cudaHostRegisterReadOnly 0 /* HIP locks memory that may only be read without being told */
#define cudaHostUnregister hipHostUnregister
#define cudaMalloc hipMalloc
#define cudaMemGetInfo hipMemGetInfo
#define cudaMemcpyAsync hipMemcpyAsync
#define cudaMemcpyDefault hipMemcpyDefault
#define cudaMemsetAsync hipMemsetAsync
#define cudaPeekAtLastError hipPeekAtLastError
#define cudaSetDevice hipSetDevice
#define cudaStreamBeginCapture hipStreamBeginCapture
#define cudaStreamCaptureModeThreadLocal hipStreamCaptureModeThreadLocal
#define cudaStreamCreateWithFlags hipStreamCreateWithFlags
#define cudaStreamDestroy hipStreamDestroy
#define cudaStreamEndCapture hipStreamEndCapture
#define cudaStreamNonBlocking hipStreamNonBlocking
#define cudaStreamSynchronize hipStreamSynchronize
#define cudaStreamWaitEvent hipStreamWaitEvent
#define cudaStream_t hipStream_t
#define cudaSuccess hipSuccess

/* Memory that the runtime does not know is an error there and a kind here. */
enum { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice };
struct cudaPointerAttributes {
  int type;
};
static inline hipError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *p) {
  hipPointerAttribute_t found;
  out->type = cudaMemoryTypeUnregistered;
  if (hipPointerGetAttributes(&found, p) == hipSuccess) out->type = found.memoryType == hipMemoryTypeHost ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  else (void)hipGetLastError();
  return hipSuccess;
}

/* A clock that goes on at one rate, whatever the cores' is: 100 MHz. */
__device__ __forceinline__ unsigned long long kt_device_ns() { return 10 * __builtin_amdgcn_s_memrealtime(); }

/* ---- warps ---- */
template <typename T> __device__ __forceinline__ T kt_shuffle_xor(T v, int lane) { return __shfl_xor(v, lane, 32); }
template <typename T> __device__ __forceinline__ T kt_shuffle(T v, int lane) { return __shfl(v, lane, 32); }
#define __shfl_xor_sync(mask, v, lane) kt_shuffle_xor(v, lane)
#define __shfl_sync(mask, v, lane) kt_shuffle(v, lane)
#define __shfl_up_sync(mask, v, lane) __shfl_up(v, lane, 32)
#define __syncwarp() __builtin_amdgcn_wave_barrier()
#define __grid_constant__
#define __ldcg(p) (*(p))
#define __stcg(p, v) (*(p) = (v))
__device__ __forceinline__ int __reduce_add_sync(unsigned int, int v) {
  for (int lane = 16; lane > 0; lane /= 2) v += kt_shuffle_xor(v, lane);
  return v;
}
__device__ __forceinline__ unsigned int __reduce_max_sync(unsigned int, unsigned int v) {
  for (int lane = 16; lane > 0; lane /= 2) v = max(v, kt_shuffle_xor(v, lane));
  return v;
}
__device__ __forceinline__ unsigned int __reduce_min_sync(unsigned int, unsigned int v) {
  for (int lane = 16; lane > 0; lane /= 2) v = min(v, kt_shuffle_xor(v, lane));
  return v;
}
/* Of all lanes of the wave: a hint, nothing more. */
#define __any_sync(mask, v) __any(v)
#define __ldcs(p) (*(p))
#define __trap() __builtin_trap()

/* ---- numbers ---- */
struct kt_bf16 {
  unsigned short bits;
};
struct kt_bf16x2 {
  kt_bf16 x, y;
};
#define __nv_bfloat16 kt_bf16
#define __nv_bfloat162 kt_bf16x2
__device__ __forceinline__ kt_bf16 __float2bfloat16_rn(float v) {
  const unsigned int bits = __float_as_uint(v);
  const unsigned int rounded = v != v ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
  return {(unsigned short)(rounded >> 16)};
}
__device__ __forceinline__ kt_bf16x2 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
__device__ __forceinline__ float __bfloat162float(kt_bf16 v) { return __uint_as_float((unsigned int)v.bits << 16); }

/* Four bytes by four, added up. */
__device__ __forceinline__ int __dp4a(int a, int b, int sum) {
#pragma unroll
  for (int i = 0; i < 32; i += 8) sum += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
  return sum;
}
/* Of four bytes each. */
__device__ __forceinline__ unsigned int __vsub4(unsigned int a, unsigned int b) {
  return ((a | 0x80808080u) - (b & 0x7f7f7f7fu)) ^ ((a ^ ~b) & 0x80808080u);
}
#endif

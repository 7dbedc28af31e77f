/* What sm_90 does by itself: bulk copies into shared memory that arrive at barriers, launches that begin before the one ahead ends.
 * Kernels that use it are launched only where kt_has_bulk says so; compiled for older devices they are empty. */
#ifndef KT_GPU_ASYNC_H
#define KT_GPU_ASYNC_H
#include "gpu.h"

static inline bool kt_has_bulk(const kt_ctx *ctx) { return KT_HAS_MMA && ctx->capability >= 90; }

/* A launch that may begin while the kernel before it ends: the kernel calls kt_wait_previous before it touches what others wrote. `cluster`:
 * blocks that reach each other's shared memory. */
template <typename... P, typename... A> static kt_status_t kt_launch_clusters(kt_ctx *ctx, void (*kernel)(P...), unsigned cluster, dim3 grid, dim3 block, size_t shared, A... args) {
#if KT_HAS_MMA
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = ctx->stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster, attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  if (kt_has_bulk(ctx)) {
    config.attrs = attributes, config.numAttrs = cluster > 1 ? 2 : 1;
    /* alike for all, as kernels that divide a multiprocessor's memory otherwise are not there together */
    KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  }
  return kt_gpu_status(cudaLaunchKernelEx(&config, kernel, (P)args...), "launch");
#else
  kernel<<<grid, block, shared, ctx->stream>>>((P)args...);
  return kt_gpu_status(cudaPeekAtLastError(), "launch");
#endif
}
template <typename... P, typename... A> static kt_status_t kt_launch_early(kt_ctx *ctx, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
  return kt_launch_clusters(ctx, kernel, 1, grid, block, shared, args...);
}

#ifdef __CUDACC__
/* Until the kernels before this one have ended and what they wrote can be read; data of theirs is read past the first cache. */
__device__ __forceinline__ void kt_wait_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* The next kernel may begin. */
__device__ __forceinline__ void kt_start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ uint32_t kt_cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/* A value into the shared memory of a block of the cluster, at the place that `here` is in the own one. */
__device__ __forceinline__ void kt_store_remote(const float *here, uint32_t rank, float value) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((uint32_t)__cvta_generic_to_shared(here)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
}
__device__ __forceinline__ void kt_store_remote(const unsigned long long *here, uint32_t rank, unsigned long long value) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((uint32_t)__cvta_generic_to_shared(here)), "r"(rank));
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(there), "l"(value) : "memory");
}
/* All threads of the cluster; what they stored before can be read behind it. */
__device__ __forceinline__ void kt_cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ uint32_t kt_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void kt_barrier_init(uint32_t barrier, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory"); }

__device__ __forceinline__ void kt_barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void kt_barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void kt_barrier_arrive(uint32_t barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }

/* bytes: a multiple of 16, as both addresses. Weights are read once. */
__device__ __forceinline__ void kt_bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
               : "memory");
}

__device__ __forceinline__ uint64_t kt_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t kt_keep() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
#endif
#endif
#endif

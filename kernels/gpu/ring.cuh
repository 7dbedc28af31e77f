/* What the kernels of dense products for a few rows of activations share (row.cu, rows.cu): a warp that copies segments of 16 rows of packed
 * weights into a ring in shared memory, of which eight warps take 256 columns each. */
#ifndef KT_GPU_RING_H
#define KT_GPU_RING_H
#include "async.cuh"
#include "products.cuh"

#define KT_RING_WARPS 8
#define KT_RING_ROWS 16
#define KT_RING_SPAN 256 /* columns that a warp takes at once */
#define KT_RING_SLOTS 8  /* at most */
#define KT_RING_BARRIERS (2 * KT_RING_SLOTS * 8)
#define KT_RING_BYTES (109 * 1024) /* of a block: the next kernel's has room beside it */

struct kt_ring_parts {
  kt_stream_part parts[KT_STREAM_PARTS];
  int num_parts, units; /* units: tiles of 16 rows of all parts */
  int slots, slot_bytes;
};

static inline kt_stream_part kt_ring_part_of(const kt_product &p) {
  const uint32_t type = p.w.type & ~KT_PACKED_BIT;
  return {p.w.data, p.up.data, p.out, p.bias, NULL, (int)p.rows, type, (int)p.w.row_stride, (int)kt_packed_row_bytes(type, KT_SEGMENT)};
}

/* Bytes from row to row of a tile in shared memory, so that lanes find different banks. */
__host__ __device__ constexpr int kt_ring_pitch(uint32_t type) {
  return type == KT_Q4_K || type == KT_Q4_0 ? 1216 : type == KT_Q4_1 ? 1344 : type == KT_Q6_K ? 1728 : 2192;
}

#if __CUDA_ARCH__ >= 900
/* Which part's a unit is, and its first row there. */
__device__ __forceinline__ int kt_ring_part(const kt_ring_parts &a, int unit, int *row) {
  int part = 0;
  for (int tiles; part + 1 < a.num_parts && unit >= (tiles = (a.parts[part].rows + KT_RING_ROWS - 1) / KT_RING_ROWS); part++) unit -= tiles;
  *row = unit * KT_RING_ROWS;
  return part;
}

/* The copying warp: a lane a row. */
struct kt_ring_writer {
  uint32_t full, empty, data, parity;
  int slot;
  bool is_again;
  uint64_t policy;
  __device__ __forceinline__ kt_ring_writer(uint32_t full_, uint32_t empty_, uint32_t data_)
      : full(full_), empty(empty_), data(data_), parity(1), slot(0), is_again(false), policy(kt_evict_first()) {}
  /* A segment of a unit's rows of `w`, or of `up` (stream 1), of n columns. */
  __device__ __forceinline__ void copy(const kt_ring_parts &a, int unit, int stream, int segment, int n, int pitch) {
    const int lane = threadIdx.x % KT_WARP;
    int row;
    const kt_stream_part &p = a.parts[kt_ring_part(a, unit, &row)];
    const uint8_t *from = (stream == 0 ? p.w : p.up) + (int64_t)min(row + lane % KT_RING_ROWS, p.rows - 1) * p.row_bytes + segment * p.segment_bytes;
    const int bytes = (segment + 1) * KT_SEGMENT < n ? p.segment_bytes : p.row_bytes - segment * p.segment_bytes;
    if (is_again) kt_barrier_wait(empty + 8 * slot, parity);
    if (lane == 0) kt_barrier_expect(full + 8 * slot, (uint32_t)(KT_RING_ROWS * bytes));
    __syncwarp();
    if (lane < KT_RING_ROWS) kt_bulk_copy(data + (uint32_t)(slot * a.slot_bytes + lane * pitch), from, (uint32_t)bytes, full + 8 * slot, policy);
    if (++slot == a.slots) slot = 0, parity ^= 1, is_again = true;
  }
};
#endif
#endif

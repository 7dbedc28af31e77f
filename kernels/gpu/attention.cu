/* kt_store_kv, kt_paged_attention.
 * SHAPES       q [tokens, heads, k_dim], caches [pages, kv_heads, page_size, dim] F16, BF16, F32, Q8_0 or F8_E4M3, out [tokens, heads, v_dim]
 * DEFINITION   softmax(q . k * scale over the keys a query sees) . v, in f32; see kt.h for caps, windows, chunks and sinks
 * REGULARITIES dims 64 .. 256, latent attention 576 and 512; heads / kv_heads 1 .. 16, latent attention up to 128 */
#include "async.cuh"
#include "attention.cuh"
#include "products.cuh"

template <int KIND> __device__ __forceinline__ float cached(const char *row, int i) {
  if constexpr (KIND == CACHE_F32) return ((const float *)row)[i];
  else if constexpr (KIND == CACHE_F16) return __half2float(((const __half *)row)[i]);
  else if constexpr (KIND == CACHE_BF16) return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
  else if constexpr (KIND == CACHE_F8) {
    const char *block = row + i / 128 * 132;
    return *(const float *)block * kt_e4m3((uint8_t)block[4 + i % 128]);
  } else {
    const char *block = row + i / 32 * 34;
    return __half2float(*(const __half *)block) * (float)((const int8_t *)block)[2 + i % 32];
  }
}

/* One warp a row of a head. */
__global__ void store_kernel(kt_heads x, const int32_t *slots, cache_view cache, int64_t page_size, int64_t limit, int kind) {
  const int64_t token = blockIdx.x, slot = slots[token];
  if (slot < 0 || slot >= limit) return;
  const int warp = threadIdx.x / KT_WARP, warps = blockDim.x / KT_WARP;
  for (int64_t head = warp; head < x.heads; head += warps) {
    const float *from = x.data + token * x.token_stride + head * x.head_stride;
    char *to = cache.data + slot / page_size * cache.page_stride + head * cache.head_stride + slot % page_size * cache.slot_stride;
    kt_store_row(from, (int)x.dim, kind, to);
  }
}

static kt_status_t kind_of(const char *name, const kt_tensor_t *t, int *kind) {
  *kind = kt_cache_kind(t->dtype);
  return *kind != CACHE_NONE ? KT_OK : KT_INVALID("%s has type %u, expected F16, BF16, F32, Q8_0 or F8_E4M3", name, t->dtype);
}

static kt_status_t check_caches(kt_ctx *ctx, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache, int *kind) {
  KT_TRY(kt_gpu_tensor(ctx, "k_cache", k_cache, 4));
  KT_TRY(kt_gpu_tensor(ctx, "v_cache", v_cache, 4));
  KT_TRY(kind_of("k_cache", k_cache, kind));
  if (v_cache->dtype != k_cache->dtype) return KT_INVALID("v_cache has type %u, k_cache %u", v_cache->dtype, k_cache->dtype);
  for (int i = 0; i < 3; i++) KT_TRY(kt_gpu_size("v_cache", v_cache, i, k_cache->shape[i]));
  if (k_cache->shape[0] * k_cache->shape[2] > INT32_MAX)
    return KT_INVALID("k_cache has %lld pages of %lld: slots must fit 31 bits", (long long)k_cache->shape[0], (long long)k_cache->shape[2]);
  return KT_OK;
}

kt_status_t kt_gpu_store_kv(kt_ctx *ctx, kt_heads k, kt_heads v, const int32_t *slots, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache) {
  int kind = 0;
  KT_TRY(check_caches(ctx, k_cache, v_cache, &kind));
  const int64_t page_size = k_cache->shape[2], limit = k_cache->shape[0] * page_size;
  store_kernel<<<(unsigned)k.tokens, 256, 0, ctx->stream>>>(k, slots, view_of(k_cache), page_size, limit, kind);
  KT_LAUNCHED("store_kv");
  store_kernel<<<(unsigned)v.tokens, 256, 0, ctx->stream>>>(v, slots, view_of(v_cache), page_size, limit, kind);
  KT_LAUNCHED("store_kv");
  return KT_OK;
}

extern "C" kt_status_t kt_store_kv(kt_ctx_t *handle, const kt_tensor_t *k, const kt_tensor_t *v, const kt_tensor_t *slot_mapping,
                                   const kt_tensor_t *k_cache, const kt_tensor_t *v_cache) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "k", k, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "v", v, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "slot_mapping", slot_mapping, 1, KT_I32));
  int kind = 0;
  KT_TRY(check_caches(ctx, k_cache, v_cache, &kind));
  KT_TRY(kt_gpu_size("k", k, 1, k_cache->shape[1]));
  KT_TRY(kt_gpu_size("k", k, 2, k_cache->shape[3]));
  KT_TRY(kt_gpu_size("v", v, 0, k->shape[0]));
  KT_TRY(kt_gpu_size("v", v, 1, k_cache->shape[1]));
  KT_TRY(kt_gpu_size("v", v, 2, v_cache->shape[3]));
  KT_TRY(kt_gpu_size("slot_mapping", slot_mapping, 0, k->shape[0]));
  return kt_gpu_store_kv(ctx, kt_heads_of(k), kt_heads_of(v), (const int32_t *)slot_mapping->data, k_cache, v_cache);
}

#define THREADS 128
#define WARPS (THREADS / KT_WARP)
#define TILE 64
/* Of a sequence: bounds the memory of partial results. */
#define MAX_SEGMENTS 256
#define AT_ONCE 4
#define VALUES_AT_ONCE 8

/* One block: the queries of up to HEADS heads of one token that share a kv head, over a share of its keys. */
template <int KIND, int HEADS, int COLUMNS> __global__ void attention_kernel(const attention_job job) {
  extern __shared__ float q[]; /* [HEADS][k_dim] */
  __shared__ float scores[HEADS][TILE], greatest[HEADS], sums[HEADS], shrink[HEADS], all_greatest[HEADS], all_sums[HEADS];
  __shared__ int sequence_of;
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP;
  const int64_t token = blockIdx.x;
  kt_wait_previous();
  kt_start_next();
  const int kv_head = blockIdx.y / job.chunks, first = blockIdx.y % job.chunks * HEADS;
  const int heads = min(HEADS, job.group - first), head0 = kv_head * job.group + first, k_dim = (int)job.q.dim;
  for (int s = thread; s < job.sequences; s += THREADS)
    if (job.query_start[s] <= token && token < job.query_start[s + 1]) sequence_of = s;
  __syncthreads();
  const sight seen = sight_of(job, sequence_of, token);
  const int sequence = seen.sequence, position = seen.position;
  float scale = job.params.scale;
  if (job.params.temperature_scale != 0)
    scale *= 1.0f + job.params.temperature_scale * logf(1.0f + floorf((float)(position + 1) / job.params.temperature_floor));
  for (int i = thread; i < HEADS * k_dim; i += THREADS) {
    const int g = i / k_dim;
    q[i] = g < heads ? job.q.data[token * job.q.token_stride + (head0 + g) * job.q.head_stride + i % k_dim] * scale : 0.0f;
  }
  if (thread < HEADS) all_greatest[thread] = -INFINITY, all_sums[thread] = 0;
  float acc[HEADS][COLUMNS], all[HEADS][COLUMNS];
#pragma unroll
  for (int g = 0; g < HEADS; g++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) all[g][c] = 0;
  const int32_t *table = job.block_tables + sequence * job.table_stride;
  __syncthreads();
  const int segments = (seen.end - seen.begin + job.segment - 1) / job.segment;
  for (int segment = blockIdx.z; segment < segments; segment += job.splits) {
    const int from = seen.begin + segment * job.segment, until = min(seen.end, from + job.segment);
    if (thread < HEADS) greatest[thread] = -INFINITY, sums[thread] = 0;
#pragma unroll
    for (int g = 0; g < HEADS; g++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) acc[g][c] = 0;
    __syncthreads();
    for (int tile = from; tile < until; tile += TILE) {
      const int count = min(TILE, until - tile);
      /* AT_ONCE keys a warp, whose loads overlap */
      for (int i = AT_ONCE * warp; i < count; i += AT_ONCE * WARPS) {
        const char *row[AT_ONCE];
        float dot[AT_ONCE][HEADS];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
          const int key = min(tile + i + k, until - 1);
          row[k] = job.k.data + table[key / job.page_size] * job.k.page_stride + kv_head * job.k.head_stride + key % job.page_size * job.k.slot_stride;
#pragma unroll
          for (int g = 0; g < HEADS; g++) dot[k][g] = 0;
        }
        for (int c = lane; c < k_dim; c += KT_WARP) {
          float value[AT_ONCE];
#pragma unroll
          for (int k = 0; k < AT_ONCE; k++) value[k] = cached<KIND>(row[k], c);
#pragma unroll
          for (int g = 0; g < HEADS; g++) {
            const float own = q[g * k_dim + c];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) dot[k][g] += own * value[k];
          }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
          for (int g = 0; g < HEADS; g++) {
            float score = kt_warp_sum(dot[k][g]);
            if (job.params.soft_cap != 0) score = job.params.soft_cap * tanhf(score / job.params.soft_cap);
            if (lane == 0) scores[g][i + k] = score;
          }
      }
      __syncthreads();
      for (int g = warp; g < HEADS; g += WARPS) {
        const float a = lane < count ? scores[g][lane] : -INFINITY, b = lane + 32 < count ? scores[g][lane + 32] : -INFINITY;
        const float before = greatest[g], most = fmaxf(before, kt_warp_max(fmaxf(a, b)));
        const float wa = expf(a - most), wb = expf(b - most), sum = kt_warp_sum(wa + wb);
        scores[g][lane] = wa;
        scores[g][lane + 32] = wb;
        __syncwarp(); /* all lanes have read what lane 0 changes */
        if (lane == 0) {
          shrink[g] = expf(before - most);
          sums[g] = sums[g] * shrink[g] + sum;
          greatest[g] = most;
        }
      }
      __syncthreads();
#pragma unroll
      for (int g = 0; g < HEADS; g++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) acc[g][c] *= shrink[g];
      for (int i = 0; i < count; i += VALUES_AT_ONCE) {
        float value[VALUES_AT_ONCE][COLUMNS];
#pragma unroll
        for (int k = 0; k < VALUES_AT_ONCE; k++) {
          const int key = min(tile + i + k, until - 1); /* weighs nothing beyond the last */
          const char *row = job.v.data + table[key / job.page_size] * job.v.page_stride + kv_head * job.v.head_stride + key % job.page_size * job.v.slot_stride;
#pragma unroll
          for (int c = 0; c < COLUMNS; c++) {
            const int column = thread + c * THREADS;
            value[k][c] = column < job.v_dim ? cached<KIND>(row, column) : 0.0f;
          }
        }
#pragma unroll
        for (int k = 0; k < VALUES_AT_ONCE; k++)
#pragma unroll
          for (int g = 0; g < HEADS; g++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) acc[g][c] += scores[g][i + k] * value[k][c];
      }
      __syncthreads();
    }
    if (job.splits > 1) {
      for (int g = 0; g < heads; g++) {
        float *to = job.partials + ((token * job.q.heads + head0 + g) * job.max_segments + segment) * (job.v_dim + 2);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          const int column = thread + c * THREADS;
          float value = 0;
#pragma unroll
          for (int h = 0; h < HEADS; h++)
            if (h == g) value = acc[h][c];
          if (column < job.v_dim) to[column] = value;
        }
        if (thread == 0) to[job.v_dim] = greatest[g], to[job.v_dim + 1] = sums[g];
      }
      __syncthreads();
      continue;
    }
    float most[HEADS];
#pragma unroll
    for (int g = 0; g < HEADS; g++) {
      const join j = join_of(all_greatest[g], greatest[g], &most[g]);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) all[g][c] = joined(all[g][c], acc[g][c], j);
    }
    __syncthreads();
    if (thread < HEADS) {
      float own;
      const join j = join_of(all_greatest[thread], greatest[thread], &own);
      all_sums[thread] = joined(all_sums[thread], sums[thread], j);
      all_greatest[thread] = own;
    }
    __syncthreads();
  }
  if (job.splits > 1) return;
#pragma unroll
  for (int g = 0; g < HEADS; g++) {
    if (g >= heads) break;
    float factor = 1.0f, sum = all_sums[g];
    if (job.sinks != NULL) {
      float most;
      const join j = join_of(all_greatest[g], job.sinks[head0 + g], &most);
      factor = j.before;
      sum = joined(sum, 1.0f, j);
    }
    float *to = job.out + token * job.out_token_stride + (head0 + g) * job.out_head_stride;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      const int column = thread + c * THREADS;
      if (column < job.v_dim) to[column] = __fmul_rn(all[g][c], factor) / sum;
    }
  }
}

/* ---- prompts ---- */
#define FLASH_ROWS 64
#define FLASH_KEYS 64

#if KT_HAS_MMA
/* Flash attention of a prompt's tokens over caches of halves or bf16, by tensor cores: queries and weights of keys in the cache's type, sums in f32. A
 * block has FLASH_ROWS rows, a row a head of a token, all of one kv head and one sequence; a warp has 16 of them. */
template <int DIM, bool BF16> __global__ void __launch_bounds__(THREADS) flash_kernel(const attention_job job) {
  extern __shared__ __align__(128) uint8_t tiles[]; /* keys [FLASH_KEYS][DIM], values [FLASH_KEYS][DIM] */
  constexpr int PIECES = DIM / 8, ROW_BYTES = DIM * 2;
  const uint32_t keys = (uint32_t)__cvta_generic_to_shared(tiles), values = keys + FLASH_KEYS * ROW_BYTES;
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP, kv_head = blockIdx.y;
  const int per_block = FLASH_ROWS / job.group;
  kt_wait_previous();
  kt_start_next();
  /* which sequence's tokens: blocks are counted through the sequences */
  int block = blockIdx.x, sequence = 0, first = 0, count = 0;
  for (; sequence < job.sequences; sequence++) {
    const int from = job.query_start[sequence], length = job.query_start[sequence + 1] - from, blocks = (length + per_block - 1) / per_block;
    if (block < blocks) {
      first = from + block * per_block;
      count = min(per_block, from + length - first);
      break;
    }
    block -= blocks;
  }
  if (count == 0) return;
  const sight head_sight = sight_of(job, sequence, first), tail_sight = sight_of(job, sequence, first + count - 1);
  const int begin = head_sight.begin, end = tail_sight.end;
  /* a thread's two rows */
  sight seen[2];
  const float *from[2];
  float *to[2];
  bool wanted[2];
  int head_of[2];
  uint32_t q[DIM / 16][4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * 16 + half * 8 + lane / 4, token = row / job.group;
    wanted[half] = token < count;
    head_of[half] = kv_head * job.group + row % job.group;
    const int64_t own = first + min(token, count - 1);
    seen[half] = sight_of(job, sequence, own);
    from[half] = job.q.data + own * job.q.token_stride + head_of[half] * job.q.head_stride;
    to[half] = job.out + own * job.out_token_stride + head_of[half] * job.out_head_stride;
    float scale = job.params.scale;
    if (job.params.temperature_scale != 0)
      scale *= 1.0f + job.params.temperature_scale * logf(1.0f + floorf((float)(seen[half].position + 1) / job.params.temperature_floor));
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
      for (int side = 0; side < 2; side++) {
        const int column = 16 * k + 8 * side + lane % 4 * 2;
        q[k][2 * side + half] = halves<BF16>(from[half][column] * scale, from[half][column + 1] * scale);
      }
  }
  const int32_t *table = job.block_tables + sequence * job.table_stride;
  const auto fetch = [&](const cache_view &cache, uint32_t target, int tile) {
    if (tile < end)
      for (int i = thread; i < FLASH_KEYS * PIECES; i += THREADS) {
        const int row = i / PIECES, piece = i % PIECES, key = min(tile + row, end - 1);
        const char *at = cache.data + table[key / job.page_size] * cache.page_stride + kv_head * cache.head_stride + key % job.page_size * cache.slot_stride;
        copy_async16(target + row * ROW_BYTES + ((piece ^ (row & 7)) << 4), at + piece * 16);
      }
    commit_copies();
  };
  float out[DIM / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < DIM / 8; n++)
#pragma unroll
    for (int k = 0; k < 4; k++) out[n][k] = 0;
  fetch(job.k, keys, begin);
  fetch(job.v, values, begin);
  for (int tile = begin; tile < end; tile += FLASH_KEYS) {
    float scores[FLASH_KEYS / 8][4];
#pragma unroll
    for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
      for (int k = 0; k < 4; k++) scores[n][k] = 0;
    wait_copies<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
      for (int n = 0; n < FLASH_KEYS / 16; n++) {
        const int row = 16 * n + lane % 8 + lane / 16 * 8, piece = 2 * k + lane / 8 % 2;
        uint32_t b[4];
        kt_load_matrix(b, keys + row * ROW_BYTES + ((piece ^ (row & 7)) << 4));
        multiply_halves<BF16>(scores[2 * n], q[k], b[0], b[1]);
        multiply_halves<BF16>(scores[2 * n + 1], q[k], b[2], b[3]);
      }
    __syncthreads();
    fetch(job.k, keys, tile + FLASH_KEYS);
    float joined[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int key = tile + 8 * n + lane % 4 * 2 + k % 2, half = k / 2;
        float score = scores[n][k];
        if (job.params.soft_cap != 0) score = job.params.soft_cap * tanhf(score / job.params.soft_cap);
        scores[n][k] = key >= seen[half].begin && key < seen[half].end ? score : -INFINITY;
        joined[half] = fmaxf(joined[half], scores[n][k]);
      }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      joined[half] = fmaxf(joined[half], __shfl_xor_sync(KT_FULL_MASK, joined[half], 1));
      joined[half] = fmaxf(joined[half], __shfl_xor_sync(KT_FULL_MASK, joined[half], 2));
      /* a row that saw no key yet has nothing to shrink */
      const float base = joined[half] == -INFINITY ? 0.0f : joined[half], shrink = __expf(most[half] - base);
      most[half] = joined[half];
      joined[half] = base;
      sum[half] *= shrink;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) out[n][2 * half] *= shrink, out[n][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        scores[n][k] = __expf(scores[n][k] - joined[k / 2]);
        sum[k / 2] += scores[n][k];
      }
    wait_copies<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < FLASH_KEYS / 16; k++) {
      const uint32_t a[4] = {halves<BF16>(scores[2 * k][0], scores[2 * k][1]), halves<BF16>(scores[2 * k][2], scores[2 * k][3]),
                             halves<BF16>(scores[2 * k + 1][0], scores[2 * k + 1][1]), halves<BF16>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < DIM / 16; n++) {
        const int row = 16 * k + lane % 8 + lane / 8 % 2 * 8, piece = 2 * n + lane / 16;
        uint32_t b[4];
        kt_load_transposed(b, values + row * ROW_BYTES + ((piece ^ (row & 7)) << 4));
        multiply_halves<BF16>(out[2 * n], a, b[0], b[1]);
        multiply_halves<BF16>(out[2 * n + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
    fetch(job.v, values, tile + FLASH_KEYS);
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = sum[half];
    total += __shfl_xor_sync(KT_FULL_MASK, total, 1);
    total += __shfl_xor_sync(KT_FULL_MASK, total, 2);
    float factor = 1.0f;
    if (job.sinks != NULL) {
      float all;
      const join j = join_of(most[half], job.sinks[head_of[half]], &all);
      factor = j.before;
      total = total * factor + j.after;
    }
    if (!wanted[half]) continue;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) {
      const int column = 8 * n + lane % 4 * 2;
      to[half][column] = out[n][2 * half] * factor / total;
      to[half][column + 1] = out[n][2 * half + 1] * factor / total;
    }
  }
}

/* ---- steps ---- */
#define STEP_KEYS 16 /* a warp has at once */
#define STEP_TILE (STEP_KEYS * WARPS)
#define STEP_SEGMENT (2 * STEP_TILE)
#define STEP_SEGMENTS 32 /* at most: of more keys segments are longer */
#define STEP_HEADS 16

struct step_job {
  attention_job job;
  uint32_t *arrived; /* [tokens][kv_heads], zeros between launches */
};

/* The same of single tokens: a block has the heads of a kv head over shares of its keys, segment by segment as above; the last of the blocks
 * of a token's head adds the segments up in their order. */
template <int DIM, bool BF16> __global__ void __launch_bounds__(THREADS) step_kernel(const __grid_constant__ step_job step) {
  extern __shared__ __align__(128) uint8_t tiles[]; /* of each warp keys [STEP_KEYS][DIM], values [STEP_KEYS][DIM]; sums [WARPS][heads][DIM] */
  constexpr int PIECES = DIM / 8, ROW_BYTES = DIM * 2, STRIDE = DIM + 2, ROWS_AT_ONCE = KT_WARP / PIECES;
  __shared__ float2 parts[WARPS][STEP_HEADS]; /* greatest score, sum of weights */
  __shared__ float factors[STEP_HEADS][STEP_SEGMENTS], totals[STEP_HEADS];
  __shared__ int sequence_of;
  __shared__ bool is_last;
  const attention_job &job = step.job;
  const int thread = threadIdx.x, warp = thread / KT_WARP, lane = thread % KT_WARP, row = lane / 4, kv_head = blockIdx.y, head0 = kv_head * job.group;
  const int64_t token = blockIdx.x;
  const uint32_t keys = (uint32_t)__cvta_generic_to_shared(tiles) + (uint32_t)(warp * 2 * STEP_KEYS * ROW_BYTES), values = keys + STEP_KEYS * ROW_BYTES;
  float *sums = (float *)(tiles + WARPS * 2 * STEP_KEYS * ROW_BYTES);
  kt_start_next();
  for (int s = thread; s < job.sequences; s += THREADS)
    if (job.query_start[s] <= token && token < job.query_start[s + 1]) sequence_of = s;
  __syncthreads();
  const int sequence = sequence_of;
  const sight seen = sight_of(job, sequence, token);
  const int length = (seen.end - seen.begin + STEP_SEGMENTS * STEP_SEGMENT - 1) / (STEP_SEGMENTS * STEP_SEGMENT) * STEP_SEGMENT;
  const int segments = length == 0 ? 0 : (seen.end - seen.begin + length - 1) / length, blocks = min(job.splits, segments);
  if ((int)blockIdx.z >= max(blocks, 1)) return;
  /* lengths and tables came by copies, which no launch overtakes; queries and keys are of the kernel ahead */
  kt_wait_previous();
  const int32_t *table = job.block_tables + sequence * job.table_stride;
  const auto fetch = [&](const cache_view &cache, uint32_t target, int tile) {
    if (tile < seen.end) {
      const int key = min(tile + warp * STEP_KEYS + lane % STEP_KEYS, seen.end - 1);
      const int64_t own = table[key / job.page_size] * cache.page_stride + kv_head * cache.head_stride + key % job.page_size * cache.slot_stride;
#pragma unroll
      for (int i = 0; i < STEP_KEYS; i += ROWS_AT_ONCE) {
        const int at = i + lane / PIECES, piece = lane % PIECES;
        copy_async16(target + at * ROW_BYTES + ((piece ^ (at & 7)) << 4), cache.data + __shfl_sync(KT_FULL_MASK, own, at) + piece * 16);
      }
    }
    commit_copies();
  };
  int segment = blockIdx.z, tile = seen.begin + segment * length;
  fetch(job.k, keys, tile);
  fetch(job.v, values, tile);
  uint32_t q[DIM / 16][4];
  float scale = job.params.scale;
  if (job.params.temperature_scale != 0)
    scale *= 1.0f + job.params.temperature_scale * logf(1.0f + floorf((float)(seen.position + 1) / job.params.temperature_floor));
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float *from = job.q.data + token * job.q.token_stride + (head0 + row + 8 * half) * job.q.head_stride + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < DIM / 8; k++) {
      const float2 v = row + 8 * half < job.group ? __ldcg((const float2 *)(from + 8 * k)) : make_float2(0, 0);
      q[k / 2][2 * (k % 2) + half] = halves<BF16>(v.x * scale, v.y * scale);
    }
  }
  while (segment < segments) {
    const int until = min(seen.end, seen.begin + (segment + 1) * length);
    float out[DIM / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < DIM / 8; n++) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0;
    for (bool is_whole = false; !is_whole;) {
      const int next = tile + STEP_TILE < until ? tile + STEP_TILE : segment + job.splits < segments ? seen.begin + (segment + job.splits) * length : seen.end;
      float scores[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
      wait_copies<1>();
      __syncwarp();
#pragma unroll
      for (int k = 0; k < DIM / 16; k++) {
        const int at = lane % 8 + lane / 16 * 8, piece = 2 * k + lane / 8 % 2;
        uint32_t b[4];
        kt_load_matrix(b, keys + at * ROW_BYTES + ((piece ^ (at & 7)) << 4));
        multiply_halves<BF16>(scores[0], q[k], b[0], b[1]);
        multiply_halves<BF16>(scores[1], q[k], b[2], b[3]);
      }
      __syncwarp();
      fetch(job.k, keys, next);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float greatest = most[half];
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const int key = tile + warp * STEP_KEYS + k / 2 * 8 + lane % 4 * 2 + k % 2;
          float &score = scores[k / 2][2 * half + k % 2];
          if (job.params.soft_cap != 0) score = job.params.soft_cap * tanhf(score / job.params.soft_cap);
          if (key >= until) score = -INFINITY;
          greatest = fmaxf(greatest, score);
        }
        greatest = fmaxf(greatest, __shfl_xor_sync(KT_FULL_MASK, greatest, 1));
        greatest = fmaxf(greatest, __shfl_xor_sync(KT_FULL_MASK, greatest, 2));
        const float base = greatest == -INFINITY ? 0.0f : greatest, shrink = __expf(most[half] - base);
        most[half] = greatest;
        sum[half] *= shrink;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) out[n][2 * half] *= shrink, out[n][2 * half + 1] *= shrink;
#pragma unroll
        for (int k = 0; k < 4; k++) {
          float &score = scores[k / 2][2 * half + k % 2];
          score = __expf(score - base);
          sum[half] += score;
        }
      }
      const uint32_t a[4] = {halves<BF16>(scores[0][0], scores[0][1]), halves<BF16>(scores[0][2], scores[0][3]), halves<BF16>(scores[1][0], scores[1][1]), halves<BF16>(scores[1][2], scores[1][3])};
      wait_copies<1>();
      __syncwarp();
#pragma unroll
      for (int n = 0; n < DIM / 16; n++) {
        const int at = lane % 8 + lane / 8 % 2 * 8, piece = 2 * n + lane / 16;
        uint32_t b[4];
        kt_load_transposed(b, values + at * ROW_BYTES + ((piece ^ (at & 7)) << 4));
        multiply_halves<BF16>(out[2 * n], a, b[0], b[1]);
        multiply_halves<BF16>(out[2 * n + 1], a, b[2], b[3]);
      }
      __syncwarp();
      fetch(job.v, values, next);
      is_whole = tile + STEP_TILE >= until;
      tile = next;
    }
    /* the warps' sums */
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(KT_FULL_MASK, sum[half], 1);
      sum[half] += __shfl_xor_sync(KT_FULL_MASK, sum[half], 2);
      if (lane % 4 == 0) parts[warp][row + 8 * half] = make_float2(most[half], sum[half]);
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int own = row + 8 * half;
      if (own >= job.group) continue;
      float all = parts[0][own].x;
#pragma unroll
      for (int w = 1; w < WARPS; w++) all = fmaxf(all, parts[w][own].x);
      const float factor = __expf(most[half] - all);
      float *to = sums + (warp * job.group + own) * DIM + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < DIM / 8; n++) *(float2 *)(to + 8 * n) = make_float2(out[n][2 * half] * factor, out[n][2 * half + 1] * factor);
    }
    __syncthreads();
    for (int i = thread; i < job.group * DIM; i += THREADS) {
      const int own = i / DIM, column = i % DIM;
      float all = parts[0][own].x, weight = 0, value = 0;
#pragma unroll
      for (int w = 1; w < WARPS; w++) all = fmaxf(all, parts[w][own].x);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        weight += parts[w][own].y * __expf(parts[w][own].x - all);
        value += sums[w * job.group * DIM + i];
      }
      if (segments > 1) {
        float *to = job.partials + ((token * job.q.heads + head0 + own) * job.max_segments + segment) * STRIDE;
        __stcg(to + column, value);
        if (column == 0) __stcg((float2 *)(to + DIM), make_float2(all, weight));
        continue;
      }
      float factor = 1.0f;
      if (job.sinks != NULL) {
        const join j = join_of(all, job.sinks[head0 + own], &all);
        factor = j.before;
        weight = joined(weight, 1.0f, j);
      }
      job.out[token * job.out_token_stride + (head0 + own) * job.out_head_stride + column] = __fmul_rn(value, factor) / weight;
    }
    segment += job.splits;
    __syncthreads();
  }
  if (segments == 1) return;
  if (blocks > 1) {
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      uint32_t *arrived = step.arrived + token * job.kv_heads + kv_head;
      is_last = atomicAdd(arrived, 1u) + 1 == (uint32_t)blocks;
      if (is_last) *arrived = 0;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
  }
  const float *from = job.partials + (token * job.q.heads + head0) * job.max_segments * STRIDE;
  for (int own = warp; own < job.group; own += WARPS) {
    const float2 part = lane < segments ? __ldcg((const float2 *)(from + (own * job.max_segments + lane) * STRIDE + DIM)) : make_float2(-INFINITY, 0);
    float most = kt_warp_max(part.x);
    if (job.sinks != NULL) most = fmaxf(most, job.sinks[head0 + own]);
    const float factor = expf(part.x - most);
    float total = kt_warp_sum(part.y * factor);
    if (job.sinks != NULL) total += expf(job.sinks[head0 + own] - most);
    factors[own][lane] = factor;
    if (lane == 0) totals[own] = total;
  }
  __syncthreads();
  for (int i = thread; i < job.group * DIM; i += THREADS) {
    const int own = i / DIM, column = i % DIM;
    float value = 0;
#pragma unroll 8
    for (int s = 0; s < segments; s++) value += factors[own][s] * __ldcg(from + (own * job.max_segments + s) * STRIDE + column);
    job.out[token * job.out_token_stride + (head0 + own) * job.out_head_stride + column] = value / totals[own];
  }
}

/* Fewer tokens are better divided among blocks by their keys. */
#define FLASH_TOKENS 32

static bool takes_halves(kt_ctx *ctx, const attention_job &job, int kind) {
  if (ctx->precision != KT_PRECISION_FAST || (kind != CACHE_F16 && kind != CACHE_BF16)) return false;
  if (job.q.dim != job.v_dim || (job.v_dim != 64 && job.v_dim != 128) || job.group > (job.q.tokens < FLASH_TOKENS ? STEP_HEADS : FLASH_ROWS)) return false;
  const int64_t apart = job.k.page_stride | job.k.head_stride | job.k.slot_stride | job.v.page_stride | job.v.head_stride | job.v.slot_stride;
  if (((uintptr_t)job.q.data | (uintptr_t)(4 * (job.q.token_stride | job.q.head_stride))) % 8 != 0) return false;
  return (((uintptr_t)job.k.data | (uintptr_t)job.v.data | (uintptr_t)apart) & 15) == 0;
}

template <int DIM, bool BF16> static kt_status_t launch_flash(kt_ctx *ctx, const attention_job &job) {
  const int shared = 2 * FLASH_KEYS * DIM * 2;
  const auto kernel = flash_kernel<DIM, BF16>;
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const int64_t blocks = kt_div_up(job.q.tokens, FLASH_ROWS / job.group) + job.sequences;
  return kt_launch_early(ctx, kernel, dim3((unsigned)blocks, (unsigned)job.kv_heads), dim3(THREADS), (size_t)shared, job);
}

template <int DIM, bool BF16> static kt_status_t launch_step(kt_ctx *ctx, const attention_job &job) {
  step_job step = {job, NULL};
  attention_job &own = step.job;
  const int64_t segments = kt_div_up(job.max_keys, STEP_SEGMENT);
  own.max_segments = (int)(segments < STEP_SEGMENTS ? segments : STEP_SEGMENTS);
  const int64_t blocks = job.q.tokens * job.kv_heads, room = kt_div_up(4 * ctx->multiprocessors, blocks);
  own.splits = (int)(room < own.max_segments ? room : own.max_segments);
  if (own.max_segments > 1) {
    void *partials = NULL;
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, job.q.tokens * job.q.heads * own.max_segments * (DIM + 2) * 4, &partials));
    own.partials = (float *)partials;
    KT_TRY(kt_gpu_counters(ctx, blocks, &step.arrived));
  }
  const int shared = WARPS * (2 * STEP_KEYS * DIM * 2 + job.group * DIM * 4);
  const auto kernel = step_kernel<DIM, BF16>;
  KT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, WARPS * (2 * STEP_KEYS * DIM * 2 + STEP_HEADS * DIM * 4)));
  return kt_launch_early(ctx, kernel, dim3((unsigned)job.q.tokens, (unsigned)job.kv_heads, (unsigned)own.splits), dim3(THREADS), (size_t)shared, step);
}

template <int DIM, bool BF16> static kt_status_t launch_halves(kt_ctx *ctx, const attention_job &job) {
  return job.q.tokens < FLASH_TOKENS ? launch_step<DIM, BF16>(ctx, job) : launch_flash<DIM, BF16>(ctx, job);
}
#endif

/* One block a head of a token: its segments in their order. */
__global__ void combine_kernel(const attention_job job) {
  __shared__ int sequence_of;
  const int64_t token = blockIdx.x, head = blockIdx.y, stride = job.v_dim + 2;
  kt_wait_previous();
  kt_start_next();
  for (int s = threadIdx.x; s < job.sequences; s += blockDim.x)
    if (job.query_start[s] <= token && token < job.query_start[s + 1]) sequence_of = s;
  __syncthreads();
  const sight seen = sight_of(job, sequence_of, token);
  const int segments = (seen.end - seen.begin + job.segment - 1) / job.segment;
  const float *from = job.partials + (token * job.q.heads + head) * job.max_segments * stride;
  float *to = job.out + token * job.out_token_stride + head * job.out_head_stride;
  for (int c = threadIdx.x; c < job.v_dim; c += blockDim.x) {
    float most = -INFINITY, sum = 0, value = 0, factor = 1.0f;
    for (int s = 0; s < segments; s++) {
      const join j = join_of(most, from[s * stride + job.v_dim], &most);
      sum = joined(sum, from[s * stride + job.v_dim + 1], j);
      value = joined(value, from[s * stride + c], j);
    }
    if (job.sinks != NULL) {
      const join j = join_of(most, job.sinks[head], &most);
      factor = j.before;
      sum = joined(sum, 1.0f, j);
    }
    to[c] = __fmul_rn(value, factor) / sum;
  }
}

template <int KIND, int HEADS> static kt_status_t launch_columns(kt_ctx *ctx, const attention_job &job, dim3 grid) {
  const size_t shared = sizeof(float) * HEADS * job.q.dim;
  void (*kernel)(const attention_job) = job.v_dim <= THREADS ? attention_kernel<KIND, HEADS, 1> : job.v_dim <= 2 * THREADS ? attention_kernel<KIND, HEADS, 2> : attention_kernel<KIND, HEADS, 4>;
  return kt_launch_early(ctx, kernel, grid, dim3(THREADS), shared, job);
}

template <int KIND> static kt_status_t launch(kt_ctx *ctx, const attention_job &job, dim3 grid, int heads) {
  switch (heads) {
    case 1: return launch_columns<KIND, 1>(ctx, job, grid);
    case 2: return launch_columns<KIND, 2>(ctx, job, grid);
    case 4: return launch_columns<KIND, 4>(ctx, job, grid);
    default: return launch_columns<KIND, 8>(ctx, job, grid);
  }
}

extern "C" kt_status_t kt_paged_attention(kt_ctx_t *handle, const kt_tensor_t *q, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache,
                                          const kt_tensor_t *block_tables, const kt_tensor_t *query_start, const kt_tensor_t *seq_lens,
                                          const kt_tensor_t *sinks, const kt_attention_params_t *params, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (params == NULL) return KT_INVALID("params are NULL");
  if (params->struct_size < sizeof *params) return KT_INVALID("params.struct_size is %u", params->struct_size);
  KT_TRY(kt_gpu_typed(ctx, "q", q, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "block_tables", block_tables, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "query_start", query_start, 1, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "seq_lens", seq_lens, 1, KT_I32));
  int kind = 0;
  KT_TRY(check_caches(ctx, k_cache, v_cache, &kind));
  const int64_t tokens = q->shape[0], heads = q->shape[1], kv_heads = k_cache->shape[1], v_dim = v_cache->shape[3];
  KT_TRY(kt_gpu_size("k_cache", k_cache, 3, q->shape[2]));
  if (heads % kv_heads != 0) return KT_INVALID("q has %lld heads, the cache %lld", (long long)heads, (long long)kv_heads);
  if (v_dim > 4 * THREADS || q->shape[2] > 1024)
    return kt_gpu_fail(KT_ERR_UNSUPPORTED, "heads of %lld and %lld values, at most 1024 and %d", (long long)q->shape[2], (long long)v_dim, 4 * THREADS);
  KT_TRY(kt_gpu_size("out", out, 0, tokens));
  KT_TRY(kt_gpu_size("out", out, 1, heads));
  KT_TRY(kt_gpu_size("out", out, 2, v_dim));
  KT_TRY(kt_gpu_size("block_tables", block_tables, 0, seq_lens->shape[0]));
  KT_TRY(kt_gpu_size("query_start", query_start, 0, seq_lens->shape[0] + 1));
  if (params->bidirectional > 1) return KT_INVALID("bidirectional is %u", params->bidirectional);
  if (params->bidirectional && (params->sliding_window != 0 || params->chunk_size != 0)) return KT_INVALID("bidirectional attention has no window and no chunks");
  if (params->sliding_window < 0 || params->chunk_size < 0)
    return KT_INVALID("sliding_window is %d, chunk_size %d", params->sliding_window, params->chunk_size);
  if (params->temperature_scale != 0 && !(params->temperature_floor > 0)) return KT_INVALID("temperature_floor is %g", (double)params->temperature_floor);
  attention_job job = {};
  KT_TRY(kt_gpu_vector(ctx, "sinks", sinks, heads, &job.sinks));
  job.q = {(float *)q->data, tokens, heads, q->shape[2], q->stride[0] / 4, q->stride[1] / 4};
  job.k = view_of(k_cache);
  job.v = view_of(v_cache);
  job.block_tables = (const int32_t *)block_tables->data;
  job.query_start = (const int32_t *)query_start->data;
  job.seq_lens = (const int32_t *)seq_lens->data;
  job.table_stride = block_tables->stride[0] / 4;
  job.out = (float *)out->data;
  job.out_token_stride = out->stride[0] / 4;
  job.out_head_stride = out->stride[1] / 4;
  job.sequences = (int)seq_lens->shape[0];
  job.page_size = (int)k_cache->shape[2];
  job.kv_heads = (int)kv_heads;
  job.group = (int)(heads / kv_heads);
  job.v_dim = (int)v_dim;
  job.params = *params;
  job.pages = k_cache->shape[0];
  job.max_keys = block_tables->shape[1] * job.page_size;
#if KT_HAS_MMA
  if ((kind == CACHE_F16 || kind == CACHE_BF16) && kt_gpu_takes_mla(ctx, job)) return kt_gpu_mla(ctx, job, kind == CACHE_BF16);
  if (takes_halves(ctx, job, kind)) {
    if (kind == CACHE_BF16) return job.v_dim == 64 ? launch_halves<64, true>(ctx, job) : launch_halves<128, true>(ctx, job);
    return job.v_dim == 64 ? launch_halves<64, false>(ctx, job) : launch_halves<128, false>(ctx, job);
  }
#endif
  const int per_block = job.group >= 8 ? 8 : job.group >= 3 ? 4 : job.group;
  job.chunks = (int)kt_div_up(job.group, per_block);
  /* The lengths lie on the device: blocks for the longest that may be, of which short sequences leave some without work. */
  const int64_t blocks = tokens * kv_heads * job.chunks, longest = job.max_keys;
  job.segment = (int)(kt_div_up(longest, (int64_t)MAX_SEGMENTS * TILE) * TILE);
  job.max_segments = (int)kt_div_up(longest, job.segment);
  int64_t splits = kt_div_up(4 * ctx->multiprocessors, blocks);
  if (splits > job.max_segments) splits = job.max_segments;
  job.splits = blocks >= 2 * ctx->multiprocessors || splits < 2 ? 1 : (int)splits;
  if (job.splits > 1) {
    void *partials = NULL;
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, tokens * heads * job.max_segments * (v_dim + 2) * 4, &partials));
    job.partials = (float *)partials;
  }
  const dim3 grid((unsigned)tokens, (unsigned)(kv_heads * job.chunks), (unsigned)job.splits);
  switch (kind) {
    case CACHE_F32: KT_TRY(launch<CACHE_F32>(ctx, job, grid, per_block)); break;
    case CACHE_F16: KT_TRY(launch<CACHE_F16>(ctx, job, grid, per_block)); break;
    case CACHE_BF16: KT_TRY(launch<CACHE_BF16>(ctx, job, grid, per_block)); break;
    case CACHE_F8: KT_TRY(launch<CACHE_F8>(ctx, job, grid, per_block)); break;
    default: KT_TRY(launch<CACHE_Q8_0>(ctx, job, grid, per_block)); break;
  }
  if (job.splits > 1) return kt_launch_early(ctx, combine_kernel, dim3((unsigned)tokens, (unsigned)heads), dim3(128), 0, job);
  return KT_OK;
}

/* Latent attention of kt_paged_attention on Hopper.
 * SHAPES       q [tokens, heads, 576] f32, cache [pages, 1, page_size, 576] f16 whose first 512 values are the values, out [tokens, heads, 512]
 * DEFINITION   as kt_paged_attention; queries and weights of keys in half, sums in f32
 * REGULARITIES 16 .. 128 heads share all keys. A block has 64 rows, each a head of a token of one sequence; its two groups of four warps
 *              compute the same scores and half of the columns each, so that they need not wait for each other; a warp of its own has
 *              pages copied. One copy of a tile serves as keys and as values. Long sequences are divided among blocks, whose results combine_kernel joins */
#include "attention.cuh"
#if KT_HAS_MMA
#include <cuda.h>

#define K_DIM 576
#define V_DIM 512
#define ROWS 64
#define KEYS 64
#define GROUP_THREADS 128
#define CONSUMERS (2 * GROUP_THREADS)
#define THREADS (CONSUMERS + GROUP_THREADS) /* groups of warps have their registers in common */
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define STAGES 2
#define BLOCK_BYTES (64 * 128)               /* 64 rows of 64 halves */
#define TILE_BYTES (K_DIM / 64 * BLOCK_BYTES) /* 64 rows of 576 */
#define SHARED_BYTES ((1 + STAGES) * TILE_BYTES + 1024 + 64)

/* Where 16 bytes of a row lie: blocks of 64 columns one behind the other, in each the pieces of a row shuffled as the tensor cores
 * expect it of rows of 128 bytes. */
__device__ __forceinline__ uint32_t place_of(int row, int piece) { return (uint32_t)(piece / 8 * BLOCK_BYTES + row * 128 + ((piece % 8 ^ row % 8) << 4)); }

/* A matrix in shared memory: `apart` bytes between blocks of 64 columns (of values alone), 1024 between groups of eight rows. */
__device__ __forceinline__ uint64_t matrix_at(uint32_t address, uint32_t apart) {
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(apart >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

struct mla_job {
  attention_job a;
  int per_block, head_blocks, splits; /* tokens of a block, blocks of a token */
  float *partials;                    /* [tokens][heads][splits][V_DIM + 2] */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void wait_for(uint32_t barrier, uint32_t parity) {
  asm volatile("{\n.reg .pred done;\nagain: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ float exp2_of(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* c [64 x 64] (+)= rows of a . rows of b, 16 columns. */
__device__ __forceinline__ void multiply_keys(float (&c)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
      : "l"(a), "l"(b), "r"(add));
}

/* c [64 x 256] += a . b, a 16 columns of weights in registers, b 16 rows of values. */
__device__ __forceinline__ void multiply_values(float (&c)[128], const uint32_t *a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63]),
        "+f"(c[64]), "+f"(c[65]), "+f"(c[66]), "+f"(c[67]), "+f"(c[68]), "+f"(c[69]), "+f"(c[70]), "+f"(c[71]),
        "+f"(c[72]), "+f"(c[73]), "+f"(c[74]), "+f"(c[75]), "+f"(c[76]), "+f"(c[77]), "+f"(c[78]), "+f"(c[79]),
        "+f"(c[80]), "+f"(c[81]), "+f"(c[82]), "+f"(c[83]), "+f"(c[84]), "+f"(c[85]), "+f"(c[86]), "+f"(c[87]),
        "+f"(c[88]), "+f"(c[89]), "+f"(c[90]), "+f"(c[91]), "+f"(c[92]), "+f"(c[93]), "+f"(c[94]), "+f"(c[95]),
        "+f"(c[96]), "+f"(c[97]), "+f"(c[98]), "+f"(c[99]), "+f"(c[100]), "+f"(c[101]), "+f"(c[102]), "+f"(c[103]),
        "+f"(c[104]), "+f"(c[105]), "+f"(c[106]), "+f"(c[107]), "+f"(c[108]), "+f"(c[109]), "+f"(c[110]), "+f"(c[111]),
        "+f"(c[112]), "+f"(c[113]), "+f"(c[114]), "+f"(c[115]), "+f"(c[116]), "+f"(c[117]), "+f"(c[118]), "+f"(c[119]),
        "+f"(c[120]), "+f"(c[121]), "+f"(c[122]), "+f"(c[123]), "+f"(c[124]), "+f"(c[125]), "+f"(c[126]), "+f"(c[127])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#endif

__global__ void __launch_bounds__(THREADS, 1) mla_kernel(const mla_job m, const __grid_constant__ CUtensorMap pages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t memory[];
  const attention_job &job = m.a;
  const uint32_t base = ((uint32_t)__cvta_generic_to_shared(memory) + 1023) & ~1023u, barriers = base + (1 + STAGES) * TILE_BYTES;
  const int thread = threadIdx.x, lane = thread % KT_WARP;
  const int head0 = blockIdx.y * ROWS, heads = min(ROWS, job.group - head0);
  /* which sequence's tokens: blocks are counted through the sequences */
  int block = blockIdx.x, sequence = 0, first = 0, count = 0;
  for (; sequence < job.sequences; sequence++) {
    const int from = job.query_start[sequence], length = job.query_start[sequence + 1] - from, blocks = (length + m.per_block - 1) / m.per_block;
    if (block < blocks) {
      first = from + block * m.per_block;
      count = min(m.per_block, from + length - first);
      break;
    }
    block -= blocks;
  }
  if (count == 0) return;
  /* tiles begin at whole pages */
  const int begin_all = sight_of(job, sequence, first).begin / KEYS * KEYS, end_all = sight_of(job, sequence, first + count - 1).end;
  const int tiles = (end_all - begin_all + KEYS - 1) / KEYS, each = (tiles + m.splits - 1) / m.splits;
  const int begin = begin_all + (int)blockIdx.z * each * KEYS, end = min(end_all, begin + each * KEYS);
  if (thread == 0) {
    for (int stage = 0; stage < STAGES; stage++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + 16 * stage) : "memory");                             /* copied */
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barriers + 16 * stage + 8), "r"(CONSUMERS / KT_WARP) : "memory"); /* read */
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  /* queries, zeros where there is no row; in base 2 */
  for (int i = thread; i < ROWS * (K_DIM / 8); i += THREADS) {
    const int row = i / (K_DIM / 8), piece = i % (K_DIM / 8), token = row / heads, head = head0 + row % heads;
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (token < count) {
      float scale = job.params.scale * LOG2_E;
      if (job.params.temperature_scale != 0)
        scale *= 1.0f + job.params.temperature_scale * logf(1.0f + floorf((float)(sight_of(job, sequence, first + token).position + 1) / job.params.temperature_floor));
      const float *from = job.q.data + (first + token) * job.q.token_stride + head * job.q.head_stride + piece * 8;
      packed = make_uint4(halves(from[0] * scale, from[1] * scale), halves(from[2] * scale, from[3] * scale), halves(from[4] * scale, from[5] * scale),
                          halves(from[6] * scale, from[7] * scale));
    }
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(base + place_of(row, piece)), "r"(packed.x), "r"(packed.y), "r"(packed.z), "r"(packed.w));
  }
  asm volatile("fence.proxy.async;" ::: "memory"); /* the tensor cores see what was written */
  __syncthreads();
  if (thread >= CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (thread != CONSUMERS) return;
    const int32_t *table = job.block_tables + sequence * job.table_stride;
    const int rows = min(job.page_size, KEYS); /* of one copy */
    int stage = 0, round = 0;
    for (int tile = begin; tile < end; tile += KEYS) {
      const uint32_t copied = barriers + 16 * stage, to = base + (1 + stage) * TILE_BYTES;
      const int copies = (min(KEYS, end - tile) + rows - 1) / rows;
      if (round > 0) wait_for(copied + 8, (round - 1) & 1);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(copied), "r"(copies * rows * K_DIM * 2) : "memory");
      for (int i = 0; i < copies; i++) {
        const int key = tile + i * rows, page = table[key / job.page_size], row = key % job.page_size;
        for (int column = 0; column < K_DIM / 64; column++)
          asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                           to + column * BLOCK_BYTES + i * rows * 128),
                       "l"(&pages), "r"(column * 64), "r"(row), "r"(page), "r"(copied)
                       : "memory");
      }
      if (++stage == STAGES) stage = 0, round++;
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int half_of_columns = thread / GROUP_THREADS, warp = thread % GROUP_THREADS / KT_WARP;
  /* a thread's two rows */
  sight seen[2];
  bool wanted[2];
  int64_t row_token[2];
  int row_head[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * 16 + half * 8 + lane / 4, token = row / heads;
    wanted[half] = token < count;
    row_token[half] = first + min(token, count - 1);
    row_head[half] = head0 + row % heads;
    seen[half] = sight_of(job, sequence, row_token[half]);
    seen[half].end = min(seen[half].end, end);
  }
  const int all_from = sight_of(job, sequence, first + count - 1).begin, all_until = min(end, sight_of(job, sequence, first).end); /* keys that all rows see */
  float out[128], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 128; i++) out[i] = 0;
  int stage = 0, round = 0;
  for (int tile = begin; tile < end; tile += KEYS) {
    const uint32_t keys = base + (1 + stage) * TILE_BYTES, copied = barriers + 16 * stage;
    wait_for(copied, round & 1);
    if (tile + KEYS > end) {
      /* what lies behind the last key is nobody's: weights of 0 do not make it 0 */
      for (int i = (end - tile) * (K_DIM / 8) + thread; i < KEYS * (K_DIM / 8); i += CONSUMERS)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(keys + place_of(i / (K_DIM / 8), i % (K_DIM / 8))), "r"(0));
      asm volatile("fence.proxy.async;" ::: "memory");
      asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
    }
    float scores[32];
    begin_products();
#pragma unroll
    for (int k = 0; k < K_DIM / 16; k++) {
      const uint32_t at = k / 4 * BLOCK_BYTES + k % 4 * 32;
      multiply_keys(scores, matrix_at(base + at, 16), matrix_at(keys + at, 16), k > 0);
    }
    end_products();
    if (job.params.soft_cap != 0)
#pragma unroll
      for (int i = 0; i < 32; i++) scores[i] = job.params.soft_cap * LOG2_E * tanhf(scores[i] * (LN_2 / job.params.soft_cap));
    if (tile < all_from || tile + KEYS > all_until)
#pragma unroll
      for (int i = 0; i < 32; i++) {
        const int key = tile + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i / 2 % 2;
        if (key < seen[half].begin || key >= seen[half].end) scores[i] = -INFINITY;
      }
    float joined[2] = {most[0], most[1]}, shrink[2];
#pragma unroll
    for (int i = 0; i < 32; i++) joined[i / 2 % 2] = fmaxf(joined[i / 2 % 2], scores[i]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      joined[half] = fmaxf(joined[half], __shfl_xor_sync(KT_FULL_MASK, joined[half], 1));
      joined[half] = fmaxf(joined[half], __shfl_xor_sync(KT_FULL_MASK, joined[half], 2));
      /* a row that saw no key yet has nothing to shrink */
      const float least = joined[half] == -INFINITY ? 0.0f : joined[half];
      shrink[half] = exp2_of(most[half] - least);
      most[half] = joined[half];
      joined[half] = least;
      sum[half] *= shrink[half];
    }
    if (__any_sync(KT_FULL_MASK, shrink[0] != 1.0f || shrink[1] != 1.0f))
#pragma unroll
      for (int i = 0; i < 128; i++) out[i] *= shrink[i / 2 % 2];
    uint32_t weights[KEYS / 16][4];
#pragma unroll
    for (int i = 0; i < 32; i++) {
      scores[i] = exp2_of(scores[i] - joined[i / 2 % 2]);
      sum[i / 2 % 2] += scores[i];
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
      for (int j = 0; j < 4; j++) weights[k][j] = halves(scores[8 * k + 2 * j], scores[8 * k + 2 * j + 1]);
    begin_products();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) multiply_values(out, weights[k], matrix_at(keys + half_of_columns * 4 * BLOCK_BYTES + k * 16 * 128, BLOCK_BYTES));
    end_products();
    __syncwarp();
    if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(copied + 8) : "memory");
    if (++stage == STAGES) stage = 0, round++;
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float total = sum[half];
    total += __shfl_xor_sync(KT_FULL_MASK, total, 1);
    total += __shfl_xor_sync(KT_FULL_MASK, total, 2);
    if (!wanted[half]) continue;
    float *to, factor;
    const float natural = most[half] * LN_2;
    if (m.splits > 1) {
      to = m.partials + ((row_token[half] * job.q.heads + row_head[half]) * m.splits + blockIdx.z) * (V_DIM + 2);
      factor = 1.0f;
      if (half_of_columns == 0 && lane % 4 == 0) to[V_DIM] = natural, to[V_DIM + 1] = total;
    } else {
      to = job.out + row_token[half] * job.out_token_stride + row_head[half] * job.out_head_stride;
      if (job.sinks != NULL) {
        float all;
        const join j = join_of(natural, job.sinks[row_head[half]], &all);
        factor = j.before / (total * j.before + j.after);
      } else {
        factor = 1.0f / total;
      }
    }
#pragma unroll
    for (int n = 0; n < 32; n++) {
      const int column = half_of_columns * 256 + n * 8 + lane % 4 * 2;
      *(float2 *)(to + column) = make_float2(out[4 * n + 2 * half] * factor, out[4 * n + 2 * half + 1] * factor);
    }
  }
#endif
}

/* One block a head of a token: its parts, of which the last may have had no keys. */
__global__ void __launch_bounds__(128) mla_combine_kernel(const mla_job m) {
  const int64_t token = blockIdx.x, head = blockIdx.y;
  const float *from = m.partials + (token * m.a.q.heads + head) * m.splits * (V_DIM + 2);
  float most = m.a.sinks != NULL ? m.a.sinks[head] : -INFINITY;
  const float sink = most;
  for (int s = 0; s < m.splits; s++) most = fmaxf(most, from[s * (V_DIM + 2) + V_DIM]);
  float total = m.a.sinks != NULL ? expf(sink - most) : 0.0f, values[4] = {0, 0, 0, 0};
  for (int s = 0; s < m.splits; s++) {
    const float *part = from + s * (V_DIM + 2);
    const float factor = expf(part[V_DIM] - most);
    total += part[V_DIM + 1] * factor;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float2 v = *(const float2 *)(part + threadIdx.x * 2 + i * 256);
      values[2 * i] += v.x * factor, values[2 * i + 1] += v.y * factor;
    }
  }
  float *to = m.a.out + token * m.a.out_token_stride + head * m.a.out_head_stride;
#pragma unroll
  for (int i = 0; i < 2; i++) *(float2 *)(to + threadIdx.x * 2 + i * 256) = make_float2(values[2 * i] / total, values[2 * i + 1] / total);
}

typedef CUresult (*encode_function)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                    CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, which is looked up so that the library loads without a driver; NULL where it has none. */
static encode_function encoder(void) {
  static encode_function found = NULL;
  if (found == NULL) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) == cudaSuccess && result == cudaDriverEntryPointSuccess)
      found = (encode_function)function;
    cudaGetLastError();
  }
  return found;
}

/* Pages as [pages][page_size][576], copied 64 columns of a page (of at most 64 rows) at a time. */
static bool describe_pages(const attention_job &job, CUtensorMap *out) {
  const encode_function encode = encoder();
  if (encode == NULL) return false;
  const cuuint64_t sizes[3] = {K_DIM, (cuuint64_t)job.page_size, (cuuint64_t)job.pages}, strides[2] = {(cuuint64_t)job.k.slot_stride, (cuuint64_t)job.k.page_stride};
  const cuuint32_t box[3] = {64, (cuuint32_t)(job.page_size < KEYS ? job.page_size : KEYS), 1}, steps[3] = {1, 1, 1};
  return encode(out, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, job.k.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool kt_gpu_takes_mla(kt_ctx *ctx, const attention_job &job) {
  if (job.page_size < 8 || (job.page_size & (job.page_size - 1)) != 0 || encoder() == NULL) return false;
  if (ctx->precision != KT_PRECISION_FAST || ctx->capability != 90 || ctx->shared_bytes < SHARED_BYTES) return false;
  if (job.q.dim != K_DIM || job.v_dim != V_DIM || job.kv_heads != 1 || job.k.data != job.v.data || job.group < 4) return false;
  if (job.k.page_stride != job.v.page_stride || job.k.slot_stride != job.v.slot_stride) return false;
  const uintptr_t apart = (uintptr_t)job.k.data | (uintptr_t)job.k.page_stride | (uintptr_t)job.k.slot_stride;
  const uintptr_t pairs = (uintptr_t)job.out | (uintptr_t)(4 * job.out_token_stride) | (uintptr_t)(4 * job.out_head_stride);
  return apart % 16 == 0 && pairs % 8 == 0;
}

kt_status_t kt_gpu_mla(kt_ctx *ctx, attention_job job) {
  mla_job m = {job, job.group >= ROWS ? 1 : ROWS / job.group, (int)kt_div_up(job.group, ROWS), 1, NULL};
  int64_t blocks = kt_div_up(job.q.tokens, m.per_block) + job.sequences;
  if (blocks > job.q.tokens) blocks = job.q.tokens;
  /* The lengths lie on the device: parts for the longest that may be. */
  const int64_t tiles = kt_div_up(job.max_keys, KEYS), splits = ctx->multiprocessors / (blocks * m.head_blocks);
  m.splits = (int)(splits < 1 ? 1 : splits > tiles ? tiles : splits);
  if (m.splits > 1) {
    void *partials = NULL;
    KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_PARTIAL, job.q.tokens * job.q.heads * m.splits * (V_DIM + 2) * 4, &partials));
    m.partials = (float *)partials;
  }
  CUtensorMap pages;
  if (!describe_pages(job, &pages)) return kt_gpu_fail(KT_ERR_INTERNAL, "the driver takes no cache of pages %lld bytes apart", (long long)job.k.page_stride);
  KT_CUDA(cudaFuncSetAttribute(mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
  mla_kernel<<<dim3((unsigned)blocks, (unsigned)m.head_blocks, (unsigned)m.splits), THREADS, SHARED_BYTES, ctx->stream>>>(m, pages);
  KT_LAUNCHED("paged_attention");
  if (m.splits > 1) {
    mla_combine_kernel<<<dim3((unsigned)job.q.tokens, (unsigned)job.q.heads), 128, 0, ctx->stream>>>(m);
    KT_LAUNCHED("paged_attention");
  }
  return KT_OK;
}
#endif

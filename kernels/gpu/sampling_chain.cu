/* kt_sample: bias, samplers in any order, the draw.
 * SHAPES       logits [rows, vocab] f32, left as they are; one kt_sampling_row_t a row, in memory that the device reads
 * DEFINITION   see kt.h; each sampler as in llama.cpp or the paper that it comes from (kernels/cpu/sampling_chain.zig names them).
 *              Tokens are ordered by key, logit and then id. What a sampler keeps are the keys low .. high of what there was, so that
 *              most of them only move a bound; the bounds of top-k, top-p, typical and the draw are found by search over keys. Weights are
 *              whole numbers of 2^-40: sums do not depend on the order of addition
 * REGULARITIES vocab 32 000 .. 260 000. A row is PARTS blocks', each with the logits of its share of ids in shared memory, or one block's, with
 *              all of them in global memory. As soon as few tokens are left they are listed in the first block's shared memory,
 *              and the others leave */
#include <float.h>
#include "async.cuh"
#include "sampling.cuh"

#define THREADS KT_SAMPLING_THREADS
#define UNIT 1099511627776.0f /* 2^40 */
#define LISTED 1024           /* one a thread */
#define PIECES 8
#define CLUSTER 8
#define MIROSTAT_HEAD 100
#define LN_2 0.69314718055994531
#define LEAST_LOG (-87.0f) /* of weights that count in mirostat's estimate */
#define NO_LOG 28.0f       /* below that a weight is less than a unit */

__device__ __forceinline__ float value_of(u64 key) {
  const uint32_t order = (uint32_t)(key >> 32);
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}
/* The least key of a value. */
__device__ __forceinline__ u64 floor_key(float value) { return key_of(value, 0xffffffffu); }

struct shared_memory {
  u64 keys[LISTED];                     /* of a list, in any order; 0 where one was taken out */
  u64 found_keys[LISTED], found_weights[LISTED]; /* what a search has come down to */
  u64 sums[PIECES][32];
  double doubles[32];
  int counts[PIECES][32];
  u64 parts[2][CLUSTER][2 * PIECES]; /* what the blocks of a row tell each other, by turns */
  int counter;
};

struct key_itself {
  __device__ __forceinline__ u64 operator()(u64 key) const { return key; }
};
struct one_each {
  __device__ __forceinline__ u64 operator()(u64) const { return 1; }
};
/* Weight of a key under the greatest logit and the scale. */
struct weighing {
  float max, scale;
  __device__ __forceinline__ float log_of(u64 key) const {
    const float x = value_of(key);
    return x == max ? 0.0f : (x - max) * scale;
  }
  __device__ __forceinline__ u64 operator()(u64 key) const { return (u64)(expf(log_of(key)) * UNIT); }
};
/* Greater for tokens whose surprise is nearer to the entropy. */
struct typicality {
  weighing weights;
  float offset;
  __device__ __forceinline__ u64 operator()(u64 key) const { return key_of(-fabsf(offset - weights.log_of(key)), id_of(key)); }
};

/* All threads of all blocks of a row have the same, but for their share of the ids. What is used in many places is not inlined: the kernel would
 * be compiled for minutes. */
template <int PARTS> struct chain {
  kt_sampling_row_t row;
  float *values; /* of ids begin .. end */
  int32_t *seen;
  int vocab, begin, end, rank, count; /* count: of the list */
  uint32_t turn;
  bool listed, cut; /* cut: low or high leave something out that is still in its place */
  u64 low, high, best, first; /* first: the best of all */
  float max, scale;
  shared_memory *shared;

  __device__ static u64 lowest() { return floor_key(-FLT_MAX); }
  __device__ weighing weights() const { return {max, scale}; }

  template <typename F> __device__ void each(F f) const {
    if (listed) {
      for (int i = threadIdx.x; i < count; i += THREADS) {
        const u64 key = shared->keys[i];
        if (key >= low && key <= high) f(key);
      }
    } else {
#pragma unroll 4
      for (int i = begin + (int)threadIdx.x; i < end; i += THREADS) {
        const u64 key = key_of(values[i - begin], (uint32_t)i);
        if (key >= low && key <= high) f(key);
      }
    }
  }

  /* ---- what blocks tell each other ---- */
  /* N values of each block, known to the threads below N, to all blocks: of block p the i-th is at(p)[i] afterwards. */
  template <int N> __device__ const u64 *tell(u64 v) {
    turn ^= 1;
    u64 *own = shared->parts[turn][rank];
    if constexpr (PARTS > 1) {
#if __CUDA_ARCH__ >= 900
      if ((int)threadIdx.x < N)
        for (int p = 0; p < PARTS; p++) kt_store_remote(own + threadIdx.x, (uint32_t)p, v);
      kt_cluster_sync();
#endif
    } else {
      if ((int)threadIdx.x < N) own[threadIdx.x] = v;
      __syncthreads();
    }
    return shared->parts[turn][0];
  }
  __device__ const u64 *at(const u64 *told, int part) const { return told + part * 2 * PIECES; }
  /* Over all tokens there are; v: over a block's threads. */
  template <typename F> __device__ u64 over_parts(u64 v, F join) {
    v = block_reduce(v, join, shared->sums[0]);
    if (PARTS == 1 || listed) return v;
    const u64 *told = tell<1>(v);
    v = told[0];
    for (int p = 1; p < PARTS; p++) v = join(v, at(told, p)[0]);
    return v;
  }
  __device__ u64 sum(u64 v) { return over_parts(v, sum_u64()); }
  __device__ u64 greatest(u64 v) { return over_parts(v, max_u64()); }
  __device__ double sum(double v) {
    v = block_reduce(v, sum_f64(), shared->doubles);
    if (PARTS == 1 || listed) return v;
    const u64 *told = tell<1>((u64)__double_as_longlong(v));
    v = 0;
    for (int p = 0; p < PARTS; p++) v += __longlong_as_double((long long)at(told, p)[0]);
    return v;
  }
  /* What the first block knows. */
  __device__ u64 from_first(u64 v) { return PARTS == 1 || listed ? v : tell<1>(v)[0]; }

  /* PIECES sums and counts over all tokens there are, in shared->sums[j][0] and shared->counts[j][0]. */
  __device__ __noinline__ void sum_pieces(u64 *sums, int *counts) {
    const int lane = threadIdx.x % KT_WARP, warp = threadIdx.x / KT_WARP;
#pragma unroll
    for (int j = 0; j < PIECES; j++)
      for (int other = KT_WARP / 2; other > 0; other /= 2) {
        sums[j] += __shfl_xor_sync(KT_FULL_MASK, sums[j], other);
        counts[j] += __shfl_xor_sync(KT_FULL_MASK, counts[j], other);
      }
    __syncthreads();
    if (lane == 0)
#pragma unroll
      for (int j = 0; j < PIECES; j++) shared->sums[j][warp] = sums[j], shared->counts[j][warp] = counts[j];
    __syncthreads();
    if (warp < PIECES) {
      u64 w = shared->sums[warp][lane];
      int n = shared->counts[warp][lane];
      for (int other = KT_WARP / 2; other > 0; other /= 2) {
        w += __shfl_xor_sync(KT_FULL_MASK, w, other);
        n += __shfl_xor_sync(KT_FULL_MASK, n, other);
      }
      if (lane == 0) shared->sums[warp][0] = w, shared->counts[warp][0] = n;
    }
    __syncthreads();
    if (PARTS == 1 || listed) return;
    const int j = threadIdx.x % PIECES;
    const u64 *told = tell<2 * PIECES>((int)threadIdx.x < PIECES ? shared->sums[j][0] : (u64)shared->counts[j][0]);
    if ((int)threadIdx.x < PIECES) {
      u64 w = 0, n = 0;
      for (int p = 0; p < PARTS; p++) w += at(told, p)[j], n += at(told, p)[PIECES + j];
      shared->sums[j][0] = w, shared->counts[j][0] = (int)n;
    }
    __syncthreads();
  }

  __device__ __noinline__ void refresh() {
    u64 own = 0;
    each([&](u64 key) { own = own > key ? own : key; });
    best = greatest(own);
    max = value_of(best);
  }

  __device__ u64 size() {
    u64 own = 0;
    each([&](u64) { own++; });
    return sum(own);
  }

  __device__ __noinline__ u64 mass() {
    const weighing w = weights();
    u64 own = 0;
    each([&](u64 key) { own += w(key); });
    return sum(own);
  }

  /* Mass in units, and entropy in nats. */
  __device__ __noinline__ u64 entropy(double *out) {
    const weighing w = weights();
    u64 own = 0, surprise = 0;
    each([&](u64 key) {
      const u64 units = w(key);
      if (units == 0) return;
      own += units;
      surprise += (u64)((float)units * -w.log_of(key));
    });
    own = sum(own), surprise = sum(surprise);
    *out = log((double)own / UNIT) + (double)surprise / (double)own;
    return own;
  }

  /* Keys of what is sorted from .. to, at most LISTED of them, into `keys` of the first block, with their weights where there is room for these; how
   * many there are. Other blocks have no more than their own. */
  template <typename K, typename W> __device__ int gather(K sort_key, W weight, u64 from, u64 to, u64 *keys, u64 *room) {
    __syncthreads();
    if (threadIdx.x == 0) shared->counter = 0;
    __syncthreads();
    each([&](u64 key) {
      const u64 k = sort_key(key);
      if (k < from || k > to) return;
      const int i = atomicAdd(&shared->counter, 1);
      keys[i] = k;
      if (room != NULL) room[i] = weight(key);
    });
    __syncthreads();
    const int own = shared->counter;
    if (PARTS == 1 || listed) return own;
    const u64 *told = tell<1>((u64)own);
    int all = 0;
    for (int p = 0; p < PARTS; p++) all += (int)at(told, p)[0];
#if __CUDA_ARCH__ >= 900
    if constexpr (PARTS > 1) {
      int before = 0;
      for (int p = 0; p < rank; p++) before += (int)at(told, p)[0];
      if (rank > 0)
        for (int i = threadIdx.x; i < own; i += THREADS) {
          kt_store_remote(keys + before + i, 0, keys[i]);
          if (room != NULL) kt_store_remote(room + before + i, 0, room[i]);
        }
      kt_cluster_sync();
    }
#endif
    return all;
  }

  __device__ __noinline__ void raise(u64 to) {
    if (to <= low) return;
    low = to;
    cut = true;
    if (listed || size() > LISTED) return;
    count = gather(key_itself(), one_each(), 0, ~0ull, shared->keys, NULL);
    listed = true, cut = false;
    begin = 0, end = vocab; /* all that is left is the first block's */
  }

  /* Of n found keys, by one block: the greatest such that what is found at or above it weighs `wanted` together with `beyond`. */
  __device__ __noinline__ u64 pick(int n, u64 wanted, u64 beyond) {
    const int thread = threadIdx.x, lane = thread % KT_WARP, warp = thread / KT_WARP;
    u64 *keys = shared->found_keys, *found = shared->found_weights;
    int size = 2;
    while (size < n) size *= 2;
    if (thread >= n && thread < size) keys[thread] = found[thread] = 0;
    __syncthreads();
    /* the greatest first (bitonic) */
    for (int run = 2; run <= size; run *= 2)
      for (int apart = run / 2; apart > 0; apart /= 2) {
        const int other = thread ^ apart;
        if (thread < size && other > thread) {
          const u64 a = keys[thread], b = keys[other];
          if ((a < b) == ((thread & run) == 0)) {
            const u64 w = found[thread];
            keys[thread] = b, keys[other] = a;
            found[thread] = found[other], found[other] = w;
          }
        }
        __syncthreads();
      }
    u64 all = thread < size ? found[thread] : 0;
    for (int by = 1; by < KT_WARP; by *= 2) {
      const u64 v = __shfl_up_sync(KT_FULL_MASK, all, by);
      if (lane >= by) all += v;
    }
    if (lane == KT_WARP - 1) shared->sums[1][warp] = all;
    __syncthreads();
    for (int w = 0; w < warp; w++) all += shared->sums[1][w];
    return block_reduce(thread < n && all + beyond >= wanted ? keys[thread] : 0, max_u64(), shared->sums[0]);
  }
  template <typename K, typename W> __device__ __noinline__ u64 pick_of(K sort_key, W weight, u64 from, u64 to, u64 wanted, u64 beyond) {
    const int n = gather(sort_key, weight, from, to, shared->found_keys, shared->found_weights);
    u64 found = 0;
    if (rank == 0) found = pick(n, wanted, beyond);
    return from_first(found);
  }

  /* The greatest floor such that what is sorted at or above it weighs `wanted`; 0 where all together do not. In lo .. hi; `beyond`: weight
   * of what is above. */
  template <typename K, typename W> __device__ __noinline__ u64 search(K sort_key, W weight, u64 wanted, u64 lo, u64 hi, u64 beyond) {
    if (hi < lo) return 0;
    for (;;) {
      const u64 step = (hi - lo) / PIECES + 1;
      u64 sums[PIECES];
      int counts[PIECES];
#pragma unroll
      for (int j = 0; j < PIECES; j++) sums[j] = 0, counts[j] = 0;
      each([&](u64 key) {
        const u64 k = sort_key(key);
        if (k < lo || k > hi) return;
        const u64 w = weight(key);
#pragma unroll
        for (int j = 0; j < PIECES; j++)
          if (k >= (hi - lo > j * step ? lo + j * step : hi)) sums[j] += w, counts[j]++;
      });
      sum_pieces(sums, counts);
      if (shared->sums[0][0] + beyond < wanted) return 0;
      int chosen = 0;
      for (int j = 1; j < PIECES; j++)
        if (shared->sums[j][0] + beyond >= wanted) chosen = j;
      int inside = shared->counts[chosen][0];
      const u64 next_lo = hi - lo > chosen * step ? lo + chosen * step : hi;
      if (chosen + 1 < PIECES && lo + (chosen + 1) * step <= hi) {
        hi = lo + (chosen + 1) * step - 1;
        beyond += shared->sums[chosen + 1][0];
        inside -= shared->counts[chosen + 1][0];
      }
      lo = next_lo;
      if (inside <= LISTED) return pick_of(sort_key, weight, lo, hi, wanted, beyond);
    }
  }
  template <typename K, typename W> __device__ __noinline__ u64 floor_of_all(K sort_key, W weight, u64 wanted) {
    if (listed) return pick_of(sort_key, weight, 0, ~0ull, wanted, 0);
    u64 most = 0;
    each([&](u64 key) {
      const u64 k = sort_key(key);
      most = most > k ? most : k;
    });
    return search(sort_key, weight, wanted, 1, greatest(most), 0);
  }

  /* The same of the keys themselves: mostly it lies among the few near the greatest logit, which are then the only ones searched. */
  template <typename W> __device__ __noinline__ u64 floor_of(W weight, u64 wanted) {
    if (listed) return floor_of_all(key_itself(), weight, wanted);
    u64 sums[PIECES], bounds[PIECES];
    int counts[PIECES];
    float width = 16.0f / scale;
#pragma unroll
    for (int j = 0; j < PIECES; j++, width *= 0.5f) bounds[j] = floor_key(fmaxf(max - width, -FLT_MAX)), counts[j] = 0, sums[j] = 0;
    each([&](u64 key) {
      if (key < bounds[0]) return;
#pragma unroll
      for (int j = 0; j < PIECES; j++) counts[j] += key >= bounds[j];
    });
    sum_pieces(sums, counts);
    u64 bound = 0;
#pragma unroll
    for (int j = PIECES - 1; j >= 0; j--)
      if (shared->counts[j][0] <= LISTED) bound = bounds[j];
    if (bound == 0 || bound > best) return search(key_itself(), weight, wanted, 1, best, 0);
    u64 own = 0;
    each([&](u64 key) {
      if (key >= bound) own += weight(key);
    });
    const u64 head = sum(own);
    if (head >= wanted) return pick_of(key_itself(), weight, bound, ~0ull, wanted, 0);
    const u64 least = floor_key(fmaxf(max - NO_LOG / scale, -FLT_MAX));
    const u64 found = least < bound ? search(key_itself(), weight, wanted, least, bound - 1, head) : 0;
    if (found != 0 || least <= lowest()) return found;
    own = 0;
    each([&](u64 key) {
      if (key >= least) own += weight(key);
    });
    return search(key_itself(), weight, wanted, 1, least - 1, sum(own));
  }

  /* What was cut off is taken out, so that values may change. */
  __device__ void freeze() {
    if (cut) {
      if (listed) {
        for (int i = threadIdx.x; i < count; i += THREADS)
          if (shared->keys[i] < low || shared->keys[i] > high) shared->keys[i] = 0;
      } else {
        for (int i = begin + (int)threadIdx.x; i < end; i += THREADS) {
          const u64 key = key_of(values[i - begin], (uint32_t)i);
          if (key < low || key > high) values[i - begin] = __int_as_float(0x7fc00000);
        }
      }
    }
    low = lowest(), high = ~0ull, cut = false;
    __syncthreads();
  }

  /* Each token's logit becomes what f makes of it. */
  template <typename F> __device__ void change(F f) {
    if (listed) {
      for (int i = threadIdx.x; i < count; i += THREADS)
        if (shared->keys[i] != 0) shared->keys[i] = key_of(f(value_of(shared->keys[i]), (int)id_of(shared->keys[i])), id_of(shared->keys[i]));
    } else {
      for (int i = begin + (int)threadIdx.x; i < end; i += THREADS) values[i - begin] = f(values[i - begin], i);
    }
    __syncthreads();
    refresh();
  }

  /* ---- samplers ---- */
  __device__ void penalise() {
    if (row.history_len <= 0 || (row.repetition_penalty == 1 && row.presence_penalty == 0 && row.frequency_penalty == 0)) return;
    freeze();
    for (int i = begin + (int)threadIdx.x; i < end; i += THREADS) seen[i] = 0;
    __syncthreads();
    /* how often in the output, and a bit for those of the prompt */
    for (int i = threadIdx.x; i < row.history_len; i += THREADS) {
      const int32_t token = row.history[i];
      if (token < begin || token >= end) continue;
      if (i < row.prompt_len) atomicOr(&seen[token], 1 << 30);
      else atomicAdd(&seen[token], 1);
    }
    __syncthreads();
    change([&](float x, int id) {
      const int own = seen[id];
      if (own == 0) return x;
      const int times = own & ((1 << 30) - 1);
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
      return times > 0 ? x - (row.presence_penalty + __fmul_rn((float)times, row.frequency_penalty)) / scale : x;
    });
  }

  __device__ void subtract_dry() {
    if (row.dry_len <= 0) return;
    freeze();
    if (listed) {
      change([&](float x, int id) {
        for (int i = 0; i < row.dry_len; i++)
          if (row.dry_ids[i] == id) return x - row.dry_penalties[i] / scale;
        return x;
      });
      return;
    }
    for (int i = threadIdx.x; i < row.dry_len; i += THREADS)
      if (row.dry_ids[i] >= begin && row.dry_ids[i] < end) values[row.dry_ids[i] - begin] -= row.dry_penalties[i] / scale;
    __syncthreads();
    refresh();
  }

  __device__ void top_n_sigma() {
    if (!(row.top_n_sigma > 0) || isinf(max)) return;
    double n = 0, s = 0, squares = 0;
    each([&](u64 key) {
      const double d = (double)value_of(key) - (double)max;
      n += 1, s += d, squares += d * d;
    });
    n = sum(n), s = sum(s), squares = sum(squares);
    const double variance = squares / n - s / n * (s / n), bound = (double)max - (double)row.top_n_sigma * sqrt(variance > 0 ? variance : 0.0);
    raise(floor_key(bound > -(double)FLT_MAX ? (float)bound : -FLT_MAX));
  }

  __device__ void top_k() {
    if (row.top_k <= 0 || row.top_k >= vocab) return;
    raise(row.top_k == 1 ? best : floor_of(one_each(), (u64)row.top_k));
  }

  __device__ void top_p() {
    if (!(row.top_p < 1)) return;
    const u64 wanted = (u64)ceil((double)row.top_p * (double)mass());
    raise(floor_of(weights(), wanted > 0 ? wanted : 1));
  }

  __device__ void min_p() {
    if (!(row.min_p > 0)) return;
    const u64 bound = floor_key(max + logf(row.min_p) / scale);
    raise(bound < best ? bound : best);
  }

  __device__ void typical() {
    if (!(row.typical_p < 1)) return;
    double h;
    const u64 total = entropy(&h);
    const typicality order = {weights(), (float)(log((double)total / UNIT) - h)};
    u64 wanted = (u64)((double)row.typical_p * (double)total) + 1;
    if (wanted > total) wanted = total;
    const u64 floor = floor_of_all(order, weights(), wanted);
    if (listed) {
      for (int i = threadIdx.x; i < count; i += THREADS) {
        const u64 key = shared->keys[i];
        if (key < low || key > high || order(key) < floor) shared->keys[i] = 0;
      }
    } else {
      for (int i = begin + (int)threadIdx.x; i < end; i += THREADS) {
        const u64 key = key_of(values[i - begin], (uint32_t)i);
        if (key < low || key > high || order(key) < floor) values[i - begin] = __int_as_float(0x7fc00000);
      }
    }
    __syncthreads();
    low = lowest(), high = ~0ull, cut = false;
    refresh();
  }

  __device__ void xtc() {
    if (!(row.xtc_probability > 0 && row.xtc_threshold <= 0.5f && row.xtc_uniform < row.xtc_probability)) return;
    const weighing w = weights();
    const double least = (double)row.xtc_threshold * (double)mass();
    u64 above = 0, last = 0; /* last: of the greatest complement */
    each([&](u64 key) {
      const u64 units = w(key);
      if (units == 0 || (double)units < least) return;
      above++;
      last = last > ~key ? last : ~key;
    });
    above = sum(above);
    last = ~greatest(last);
    if (above < 2) return;
    high = best = last;
    max = value_of(best);
    cut = true;
  }

  __device__ void temperature() {
    double chosen = row.temperature;
    if (row.dynatemp_range > 0) {
      const u64 n = size();
      if (n <= 1) return;
      double h;
      entropy(&h);
      const double least = chosen > row.dynatemp_range ? chosen - row.dynatemp_range : 0.0, most = chosen + row.dynatemp_range;
      const double evenness = fmin(1.0, fmax(0.0, h / log((double)n)));
      chosen = least + (most - least) * pow(evenness, (double)row.dynatemp_exponent);
    }
    if (chosen > 0) {
      scale = fminf((float)((double)scale / chosen), FLT_MAX);
      return;
    }
    raise(best);
  }

  __device__ void apply(int stage) {
    switch (stage) {
      case KT_SAMPLER_PENALTIES: return penalise();
      case KT_SAMPLER_DRY: return subtract_dry();
      case KT_SAMPLER_TOP_N_SIGMA: return top_n_sigma();
      case KT_SAMPLER_TOP_K: return top_k();
      case KT_SAMPLER_TYPICAL_P: return typical();
      case KT_SAMPLER_TOP_P: return top_p();
      case KT_SAMPLER_MIN_P: return min_p();
      case KT_SAMPLER_XTC: return xtc();
      default: return temperature();
    }
  }

  /* ---- the draw ---- */
  __device__ u64 draw(u64 total) {
    u64 wanted = (u64)((double)row.uniform * (double)total) + 1;
    if (wanted > total) wanted = total;
    const u64 drawn = floor_of(weights(), wanted);
    return total > 0 && drawn != 0 ? drawn : best != 0 ? best : first;
  }

  /* Mirostat (arXiv:2007.14966) as llama.cpp computes it. */
  __device__ void mirostat() {
    const u64 floor = floor_of(one_each(), MIROSTAT_HEAD);
    const int n = gather(key_itself(), one_each(), floor, ~0ull, shared->found_keys, NULL), own = (int)threadIdx.x;
    u64 *sorted = shared->found_weights;
    u64 kept = 1;
    if (rank == 0) {
      if (own < n) {
        int above = 0;
        for (int i = 0; i < n; i++) above += shared->found_keys[i] > shared->found_keys[own];
        sorted[above] = shared->found_keys[own];
      }
      __syncthreads();
      double products = 0, squares = 0;
      if (own > 0 && own < n) {
        const float before = weights().log_of(sorted[own - 1]), here = weights().log_of(sorted[own]);
        const double step = log((double)(own + 1) / (double)own);
        if (here >= LEAST_LOG) products = step * ((double)before - (double)here), squares = step * step;
      }
      products = block_reduce(products, sum_f64(), shared->doubles), squares = block_reduce(squares, sum_f64(), shared->doubles);
      const double exponent = products / squares, excess = exponent - 1;
      const double k = pow(excess * exp2((double)row.mirostat_mu) / (1 - pow((double)vocab, -excess)), 1 / exponent);
      kept = !(k >= 1) ? 1 : k < (double)vocab ? (u64)k : (u64)vocab;
    }
    kept = from_first(kept);
    raise(kept == 1 ? best : floor_of(one_each(), kept));
  }

  /* Mirostat 2.0: tokens whose surprise is at most mu. */
  __device__ void mirostat_2() {
    const double least = log((double)mass() / UNIT) - (double)row.mirostat_mu * LN_2;
    const u64 bound = least >= 0 ? best : floor_key(fmaxf((float)((double)max + least / (double)scale), -FLT_MAX));
    raise(bound < best ? bound : best);
  }
};

#define ORDER_2(a, b) ((uint64_t)(a) | (uint64_t)(b) << 4)
#define MIROSTAT_ORDER (ORDER_2(KT_SAMPLER_PENALTIES, KT_SAMPLER_DRY) | (uint64_t)KT_SAMPLER_TEMPERATURE << 8)
#define USUAL_ORDER                                                                                                                \
  (ORDER_2(KT_SAMPLER_PENALTIES, KT_SAMPLER_DRY) | ORDER_2(KT_SAMPLER_TOP_N_SIGMA, KT_SAMPLER_TEMPERATURE) << 8 |                  \
   ORDER_2(KT_SAMPLER_TOP_K, KT_SAMPLER_TYPICAL_P) << 16 | ORDER_2(KT_SAMPLER_TOP_P, KT_SAMPLER_MIN_P) << 24 | (uint64_t)KT_SAMPLER_XTC << 32)

template <int PARTS>
__global__ void __launch_bounds__(THREADS) sample_kernel(kt_frows logits, kt_sampling_row_t *rows, float *work, int32_t *seen, int32_t *out) {
  __shared__ shared_memory shared;
  extern __shared__ float own_values[];
  const int64_t own = blockIdx.y;
  __shared__ __align__(8) uint32_t words[sizeof(kt_sampling_row_t) / 4];
  chain<PARTS> c;
  kt_wait_previous();
  /* the host's memory is far: it is read once */
  for (int i = threadIdx.x; i < (int)(sizeof words / 4); i += THREADS) words[i] = ((const uint32_t *)(rows + own))[i];
  __syncthreads();
  c.row = *(const kt_sampling_row_t *)words;
  c.vocab = (int)logits.n;
  const int share = (c.vocab + PARTS - 1) / PARTS;
  c.rank = (int)blockIdx.x;
  c.begin = min(c.rank * share, c.vocab), c.end = min(c.begin + share, c.vocab);
  c.values = PARTS > 1 ? own_values : work + own * logits.n;
  c.seen = seen + own * logits.n;
  c.count = 0;
  c.turn = 0;
  c.listed = c.cut = false;
  c.low = c.first = 0, c.high = ~0ull;
  c.scale = 1;
  c.shared = &shared;
  const float *from = logits.data + own * logits.stride;
#pragma unroll 8
  for (int i = c.begin + (int)threadIdx.x; i < c.end; i += THREADS) c.values[i - c.begin] = __ldcg(from + i);
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < c.row.bias_len; i++)
      if (c.row.bias_ids[i] >= c.begin && c.row.bias_ids[i] < c.end) c.values[c.row.bias_ids[i] - c.begin] += c.row.bias_values[i];
#if __CUDA_ARCH__ >= 900
  if constexpr (PARTS > 1) kt_cluster_sync(); /* all blocks are there before they tell each other anything */
#endif
  __syncthreads();
  c.refresh();
  c.first = c.best;
  if (!(c.max > -INFINITY)) {
    if (c.rank == 0 && threadIdx.x == 0) out[own] = (int32_t)id_of(c.best);
    return;
  }
  c.low = chain<PARTS>::lowest();
  /* differences to an infinite logit tell nothing: what else there is cannot be drawn */
  if (c.max == INFINITY) c.raise(floor_key(INFINITY));
  uint64_t order = c.row.mirostat != 0 ? MIROSTAT_ORDER : c.row.order != 0 ? c.row.order : USUAL_ORDER;
  for (; order != 0; order >>= 4) {
    if (PARTS > 1 && c.listed && c.rank > 0) return;
    c.apply((int)(order & 15));
  }
  if (PARTS > 1 && c.listed && c.rank > 0) return;
  if (c.row.mirostat == 1) c.mirostat();
  else if (c.row.mirostat == 2) c.mirostat_2();
  if (PARTS > 1 && c.listed && c.rank > 0) return;
  const u64 total = c.mass(), drawn = c.draw(total);
  if (c.rank != 0 || threadIdx.x != 0) return;
  out[own] = (int32_t)id_of(drawn);
  if (c.row.mirostat != 0) {
    const double surprise = log((double)total / UNIT) / LN_2 - (double)c.weights().log_of(drawn) / LN_2;
    rows[own].mirostat_mu = c.row.mirostat_mu - c.row.mirostat_eta * (float)(surprise - (double)c.row.mirostat_tau);
  }
}

static kt_status_t wrong(int64_t row, const char *field, double value) {
  return KT_INVALID("rows[%lld].%s is %g", (long long)row, field, value);
}

static kt_status_t check_ids(int64_t row, const char *field, const int32_t *ids, int32_t count, int64_t vocab) {
  for (int32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      return KT_INVALID("rows[%lld].%s[%d] is %d, the vocabulary has ids 0 to %lld", (long long)row, field, i, ids[i], (long long)vocab - 1);
  return KT_OK;
}

static kt_status_t check_row(int64_t i, const kt_sampling_row_t &row, int64_t vocab) {
  if (!(row.temperature >= 0) || isinf(row.temperature)) return wrong(i, "temperature", row.temperature);
  if (!(row.top_p >= 0 && row.top_p <= 1)) return wrong(i, "top_p", row.top_p);
  if (!(row.min_p >= 0 && row.min_p <= 1)) return wrong(i, "min_p", row.min_p);
  if (!(row.repetition_penalty > 0) || isinf(row.repetition_penalty)) return wrong(i, "repetition_penalty", row.repetition_penalty);
  if (!isfinite(row.presence_penalty)) return wrong(i, "presence_penalty", row.presence_penalty);
  if (!isfinite(row.frequency_penalty)) return wrong(i, "frequency_penalty", row.frequency_penalty);
  if (!(row.uniform >= 0 && row.uniform < 1)) return wrong(i, "uniform", row.uniform);
  if (row.top_k < 0) return wrong(i, "top_k", row.top_k);
  if (row.history_len < 0 || (row.history_len > 0 && row.history == NULL)) return wrong(i, "history_len", row.history_len);
  if (row.prompt_len < 0 || row.prompt_len > row.history_len) return wrong(i, "prompt_len", row.prompt_len);
  if (row.bias_len < 0 || (row.bias_len > 0 && (row.bias_ids == NULL || row.bias_values == NULL))) return wrong(i, "bias_len", row.bias_len);
  if (row.dry_len < 0 || (row.dry_len > 0 && (row.dry_ids == NULL || row.dry_penalties == NULL))) return wrong(i, "dry_len", row.dry_len);
  if (!(row.typical_p >= 0 && row.typical_p <= 1)) return wrong(i, "typical_p", row.typical_p);
  if (!(row.top_n_sigma >= 0) || isinf(row.top_n_sigma)) return wrong(i, "top_n_sigma", row.top_n_sigma);
  if (!(row.xtc_probability >= 0 && row.xtc_probability <= 1)) return wrong(i, "xtc_probability", row.xtc_probability);
  if (!(row.xtc_threshold >= 0 && row.xtc_threshold <= 1)) return wrong(i, "xtc_threshold", row.xtc_threshold);
  if (!(row.xtc_uniform >= 0 && row.xtc_uniform < 1)) return wrong(i, "xtc_uniform", row.xtc_uniform);
  if (!(row.dynatemp_range >= 0) || isinf(row.dynatemp_range)) return wrong(i, "dynatemp_range", row.dynatemp_range);
  if (!(row.dynatemp_exponent >= 0) || isinf(row.dynatemp_exponent)) return wrong(i, "dynatemp_exponent", row.dynatemp_exponent);
  if (row.mirostat < 0 || row.mirostat > 2) return wrong(i, "mirostat", row.mirostat);
  if (row.mirostat != 0) {
    if (!isfinite(row.mirostat_tau)) return wrong(i, "mirostat_tau", row.mirostat_tau);
    if (!isfinite(row.mirostat_eta)) return wrong(i, "mirostat_eta", row.mirostat_eta);
    if (!isfinite(row.mirostat_mu)) return wrong(i, "mirostat_mu", row.mirostat_mu);
  }
  for (uint64_t order = row.order; order != 0; order >>= 4)
    if ((order & 15) == 0 || (order & 15) > KT_SAMPLER_TEMPERATURE) return wrong(i, "order", (double)row.order);
  if (row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0)
    KT_TRY(check_ids(i, "history", row.history, row.history_len, vocab));
  KT_TRY(check_ids(i, "dry_ids", row.dry_ids, row.dry_len, vocab));
  return check_ids(i, "bias_ids", row.bias_ids, row.bias_len, vocab);
}

extern "C" kt_status_t kt_sample(kt_ctx_t *handle, const kt_tensor_t *logits, kt_sampling_row_t *rows, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from;
  KT_TRY(kt_gpu_logits(ctx, logits, &from));
  KT_TRY(kt_gpu_ids_out(ctx, "out", out, from.count));
  if (rows == NULL) return KT_INVALID("rows are NULL");
  for (int64_t i = 0; i < from.count; i++) KT_TRY(check_row(i, rows[i], from.n));
  void *memory = NULL;
  const int64_t each = from.count * from.n, share = kt_div_up(from.n, CLUSTER) * 4;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP, each * 8, &memory));
  float *work = (float *)memory;
  int32_t *seen = (int32_t *)memory + each, *to = (int32_t *)out->data;
  if (kt_has_bulk(ctx) && share + (int64_t)sizeof(shared_memory) <= ctx->shared_bytes) {
    KT_CUDA(cudaFuncSetAttribute(sample_kernel<CLUSTER>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)share));
    return kt_launch_clusters(ctx, sample_kernel<CLUSTER>, CLUSTER, dim3(CLUSTER, (unsigned)from.count), dim3(THREADS), (size_t)share, from, rows, work, seen, to);
  }
  return kt_launch_early(ctx, sample_kernel<1>, dim3(1, (unsigned)from.count), dim3(THREADS), 0, from, rows, work, seen, to);
}

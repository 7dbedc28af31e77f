/* kt_sample: bias, samplers in any order, the draw.
 * SHAPES       logits [rows, vocab] f32, left as they are; one kt_sampling_row_t a row, in memory that the device reads
 * DEFINITION   see kt.h; each sampler as in llama.cpp or the paper that it comes from (kernels/cpu/sampling_chain.zig names them).
 *              Tokens are ordered by key, logit and then id. What a sampler keeps are the keys low .. high of what there was, so that
 *              most of them only move a bound; the bounds of top-k, top-p, typical and the draw are found by search over keys. Weights are
 *              whole numbers of 2^-40: sums do not depend on the order of addition
 * REGULARITIES vocab 32 000 .. 260 000; one block a row. As soon as few tokens are left they are listed in shared memory */
#include "sampling.cuh"
#include <float.h>

#define THREADS KT_SAMPLING_THREADS
#define UNIT 1099511627776.0f /* 2^40 */
#define LISTED 2048
#define NARROW 1024
#define PIECES 8
#define MIROSTAT_HEAD 100
#define LN_2 0.69314718055994531
#define LEAST_LOG (-87.0f) /* of weights that count in mirostat's estimate */

__device__ __forceinline__ float value_of(u64 key) {
  const uint32_t order = (uint32_t)(key >> 32);
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}
/* The least key of a value. */
__device__ __forceinline__ u64 floor_key(float value) { return key_of(value, 0xffffffffu); }

struct shared_memory {
  u64 keys[LISTED];                              /* of a list, in any order; 0 where one was taken out */
  u64 narrow_keys[NARROW], narrow_weights[NARROW]; /* what a search has come down to */
  u64 sums[PIECES][32];
  double doubles[32];
  int counts[PIECES][32];
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

/* All threads have the same. */
struct chain {
  kt_sampling_row_t row;
  float *values;
  int32_t *seen;
  int vocab, count; /* of the list */
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
      for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const u64 key = key_of(values[i], (uint32_t)i);
        if (key >= low && key <= high) f(key);
      }
    }
  }

  __device__ u64 sum(u64 v) const { return block_reduce(v, sum_u64(), shared->sums[0]); }
  __device__ double sum(double v) const { return block_reduce(v, sum_f64(), shared->doubles); }

  __device__ void refresh() {
    u64 own = 0;
    each([&](u64 key) { own = own > key ? own : key; });
    best = block_reduce(own, max_u64(), shared->sums[0]);
    max = value_of(best);
  }

  __device__ u64 size() const {
    u64 own = 0;
    each([&](u64) { own++; });
    return sum(own);
  }

  __device__ u64 mass() const {
    const weighing w = weights();
    u64 own = 0;
    each([&](u64 key) { own += w(key); });
    return sum(own);
  }

  /* Mass in units, and entropy in nats. */
  __device__ u64 entropy(double *out) const {
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

  __device__ void raise(u64 to) {
    if (to <= low) return;
    low = to;
    cut = true;
    if (listed) return;
    const u64 n = size();
    if (n > LISTED) return;
    if (threadIdx.x == 0) shared->counter = 0;
    __syncthreads();
    each([&](u64 key) { shared->keys[atomicAdd(&shared->counter, 1)] = key; });
    __syncthreads();
    listed = true, cut = false;
    count = (int)n;
  }

  /* The greatest floor such that what is sorted at or above it weighs `wanted`; 0 where all together do not. */
  template <typename K, typename W> __device__ u64 floor_of(K sort_key, W weight, u64 wanted) const {
    u64 first = 0, total = 0;
    each([&](u64 key) {
      const u64 k = sort_key(key);
      first = first > k ? first : k;
      total += weight(key);
    });
    u64 hi = block_reduce(first, max_u64(), shared->sums[0]), lo = 1, beyond = 0;
    if (sum(total) < wanted) return 0;
    int narrow = -1;
    const int lane = threadIdx.x % KT_WARP, warp = threadIdx.x / KT_WARP;
    while (lo < hi) {
      const u64 step = (hi - lo) / PIECES + 1;
      u64 sums[PIECES];
      int counts[PIECES];
#pragma unroll
      for (int j = 0; j < PIECES; j++) sums[j] = 0, counts[j] = 0;
      const auto add = [&](u64 k, u64 w) {
        if (k < lo || k > hi) return;
#pragma unroll
        for (int j = 0; j < PIECES; j++)
          if (k >= (hi - lo > j * step ? lo + j * step : hi)) sums[j] += w, counts[j]++;
      };
      if (narrow >= 0) {
        for (int i = threadIdx.x; i < narrow; i += THREADS) add(shared->narrow_keys[i], shared->narrow_weights[i]);
      } else {
        each([&](u64 key) { add(sort_key(key), weight(key)); });
      }
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
      int chosen = 0, inside = 0, above = 0;
      u64 above_weight = 0;
#pragma unroll
      for (int j = 0; j < PIECES; j++) {
        u64 w = shared->sums[j][lane];
        int n = shared->counts[j][lane];
        for (int other = KT_WARP / 2; other > 0; other /= 2) {
          w += __shfl_xor_sync(KT_FULL_MASK, w, other);
          n += __shfl_xor_sync(KT_FULL_MASK, n, other);
        }
        if (w + beyond >= wanted) chosen = j, inside = n, above = 0, above_weight = 0;
        else if (j == chosen + 1) above = n, above_weight = w;
      }
      const u64 next_lo = hi - lo > chosen * step ? lo + chosen * step : hi;
      if (chosen + 1 < PIECES && lo + (chosen + 1) * step <= hi) {
        hi = lo + (chosen + 1) * step - 1;
        beyond += above_weight;
        inside -= above;
      }
      lo = next_lo;
      if (narrow < 0 && lo < hi && inside <= NARROW) {
        if (threadIdx.x == 0) shared->counter = 0;
        __syncthreads();
        each([&](u64 key) {
          const u64 k = sort_key(key);
          if (k < lo || k > hi) return;
          const int at = atomicAdd(&shared->counter, 1);
          shared->narrow_keys[at] = k;
          shared->narrow_weights[at] = weight(key);
        });
        __syncthreads();
        narrow = inside;
      }
    }
    return lo;
  }

  /* What was cut off is taken out, so that values may change. */
  __device__ void freeze() {
    if (cut) {
      if (listed) {
        for (int i = threadIdx.x; i < count; i += THREADS)
          if (shared->keys[i] < low || shared->keys[i] > high) shared->keys[i] = 0;
      } else {
        for (int i = threadIdx.x; i < vocab; i += THREADS) {
          const u64 key = key_of(values[i], (uint32_t)i);
          if (key < low || key > high) values[i] = __int_as_float(0x7fc00000);
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
      for (int i = threadIdx.x; i < vocab; i += THREADS) values[i] = f(values[i], i);
    }
    __syncthreads();
    refresh();
  }

  /* ---- samplers ---- */
  __device__ void penalise() {
    if (row.history_len <= 0 || (row.repetition_penalty == 1 && row.presence_penalty == 0 && row.frequency_penalty == 0)) return;
    freeze();
    for (int i = threadIdx.x; i < vocab; i += THREADS) seen[i] = 0;
    __syncthreads();
    /* how often in the output, and a bit for those of the prompt */
    for (int i = threadIdx.x; i < row.history_len; i += THREADS) {
      const int32_t token = row.history[i];
      if (token < 0 || token >= vocab) continue;
      if (i < row.prompt_len) atomicOr(&seen[token], 1 << 30);
      else atomicAdd(&seen[token], 1);
    }
    __syncthreads();
    change([&](float x, int id) {
      if (seen[id] == 0) return x;
      const int times = seen[id] & ((1 << 30) - 1);
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
      if (row.dry_ids[i] >= 0 && row.dry_ids[i] < vocab) values[row.dry_ids[i]] -= row.dry_penalties[i] / scale;
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
    raise(row.top_k == 1 ? best : floor_of(key_itself(), one_each(), (u64)row.top_k));
  }

  __device__ void top_p() {
    if (!(row.top_p < 1)) return;
    const u64 wanted = (u64)ceil((double)row.top_p * (double)mass());
    raise(floor_of(key_itself(), weights(), wanted > 0 ? wanted : 1));
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
    const u64 floor = floor_of(order, weights(), wanted);
    if (listed) {
      for (int i = threadIdx.x; i < count; i += THREADS) {
        const u64 key = shared->keys[i];
        if (key < low || key > high || order(key) < floor) shared->keys[i] = 0;
      }
    } else {
      for (int i = threadIdx.x; i < vocab; i += THREADS) {
        const u64 key = key_of(values[i], (uint32_t)i);
        if (key < low || key > high || order(key) < floor) values[i] = __int_as_float(0x7fc00000);
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
    last = ~block_reduce(last, max_u64(), shared->sums[0]);
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
  __device__ u64 draw(u64 total) const {
    u64 wanted = (u64)((double)row.uniform * (double)total) + 1;
    if (wanted > total) wanted = total;
    const u64 drawn = floor_of(key_itself(), weights(), wanted);
    return total > 0 && drawn != 0 ? drawn : best != 0 ? best : first;
  }

  /* Mirostat (arXiv:2007.14966) as llama.cpp computes it. */
  __device__ void mirostat() {
    const u64 floor = floor_of(key_itself(), one_each(), MIROSTAT_HEAD);
    if (threadIdx.x == 0) shared->counter = 0;
    __syncthreads();
    each([&](u64 key) {
      if (key >= floor) shared->narrow_keys[atomicAdd(&shared->counter, 1)] = key;
    });
    __syncthreads();
    const int n = shared->counter, own = (int)threadIdx.x;
    if (own < n) {
      int rank = 0;
      for (int i = 0; i < n; i++) rank += shared->narrow_keys[i] > shared->narrow_keys[own];
      shared->narrow_weights[rank] = shared->narrow_keys[own];
    }
    __syncthreads();
    double products = 0, squares = 0;
    if (own > 0 && own < n) {
      const float before = weights().log_of(shared->narrow_weights[own - 1]), here = weights().log_of(shared->narrow_weights[own]);
      const double step = log((double)(own + 1) / (double)own);
      if (here >= LEAST_LOG) products = step * ((double)before - (double)here), squares = step * step;
    }
    products = sum(products), squares = sum(squares);
    const double exponent = products / squares, excess = exponent - 1;
    const double k = pow(excess * exp2((double)row.mirostat_mu) / (1 - pow((double)vocab, -excess)), 1 / exponent);
    const u64 kept = !(k >= 1) ? 1 : k < (double)vocab ? (u64)k : (u64)vocab;
    raise(kept == 1 ? best : floor_of(key_itself(), one_each(), kept));
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

__global__ void __launch_bounds__(THREADS) sample_kernel(kt_frows logits, kt_sampling_row_t *rows, float *work, int32_t *seen, int32_t *out) {
  __shared__ shared_memory shared;
  chain c;
  c.row = rows[blockIdx.x];
  c.vocab = (int)logits.n;
  c.values = work + blockIdx.x * logits.n;
  c.seen = seen + blockIdx.x * logits.n;
  c.count = 0;
  c.listed = c.cut = false;
  c.low = c.first = 0, c.high = ~0ull;
  c.scale = 1;
  c.shared = &shared;
  const float *from = logits.data + blockIdx.x * logits.stride;
#pragma unroll 4
  for (int i = threadIdx.x; i < c.vocab; i += THREADS) c.values[i] = from[i];
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < c.row.bias_len; i++)
      if (c.row.bias_ids[i] >= 0 && c.row.bias_ids[i] < c.vocab) c.values[c.row.bias_ids[i]] += c.row.bias_values[i];
  __syncthreads();
  c.refresh();
  c.first = c.best;
  if (!(c.max > -INFINITY)) {
    if (threadIdx.x == 0) out[blockIdx.x] = (int32_t)id_of(c.best);
    return;
  }
  c.low = chain::lowest();
  /* differences to an infinite logit tell nothing: what else there is cannot be drawn */
  if (c.max == INFINITY) c.raise(floor_key(INFINITY));
  uint64_t order = c.row.mirostat != 0 ? MIROSTAT_ORDER : c.row.order != 0 ? c.row.order : USUAL_ORDER;
  for (; order != 0; order >>= 4) c.apply((int)(order & 15));
  if (c.row.mirostat == 1) c.mirostat();
  else if (c.row.mirostat == 2) c.mirostat_2();
  const u64 total = c.mass(), drawn = c.draw(total);
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = (int32_t)id_of(drawn);
  if (c.row.mirostat != 0) {
    const double surprise = log((double)total / UNIT) / LN_2 - (double)c.weights().log_of(drawn) / LN_2;
    rows[blockIdx.x].mirostat_mu = c.row.mirostat_mu - c.row.mirostat_eta * (float)(surprise - (double)c.row.mirostat_tau);
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
  const int64_t each = from.count * from.n;
  KT_TRY(kt_gpu_scratch(ctx, KT_SCRATCH_TEMP, each * 8, &memory));
  sample_kernel<<<(unsigned)from.count, THREADS, 0, ctx->stream>>>(from, rows, (float *)memory, (int32_t *)memory + each, (int32_t *)out->data);
  KT_LAUNCHED("sample");
  return KT_OK;
}

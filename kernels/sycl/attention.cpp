/* kt_store_kv, kt_paged_attention.
 * SHAPES       q [tokens, heads, k_dim], caches [pages, kv_heads, page_size, dim] F16, BF16, F32, Q8_0 or F8_E4M3, out [tokens, heads, v_dim]
 * DEFINITION   softmax(q . k * scale over the keys a query sees) . v, in f32; see kt.h for caps, windows, chunks and sinks
 * REGULARITIES dims 64 .. 256; heads / kv_heads 1 .. 16. A work-group computes the heads of a token that share keys; of few tokens several
 *              share the keys, so that the device is filled */
#include <algorithm>

#include "blocks.hpp"

#define LOCAL_VALUES 4096 /* of queries, and of sums, in a work-group's local memory */
#define MAX_HEADS 8
#define TILE 128
/* Keys whose sums are partial results, and how many such there are at most. */
#define SEGMENT 512
#define MAX_SEGMENTS 256

struct cache_view {
  char *data;
  int64_t page_stride, head_stride, slot_stride, page_size;
};
static cache_view cache_of(const kt_tensor_t *t) { return {(char *)t->data, t->stride[0], t->stride[1], t->stride[2], t->shape[2]}; }
static char *cache_row(const cache_view &cache, int64_t slot, int64_t head) {
  return cache.data + slot / cache.page_size * cache.page_stride + head * cache.head_stride + slot % cache.page_size * cache.slot_stride;
}

/* Runs CALL with the constant TYPE of a cache's type. */
#define EACH_CACHE_TYPE(dtype, CALL)  \
  switch (dtype) {                    \
    case KT_F32: return CALL(KT_F32); \
    case KT_F16: return CALL(KT_F16); \
    case KT_BF16: return CALL(KT_BF16); \
    case KT_Q8_0: return CALL(KT_Q8_0); \
    default: return CALL(KT_F8_E4M3); \
  }

kt_status_t kt_sycl_check_caches(kt_ctx *ctx, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache) {
  KT_TRY(kt_gpu_tensor(ctx, "k_cache", k_cache, 4));
  KT_TRY(kt_gpu_tensor(ctx, "v_cache", v_cache, 4));
  const uint32_t type = k_cache->dtype;
  if (!kt_is_plain(type) && type != KT_Q8_0 && type != KT_F8_E4M3) return KT_INVALID("k_cache has type %u, expected F16, BF16, F32, Q8_0 or F8_E4M3", type);
  if (v_cache->dtype != type) return KT_INVALID("v_cache has type %u, k_cache %u", v_cache->dtype, type);
  for (int i = 0; i < 3; i++) KT_TRY(kt_gpu_size("v_cache", v_cache, i, k_cache->shape[i]));
  if (k_cache->shape[0] * k_cache->shape[2] > INT32_MAX)
    return KT_INVALID("k_cache has %lld pages of %lld: slots must fit 31 bits", (long long)k_cache->shape[0], (long long)k_cache->shape[2]);
  return KT_OK;
}

/* ---- storing ---- */
/* The nearest E4M3 of a value of at most 448. */
static uint32_t to_e4m3(float v) {
  const float magnitude = sycl::fmin(sycl::fabs(v), 448.0f);
  int exponent = (int)(sycl::bit_cast<uint32_t>(magnitude) >> 23) - 127;
  exponent = exponent < -6 ? -6 : exponent;
  int steps = (int)sycl::rint(magnitude * kt_float_of((uint32_t)(127 + 3 - exponent) << 23));
  if (steps == 16) steps = 8, exponent++;
  const uint32_t code = steps < 8 ? (uint32_t)steps : (uint32_t)((exponent + 7) * 8 + steps - 8);
  return code | (v < 0 ? 128u : 0u);
}

/* Values from a block on, as many as one has: 32 of plain values too. */
template <uint32_t TYPE> constexpr int block_values() { return TYPE == KT_F8_E4M3 ? 128 : 32; }

template <uint32_t TYPE> static void store_block(const float *from, int64_t block, int64_t dim, char *row) {
  constexpr int VALUES = block_values<TYPE>();
  from += block * VALUES;
  const int count = (int)(dim - block * VALUES < VALUES ? dim - block * VALUES : VALUES);
  if constexpr (kt_is_plain(TYPE)) {
    for (int i = 0; i < count; i++) {
      if constexpr (TYPE == KT_F32) ((float *)row)[block * VALUES + i] = from[i];
      else if constexpr (TYPE == KT_F16) ((sycl::half *)row)[block * VALUES + i] = (sycl::half)from[i];
      else ((uint16_t *)row)[block * VALUES + i] = kt_to_bf16(from[i]);
    }
  } else {
    float most = 0;
    for (int i = 0; i < VALUES; i++) most = sycl::fmax(most, sycl::fabs(from[i]));
    if constexpr (TYPE == KT_F8_E4M3) {
      const float d = most / 448.0f;
      char *to = row + block * 132;
      *(float *)to = d;
      for (int i = 0; i < VALUES; i++) to[4 + i] = (char)(d == 0 ? 0 : to_e4m3(from[i] / d));
    } else {
      const sycl::half scale = (sycl::half)(most / 127.0f);
      const float d = (float)scale;
      char *to = row + block * 34;
      *(sycl::half *)to = scale;
      for (int i = 0; i < VALUES; i++) to[2 + i] = (char)(d == 0 ? 0 : sycl::clamp((int)sycl::rint(from[i] / d), -127, 127));
    }
  }
}

template <uint32_t TYPE> static kt_status_t store(kt_ctx *ctx, kt_heads x, const int32_t *slots, cache_view cache, int64_t limit) {
  const int64_t blocks = kt_div_up(x.dim, block_values<TYPE>());
  return kt_sycl_each(ctx, "store_kv", x.tokens * x.heads * blocks, [=](int64_t i) {
    const int64_t block = i % blocks, head = i / blocks % x.heads, token = i / blocks / x.heads, slot = slots[token];
    if (slot < 0 || slot >= limit) return;
    store_block<TYPE>(x.data + token * x.token_stride + head * x.head_stride, block, x.dim, cache_row(cache, slot, head));
  });
}

static kt_status_t store_any(kt_ctx *ctx, kt_heads x, const int32_t *slots, const kt_tensor_t *cache) {
#define CALL(TYPE) store<TYPE>(ctx, x, slots, cache_of(cache), cache->shape[0] * cache->shape[2])
  EACH_CACHE_TYPE(cache->dtype, CALL)
#undef CALL
}

kt_status_t kt_sycl_store_kv(kt_ctx *ctx, kt_heads k, kt_heads v, const int32_t *slots, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache) {
  KT_TRY(store_any(ctx, k, slots, k_cache));
  return store_any(ctx, v, slots, v_cache);
}

extern "C" kt_status_t kt_store_kv(kt_ctx_t *handle, const kt_tensor_t *k, const kt_tensor_t *v, const kt_tensor_t *slot_mapping,
                                   const kt_tensor_t *k_cache, const kt_tensor_t *v_cache) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "k", k, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "v", v, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "slot_mapping", slot_mapping, 1, KT_I32));
  KT_TRY(kt_sycl_check_caches(ctx, k_cache, v_cache));
  KT_TRY(kt_gpu_size("k", k, 1, k_cache->shape[1]));
  KT_TRY(kt_gpu_size("k", k, 2, k_cache->shape[3]));
  KT_TRY(kt_gpu_size("v", v, 0, k->shape[0]));
  KT_TRY(kt_gpu_size("v", v, 1, k_cache->shape[1]));
  KT_TRY(kt_gpu_size("v", v, 2, v_cache->shape[3]));
  KT_TRY(kt_gpu_size("slot_mapping", slot_mapping, 0, k->shape[0]));
  return kt_sycl_store_kv(ctx, kt_heads_of(k), kt_heads_of(v), (const int32_t *)slot_mapping->data, k_cache, v_cache);
}

/* ---- attention ---- */
struct attention_job {
  kt_heads q, out;
  cache_view k, v;
  const int32_t *block_tables, *query_start, *seq_lens;
  int64_t table_stride, sequences, kv_heads, group;
  int heads; /* of a work-group */
  int64_t chunks, segments, segment; /* work-groups of a kv head; of a token's keys, and how many keys each has */
  const float *sinks;
  kt_attention_params_t params;
  float *partials; /* [tokens][heads][segments][v_dim + 2]: sums, then the greatest score and the sum of weights; NULL with one segment */
};

/* Keys begin .. end that a token sees, and its position. */
struct sight {
  int64_t sequence, position, begin, end;
};

static sight sight_of(const attention_job &job, int64_t token) {
  int64_t low = 0, high = job.sequences - 1; /* the last sequence that begins at or before the token */
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (job.query_start[middle] <= token) low = middle;
    else high = middle - 1;
  }
  const int64_t length = job.seq_lens[low];
  sight s = {low, length - (job.query_start[low + 1] - token), 0, 0};
  if (token >= job.query_start[low + 1]) return s; /* of no sequence: it sees nothing */
  s.end = job.params.bidirectional ? length : s.position + 1;
  if (job.params.sliding_window > 0) s.begin = sycl::max(s.begin, s.position - job.params.sliding_window + 1);
  if (job.params.chunk_size > 0) s.begin = sycl::max(s.begin, s.position / job.params.chunk_size * job.params.chunk_size);
  return s;
}

/* Where a key lies in the caches. */
static int64_t slot_of(const attention_job &job, int64_t sequence, int64_t key) {
  return job.block_tables[sequence * job.table_stride + key / job.k.page_size] * job.k.page_size + key % job.k.page_size;
}

/* What a set of keys adds up to: weights are relative to e^most. */
static float shrink(float most, float now) { return most == now ? 1.0f : sycl::exp(most - now); }

static void finish(const attention_job &job, int64_t head, float most, float sum, const float *values, int64_t first, int64_t step, float *out) {
  float factor = 1.0f;
  if (job.sinks != NULL) {
    const float now = sycl::fmax(most, job.sinks[head]);
    factor = shrink(most, now);
    sum = sum * factor + sycl::exp(job.sinks[head] - now);
  }
  for (int64_t i = first; i < job.out.dim; i += step) out[i] = sum > 0 ? values[i] * factor / sum : 0.0f;
}

template <uint32_t TYPE> static float cached(const char *row, int64_t i) {
  if constexpr (kt_is_plain(TYPE)) {
    return kt_plain_at<TYPE>((const uint8_t *)row, i);
  } else if constexpr (TYPE == KT_F8_E4M3) {
    const char *block = row + i / 128 * 132;
    return *(const float *)block * kt_e4m3((uint8_t)block[4 + i % 128]);
  } else {
    const char *block = row + i / 32 * 34;
    return kt_half_of(*(const uint16_t *)block) * (float)(int8_t)block[2 + i % 32];
  }
}

/* Local memory of a work-group, as floats one after the other. */
struct group_memory {
  float *q, *sums, *scores, *most, *total, *shrunk; /* [heads][k_dim padded], [heads][v_dim], [heads][TILE], [heads] three times */
};

template <uint32_t TYPE> static void attend(const attention_job &job, sycl::nd_item<1> item, group_memory m) {
  const int64_t id = item.get_local_id(0), items = item.get_local_range(0), segment = item.get_group(0) % job.segments;
  const int64_t chunk = item.get_group(0) / job.segments % job.chunks, kv_head = item.get_group(0) / job.segments / job.chunks % job.kv_heads;
  const int64_t token = item.get_group(0) / job.segments / job.chunks / job.kv_heads, k_dim = job.q.dim, v_dim = job.out.dim;
  const int64_t padded = kt_div_up(k_dim, 8) * 8, head0 = kv_head * job.group + chunk * job.heads;
  const int heads = (int)sycl::min((int64_t)job.heads, job.group - chunk * job.heads);
  const kt_lanes own = kt_lanes_of(item);
  const sycl::sub_group lanes = own.group;
  const sight seen = sight_of(job, token);
  const int64_t from = sycl::max(seen.begin, segment * job.segment), until = sycl::min(seen.end, (segment + 1) * job.segment);
  float scale = job.params.scale;
  if (job.params.temperature_scale != 0)
    scale *= 1.0f + job.params.temperature_scale * sycl::log(1.0f + sycl::floor((float)(seen.position + 1) / job.params.temperature_floor));
  for (int64_t i = id; i < heads * padded; i += items) {
    const int64_t h = i / padded, c = i % padded;
    m.q[i] = c < k_dim ? job.q.data[token * job.q.token_stride + (head0 + h) * job.q.head_stride + c] * scale : 0.0f;
  }
  for (int64_t i = id; i < heads * v_dim; i += items) m.sums[i] = 0;
  for (int64_t h = id; h < heads; h += items) m.most[h] = -INFINITY, m.total[h] = 0;
  for (int64_t tile = from; tile < until; tile += TILE) {
    const int64_t count = sycl::min((int64_t)TILE, until - tile);
    sycl::group_barrier(item.get_group());
    /* an item a key */
    for (int64_t key = id; key < count; key += items) {
      const uint8_t *row = (const uint8_t *)cache_row(job.k, slot_of(job, seen.sequence, tile + key), kv_head);
      float dots[MAX_HEADS] = {};
      for (int64_t c = 0; c < k_dim; c += 8) {
        float values[8];
        kt_load<TYPE>(row, c, k_dim, values);
        for (int h = 0; h < heads; h++)
          for (int j = 0; j < 8; j++) dots[h] += m.q[h * padded + c + j] * values[j];
      }
      for (int h = 0; h < heads; h++)
        m.scores[h * TILE + key] = job.params.soft_cap != 0 ? job.params.soft_cap * sycl::tanh(dots[h] / job.params.soft_cap) : dots[h];
    }
    sycl::group_barrier(item.get_group());
    /* a sub-group a head */
    for (int64_t h = own.number; h < heads; h += own.count) {
      float *scores = m.scores + h * TILE;
      const float before = m.most[h];
      float most = before, sum = 0;
      for (int64_t i = lanes.get_local_linear_id(); i < count; i += lanes.get_local_linear_range()) most = sycl::fmax(most, scores[i]);
      most = sycl::reduce_over_group(lanes, most, sycl::maximum<float>());
      for (int64_t i = lanes.get_local_linear_id(); i < count; i += lanes.get_local_linear_range()) sum += scores[i] = shrink(scores[i], most);
      sum = sycl::reduce_over_group(lanes, sum, sycl::plus<float>());
      if (lanes.leader()) {
        m.shrunk[h] = shrink(before, most);
        m.total[h] = m.total[h] * m.shrunk[h] + sum;
        m.most[h] = most;
      }
    }
    sycl::group_barrier(item.get_group());
    /* an item a column, or several */
    for (int64_t c = id; c < v_dim; c += items) {
      float sums[MAX_HEADS];
      for (int h = 0; h < heads; h++) sums[h] = m.sums[h * v_dim + c] * m.shrunk[h];
      for (int64_t i = 0; i < count; i++) {
        const float value = cached<TYPE>(cache_row(job.v, slot_of(job, seen.sequence, tile + i), kv_head), c);
        for (int h = 0; h < heads; h++) sums[h] += m.scores[h * TILE + i] * value;
      }
      for (int h = 0; h < heads; h++) m.sums[h * v_dim + c] = sums[h];
    }
  }
  sycl::group_barrier(item.get_group());
  for (int h = 0; h < heads; h++) {
    const int64_t head = head0 + h;
    if (job.partials == NULL) {
      finish(job, head, m.most[h], m.total[h], m.sums + h * v_dim, id, items, job.out.data + token * job.out.token_stride + head * job.out.head_stride);
      continue;
    }
    float *to = job.partials + ((token * job.q.heads + head) * job.segments + segment) * (v_dim + 2);
    for (int64_t c = id; c < v_dim; c += items) to[c] = m.sums[h * v_dim + c];
    if (id == 0) to[v_dim] = m.most[h], to[v_dim + 1] = m.total[h];
  }
}

template <uint32_t TYPE> static kt_status_t launch(kt_ctx *ctx, const attention_job &job) {
  const size_t groups = (size_t)(job.q.tokens * job.kv_heads * job.chunks * job.segments), items = (size_t)ctx->group_items;
  const int64_t padded = kt_div_up(job.q.dim, 8) * 8;
  return kt_sycl_submit(ctx, "paged_attention", [=](sycl::queue &queue) {
    queue.submit([&](sycl::handler &handler) {
      const sycl::local_accessor<float, 1> memory((size_t)(job.heads * (padded + job.out.dim + TILE + 3)), handler);
      handler.parallel_for(sycl::nd_range<1>(groups * items, items), [=](sycl::nd_item<1> item) {
        group_memory m;
        m.q = &memory[0];
        m.sums = m.q + job.heads * padded;
        m.scores = m.sums + job.heads * job.out.dim;
        m.most = m.scores + job.heads * TILE;
        m.total = m.most + job.heads;
        m.shrunk = m.total + job.heads;
        attend<TYPE>(job, item, m);
      });
    });
  });
}

/* Adds up what the segments of a head's keys came to; an item a column. */
static kt_status_t join(kt_ctx *ctx, const attention_job &job) {
  const int64_t v_dim = job.out.dim;
  return kt_sycl_groups(ctx, "paged_attention", job.q.tokens * job.q.heads, ctx->group_items, [=](sycl::nd_item<1> item) {
    const int64_t token = item.get_group(0) / job.q.heads, head = item.get_group(0) % job.q.heads;
    const float *parts = job.partials + (token * job.q.heads + head) * job.segments * (v_dim + 2);
    float most = -INFINITY;
    for (int64_t s = 0; s < job.segments; s++) most = sycl::fmax(most, parts[s * (v_dim + 2) + v_dim]);
    for (int64_t c = item.get_local_id(0); c < v_dim; c += item.get_local_range(0)) {
      float total = 0, sum = 0;
      for (int64_t s = 0; s < job.segments; s++) {
        const float *part = parts + s * (v_dim + 2), factor = shrink(part[v_dim], most);
        total += part[v_dim + 1] * factor;
        sum += part[c] * factor;
      }
      float *out = job.out.data + token * job.out.token_stride + head * job.out.head_stride;
      finish(job, head, most, total, &sum - c, c, v_dim, out);
    }
  });
}

static kt_status_t check_params(const kt_attention_params_t *p) {
  if (p == NULL) return KT_INVALID("params are NULL");
  if (p->struct_size < sizeof *p) return KT_INVALID("params.struct_size is %u", p->struct_size);
  if (p->bidirectional > 1) return KT_INVALID("bidirectional is %u", p->bidirectional);
  if (p->bidirectional && (p->sliding_window != 0 || p->chunk_size != 0)) return KT_INVALID("bidirectional attention has no window and no chunks");
  if (p->sliding_window < 0 || p->chunk_size < 0) return KT_INVALID("sliding_window is %d, chunk_size %d", p->sliding_window, p->chunk_size);
  if (p->temperature_scale != 0 && !(p->temperature_floor > 0)) return KT_INVALID("temperature_floor is %g", (double)p->temperature_floor);
  return KT_OK;
}

/* Several work-groups share a token's keys where there are too few tokens to fill the device. The lengths lie on the device: there are
 * work-groups for the longest that may be. */
static kt_status_t split(kt_ctx *ctx, attention_job *job, int64_t longest) {
  const int64_t groups = job->q.tokens * job->kv_heads * job->chunks;
  job->segments = 1;
  job->segment = longest;
  if (longest <= SEGMENT || groups >= ctx->compute_units) return KT_OK;
  job->segment = kt_div_up(longest, (int64_t)SEGMENT * MAX_SEGMENTS) * SEGMENT;
  job->segments = kt_div_up(longest, job->segment);
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_PARTIAL, job->q.tokens * job->q.heads * job->segments * (job->out.dim + 2) * 4, &memory));
  job->partials = (float *)memory;
  return KT_OK;
}

extern "C" kt_status_t kt_paged_attention(kt_ctx_t *handle, const kt_tensor_t *q, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache,
                                          const kt_tensor_t *block_tables, const kt_tensor_t *query_start, const kt_tensor_t *seq_lens,
                                          const kt_tensor_t *sinks, const kt_attention_params_t *params, const kt_tensor_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(check_params(params));
  KT_TRY(kt_gpu_typed(ctx, "q", q, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "block_tables", block_tables, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "query_start", query_start, 1, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "seq_lens", seq_lens, 1, KT_I32));
  KT_TRY(kt_sycl_check_caches(ctx, k_cache, v_cache));
  const int64_t heads = q->shape[1], kv_heads = k_cache->shape[1], v_dim = v_cache->shape[3], sequences = seq_lens->shape[0];
  KT_TRY(kt_gpu_size("k_cache", k_cache, 3, q->shape[2]));
  if (heads % kv_heads != 0) return KT_INVALID("q has %lld heads, the cache %lld", (long long)heads, (long long)kv_heads);
  KT_TRY(kt_gpu_size("out", out, 0, q->shape[0]));
  KT_TRY(kt_gpu_size("out", out, 1, heads));
  KT_TRY(kt_gpu_size("out", out, 2, v_dim));
  KT_TRY(kt_gpu_size("block_tables", block_tables, 0, sequences));
  KT_TRY(kt_gpu_size("query_start", query_start, 0, sequences + 1));
  attention_job job = {};
  KT_TRY(kt_gpu_vector(ctx, "sinks", sinks, heads, &job.sinks));
  job.q = kt_heads_of(q);
  job.out = kt_heads_of(out);
  job.k = cache_of(k_cache);
  job.v = cache_of(v_cache);
  job.block_tables = (const int32_t *)block_tables->data;
  job.query_start = (const int32_t *)query_start->data;
  job.seq_lens = (const int32_t *)seq_lens->data;
  job.table_stride = block_tables->stride[0] / 4;
  job.sequences = sequences;
  job.kv_heads = kv_heads;
  job.group = heads / kv_heads;
  job.params = *params;
  const int64_t widest = (q->shape[2] > v_dim ? q->shape[2] : v_dim) + 7;
  if (widest > LOCAL_VALUES) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "heads of %lld values, at most %d", (long long)widest - 7, LOCAL_VALUES - 7);
  job.heads = (int)std::min({job.group, (int64_t)MAX_HEADS, LOCAL_VALUES / widest});
  job.chunks = kt_div_up(job.group, job.heads);
  KT_TRY(split(ctx, &job, block_tables->shape[1] * k_cache->shape[2]));
#define CALL(TYPE) launch<TYPE>(ctx, job)
  const auto attend_all = [&]() -> kt_status_t { EACH_CACHE_TYPE(k_cache->dtype, CALL) };
#undef CALL
  KT_TRY(attend_all());
  return job.partials == NULL ? KT_OK : join(ctx, job);
}

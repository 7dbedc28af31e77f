/* kt_moe_router, kt_norm_router, kt_fused_experts.
 * SHAPES       logits [tokens, experts], ids and weights [tokens, k], stacks [experts, inter, hidden] and [experts, hidden, inter]
 * DEFINITION   see kt.h: softmax, sigmoid or chosen softmax; bias for the choice only; the best groups by their greatest or the sum of
 *              their two greatest; of equals the lower index, NaN never
 * REGULARITIES 8 .. 512 experts, k 1 .. 16. Few tokens: a product a pair of token and expert. Many: pairs are grouped by expert for tiles */
#include "blocks.hpp"
#include "products.hpp"

#define MAX_EXPERTS 1024
/* Most tokens whose pairs each read their own expert. */
#define FEW_TOKENS 8

struct router_job {
  kt_frows logits;
  const float *bias;
  int64_t ids_stride, weights_stride, k;
  kt_router_params_t params;
  int32_t *ids;
  float *weights;
  float *memory; /* [tokens][4][experts]: what is chosen by, scores, groups, whether a group is kept */
};

/* e^(a - b) with what the difference loses by rounding, as doubles would have it. */
static float exp_of_difference(float a, float b) {
  const float d = a - b, t = d - a, lost = (a - (d - t)) - (b + t), e = sycl::exp(d);
  return lost == lost ? e + e * lost : e;
}

/* A sum that keeps what its additions lose. */
struct exact_sum {
  float sum = 0, lost = 0;
  void add(float v) {
    const float own = v - lost, next = sum + own;
    lost = next - sum - own;
    sum = next;
  }
};

/* Index of the greatest of n values, of equals the lowest; n where all are NaN. Each lane gets it. */
static int64_t best_of(sycl::sub_group lanes, const float *values, int64_t n) {
  const int64_t first = lanes.get_local_linear_id(), step = lanes.get_local_linear_range();
  float most = -INFINITY;
  int64_t at = n;
  for (int64_t i = first; i < n; i += step)
    if (values[i] > most || (values[i] == most && at == n)) most = values[i], at = i;
  const float greatest = sycl::reduce_over_group(lanes, most, sycl::maximum<float>());
  return sycl::reduce_over_group(lanes, most == greatest ? at : n, sycl::minimum<int64_t>());
}

static float judged(const router_job &job, const float *choice, const float *scores, float inverse, int64_t i) {
  return job.params.group_score == KT_GROUP_TOP2_SUM && job.bias == NULL ? scores[i] * inverse : choice[i];
}

/* Leaves the experts of the best groups to choose from. */
static void keep_groups(const router_job &job, sycl::sub_group lanes, float *choice, const float *scores, float inverse, float *groups, float *kept) {
  const int64_t first = lanes.get_local_linear_id(), step = lanes.get_local_linear_range(), n = job.logits.n;
  const int64_t count = job.params.num_groups, size = n / count;
  for (int64_t g = first; g < count; g += step) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = g * size; i < (g + 1) * size; i++) {
      const float v = judged(job, choice, scores, inverse, i);
      if (v > best) second = best, best = v;
      else if (v > second) second = v;
    }
    groups[g] = job.params.group_score == KT_GROUP_TOP2_SUM && size > 1 ? best + second : best;
    kept[g] = 0;
  }
  sycl::group_barrier(lanes);
  for (int j = 0; j < job.params.topk_groups; j++) {
    const int64_t g = best_of(lanes, groups, count);
    sycl::group_barrier(lanes);
    if (lanes.leader() && g < count) groups[g] = NAN, kept[g] = 1;
    sycl::group_barrier(lanes);
  }
  for (int64_t i = first; i < n; i += step)
    if (kept[i / size] == 0) choice[i] = NAN;
  sycl::group_barrier(lanes);
}

/* The choice of one token, by a sub-group. */
static void choose(const router_job &job, sycl::sub_group lanes, int64_t token) {
  const int64_t first = lanes.get_local_linear_id(), step = lanes.get_local_linear_range(), n = job.logits.n;
  const float *logits = job.logits.data + token * job.logits.stride;
  float *choice = job.memory + token * 4 * n, *scores = choice + n;
  int32_t *ids = job.ids + token * job.ids_stride;
  float *weights = job.weights + token * job.weights_stride, most = -INFINITY;
  for (int64_t i = first; i < n; i += step) {
    choice[i] = logits[i] == logits[i] ? logits[i] : -INFINITY;
    most = sycl::fmax(most, choice[i]);
  }
  most = sycl::reduce_over_group(lanes, most, sycl::maximum<float>());
  exact_sum own;
  for (int64_t i = first; i < n; i += step) {
    const float v = choice[i];
    if (job.params.score == KT_SCORE_SIGMOID) scores[i] = 1.0f / (1.0f + sycl::exp(-v));
    else if (job.params.score == KT_SCORE_SOFTMAX) scores[i] = v == most ? 1.0f : exp_of_difference(v, most);
    else scores[i] = v;
    own.add(scores[i]);
  }
  const float sum = sycl::reduce_over_group(lanes, own.sum, sycl::plus<float>());
  float inverse = job.params.score == KT_SCORE_SOFTMAX ? 1.0f / sum : 1.0f;
  if (job.bias != NULL)
    for (int64_t i = first; i < n; i += step) {
      const float v = scores[i] * inverse + job.bias[i];
      choice[i] = v == v ? v : -INFINITY;
    }
  sycl::group_barrier(lanes);
  if (job.params.num_groups > 1) keep_groups(job, lanes, choice, scores, inverse, scores + n, scores + 2 * n);
  exact_sum taken;
  float greatest = -INFINITY;
  for (int64_t j = 0; j < job.k; j++) {
    int64_t id = best_of(lanes, choice, n);
    if (id == n) id = 0;
    sycl::group_barrier(lanes);
    if (lanes.leader()) choice[id] = NAN, ids[j] = (int32_t)id, weights[j] = scores[id];
    sycl::group_barrier(lanes);
    greatest = sycl::fmax(greatest, scores[id]);
    taken.add(scores[id] * inverse);
  }
  if (!lanes.leader()) return;
  float chosen = taken.sum;
  if (job.params.score == KT_SCORE_CHOSEN_SOFTMAX) {
    exact_sum total;
    for (int64_t j = 0; j < job.k; j++) total.add(weights[j] = weights[j] == greatest ? 1.0f : exp_of_difference(weights[j], greatest));
    inverse = 1.0f / total.sum;
    chosen = 1.0f;
  }
  const float factor = inverse * job.params.scale / (job.params.norm ? chosen + 1e-20f : 1.0f);
  for (int64_t j = 0; j < job.k; j++) weights[j] *= factor;
}

static kt_status_t route(kt_ctx *ctx, kt_frows logits, const kt_tensor_t *bias, const kt_router_params_t *params, const kt_tensor_t *ids,
                         const kt_tensor_t *weights) {
  if (params == NULL) return KT_INVALID("params are NULL");
  if (params->struct_size < sizeof *params) return KT_INVALID("params.struct_size is %u", params->struct_size);
  KT_TRY(kt_gpu_typed(ctx, "ids", ids, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "weights", weights, 2, KT_F32));
  if (logits.n > MAX_EXPERTS) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld experts, at most %d", (long long)logits.n, MAX_EXPERTS);
  if (params->score > KT_SCORE_CHOSEN_SOFTMAX) return KT_INVALID("params.score is %u", params->score);
  if (params->group_score > KT_GROUP_TOP2_SUM) return KT_INVALID("params.group_score is %u", params->group_score);
  if (params->num_groups < 1 || logits.n % params->num_groups != 0)
    return KT_INVALID("params.num_groups is %d for %lld experts", params->num_groups, (long long)logits.n);
  if (params->topk_groups < 1 || params->topk_groups > params->num_groups)
    return KT_INVALID("params.topk_groups is %d of %d groups", params->topk_groups, params->num_groups);
  const int64_t k = ids->shape[1], available = logits.n / params->num_groups * params->topk_groups;
  if (k > available) return KT_INVALID("ids has %lld columns, there are %lld experts to choose from", (long long)k, (long long)available);
  KT_TRY(kt_gpu_size("ids", ids, 0, logits.count));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("weights", weights, i, ids->shape[i]));
  router_job job = {};
  KT_TRY(kt_gpu_vector(ctx, "bias", bias, logits.n, &job.bias));
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_ROUTE, logits.count * 4 * logits.n * 4, &memory));
  job.logits = logits;
  job.ids_stride = ids->stride[0] / 4;
  job.weights_stride = weights->stride[0] / 4;
  job.k = k;
  job.params = *params;
  job.ids = (int32_t *)ids->data;
  job.weights = (float *)weights->data;
  job.memory = (float *)memory;
  return kt_sycl_units(ctx, "moe_router", logits.count, [=](sycl::sub_group lanes, int64_t token) { choose(job, lanes, token); });
}

extern "C" kt_status_t kt_moe_router(kt_ctx_t *handle, const kt_tensor_t *logits, const kt_tensor_t *bias, const kt_router_params_t *params,
                                     const kt_tensor_t *ids, const kt_tensor_t *weights) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows rows;
  KT_TRY(kt_gpu_frows(ctx, "logits", logits, 2, &rows));
  return route(ctx, rows, bias, params, ids, weights);
}

extern "C" kt_status_t kt_norm_router(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *norm_weight, float eps, float offset,
                                      const kt_tensor_t *w, const kt_tensor_t *logit_bias, const kt_tensor_t *bias,
                                      const kt_router_params_t *params, const kt_tensor_t *normed, const kt_tensor_t *ids, const kt_tensor_t *weights) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_frows from, to;
  kt_norm norm = {NULL, eps, offset};
  const float *b = NULL;
  KT_TRY(kt_gpu_frows(ctx, "x", x, 2, &from));
  KT_TRY(kt_gpu_frows(ctx, "normed", normed, 2, &to));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("normed", normed, i, x->shape[i]));
  KT_TRY(kt_sycl_weight(ctx, "w", w, 2, from.n));
  KT_TRY(kt_gpu_vector(ctx, "norm_weight", norm_weight, from.n, &norm.weight));
  if (norm.weight == NULL) return KT_INVALID("norm_weight is NULL");
  KT_TRY(kt_gpu_vector(ctx, "logit_bias", logit_bias, w->shape[0], &b));
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_PRODUCT, from.count * w->shape[0] * 4, &memory));
  const kt_frows logits = {(float *)memory, from.count, w->shape[0], w->shape[0]};
  KT_TRY(kt_sycl_rms_norm(ctx, from, norm, to));
  KT_TRY(kt_sycl_multiply(ctx, kt_sycl_product_of(w, b, false, to, logits)));
  return route(ctx, logits, bias, params, ids, weights);
}

/* ---- experts ---- */
struct experts_job {
  const kt_experts_args_t *a;
  kt_frows x, out;
  kt_pairs pairs;
  const float *weights;
  int64_t weights_stride, tokens, inter;
  const float *gate_bias, *up_bias, *down_bias;
  const int32_t *list; /* pairs by expert; NULL: each is computed by itself */
  const kt_tile *tiles;
  int64_t num_tiles;
};

/* Pairs by expert, and tiles of one expert's; by one work-group. */
static kt_status_t group_pairs(kt_ctx *ctx, experts_job *job) {
  const int64_t pairs = job->tokens * job->pairs.k, experts = job->pairs.experts;
  job->num_tiles = pairs / KT_TILE_TOKENS + (experts < pairs ? experts : pairs);
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_GROUPS, job->num_tiles * (int64_t)sizeof(kt_tile) + pairs * 4, &memory));
  kt_tile *tiles = (kt_tile *)memory;
  int32_t *list = (int32_t *)(tiles + job->num_tiles);
  job->list = list;
  job->tiles = tiles;
  const kt_pairs of = job->pairs;
  const int64_t num_tiles = job->num_tiles;
  const size_t items = (size_t)ctx->group_items;
  return kt_sycl_submit(ctx, "fused_experts", [=](sycl::queue &queue) {
    queue.submit([&](sycl::handler &handler) {
      const sycl::local_accessor<int32_t, 1> counts(MAX_EXPERTS, handler), starts(MAX_EXPERTS, handler);
      handler.parallel_for(sycl::nd_range<1>(items, items), [=](sycl::nd_item<1> item) {
        const int64_t id = item.get_local_id(0), step = item.get_local_range(0);
        const auto next = [](int32_t &of_expert) {
          return sycl::atomic_ref<int32_t, sycl::memory_order::relaxed, sycl::memory_scope::work_group, sycl::access::address_space::local_space>(of_expert)++;
        };
        const auto expert_of = [&](int64_t pair) { return of.ids[pair / of.k * of.ids_stride + pair % of.k]; };
        const auto known = [&](int32_t expert) { return expert >= 0 && expert < of.experts; };
        for (int64_t e = id; e < of.experts; e += step) counts[e] = 0;
        for (int64_t i = id; i < num_tiles; i += step) tiles[i] = {0, 0, 0};
        sycl::group_barrier(item.get_group());
        for (int64_t p = id; p < pairs; p += step)
          if (const int32_t e = expert_of(p); known(e)) next(counts[e]);
        sycl::group_barrier(item.get_group());
        if (id == 0) {
          int32_t start = 0, tile = 0;
          for (int32_t e = 0; e < of.experts; e++) {
            starts[e] = start;
            for (int32_t i = 0; i < counts[e]; i += KT_TILE_TOKENS) tiles[tile++] = {e, start + i, sycl::min(KT_TILE_TOKENS, counts[e] - i)};
            start += counts[e];
          }
        }
        sycl::group_barrier(item.get_group());
        for (int64_t p = id; p < pairs; p += step)
          if (const int32_t e = expert_of(p); known(e)) list[next(starts[e])] = (int32_t)p;
      });
    });
  });
}

static kt_status_t product(kt_ctx *ctx, const experts_job &job, const kt_tensor_t *w, const float *bias, kt_frows x, bool by_pair, kt_frows out) {
  kt_product p = kt_sycl_product_of(w, bias, false, x, out);
  p.pairs = job.pairs;
  p.pairs.matrix_stride = w->stride[0];
  p.pairs.by_pair = by_pair;
  return job.list == NULL ? kt_sycl_multiply(ctx, p) : kt_sycl_multiply_tiles(ctx, p, job.list, job.tiles, job.num_tiles);
}

static kt_status_t check_stack(kt_ctx *ctx, const char *name, const kt_tensor_t *w, int64_t experts, int64_t rows, int64_t columns) {
  KT_TRY(kt_sycl_weight(ctx, name, w, 3, columns));
  if (experts > 0) KT_TRY(kt_gpu_size(name, w, 0, experts));
  if (rows > 0) KT_TRY(kt_gpu_size(name, w, 1, rows));
  return KT_OK;
}

static kt_status_t check_bias(kt_ctx *ctx, const char *name, const kt_tensor_t *b, int64_t experts, int64_t n, const float **out) {
  *out = NULL;
  if (b == NULL) return KT_OK;
  KT_TRY(kt_gpu_typed(ctx, name, b, 2, KT_F32));
  KT_TRY(kt_gpu_size(name, b, 0, experts));
  KT_TRY(kt_gpu_size(name, b, 1, n));
  if (b->stride[0] != 4 * n) return KT_INVALID("%s has rows %lld bytes apart", name, (long long)b->stride[0]);
  *out = (const float *)b->data;
  return KT_OK;
}

static kt_status_t check_experts(kt_ctx *ctx, const kt_experts_args_t *a, experts_job *job) {
  if (a == NULL) return KT_INVALID("args are NULL");
  if (a->struct_size < sizeof *a) return KT_INVALID("args.struct_size is %u", a->struct_size);
  if (a->act > KT_ACT_SWIGLU_OAI) return KT_INVALID("args.act is %u", a->act);
  if (a->flags > (KT_EXPERTS_SCALE_INPUT | KT_EXPERTS_ADD)) return KT_INVALID("args.flags is %u", a->flags);
  job->a = a;
  KT_TRY(kt_gpu_frows(ctx, "x", a->x, 2, &job->x));
  KT_TRY(kt_gpu_frows(ctx, "out", a->out, 2, &job->out));
  KT_TRY(kt_gpu_typed(ctx, "ids", a->ids, 2, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "weights", a->weights, 2, KT_F32));
  const int64_t hidden = job->x.n;
  job->tokens = job->x.count;
  KT_TRY(kt_gpu_size("ids", a->ids, 0, job->tokens));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("weights", a->weights, i, a->ids->shape[i]));
  KT_TRY(kt_gpu_size("out", a->out, 0, job->tokens));
  KT_TRY(kt_gpu_size("out", a->out, 1, hidden));
  KT_TRY(check_stack(ctx, "gate", a->gate, 0, 0, hidden));
  const int64_t experts = a->gate->shape[0];
  job->inter = a->gate->shape[1];
  KT_TRY(check_stack(ctx, "up", a->up, experts, job->inter, hidden));
  KT_TRY(check_stack(ctx, "down", a->down, experts, hidden, job->inter));
  if (experts > MAX_EXPERTS) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld experts, at most %d", (long long)experts, MAX_EXPERTS);
  KT_TRY(check_bias(ctx, "gate_bias", a->gate_bias, experts, job->inter, &job->gate_bias));
  KT_TRY(check_bias(ctx, "up_bias", a->up_bias, experts, job->inter, &job->up_bias));
  KT_TRY(check_bias(ctx, "down_bias", a->down_bias, experts, hidden, &job->down_bias));
  job->pairs = {(const int32_t *)a->ids->data, a->ids->stride[0] / 4, a->ids->shape[1], experts, 0, false};
  job->weights = (const float *)a->weights->data;
  job->weights_stride = a->weights->stride[0] / 4;
  return KT_OK;
}

/* rows[pair] = x[token] * weights[pair] */
static kt_status_t scale_inputs(kt_ctx *ctx, const experts_job &job, kt_frows rows) {
  const kt_frows x = job.x;
  const float *weights = job.weights;
  const int64_t k = job.pairs.k, stride = job.weights_stride;
  return kt_sycl_each(ctx, "fused_experts", rows.count * rows.n, [=](int64_t i) {
    const int64_t pair = i / rows.n, col = i % rows.n, token = pair / k;
    rows.data[pair * rows.stride + col] = x.data[token * x.stride + col] * weights[token * stride + pair % k];
  });
}

/* out[t] (+)= sum_j weights[t][j] * rows[t * k + j]; weights NULL: ones. */
static kt_status_t add_up(kt_ctx *ctx, const experts_job &job, kt_frows rows, const float *weights) {
  const kt_frows out = job.out;
  const int64_t k = job.pairs.k, stride = job.weights_stride;
  const bool add = job.a->flags & KT_EXPERTS_ADD;
  return kt_sycl_each(ctx, "fused_experts", out.count * out.n, [=](int64_t i) {
    const int64_t token = i / out.n, col = i % out.n;
    float sum = 0;
    for (int64_t j = 0; j < k; j++) sum += (weights != NULL ? weights[token * stride + j] : 1.0f) * rows.data[(token * k + j) * rows.stride + col];
    float *to = out.data + token * out.stride + col;
    *to = add ? *to + sum : sum;
  });
}

extern "C" kt_status_t kt_fused_experts(kt_ctx_t *handle, const kt_experts_args_t *a) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  experts_job job = {};
  KT_TRY(check_experts(ctx, a, &job));
  const int64_t pairs = job.tokens * job.pairs.k, hidden = job.x.n, inter = job.inter;
  const bool scaled = a->flags & KT_EXPERTS_SCALE_INPUT;
  void *memory = NULL;
  KT_TRY(kt_sycl_scratch(ctx, KT_SCRATCH_EXPERTS, pairs * (2 * inter + hidden * (scaled ? 2 : 1)) * 4, &memory));
  const kt_frows gate = {(float *)memory, pairs, inter, inter}, up = {gate.data + pairs * inter, pairs, inter, inter};
  const kt_frows rows = {up.data + pairs * inter, pairs, hidden, hidden}, inputs = {rows.data + pairs * hidden, pairs, hidden, hidden};
  if (scaled) {
    KT_TRY(scale_inputs(ctx, job, inputs));
    job.x = inputs;
  }
  if (ctx->precision == KT_PRECISION_FAST && job.tokens > FEW_TOKENS) KT_TRY(group_pairs(ctx, &job));
  KT_TRY(product(ctx, job, a->gate, job.gate_bias, job.x, scaled, gate));
  KT_TRY(product(ctx, job, a->up, job.up_bias, job.x, scaled, up));
  KT_TRY(kt_sycl_act_mul(ctx, gate, up, a->act, gate));
  KT_TRY(product(ctx, job, a->down, job.down_bias, gate, true, rows));
  return add_up(ctx, job, rows, scaled ? NULL : job.weights);
}

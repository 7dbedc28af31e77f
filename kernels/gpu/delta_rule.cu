/* kt_causal_conv1d, kt_gated_delta_rule.
 * SHAPES       conv: x [tokens, groups, n], state [slots, kernel - 1, groups * n]; delta rule: state [slots, heads, k_dim, v_dim]
 * DEFINITION   see kt.h. A chain of segments, each of which goes on where the one before it ended, is taken in one go, so that results
 *              do not depend on how a sequence is cut. A segment of a slot that does not exist gives NaN and keeps no state
 * REGULARITIES heads 16 .. 64 of 128 x 128, kernel 4. A chain's tokens come one after another: a warp keeps COLUMNS columns of a head's
 *              state in registers, its lanes the rows, and adds up S^T k and S^T q of a token in one pass */
#include "gpu.h"

#define THREADS 128
#define WARPS (THREADS / KT_WARP)
#define MAX_KERNEL 16
#define MAX_K_DIM 256
#define COLUMNS 8

struct segment_list {
  const int32_t *start, *source, *target;
  int count;
  int64_t slots;
};

/* Whether segment g goes on with what the one before it left. */
__device__ __forceinline__ bool goes_on(const segment_list &s, int g) { return g > 0 && g < s.count && s.source[g] == s.target[g - 1]; }
__device__ __forceinline__ bool is_known(const segment_list &s, int g) {
  return s.source[g] >= -1 && s.source[g] < s.slots && s.target[g] >= 0 && s.target[g] < s.slots;
}

static kt_status_t segments_of(kt_ctx *ctx, const kt_state_segments_t *s, int64_t slots, segment_list *out) {
  if (s == NULL) return KT_INVALID("segments are NULL");
  if (s->struct_size < sizeof *s) return KT_INVALID("segments.struct_size is %u", s->struct_size);
  KT_TRY(kt_gpu_typed(ctx, "segments.start", s->start, 1, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "segments.source", s->source, 1, KT_I32));
  KT_TRY(kt_gpu_typed(ctx, "segments.target", s->target, 1, KT_I32));
  const int64_t count = s->source->shape[0];
  KT_TRY(kt_gpu_size("segments.start", s->start, 0, count + 1));
  KT_TRY(kt_gpu_size("segments.target", s->target, 0, count));
  if (count > 65535) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld segments, at most 65535", (long long)count);
  *out = {(const int32_t *)s->start->data, (const int32_t *)s->source->data, (const int32_t *)s->target->data, (int)count, slots};
  return KT_OK;
}

static kt_status_t check_dense(const char *name, const kt_tensor_t *t) {
  int64_t stride = 4;
  for (int i = (int)t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] != 1 && t->stride[i] != stride)
      return KT_INVALID("%s has dimension %d strided by %lld bytes, expected %lld", name, i, (long long)t->stride[i], (long long)stride);
    stride *= t->shape[i];
  }
  return KT_OK;
}

/* ---- convolution ---- */
struct conv_job {
  const float *x, *weight;
  float *out, *state;
  int64_t x_token, x_group, out_token, out_group, n, channels;
  int kernel, tokens;
  segment_list segments;
};

/* A block has some channels of one token. */
__global__ void conv_kernel(const conv_job job) {
  __shared__ int first, begin, known;
  const int token = (int)blockIdx.x, past = job.kernel - 1;
  if (threadIdx.x == 0) first = begin = known = 0; /* for a token of no segment */
  __syncthreads();
  for (int g = threadIdx.x; g < job.segments.count; g += THREADS)
    if (job.segments.start[g] <= token && token < job.segments.start[g + 1]) {
      int at = g;
      while (goes_on(job.segments, at)) at--;
      first = at;
      begin = job.segments.start[at];
      known = is_known(job.segments, at) && is_known(job.segments, g);
    }
  __syncthreads();
  const int64_t column = blockIdx.y * (int64_t)THREADS + threadIdx.x, group = blockIdx.z, channel = group * job.n + column;
  if (column >= job.n) return;
  const float *x = job.x + group * job.x_group + column;
  const int64_t source = job.segments.source[first];
  const float *history = known && source >= 0 ? job.state + source * past * job.channels + channel : NULL;
  float sum = 0;
  for (int j = 0; j < job.kernel; j++) {
    const int at = token - past + j;
    const float value = at >= begin ? x[at * job.x_token] : history != NULL ? history[(past + at - begin) * job.channels] : 0.0f;
    sum = j == 0 ? job.weight[channel] * value : fmaf(job.weight[j * job.channels + channel], value, sum);
  }
  job.out[token * job.out_token + group * job.out_group + column] = known ? sum / (1.0f + expf(-sum)) : __int_as_float(0x7fc00000);
}

/* What the chains leave behind, after all outputs: a thread a channel of a chain. */
__global__ void conv_state_kernel(const conv_job job) {
  const int past = job.kernel - 1;
  const int64_t column = blockIdx.x * (int64_t)THREADS + threadIdx.x, group = blockIdx.y, channel = group * job.n + column;
  int g = (int)blockIdx.z;
  if (column >= job.n || goes_on(job.segments, g)) return;
  const float *x = job.x + group * job.x_group + column;
  float recent[MAX_KERNEL - 1];
  const int64_t source = job.segments.source[g];
  const bool has_source = is_known(job.segments, g) && source >= 0;
#pragma unroll
  for (int j = 0; j < MAX_KERNEL - 1; j++) recent[j] = j < past && has_source ? job.state[(source * past + j) * job.channels + channel] : 0.0f;
  for (;; g++) {
    if (!is_known(job.segments, g)) return;
    const int from = max(job.segments.start[g], job.segments.start[g + 1] - past), until = min(job.segments.start[g + 1], job.tokens);
    for (int t = from; t < until; t++) {
      const float value = x[t * job.x_token];
#pragma unroll
      for (int j = 0; j < MAX_KERNEL - 1; j++)
        if (j < past) recent[j] = j == past - 1 ? value : recent[min(j + 1, MAX_KERNEL - 2)];
    }
    float *to = job.state + (int64_t)job.segments.target[g] * past * job.channels + channel;
#pragma unroll
    for (int j = 0; j < MAX_KERNEL - 1; j++)
      if (j < past) to[j * job.channels] = recent[j];
    if (!goes_on(job.segments, g + 1)) return;
  }
}

extern "C" kt_status_t kt_causal_conv1d(kt_ctx_t *handle, const kt_tensor_t *x, const kt_tensor_t *weight, const kt_state_segments_t *segments, const kt_tensor_t *state,
                                        const kt_tensor_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  KT_TRY(kt_gpu_typed(ctx, "x", x, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "weight", weight, 2, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "state", state, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, 3, KT_F32));
  const int64_t kernel = weight->shape[0], tokens = x->shape[0], groups = x->shape[1], n = x->shape[2];
  if (kernel < 2 || kernel > MAX_KERNEL) return KT_INVALID("weight has a kernel of %lld, expected 2 to %d", (long long)kernel, MAX_KERNEL);
  KT_TRY(kt_gpu_size("weight", weight, 1, groups * n));
  KT_TRY(kt_gpu_size("state", state, 1, kernel - 1));
  KT_TRY(kt_gpu_size("state", state, 2, groups * n));
  for (int i = 0; i < 3; i++) KT_TRY(kt_gpu_size("out", out, i, x->shape[i]));
  KT_TRY(check_dense("weight", weight));
  KT_TRY(check_dense("state", state));
  conv_job job = {(const float *)x->data,  (const float *)weight->data, (float *)out->data, (float *)state->data, x->stride[0] / 4, x->stride[1] / 4,
                  out->stride[0] / 4,      out->stride[1] / 4,          n,                  groups * n,           (int)kernel,      (int)tokens,
                  {}};
  KT_TRY(segments_of(ctx, segments, state->shape[0], &job.segments));
  const unsigned blocks = (unsigned)kt_div_up(n, THREADS);
  conv_kernel<<<dim3((unsigned)tokens, blocks, (unsigned)groups), THREADS, 0, ctx->stream>>>(job);
  KT_LAUNCHED("causal_conv1d");
  conv_state_kernel<<<dim3(blocks, (unsigned)groups, (unsigned)job.segments.count), THREADS, 0, ctx->stream>>>(job);
  KT_LAUNCHED("causal_conv1d");
  return KT_OK;
}

/* ---- gated delta rule ---- */
struct delta_job {
  const float *q, *k, *v, *b, *a, *decay, *dt_bias;
  float *state, *out;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head, v_group, b_token, b_head, a_token, a_head, out_token, out_head, out_group;
  int group, k_dim, v_dim, tokens;
  float scale, eps;
  segment_list segments;
};

/* What a lane needs of a token before its state is known. */
template <int ROWS> struct delta_token {
  float q[ROWS], k[ROWS], v, b, a;
  __device__ __forceinline__ void load(const delta_job &job, int token, int head, int column, int lane) {
    const int k_head = head / job.group, member = head % job.group;
    const float *qs = job.q + token * job.q_token + k_head * job.q_head, *ks = job.k + token * job.k_token + k_head * job.k_head;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int i = r * KT_WARP + lane;
      q[r] = i < job.k_dim ? qs[i] : 0.0f;
      k[r] = i < job.k_dim ? ks[i] : 0.0f;
    }
    v = column < job.v_dim ? job.v[token * job.v_token + k_head * job.v_head + member * job.v_group + column] : 0.0f;
    b = job.b[token * job.b_token + k_head * job.b_head + member];
    a = job.a[token * job.a_token + k_head * job.a_head + member];
  }
};

/* A lane's rows of a warp's columns of a head's state, read or written. */
template <int ROWS, bool WRITE> __device__ __forceinline__ void move_state(const delta_job &job, float *state, int column0, int lane, float (&s)[ROWS][COLUMNS]) {
  const bool full = column0 + COLUMNS <= job.v_dim && job.v_dim % 4 == 0;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int i = r * KT_WARP + lane;
    if (i >= job.k_dim) continue;
    float *row = state + (int64_t)i * job.v_dim + column0;
    if (full) {
#pragma unroll
      for (int c = 0; c < COLUMNS; c += 4)
        if (WRITE) *(float4 *)(row + c) = *(const float4 *)(s[r] + c);
        else *(float4 *)(s[r] + c) = *(const float4 *)(row + c);
    } else {
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        if (column0 + c >= job.v_dim) continue;
        if (WRITE) row[c] = s[r][c];
        else s[r][c] = row[c];
      }
    }
  }
}

/* A warp has COLUMNS columns of one head of one chain. Lane r + 32 i has row r + 32 i of all of them. */
template <int ROWS> __global__ void __launch_bounds__(THREADS) delta_kernel(const delta_job job) {
  const int lane = threadIdx.x % KT_WARP, warp = threadIdx.x / KT_WARP, head = blockIdx.y;
  const int column0 = (blockIdx.x * WARPS + warp) * COLUMNS;
  int g = (int)blockIdx.z;
  if (column0 >= job.v_dim || goes_on(job.segments, g)) return;
  const int64_t head_values = (int64_t)job.k_dim * job.v_dim, slot_values = head_values * gridDim.y;
  const float rate = job.decay[head], dt_bias = job.dt_bias[head];
  /* after the sums a lane has those of this column: lanes below 16 of S^T k, the others of S^T q; of two neighbours the first writes */
  const int own = lane / 2 % COLUMNS;
  float s[ROWS][COLUMNS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) s[r][c] = 0;
  const int64_t source = job.segments.source[g];
  if (is_known(job.segments, g) && source >= 0) {
    move_state<ROWS, false>(job, job.state + source * slot_values + head * head_values, column0, lane, s);
  }
  delta_token<ROWS> next;
  next.load(job, min(job.segments.start[g], job.tokens - 1), head, column0 + own, lane);
  for (;; g++) {
    const bool known = is_known(job.segments, g);
    const int end = min(job.segments.start[g + 1], job.tokens);
    for (int token = job.segments.start[g]; token < end; token++) {
      const delta_token<ROWS> t = next;
      next.load(job, min(token + 1, job.tokens - 1), head, column0 + own, lane);
      float qq = 0, kk = 0, qk = 0;
#pragma unroll
      for (int r = 0; r < ROWS; r++) qq += t.q[r] * t.q[r], kk += t.k[r] * t.k[r], qk += t.q[r] * t.k[r];
      qq = kt_warp_sum(qq), kk = kt_warp_sum(kk), qk = kt_warp_sum(qk);
      const float q_factor = job.scale / sqrtf(qq + job.eps), k_factor = 1.0f / sqrtf(kk + job.eps);
      const float biased = t.a + dt_bias;
      const float decay = expf(rate * (biased > 20.0f ? biased : log1pf(expf(biased)))), beta = 1.0f / (1.0f + expf(-t.b));
      float sums[2 * COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        sums[c] = sums[COLUMNS + c] = 0;
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[c] += s[r][c] * t.k[r], sums[COLUMNS + c] += s[r][c] * t.q[r];
      }
      /* each step a lane keeps one half of what it has and gives the other away */
#pragma unroll
      for (int half = COLUMNS, mask = KT_WARP / 2; half > 0; half /= 2, mask /= 2) {
        const bool upper = lane & mask;
#pragma unroll
        for (int i = 0; i < half; i++) {
          const float given = upper ? sums[i] : sums[i + half], kept = upper ? sums[i + half] : sums[i];
          sums[i] = kept + __shfl_xor_sync(KT_FULL_MASK, given, mask);
        }
      }
      const float sum = sums[0] + __shfl_xor_sync(KT_FULL_MASK, sums[0], 1);
      const float delta = __shfl_sync(KT_FULL_MASK, (t.v - sum * k_factor * decay) * beta, lane % 16);
      const float out = sum * q_factor * decay + delta * (qk * q_factor * k_factor);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const float step = __shfl_sync(KT_FULL_MASK, delta, 2 * c) * k_factor;
#pragma unroll
        for (int r = 0; r < ROWS; r++) s[r][c] = s[r][c] * decay + step * t.k[r];
      }
      if (lane >= 16 && lane % 2 == 0 && column0 + own < job.v_dim)
        job.out[token * job.out_token + head / job.group * job.out_head + head % job.group * job.out_group + column0 + own] = known ? out : __int_as_float(0x7fc00000);
    }
    if (known) move_state<ROWS, true>(job, job.state + job.segments.target[g] * slot_values + head * head_values, column0, lane, s);
    if (!goes_on(job.segments, g + 1)) return;
  }
}

extern "C" kt_status_t kt_gated_delta_rule(kt_ctx_t *handle, const kt_delta_rule_args_t *args) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (args == NULL) return KT_INVALID("args are NULL");
  if (args->struct_size < sizeof *args) return KT_INVALID("args.struct_size is %u", args->struct_size);
  const kt_tensor_t *q = args->q, *k = args->k, *v = args->v, *b = args->b, *a = args->a, *state = args->state, *out = args->out;
  KT_TRY(kt_gpu_typed(ctx, "q", q, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "k", k, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "v", v, 4, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "b", b, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "a", a, 3, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "state", state, 4, KT_F32));
  KT_TRY(kt_gpu_typed(ctx, "out", out, 4, KT_F32));
  const int64_t k_dim = k->shape[2], v_dim = v->shape[3], heads = v->shape[1] * v->shape[2];
  if (k_dim > MAX_K_DIM) return KT_INVALID("k has heads of %lld, at most %d", (long long)k_dim, MAX_K_DIM);
  for (int i = 0; i < 3; i++) KT_TRY(kt_gpu_size("q", q, i, k->shape[i]));
  for (int i = 0; i < 2; i++) KT_TRY(kt_gpu_size("v", v, i, k->shape[i]));
  for (int i = 0; i < 3; i++) {
    KT_TRY(kt_gpu_size("b", b, i, v->shape[i]));
    KT_TRY(kt_gpu_size("a", a, i, v->shape[i]));
  }
  for (int i = 0; i < 4; i++) KT_TRY(kt_gpu_size("out", out, i, v->shape[i]));
  KT_TRY(kt_gpu_size("state", state, 1, heads));
  KT_TRY(kt_gpu_size("state", state, 2, k_dim));
  KT_TRY(kt_gpu_size("state", state, 3, v_dim));
  KT_TRY(check_dense("state", state));
  if (heads > 65535) return kt_gpu_fail(KT_ERR_UNSUPPORTED, "%lld heads, at most 65535", (long long)heads);
  delta_job job = {};
  KT_TRY(kt_gpu_vector(ctx, "decay", args->decay, heads, &job.decay));
  KT_TRY(kt_gpu_vector(ctx, "dt_bias", args->dt_bias, heads, &job.dt_bias));
  if (job.decay == NULL || job.dt_bias == NULL) return KT_INVALID("%s is NULL", job.decay == NULL ? "decay" : "dt_bias");
  KT_TRY(segments_of(ctx, args->segments, state->shape[0], &job.segments));
  job.q = (const float *)q->data, job.k = (const float *)k->data, job.v = (const float *)v->data;
  job.b = (const float *)b->data, job.a = (const float *)a->data;
  job.state = (float *)state->data, job.out = (float *)out->data;
  job.q_token = q->stride[0] / 4, job.q_head = q->stride[1] / 4, job.k_token = k->stride[0] / 4, job.k_head = k->stride[1] / 4;
  job.v_token = v->stride[0] / 4, job.v_head = v->stride[1] / 4, job.v_group = v->stride[2] / 4;
  job.b_token = b->stride[0] / 4, job.b_head = b->stride[1] / 4, job.a_token = a->stride[0] / 4, job.a_head = a->stride[1] / 4;
  job.out_token = out->stride[0] / 4, job.out_head = out->stride[1] / 4, job.out_group = out->stride[2] / 4;
  job.group = (int)v->shape[2], job.k_dim = (int)k_dim, job.v_dim = (int)v_dim, job.tokens = (int)k->shape[0];
  job.scale = args->scale, job.eps = args->eps;
  const dim3 grid((unsigned)kt_div_up(v_dim, COLUMNS * WARPS), (unsigned)heads, (unsigned)job.segments.count);
  if (k_dim <= KT_WARP) delta_kernel<1><<<grid, THREADS, 0, ctx->stream>>>(job);
  else if (k_dim <= 2 * KT_WARP) delta_kernel<2><<<grid, THREADS, 0, ctx->stream>>>(job);
  else if (k_dim <= 4 * KT_WARP) delta_kernel<4><<<grid, THREADS, 0, ctx->stream>>>(job);
  else delta_kernel<8><<<grid, THREADS, 0, ctx->stream>>>(job);
  KT_LAUNCHED("gated_delta_rule");
  return KT_OK;
}

/* What the files of libkt_sycl share: contexts, submissions, scratch memory, and ops that others are made of. SYCL 2020 and nothing of a
 * compiler's own; kernels compute in f32, as some devices have no doubles, and ask the sub-group for its size. */
#ifndef KT_SYCL_HPP
#define KT_SYCL_HPP
#include <sycl/sycl.hpp>

#include <functional>
#include <vector>

#define KT_BACKEND_NAME "sycl"
#include "../device/descriptors.h"

/* Scratch memory of a context by use, so that one call can hold several pieces; each grows and is kept. */
enum { KT_SCRATCH_NORMED, KT_SCRATCH_PRODUCT, KT_SCRATCH_EXPERTS, KT_SCRATCH_ROUTE, KT_SCRATCH_GROUPS, KT_SCRATCH_PARTIAL, KT_SCRATCH_COUNT };

/* What a queue is told; a graph is a list of them. */
using kt_submission = std::function<void(sycl::queue &)>;

struct kt_ctx {
  uint64_t magic;
  int device;
  uint32_t precision;
  sycl::queue queue; /* in order */
  int compute_units;
  int group_items;            /* work-items of a work-group whose size does not matter otherwise */
  std::exception_ptr failure; /* of an op that was under way */
  bool recording;
  std::vector<kt_submission> recorded;
  uint32_t scratch_moves; /* how often scratch memory was given back: graphs from before use it no more */
  void *scratch[KT_SCRATCH_COUNT];
  int64_t scratch_bytes[KT_SCRATCH_COUNT];
};

/* ---- context (ctx.cpp) ---- */
/* The context behind a handle, or NULL with the error recorded. */
kt_ctx *kt_sycl_ctx(kt_ctx_t *handle);
/* Puts it into the context's order of ops, or into the graph that is being made. */
kt_status_t kt_sycl_submit(kt_ctx *ctx, const char *what, kt_submission submission);
/* Scratch memory of at least `bytes`, valid until the next call with the same slot. Not while a graph is being made, where memory
 * of the needed size must be there from an earlier call. */
kt_status_t kt_sycl_scratch(kt_ctx *ctx, int slot, int64_t bytes, void **out);

/* `kernel` for every index below `count`. */
template <typename K> kt_status_t kt_sycl_each(kt_ctx *ctx, const char *what, int64_t count, K kernel) {
  if (count == 0) return KT_OK;
  return kt_sycl_submit(ctx, what, [=](sycl::queue &queue) {
    queue.parallel_for(sycl::range<1>((size_t)count), [=](sycl::id<1> i) { kernel((int64_t)i[0]); });
  });
}

/* `kernel` for `groups` work-groups of `items`. */
template <typename K> kt_status_t kt_sycl_groups(kt_ctx *ctx, const char *what, int64_t groups, int items, K kernel) {
  if (groups == 0) return KT_OK;
  return kt_sycl_submit(ctx, what, [=](sycl::queue &queue) {
    queue.parallel_for(sycl::nd_range<1>((size_t)(groups * items), (size_t)items), kernel);
  });
}

/* A work-item's sub-group among those of its work-group. */
struct kt_lanes {
  sycl::sub_group group;
  int64_t number, count;
};
inline kt_lanes kt_lanes_of(const sycl::nd_item<1> &item) {
  const sycl::sub_group group = item.get_sub_group();
  /* where each item is a sub-group of its own, AdaptiveCpp's headers count a single one */
  if (group.get_max_local_range()[0] == 1) return {group, (int64_t)item.get_local_id(0), (int64_t)item.get_local_range(0)};
  return {group, (int64_t)group.get_group_linear_id(), (int64_t)group.get_group_linear_range()};
}

/* `kernel(sub_group, unit)` for every unit below `count`, by whole sub-groups, as many as fill the device. */
template <typename K> kt_status_t kt_sycl_units(kt_ctx *ctx, const char *what, int64_t count, K kernel) {
  const int64_t most = 8 * (int64_t)ctx->compute_units;
  return kt_sycl_groups(ctx, what, count < most ? count : most, ctx->group_items, [=](sycl::nd_item<1> item) {
    const kt_lanes lanes = kt_lanes_of(item);
    const int64_t step = lanes.count * (int64_t)item.get_group_range(0);
    for (int64_t unit = item.get_group(0) * lanes.count + lanes.number; unit < count; unit += step) kernel(lanes.group, unit);
  });
}

/* ---- ops that others are made of, on checked operands ---- */
kt_status_t kt_sycl_rms_norm(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out);
/* out += rms_norm(x) */
kt_status_t kt_sycl_add_normed(kt_ctx *ctx, kt_frows x, kt_norm norm, kt_frows out);
kt_status_t kt_sycl_act_mul(kt_ctx *ctx, kt_frows gate, kt_frows up, uint32_t act, kt_frows out);
kt_status_t kt_sycl_rope(kt_ctx *ctx, kt_heads x, const float *table, int64_t table_stride, int64_t columns, uint32_t interleaved);
kt_status_t kt_sycl_store_kv(kt_ctx *ctx, kt_heads k, kt_heads v, const int32_t *slots, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache);
/* Caches of one type that paged attention reads. */
kt_status_t kt_sycl_check_caches(kt_ctx *ctx, const kt_tensor_t *k_cache, const kt_tensor_t *v_cache);
#endif

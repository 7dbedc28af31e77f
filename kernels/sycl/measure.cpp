/* kt_measure: the rates of the device itself. Products of all types are made of float multiply-adds here. */
#include "sycl.hpp"

#include <chrono>

/* Multiply-adds in flight of an item, and how often each is repeated. */
#define CHAINS 16
#define STEPS 4096

static void read_all(sycl::queue &queue, const sycl::vec<uint32_t, 4> *data, int64_t count, int64_t items, uint32_t *sink) {
  queue.parallel_for(sycl::range<1>((size_t)items), [=](sycl::id<1> id) {
    uint32_t sum = 0;
    for (int64_t i = id[0]; i < count; i += items) {
      const sycl::vec<uint32_t, 4> v = data[i];
      sum ^= v.x() ^ v.y() ^ v.z() ^ v.w();
    }
    if (sum == 0x12345678) *sink = sum; /* never, but the compiler does not know */
  });
}

static void multiply_add(sycl::queue &queue, int64_t items, float *sink) {
  queue.parallel_for(sycl::range<1>((size_t)items), [=](sycl::id<1> id) {
    float a[CHAINS];
    for (int i = 0; i < CHAINS; i++) a[i] = (float)(id[0] + i);
    for (int s = 0; s < STEPS; s++)
      for (int i = 0; i < CHAINS; i++) a[i] = a[i] * 0.999f + 0.5f;
    float sum = 0;
    for (int i = 0; i < CHAINS; i++) sum += a[i];
    if (sum == 0.123f) *sink = sum;
  });
}

extern "C" kt_status_t kt_measure(kt_ctx_t *handle, uint32_t what, int64_t bytes, float seconds, double *out_rate) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out_rate == NULL) return KT_INVALID("out_rate is NULL");
  *out_rate = 0;
  if (!(seconds > 0) || seconds > 60) return KT_INVALID("seconds is %g", (double)seconds);
  if (what > KT_MEASURE_BF16_DOT) return KT_INVALID("what is %u", what);
  const bool reads = what == KT_MEASURE_READ;
  if (reads && bytes < (1 << 20)) return KT_INVALID("a read of %lld bytes, at least 1 MiB", (long long)bytes);
  void *memory = NULL;
  const int64_t size = reads ? bytes / 16 * 16 : 16, items = 64 * (int64_t)ctx->group_items * ctx->compute_units;
  KT_TRY(kt_buffer_create(ctx, size + 16, &memory));
  void *sink = (char *)memory + size;
  const double work = reads ? (double)size : 2.0 * CHAINS * STEPS * (double)items;
  kt_status_t status = kt_ctx_synchronize(ctx);
  for (double spent = 0; status == KT_OK && spent < seconds;) {
    const auto start = std::chrono::steady_clock::now();
    status = kt_sycl_submit(ctx, "measure", [=](sycl::queue &queue) {
      if (reads) read_all(queue, (const sycl::vec<uint32_t, 4> *)memory, size / 16, items, (uint32_t *)sink);
      else multiply_add(queue, items, (float *)sink);
    });
    if (status == KT_OK) status = kt_ctx_synchronize(ctx);
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    spent += took;
    if (work / took > *out_rate) *out_rate = work / took;
  }
  kt_buffer_destroy(ctx, memory, size + 16);
  return status;
}

/* Devices, contexts, memory, events and graphs. */
#include "sycl.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../device/descriptors.inc"

#define CTX_MAGIC 0x6b745f6374780003ull
#define EVENT_MAGIC 0x6b745f6576740003ull
#define GRAPH_MAGIC 0x6b745f6772610003ull

struct kt_event {
  uint64_t magic;
  sycl::event event;
  bool recorded;
};
struct kt_graph {
  uint64_t magic;
  std::vector<kt_submission> submissions;
  const kt_ctx *ctx;
  uint32_t scratch_moves;
};

/* Runs `work`; what it throws becomes a status. */
template <typename F> static kt_status_t guarded(const char *what, F work) {
  try {
    work();
    return KT_OK;
  } catch (const sycl::exception &error) {
    const bool memory = error.code() == sycl::errc::memory_allocation;
    return kt_gpu_fail(memory ? KT_ERR_OUT_OF_MEMORY : KT_ERR_DEVICE, "%s: %s", what, error.what());
  } catch (const std::bad_alloc &) {
    return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "%s: host memory is exhausted", what);
  } catch (const std::exception &error) {
    return kt_gpu_fail(KT_ERR_DEVICE, "%s: %s", what, error.what());
  }
}

extern "C" const char *kt_backend_name(void) { return KT_BACKEND_NAME; }

/* ---- devices ---- */
/* The GPUs of one platform, so that one context and its host memory serve all: of the first that has some. KT_SYCL_CPU=1, for machines
 * without, counts any device, as models are not to be placed on a CPU by way of SYCL unasked. ONEAPI_DEVICE_SELECTOR or
 * ACPP_VISIBILITY_MASK hide devices. Never given back: the runtime may end before statics do. */
struct machine {
  std::vector<sycl::device> devices;
  sycl::context context;
};

static std::vector<sycl::device> usable(const sycl::platform &platform, sycl::info::device_type type) {
  std::vector<sycl::device> found;
  for (const sycl::device &device : platform.get_devices(type))
    if (device.has(sycl::aspect::usm_device_allocations) && device.has(sycl::aspect::usm_host_allocations)) found.push_back(device);
  return found;
}

static const machine *find_machine() {
  const char *asked = getenv("KT_SYCL_CPU");
  const bool any = asked != NULL && strcmp(asked, "1") == 0;
  for (const sycl::platform &platform : sycl::platform::get_platforms()) {
    std::vector<sycl::device> devices = usable(platform, any ? sycl::info::device_type::all : sycl::info::device_type::gpu);
    if (!devices.empty()) return new machine{devices, sycl::context(devices)};
  }
  return NULL;
}

static kt_status_t the_machine(const machine **out) {
  static std::mutex lock;
  static const machine *found = NULL;
  const std::lock_guard<std::mutex> hold(lock);
  if (found == NULL) KT_TRY(guarded("the SYCL runtime", [] { found = find_machine(); }));
  if (found == NULL) return kt_gpu_fail(KT_ERR_DEVICE, "no GPU answers to the SYCL runtime (KT_SYCL_CPU=1 counts CPUs too)");
  *out = found;
  return KT_OK;
}

extern "C" kt_status_t kt_device_count(uint32_t *out_count) {
  if (out_count == NULL) return KT_INVALID("out_count is NULL");
  *out_count = 0;
  const machine *here = NULL;
  KT_TRY(the_machine(&here));
  *out_count = (uint32_t)here->devices.size();
  return KT_OK;
}

static kt_status_t device_at(uint32_t index, const machine **here) {
  KT_TRY(the_machine(here));
  const size_t count = (*here)->devices.size();
  return index < count ? KT_OK : KT_INVALID("device %u: there are %zu", index, count);
}

/* Of a CPU the machine's, where the runtime has no better idea than all there could be. */
static int64_t memory_of(const sycl::device &device) {
  const uint64_t told = device.get_info<sycl::info::device::global_mem_size>();
  const uint64_t pages = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
  return (int64_t)(device.is_gpu() ? told : std::min(told, pages));
}

/* ---- memory of devices and page-locked memory of the host, by address ---- */
struct allocation {
  size_t bytes;
  int device; /* -1: the host's */
};
static std::mutex allocations_lock;
static std::map<uintptr_t, allocation> allocations;

static void remember(const void *data, allocation of) {
  const std::lock_guard<std::mutex> hold(allocations_lock);
  allocations[(uintptr_t)data] = of;
}

static bool forget(const void *data) {
  const std::lock_guard<std::mutex> hold(allocations_lock);
  return allocations.erase((uintptr_t)data) > 0;
}

/* Whether the devices reach an address without the runtime's help. */
static bool is_known(const void *data) {
  const std::lock_guard<std::mutex> hold(allocations_lock);
  const auto after = allocations.upper_bound((uintptr_t)data);
  if (after == allocations.begin()) return false;
  const auto &[start, of] = *std::prev(after);
  return (uintptr_t)data - start < of.bytes;
}

/* SYCL does not say what is free: what this library has not taken is. */
static int64_t free_of(const machine *here, int device) {
  int64_t taken = 0;
  const std::lock_guard<std::mutex> hold(allocations_lock);
  for (const auto &[start, of] : allocations)
    if (of.device == device) taken += (int64_t)of.bytes;
  return std::max<int64_t>(0, memory_of(here->devices[device]) - taken);
}

extern "C" kt_status_t kt_device_query(uint32_t index, kt_device_info_t *out) {
  if (out == NULL) return KT_INVALID("out is NULL");
  const machine *here = NULL;
  KT_TRY(device_at(index, &here));
  return guarded("the device", [&] {
    const sycl::device &device = here->devices[index];
    const std::string name = device.get_info<sycl::info::device::name>();
    out->memory_bytes = memory_of(device);
    out->memory_free_bytes = free_of(here, (int)index);
    out->compute_units = device.get_info<sycl::info::device::max_compute_units>();
    out->capability = 0;
    out->driver_version = 0;
    out->link_mbytes = 0;
    memset(out->name, 0, sizeof out->name);
    memcpy(out->name, name.data(), std::min(name.size(), sizeof out->name - 1));
  });
}

extern "C" kt_status_t kt_cpu_query(kt_cpu_info_t *out) {
  (void)out;
  return kt_gpu_fail(KT_ERR_UNSUPPORTED, "this library knows nothing of the CPU");
}

/* ---- contexts ---- */
kt_ctx *kt_sycl_ctx(kt_ctx_t *handle) {
  if (handle != NULL && handle->magic == CTX_MAGIC) return handle;
  if (handle == NULL) KT_INVALID("context is NULL");
  else KT_INVALID("not a context, or one that was destroyed");
  return NULL;
}

/* A GPU's work-groups want to be several sub-groups; on a CPU an item is a lane of its own, and barriers cost by the item. */
static int items_of(const sycl::device &device) {
  const int most = (int)device.get_info<sycl::info::device::max_work_group_size>();
  return std::min(device.is_gpu() ? 128 : 16, most);
}

extern "C" kt_status_t kt_ctx_create(const kt_ctx_options_t *options, kt_ctx_t **out) {
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (options == NULL) return KT_INVALID("options are NULL");
  if (options->struct_size < sizeof *options) return KT_INVALID("options.struct_size is %u", options->struct_size);
  if (options->precision > KT_PRECISION_F32) return KT_INVALID("precision is %u", options->precision);
  const machine *here = NULL;
  KT_TRY(device_at(options->device, &here));
  return guarded("a queue", [&] {
    kt_ctx *ctx = new kt_ctx{};
    const auto failed = [ctx](sycl::exception_list errors) {
      if (errors.size() > 0) ctx->failure = *errors.begin();
    };
    const sycl::device &device = here->devices[options->device];
    try {
      ctx->queue = sycl::queue(here->context, device, failed, {sycl::property::queue::in_order(), sycl::property::queue::enable_profiling()});
      ctx->compute_units = (int)device.get_info<sycl::info::device::max_compute_units>();
      ctx->group_items = items_of(device);
    } catch (...) {
      delete ctx;
      throw;
    }
    ctx->device = (int)options->device;
    ctx->precision = options->precision;
    ctx->magic = CTX_MAGIC;
    *out = ctx;
  });
}

static void give_back(kt_ctx *ctx, void *data) {
  if (data != NULL && forget(data)) sycl::free(data, ctx->queue);
}

extern "C" void kt_ctx_destroy(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return;
  guarded("the device", [&] {
    ctx->queue.wait();
    for (void *data : ctx->scratch) give_back(ctx, data);
  });
  ctx->magic = 0;
  delete ctx;
}

extern "C" kt_status_t kt_ctx_query(kt_ctx_t *handle, kt_ctx_info_t *out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  out->num_threads = (uint32_t)ctx->compute_units;
  out->isa = KT_ISA_AUTO;
  out->precision = ctx->precision;
  out->num_nodes = 1;
  return KT_OK;
}

extern "C" kt_status_t kt_ctx_set_precision(kt_ctx_t *handle, uint32_t precision) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (precision > KT_PRECISION_F32) return KT_INVALID("precision is %u", precision);
  ctx->precision = precision;
  return KT_OK;
}

kt_status_t kt_sycl_submit(kt_ctx *ctx, const char *what, kt_submission submission) {
  return guarded(what, [&] {
    if (ctx->recording) ctx->recorded.push_back(std::move(submission));
    else submission(ctx->queue);
  });
}

extern "C" kt_status_t kt_ctx_synchronize(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  return guarded("the device", [&] {
    ctx->queue.wait_and_throw();
    if (ctx->failure) std::rethrow_exception(std::exchange(ctx->failure, nullptr));
  });
}

/* ---- memory ---- */
/* Some allocators take multiples of the alignment only. */
static size_t whole(size_t bytes, size_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

/* Zeroed, in the context's order. */
static kt_status_t allocate(kt_ctx *ctx, int64_t bytes, void **out) {
  *out = NULL;
  return guarded("memory of the device", [&] {
    const size_t size = whole((size_t)bytes, 256);
    void *data = sycl::aligned_alloc_device(256, size, ctx->queue);
    if (data == NULL) return;
    remember(data, {size, ctx->device});
    ctx->queue.memset(data, 0, size);
    *out = data;
  });
}

static kt_status_t out_of_memory(kt_ctx *ctx, int64_t bytes) {
  const machine *here = NULL;
  KT_TRY(the_machine(&here));
  return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %lld bytes on the device: %lld of %lld are free", (long long)bytes,
                     (long long)free_of(here, ctx->device), (long long)memory_of(here->devices[ctx->device]));
}

kt_status_t kt_sycl_scratch(kt_ctx *ctx, int slot, int64_t bytes, void **out) {
  if (ctx->scratch_bytes[slot] < bytes) {
    if (ctx->recording) return kt_gpu_fail(KT_ERR_INTERNAL, "a graph needs %lld bytes of scratch memory that no call before it needed", (long long)bytes);
    KT_TRY(guarded("the device", [&] {
      ctx->queue.wait();
      if (ctx->scratch[slot] != NULL) ctx->scratch_moves++;
      give_back(ctx, ctx->scratch[slot]);
    }));
    ctx->scratch[slot] = NULL;
    ctx->scratch_bytes[slot] = 0;
    const int64_t size = kt_div_up(bytes + bytes / 4, 1 << 16) << 16;
    KT_TRY(allocate(ctx, size, &ctx->scratch[slot]));
    if (ctx->scratch[slot] == NULL) return out_of_memory(ctx, size);
    ctx->scratch_bytes[slot] = size;
  }
  *out = ctx->scratch[slot];
  return KT_OK;
}

extern "C" kt_status_t kt_buffer_create(kt_ctx_t *handle, int64_t bytes, void **out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (bytes <= 0) return KT_INVALID("a buffer of %lld bytes", (long long)bytes);
  KT_TRY(allocate(ctx, bytes, out));
  return *out == NULL ? out_of_memory(ctx, bytes) : KT_OK;
}

extern "C" void kt_buffer_destroy(kt_ctx_t *handle, void *buffer, int64_t bytes) {
  (void)bytes;
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (buffer == NULL || ctx == NULL) return;
  guarded("the device", [&] {
    ctx->queue.wait();
    give_back(ctx, buffer);
  });
}

extern "C" kt_status_t kt_buffer_copy(kt_ctx_t *handle, void *to, const void *from, int64_t bytes) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (bytes < 0) return KT_INVALID("a copy of %lld bytes", (long long)bytes);
  if (bytes == 0) return KT_OK;
  if (to == NULL || from == NULL) return KT_INVALID("%s is NULL", to == NULL ? "to" : "from");
  const bool waits = !is_known(from) || !is_known(to);
  return kt_sycl_submit(ctx, "a copy", [=](sycl::queue &queue) {
    sycl::event done = queue.memcpy(to, from, (size_t)bytes);
    if (waits) done.wait();
  });
}

/* Of the core's slabs (root.zig). */
extern "C" kt_status_t kt_sycl_host_create(size_t bytes, void **out) {
  const machine *here = NULL;
  *out = NULL;
  KT_TRY(the_machine(&here));
  KT_TRY(guarded("page-locked memory", [&] { *out = sycl::aligned_alloc_host(4096, whole(bytes, 4096), here->context); }));
  if (*out == NULL) return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %zu bytes of page-locked memory", bytes);
  memset(*out, 0, bytes);
  remember(*out, {bytes, -1});
  return KT_OK;
}

/* False: the memory is not of kt_sycl_host_create. */
extern "C" bool kt_sycl_host_destroy(void *data) {
  if (!forget(data)) return false;
  const machine *here = NULL;
  if (the_machine(&here) == KT_OK) guarded("page-locked memory", [&] { sycl::free(data, here->context); });
  return true;
}

/* ---- events ---- */
static bool is_event(const kt_event *event) {
  if (event != NULL && event->magic == EVENT_MAGIC) return true;
  if (event == NULL) KT_INVALID("event is NULL");
  else KT_INVALID("not an event, or one that was destroyed");
  return false;
}

extern "C" kt_status_t kt_event_create(kt_ctx_t *handle, kt_event_t **out) {
  if (kt_sycl_ctx(handle) == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  return guarded("an event", [&] { *out = new kt_event{EVENT_MAGIC, {}, false}; });
}

extern "C" void kt_event_destroy(kt_event_t *event) {
  if (!is_event(event)) return;
  event->magic = 0;
  delete event;
}

/* A task that does nothing is a point in a queue's order, which every implementation can time. */
extern "C" kt_status_t kt_event_record(kt_ctx_t *handle, kt_event_t *event) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL || !is_event(event)) return KT_ERR_INVALID_ARG;
  return kt_sycl_submit(ctx, "an event", [=](sycl::queue &queue) {
    event->event = queue.single_task([] {});
    event->recorded = true;
  });
}

extern "C" kt_status_t kt_event_wait(kt_ctx_t *handle, kt_event_t *event) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL || !is_event(event)) return KT_ERR_INVALID_ARG;
  return kt_sycl_submit(ctx, "an event", [=](sycl::queue &queue) {
    if (event->recorded) queue.single_task(event->event, [] {});
  });
}

extern "C" kt_status_t kt_event_elapsed(kt_event_t *start, kt_event_t *end, double *out_ms) {
  if (out_ms == NULL) return KT_INVALID("out_ms is NULL");
  if (!is_event(start) || !is_event(end)) return KT_ERR_INVALID_ARG;
  if (!start->recorded || !end->recorded) return KT_INVALID("%s was not recorded", start->recorded ? "end" : "start");
  return guarded("an event", [&] {
    end->event.wait();
    if (start != end) start->event.wait();
    const auto at = [](const kt_event *e) { return e->event.get_profiling_info<sycl::info::event_profiling::command_end>(); };
    *out_ms = start == end ? 0 : ((double)at(end) - (double)at(start)) * 1e-6;
  });
}

/* ---- graphs ---- */
extern "C" kt_status_t kt_graph_begin(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (ctx->recording) return KT_INVALID("a graph is being made already");
  ctx->recording = true;
  return KT_OK;
}

extern "C" kt_status_t kt_graph_end(kt_ctx_t *handle, kt_graph_t **out) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (!ctx->recording) return KT_INVALID("no graph was begun");
  ctx->recording = false;
  return guarded("a graph", [&] { *out = new kt_graph{GRAPH_MAGIC, std::exchange(ctx->recorded, {}), ctx, ctx->scratch_moves}; });
}

static bool is_graph(const kt_graph *graph) {
  if (graph != NULL && graph->magic == GRAPH_MAGIC) return true;
  if (graph == NULL) KT_INVALID("graph is NULL");
  else KT_INVALID("not a graph, or one that was destroyed");
  return false;
}

extern "C" kt_status_t kt_graph_launch(kt_ctx_t *handle, kt_graph_t *graph) {
  kt_ctx *ctx = kt_sycl_ctx(handle);
  if (ctx == NULL || !is_graph(graph)) return KT_ERR_INVALID_ARG;
  if (graph->ctx != ctx) return KT_INVALID("the graph is of another context");
  if (graph->scratch_moves != ctx->scratch_moves)
    return kt_gpu_fail(KT_ERR_UNSUPPORTED, "memory that the graph uses was given back: it must be made again");
  return guarded("a graph", [&] {
    for (const kt_submission &submission : graph->submissions) submission(ctx->queue);
  });
}

extern "C" void kt_graph_destroy(kt_graph_t *graph) {
  if (!is_graph(graph)) return;
  graph->magic = 0;
  delete graph;
}

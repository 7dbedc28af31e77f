/* Devices, contexts, memory, events and graphs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gpu.h"
#include "../device/descriptors.inc"

#define CTX_MAGIC 0x6b745f6374780002ull
#define EVENT_MAGIC 0x6b745f6576740002ull
#define GRAPH_MAGIC 0x6b745f6772610002ull

struct kt_event {
  uint64_t magic;
  cudaEvent_t event;
  int device;
  bool recorded;
};
struct kt_graph {
  uint64_t magic;
  cudaGraphExec_t exec;
  const kt_ctx *ctx;
  uint32_t scratch_moves;
};

kt_status_t kt_gpu_status(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return KT_OK;
  cudaGetLastError(); /* an error that spoils nothing is forgotten */
  const kt_status_t code = error == cudaErrorMemoryAllocation ? KT_ERR_OUT_OF_MEMORY : KT_ERR_DEVICE;
  return kt_gpu_fail(code, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

extern "C" const char *kt_backend_name(void) { return KT_BACKEND_NAME; }

/* ---- devices ---- */
extern "C" kt_status_t kt_device_count(uint32_t *out_count) {
  if (out_count == NULL) return KT_INVALID("out_count is NULL");
  *out_count = 0;
  int driver = 0, count = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return kt_gpu_fail(KT_ERR_DEVICE, KT_NO_DRIVER);
  if (driver / 1000 < CUDART_VERSION / 1000)
    return kt_gpu_fail(KT_ERR_DEVICE, "the driver knows " KT_RUNTIME_NAME " %d.%d, this library needs %d.0", driver / 1000, driver % 1000 / 10,
                       CUDART_VERSION / 1000);
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return kt_gpu_fail(KT_ERR_DEVICE, "the driver answers: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
  }
  *out_count = (uint32_t)count;
  return KT_OK;
}

static kt_status_t check_index(uint32_t index) {
  uint32_t count = 0;
  KT_TRY(kt_device_count(&count));
  if (index >= count) return KT_INVALID("device %u: there are %u", index, count);
  return KT_OK;
}

/* MB/s in one direction of a PCIe link of this generation and width, without its packet overhead; 0 where the system does not say. */
static uint32_t link_mbytes(int device) {
  char bus[32], path[96], text[64];
  if (cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess) return 0;
  for (char *at = bus; *at; at++)
    if (*at >= 'A' && *at <= 'Z') *at += 'a' - 'A';
  double values[2] = {0, 0};
  const char *names[2] = {"max_link_speed", "max_link_width"};
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", bus, names[i]);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    if (fgets(text, sizeof text, file) != NULL) values[i] = atof(text);
    fclose(file);
  }
  /* GT/s a lane; 128b/130b coding from the third generation on */
  return values[0] <= 0 || values[1] <= 0 ? 0 : (uint32_t)(values[0] * 1000 / 8 * 128 / 130 * values[1]);
}

extern "C" kt_status_t kt_device_query(uint32_t index, kt_device_info_t *out) {
  if (out == NULL) return KT_INVALID("out is NULL");
  KT_TRY(check_index(index));
  cudaDeviceProp properties;
  KT_CUDA(cudaGetDeviceProperties(&properties, (int)index));
  KT_CUDA(cudaSetDevice((int)index));
  size_t free_bytes = 0, total_bytes = 0;
  KT_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  int driver = 0;
  KT_CUDA(cudaDriverGetVersion(&driver));
  out->memory_bytes = (int64_t)total_bytes;
  out->memory_free_bytes = (int64_t)free_bytes;
  out->compute_units = (uint32_t)properties.multiProcessorCount;
  out->capability = (uint32_t)(10 * properties.major + properties.minor);
  out->driver_version = (uint32_t)driver;
  out->link_mbytes = link_mbytes((int)index);
  memset(out->name, 0, sizeof out->name);
  memcpy(out->name, properties.name, strnlen(properties.name, sizeof out->name - 1));
  return KT_OK;
}

extern "C" kt_status_t kt_cpu_query(kt_cpu_info_t *out) {
  (void)out;
  return kt_gpu_fail(KT_ERR_UNSUPPORTED, "this library knows nothing of the CPU");
}

/* ---- contexts ---- */
kt_ctx *kt_gpu_ctx(kt_ctx_t *handle) {
  if (handle == NULL) {
    KT_INVALID("context is NULL");
    return NULL;
  }
  if (handle->magic != CTX_MAGIC) {
    KT_INVALID("not a context, or one that was destroyed");
    return NULL;
  }
  if (kt_gpu_status(cudaSetDevice(handle->device), "cudaSetDevice") != KT_OK) return NULL;
  return handle;
}

extern "C" kt_status_t kt_ctx_create(const kt_ctx_options_t *options, kt_ctx_t **out) {
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (options == NULL) return KT_INVALID("options are NULL");
  if (options->struct_size < sizeof *options) return KT_INVALID("options.struct_size is %u", options->struct_size);
  if (options->precision > KT_PRECISION_F32) return KT_INVALID("precision is %u", options->precision);
  KT_TRY(check_index(options->device));
  const int device = (int)options->device;
  int major = 0, minor = 0;
  KT_CUDA(cudaSetDevice(device));
  KT_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  KT_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (KT_HAS_MMA && major < 8)
    return kt_gpu_fail(KT_ERR_UNSUPPORTED, "device %d has compute capability %d.%d, this library needs 8.0", device, major, minor);
  kt_ctx *ctx = (kt_ctx *)calloc(1, sizeof *ctx);
  if (ctx == NULL) return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %zu bytes", sizeof *ctx);
  ctx->device = device;
  ctx->precision = options->precision;
  ctx->capability = 10 * major + minor;
  kt_status_t status = kt_gpu_status(cudaDeviceGetAttribute(&ctx->multiprocessors, cudaDevAttrMultiProcessorCount, device), "device");
  if (status == KT_OK)
    status = kt_gpu_status(cudaDeviceGetAttribute(&ctx->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
  if (status == KT_OK) status = kt_gpu_status(cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  if (status != KT_OK) {
    free(ctx);
    return status;
  }
  ctx->magic = CTX_MAGIC;
  *out = ctx;
  return KT_OK;
}

extern "C" void kt_ctx_destroy(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return;
  cudaStreamSynchronize(ctx->stream);
  for (int i = 0; i < KT_SCRATCH_COUNT; i++) cudaFree(ctx->scratch[i]);
  cudaStreamDestroy(ctx->stream);
  ctx->magic = 0;
  free(ctx);
}

extern "C" kt_status_t kt_ctx_query(kt_ctx_t *handle, kt_ctx_info_t *out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  out->num_threads = (uint32_t)ctx->multiprocessors;
  out->isa = KT_ISA_AUTO;
  out->precision = ctx->precision;
  out->num_nodes = 1;
  return KT_OK;
}

extern "C" kt_status_t kt_ctx_set_precision(kt_ctx_t *handle, uint32_t precision) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (precision > KT_PRECISION_F32) return KT_INVALID("precision is %u", precision);
  ctx->precision = precision;
  return KT_OK;
}

/* ---- memory ---- */
static kt_status_t out_of_memory(int64_t bytes) {
  size_t free_bytes = 0, total_bytes = 0;
  cudaGetLastError();
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %lld bytes on the device: %zu of %zu are free", (long long)bytes, free_bytes,
                     total_bytes);
}

static kt_status_t allocate(int64_t bytes, void **out) {
  const cudaError_t error = cudaMalloc(out, (size_t)bytes);
  return error == cudaErrorMemoryAllocation ? out_of_memory(bytes) : kt_gpu_status(error, "cudaMalloc");
}

kt_status_t kt_gpu_scratch(kt_ctx *ctx, int slot, int64_t bytes, void **out) {
  if (ctx->scratch_bytes[slot] < bytes) {
    if (ctx->capturing) return kt_gpu_fail(KT_ERR_INTERNAL, "a graph needs %lld bytes of scratch memory that no call before it needed", (long long)bytes);
    KT_CUDA(cudaStreamSynchronize(ctx->stream));
    if (ctx->scratch[slot] != NULL) ctx->scratch_moves++;
    cudaFree(ctx->scratch[slot]);
    ctx->scratch[slot] = NULL;
    ctx->scratch_bytes[slot] = 0;
    const int64_t size = kt_div_up(bytes + bytes / 4, 1 << 16) << 16;
    KT_TRY(allocate(size, &ctx->scratch[slot]));
    ctx->scratch_bytes[slot] = size;
  }
  *out = ctx->scratch[slot];
  return KT_OK;
}

extern "C" kt_status_t kt_buffer_create(kt_ctx_t *handle, int64_t bytes, void **out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (bytes <= 0) return KT_INVALID("a buffer of %lld bytes", (long long)bytes);
  void *data = NULL;
  KT_TRY(allocate(bytes, &data));
  const kt_status_t status = kt_gpu_status(cudaMemsetAsync(data, 0, (size_t)bytes, ctx->stream), "cudaMemset");
  if (status != KT_OK) {
    cudaFree(data);
    return status;
  }
  *out = data;
  return KT_OK;
}

extern "C" void kt_buffer_destroy(kt_ctx_t *handle, void *buffer, int64_t bytes) {
  (void)bytes;
  if (buffer == NULL || kt_gpu_ctx(handle) == NULL) return;
  cudaFree(buffer); /* waits for what uses it */
}

extern "C" kt_status_t kt_buffer_copy(kt_ctx_t *handle, void *to, const void *from, int64_t bytes) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (bytes < 0) return KT_INVALID("a copy of %lld bytes", (long long)bytes);
  if (bytes == 0) return KT_OK;
  if (to == NULL || from == NULL) return KT_INVALID("%s is NULL", to == NULL ? "to" : "from");
  KT_CUDA(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDefault, ctx->stream));
  cudaPointerAttributes source, target;
  KT_CUDA(cudaPointerGetAttributes(&source, from));
  KT_CUDA(cudaPointerGetAttributes(&target, to));
  if (source.type == cudaMemoryTypeUnregistered || target.type == cudaMemoryTypeUnregistered) KT_CUDA(cudaStreamSynchronize(ctx->stream));
  return KT_OK;
}

/* Of the core's slabs (root.zig). */
extern "C" kt_status_t kt_gpu_pin(void *data, size_t bytes) {
  uint32_t count = 0;
  KT_TRY(kt_device_count(&count));
  const unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped;
  cudaError_t error = cudaHostRegister(data, bytes, flags);
  if (error != cudaSuccess && error != cudaErrorMemoryAllocation) {
    cudaGetLastError(); /* memory that may not be written, as mapped files are */
    error = cudaHostRegister(data, bytes, flags | cudaHostRegisterReadOnly);
  }
  return kt_gpu_status(error, "page-locking host memory");
}

extern "C" void kt_gpu_unpin(void *data) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return;
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, data) == cudaSuccess && attributes.type == cudaMemoryTypeHost) cudaHostUnregister(data);
  cudaGetLastError();
}

extern "C" kt_status_t kt_ctx_synchronize(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  return kt_gpu_status(cudaStreamSynchronize(ctx->stream), "the device");
}

/* ---- events ---- */
static bool is_event(const kt_event *event) {
  if (event != NULL && event->magic == EVENT_MAGIC) return true;
  if (event == NULL) KT_INVALID("event is NULL");
  else KT_INVALID("not an event, or one that was destroyed");
  return false;
}

extern "C" kt_status_t kt_event_create(kt_ctx_t *handle, kt_event_t **out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  kt_event *event = (kt_event *)calloc(1, sizeof *event);
  if (event == NULL) return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %zu bytes", sizeof *event);
  const kt_status_t status = kt_gpu_status(cudaEventCreate(&event->event), "cudaEventCreate");
  if (status != KT_OK) {
    free(event);
    return status;
  }
  event->device = ctx->device;
  event->magic = EVENT_MAGIC;
  *out = event;
  return KT_OK;
}

extern "C" void kt_event_destroy(kt_event_t *event) {
  if (!is_event(event)) return;
  cudaEventDestroy(event->event);
  event->magic = 0;
  free(event);
}

extern "C" kt_status_t kt_event_record(kt_ctx_t *handle, kt_event_t *event) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL || !is_event(event)) return KT_ERR_INVALID_ARG;
  KT_CUDA(cudaEventRecord(event->event, ctx->stream));
  event->recorded = true;
  return KT_OK;
}

extern "C" kt_status_t kt_event_wait(kt_ctx_t *handle, kt_event_t *event) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL || !is_event(event)) return KT_ERR_INVALID_ARG;
  return kt_gpu_status(cudaStreamWaitEvent(ctx->stream, event->event, 0), "cudaStreamWaitEvent");
}

extern "C" kt_status_t kt_event_elapsed(kt_event_t *start, kt_event_t *end, double *out_ms) {
  if (out_ms == NULL) return KT_INVALID("out_ms is NULL");
  if (!is_event(start) || !is_event(end)) return KT_ERR_INVALID_ARG;
  if (!start->recorded || !end->recorded) return KT_INVALID("%s was not recorded", start->recorded ? "end" : "start");
  float ms = 0;
  KT_CUDA(cudaEventSynchronize(end->event));
  KT_CUDA(cudaEventElapsedTime(&ms, start->event, end->event));
  *out_ms = ms;
  return KT_OK;
}

/* ---- graphs ---- */
extern "C" kt_status_t kt_graph_begin(kt_ctx_t *handle) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (ctx->capturing) return KT_INVALID("a graph is being made already");
  KT_CUDA(cudaStreamBeginCapture(ctx->stream, cudaStreamCaptureModeThreadLocal));
  ctx->capturing = true;
  return KT_OK;
}

extern "C" kt_status_t kt_graph_end(kt_ctx_t *handle, kt_graph_t **out) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  if (out == NULL) return KT_INVALID("out is NULL");
  *out = NULL;
  if (!ctx->capturing) return KT_INVALID("no graph was begun");
  ctx->capturing = false;
  cudaGraph_t made = NULL;
  KT_CUDA(cudaStreamEndCapture(ctx->stream, &made));
  kt_graph *graph = (kt_graph *)calloc(1, sizeof *graph);
  if (graph == NULL) {
    cudaGraphDestroy(made);
    return kt_gpu_fail(KT_ERR_OUT_OF_MEMORY, "cannot allocate %zu bytes", sizeof *graph);
  }
  const kt_status_t status = kt_gpu_status(cudaGraphInstantiate(&graph->exec, made, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(made);
  if (status != KT_OK) {
    free(graph);
    return status;
  }
  graph->ctx = ctx;
  graph->scratch_moves = ctx->scratch_moves;
  graph->magic = GRAPH_MAGIC;
  *out = graph;
  return KT_OK;
}

static bool is_graph(const kt_graph *graph) {
  if (graph != NULL && graph->magic == GRAPH_MAGIC) return true;
  if (graph == NULL) KT_INVALID("graph is NULL");
  else KT_INVALID("not a graph, or one that was destroyed");
  return false;
}

extern "C" kt_status_t kt_graph_launch(kt_ctx_t *handle, kt_graph_t *graph) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL || !is_graph(graph)) return KT_ERR_INVALID_ARG;
  if (graph->ctx != ctx) return KT_INVALID("the graph is of another context");
  if (graph->scratch_moves != ctx->scratch_moves)
    return kt_gpu_fail(KT_ERR_UNSUPPORTED, "memory that the graph uses was given back: it must be made again");
  return kt_gpu_status(cudaGraphLaunch(graph->exec, ctx->stream), "cudaGraphLaunch");
}

extern "C" kt_status_t kt_graph_start(kt_ctx_t *handle, kt_graph_t *graph) { return kt_graph_launch(handle, graph); }

extern "C" void kt_graph_destroy(kt_graph_t *graph) {
  if (!is_graph(graph)) return;
  cudaGraphExecDestroy(graph->exec);
  graph->magic = 0;
  free(graph);
}

/* Points that a graph of this device and one of the host meet at, in page-locked memory that both reach. */
#include "gpu.h"

/* The line that a point's waiter polls, and who else may have ended the launch. */
struct kt_turn_at {
  kt_turns_t *head;
  kt_turn_t *turn;
};

static kt_status_t turn_of(void *turns, uint32_t point, kt_turn_at *out) {
  if (turns == NULL) return KT_INVALID("turns are NULL");
  if ((uintptr_t)turns % sizeof(uint64_t) != 0) return KT_INVALID("turns at %p are not aligned", turns);
  out->head = (kt_turns_t *)turns;
  out->turn = (kt_turn_t *)((char *)turns + sizeof(kt_turns_t)) + point;
  return KT_OK;
}

__device__ __forceinline__ uint32_t now_at(const uint32_t *p) { return *(const volatile uint32_t *)p; }

__global__ void turn_signal_kernel(kt_turn_at at) {
  const uint32_t launch = now_at(&at.head->launch);
  __threadfence_system();
  *(volatile uint32_t *)&at.turn->launch = launch;
}

/* Polls cross the link: each takes about a microsecond, so that a look at the other word costs a late answer little. */
#define POLLS_BETWEEN_LOOKS 64

__global__ void turn_wait_kernel(kt_turn_at at) {
  const uint64_t start = kt_device_ns();
  const uint32_t launch = now_at(&at.head->launch);
  for (uint32_t polls = 1; now_at(&at.turn->launch) != launch; polls++) {
    if (polls % POLLS_BETWEEN_LOOKS != 0) continue;
    if (now_at(&at.head->given_up) == launch) break;
    if (kt_device_ns() - start > KT_TURN_SECONDS * 1000000000ull) {
      *(volatile uint32_t *)&at.head->given_up = launch;
      break;
    }
  }
  __threadfence_system();
  at.turn->waited_ns = kt_device_ns() - start;
}

extern "C" kt_status_t kt_turn_signal(kt_ctx_t *handle, void *turns, uint32_t point) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_turn_at at;
  KT_TRY(turn_of(turns, point, &at));
  turn_signal_kernel<<<1, 1, 0, ctx->stream>>>(at);
  KT_LAUNCHED("turn_signal");
  return KT_OK;
}

extern "C" kt_status_t kt_turn_wait(kt_ctx_t *handle, void *turns, uint32_t point) {
  kt_ctx *ctx = kt_gpu_ctx(handle);
  if (ctx == NULL) return KT_ERR_INVALID_ARG;
  kt_turn_at at;
  KT_TRY(turn_of(turns, point, &at));
  turn_wait_kernel<<<1, 1, 0, ctx->stream>>>(at);
  KT_LAUNCHED("turn_wait");
  return KT_OK;
}

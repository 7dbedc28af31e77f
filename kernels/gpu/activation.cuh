/* The activation of a gated product, for every kernel that ends in one. */
#ifndef KT_GPU_ACTIVATION_H
#define KT_GPU_ACTIVATION_H
#include "gpu.h"

/* act(gate) * up; SWIGLU_OAI: (up + 1) * gate * sigmoid(1.702 gate), both clamped to 7. FAST: the hardware's exponential, which is near
 * enough where the operands were bf16. */
template <bool FAST = false> __device__ __forceinline__ float kt_activate(uint32_t act, float gate, float up) {
  const auto exponential = [](float v) { return FAST ? __expf(v) : expf(v); };
  switch (act) {
    case KT_ACT_SILU: return gate / (1.0f + exponential(-gate)) * up;
    /* (1 + tanh u) / 2 = 1 / (1 + e^-2u), which keeps its relative precision where tanh nears -1 */
    case KT_ACT_GELU_TANH: return gate / (1.0f + exponential(-gate * (1.5957691216057308f + 0.07135481282936667f * (gate * gate)))) * up;
    case KT_ACT_GELU_ERF: return gate * normcdff(gate) * up;
    case KT_ACT_SWIGLU_OAI: {
      /* comparisons that keep NaN */
      const float g = gate > 7.0f ? 7.0f : gate, u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
      return g / (1.0f + exponential(-1.702f * g)) * (u + 1.0f);
    }
    default: return (gate < 0.0f ? 0.0f : gate) * up;
  }
}
#endif

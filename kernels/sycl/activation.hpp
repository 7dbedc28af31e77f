/* The activation of a gated product, and the one alone. */
#ifndef KT_SYCL_ACTIVATION_HPP
#define KT_SYCL_ACTIVATION_HPP
#include "sycl.hpp"

inline float kt_sigmoid(float v) { return 1.0f / (1.0f + sycl::exp(-v)); }

inline float kt_activate_one(uint32_t act, float v) {
  switch (act) {
    case KT_ACT_SILU: return v * kt_sigmoid(v);
    /* (1 + tanh u) / 2 is the sigmoid of 2 u, which keeps its relative precision where tanh nears -1 */
    case KT_ACT_GELU_TANH: return v * kt_sigmoid(v * (1.5957691216057308f + 0.07135481282936667f * (v * v)));
    case KT_ACT_GELU_ERF: return 0.5f * v * sycl::erfc(-0.70710678118654752f * v);
    case KT_ACT_TANH: return sycl::tanh(v);
    default: return v < 0.0f ? 0.0f : v;
  }
}

/* act(gate) * up; SWIGLU_OAI: (up + 1) * gate * sigmoid(1.702 gate), both clamped to 7 by comparisons that keep NaN. */
inline float kt_activate(uint32_t act, float gate, float up) {
  if (act != KT_ACT_SWIGLU_OAI) return kt_activate_one(act, gate) * up;
  const float g = gate > 7.0f ? 7.0f : gate, u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
  return g * kt_sigmoid(1.702f * g) * (u + 1.0f);
}
#endif

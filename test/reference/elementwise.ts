/** Float64 definitions of the activations. */

/** e^(-z²) over a continued fraction from 2.5 on, a power series below: both to float64 precision. z >= 0. */
function erfc(z: number): number {
  if (z < 2.5) {
    let term = z
    let sum = z
    for (let n = 1; n < 80; n++) {
      term *= (-z * z) / n
      sum += term / (2 * n + 1)
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * sum
  }
  let fraction = z
  for (let n = 80; n >= 1; n--) fraction = z + n / 2 / fraction
  return Math.exp(-z * z) / (fraction * Math.sqrt(Math.PI))
}

const ACTIVATIONS = {
  silu: (x: number) => x / (1 + Math.exp(-x)),
  gelu_pytorch_tanh: (x: number) => {
    const u = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)
    return x / (1 + Math.exp(-2 * u)) // (1 + tanh u) / 2 without cancellation
  },
  gelu: (x: number) => {
    const tail = erfc(Math.abs(x) / Math.SQRT2) / 2
    return x * (x < 0 ? tail : 1 - tail)
  },
  relu: (x: number) => Math.max(x, 0),
}

export type ActivationName = keyof typeof ACTIVATIONS | "swiglu_oai"
export const ACTIVATION_NAMES = [...Object.keys(ACTIVATIONS), "swiglu_oai"] as ActivationName[]

/** gpt-oss' SwiGLU: both operands clamped, sigmoid of 1.702 times the gate, up + 1. */
function swigluOai(gate: number, up: number): number {
  const g = Math.min(gate, 7)
  return (g / (1 + Math.exp(-1.702 * g))) * (Math.min(Math.max(up, -7), 7) + 1)
}

/** What one gate and up value make, before `down`. */
export function gated(gate: number, up: number, act: ActivationName): number {
  return act === "swiglu_oai" ? swigluOai(gate, up) : ACTIVATIONS[act](gate) * up
}

export function actMul(
  gate: ArrayLike<number>,
  up: ArrayLike<number>,
  act: ActivationName,
): Float64Array {
  return Float64Array.from(gate, (x, i) => gated(x, up[i] as number, act))
}

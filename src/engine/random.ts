/**
 * The random number of a sequence's n-th generated token: a function of seed and n alone, so that a sequence gets the
 * same tokens whatever runs beside it, and also after preemption. A token's further numbers come from other streams.
 *
 * Two rounds of murmur3's finalizer over the seed's 53 bits and the counter; 24 bits, as many as an f32 below 1 holds.
 */
export function uniform(seed: number, n: number, stream = 0): number {
  const low = seed >>> 0
  const high = Math.floor(seed / 4294967296) >>> 0
  let h = mix(low ^ 0x9e3779b9)
  h = mix(h ^ Math.imul(high, 0x85ebca6b) ^ 0x165667b1)
  h = mix(h ^ Math.imul(n, 0xc2b2ae35) ^ 0x27d4eb2f ^ Math.imul(stream, 0x9e3779b1))
  return (h >>> 8) / 16777216
}

function mix(value: number): number {
  let h = value
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

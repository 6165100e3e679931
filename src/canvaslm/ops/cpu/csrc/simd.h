// Sixteen lanes of fp32 or int32, whatever the machine: the only file that knows instruction sets by name.
//
// The kernel file is compiled once per instruction set, each time into a namespace of its own (CANVAS_ISA),
// so that no inline function built for one set can be picked by the linker for another.
//   F: 16 fp32 lanes   I: 16 int32 lanes   B: 64 bytes, or 32 int16
// dot_low    lane += sum of 4 (unsigned byte < 128) * (signed byte)
// dot_byte   the same for any unsigned byte, which stands for the weight `byte - 128`; how much of that
//            128 is left for the caller to take off is kByteOffset (128 or 0)
// byte_of    byte c of each int32 lane, as fp32
// dot_pairs  lane += sum of 2 int16 * int16
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define INL static inline __attribute__((always_inline))
#define INL_MEMBER inline __attribute__((always_inline))

#if defined(CANVAS_AVX512)
#include "simd_avx512.h"
#elif defined(CANVAS_AVX2)
#include "simd_avx2.h"
#else
#include "simd_plain.h"
#endif

namespace CANVAS_ISA {

INL float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF, bits;
  if (rest >= 0x7C00) {
    bits = 0x7F800000 | ((rest & 0x3FF) << 13);
  } else if (rest >= 0x400) {
    bits = (rest << 13) + 0x38000000;
  } else {
    float tiny = (float)rest * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &tiny, 4);
  }
  bits |= sign;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

INL float bf16_to_float(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

template <class T> INL T min(T a, T b) { return a < b ? a : b; }
template <class T> INL T max(T a, T b) { return a > b ? a : b; }

// e^x to about 2 ulp; inputs are clamped to the range of normal fp32.
INL F exp(F x) {
  x = min(max(x, set1(-87.3f)), set1(88.3f));
  F n = round_even(mul(x, set1(1.44269504f)));
  F r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.f)));
  return scale2(p, n);
}

// GELU, tanh form: x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)).
INL F gelu(F x) {
  F cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return div(x, add(set1(1.f), exp(mul(set1(-1.5957691216f), cubic))));
}

}  // namespace CANVAS_ISA

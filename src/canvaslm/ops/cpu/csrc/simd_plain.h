// Plain C++ for every other machine: loops over the lanes, which compilers turn into what the machine has.
// With NEON's dot product (ARMv8.2) the byte products use it. Included by simd.h only.
#pragma once
#include <cmath>
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace CANVAS_ISA {

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct B {
  alignas(64) uint8_t v[64];
};

constexpr int kByteOffset = 0;
constexpr int kGroupRows = 1;
constexpr int kFlatRows = 1;
constexpr bool kKeepHighNibble = false;

// clang-format off
#define LANES(expression) for (int i = 0; i < 16; i++) { expression; }
INL F set1(float x) { F r; LANES(r.v[i] = x) return r; }
INL F zero() { return set1(0.f); }
INL F load(const float* p) { F r; memcpy(r.v, p, 64); return r; }
INL void store(float* p, F x) { memcpy(p, x.v, 64); }
INL F load_n(const float* p, int n) {
  F r = zero();
  if (n > 0) memcpy(r.v, p, 4 * (size_t)(n < 16 ? n : 16));
  return r;
}
INL void store_n(float* p, F x, int n) { if (n > 0) memcpy(p, x.v, 4 * (size_t)(n < 16 ? n : 16)); }
INL F add(F x, F y) { LANES(x.v[i] += y.v[i]) return x; }
INL F sub(F x, F y) { LANES(x.v[i] -= y.v[i]) return x; }
INL F mul(F x, F y) { LANES(x.v[i] *= y.v[i]) return x; }
INL F div(F x, F y) { LANES(x.v[i] /= y.v[i]) return x; }
INL F fma(F x, F y, F z) { LANES(z.v[i] += x.v[i] * y.v[i]) return z; }
INL F fnma(F x, F y, F z) { LANES(z.v[i] -= x.v[i] * y.v[i]) return z; }
INL F max(F x, F y) { LANES(x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]) return x; }
INL F min(F x, F y) { LANES(x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]) return x; }
INL F abs(F x) { LANES(x.v[i] = __builtin_fabsf(x.v[i])) return x; }
INL F round_even(F x) { LANES(x.v[i] = __builtin_rintf(x.v[i])) return x; }
INL F scale2(F x, F n) {
  LANES(uint32_t bits = (uint32_t)((int32_t)n.v[i] + 127) << 23; float s; memcpy(&s, &bits, 4); x.v[i] *= s)
  return x;
}
INL float sum(F x) { float s = 0; LANES(s += x.v[i]) return s; }
INL float peak(F x) { float s = x.v[0]; LANES(s = x.v[i] > s ? x.v[i] : s) return s; }
INL F to_float(I x) { F r; LANES(r.v[i] = (float)x.v[i]) return r; }
INL I to_int(F x) { I r; LANES(r.v[i] = (int32_t)__builtin_rintf(x.v[i])) return r; }
static inline float half_to_float(uint16_t h);
INL F load_half(const uint16_t* p) { F r; LANES(r.v[i] = half_to_float(p[i])) return r; }
static inline uint16_t float_to_half(float f) {
  uint32_t x, sign;
  memcpy(&x, &f, 4);
  sign = (x >> 16) & 0x8000;
  x &= 0x7FFFFFFF;
  if (x >= 0x47800000) return (uint16_t)(sign | (x > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (x < 0x38800000) {
    float a;
    memcpy(&a, &x, 4);
    return (uint16_t)(sign | (uint32_t)__builtin_rintf(a * 16777216.f));
  }
  uint32_t r = x - 0x38000000;
  return (uint16_t)(sign | ((r + 0xFFF + ((r >> 13) & 1)) >> 13));
}
INL void store_half(uint16_t* p, F x) { LANES(p[i] = float_to_half(x.v[i])) }
INL F load_bf16(const uint16_t* p) {
  F r;
  LANES(uint32_t b = (uint32_t)p[i] << 16; memcpy(&r.v[i], &b, 4))
  return r;
}
INL F load_u8(const uint8_t* p) { F r; LANES(r.v[i] = p[i]) return r; }
INL F load_s8(const int8_t* p) { F r; LANES(r.v[i] = p[i]) return r; }
INL void store_s16(int16_t* p, I x) { LANES(p[i] = (int16_t)x.v[i]) }
INL void store_s8(int8_t* p, I x) { LANES(p[i] = (int8_t)x.v[i]) }
INL uint32_t greater(F x, F y) { uint32_t r = 0; LANES(r |= (uint32_t)(x.v[i] > y.v[i]) << i) return r; }
// Lane i of x where bit i of `lanes` is set, else of y.
INL F choose(uint32_t lanes, F x, F y) { LANES(x.v[i] = lanes >> i & 1 ? x.v[i] : y.v[i]) return x; }
INL uint32_t equal(F x, F y) { uint32_t r = 0; LANES(r |= (uint32_t)(x.v[i] == y.v[i]) << i) return r; }

INL I zero_int() { I r; LANES(r.v[i] = 0) return r; }
INL I set1_int(int x) { I r; LANES(r.v[i] = x) return r; }
#define BYTES(expression) for (int i = 0; i < 64; i++) { expression; }
INL B load_bytes(const void* p) { B r; memcpy(r.v, p, 64); return r; }
INL void store_bytes(void* p, B x) { memcpy(p, x.v, 64); }
INL B set1_byte(uint8_t x) { B r; BYTES(r.v[i] = x) return r; }
INL B and_bytes(B x, B y) { BYTES(x.v[i] &= y.v[i]) return x; }
INL B or_bytes(B x, B y) { BYTES(x.v[i] |= y.v[i]) return x; }
INL F byte_of(B x, int c) { F r; LANES(r.v[i] = (float)x.v[4 * i + c]) return r; }
// Callers mask off what a 16-bit shift would carry over, so shifting bytes gives the same.
INL B shift_right(B x, int n) { BYTES(x.v[i] = (uint8_t)(x.v[i] >> n)) return x; }
INL B shift_left(B x, int n) { BYTES(x.v[i] = (uint8_t)(x.v[i] << n)) return x; }
INL B from_shorts(const int16_t* s) { B r; memcpy(r.v, s, 64); return r; }
INL B widen_u8(const uint8_t* p) {
  int16_t t[32];
  for (int i = 0; i < 32; i++) t[i] = p[i];
  return from_shorts(t);
}
INL B pairs_times_32(const int8_t* a, const int8_t* b) {
  int16_t t[32];
  for (int i = 0; i < 32; i++) t[i] = (int16_t)(32 * (i & 1 ? b : a)[i / 2]);
  return from_shorts(t);
}
INL B broadcast4(const void* p) { B r; LANES(memcpy(r.v + 4 * i, p, 4)) return r; }
INL B load_weight(const void* p) { return load_bytes(p); }
INL B load_widened(const int8_t* p) {
  int16_t t[32];
  for (int i = 0; i < 32; i++) t[i] = p[i];
  return from_shorts(t);
}
#if defined(__ARM_FEATURE_DOTPROD)
INL void dot_low(I& acc, B w, B b) {
  for (int i = 0; i < 4; i++)
    vst1q_s32(acc.v + 4 * i, vdotq_s32(vld1q_s32(acc.v + 4 * i), vreinterpretq_s8_u8(vld1q_u8(w.v + 16 * i)),
                                       vreinterpretq_s8_u8(vld1q_u8(b.v + 16 * i))));
}
INL void dot_byte(I& acc, B w, B b) {
  BYTES(w.v[i] ^= 0x80)
  dot_low(acc, w, b);
}
#else
INL void dot_low(I& acc, B w, B b) {
  LANES(for (int j = 0; j < 4; j++) acc.v[i] += (int32_t)w.v[4 * i + j] * (int8_t)b.v[4 * i + j])
}
INL void dot_byte(I& acc, B w, B b) {
  LANES(for (int j = 0; j < 4; j++) acc.v[i] += ((int32_t)w.v[4 * i + j] - 128) * (int8_t)b.v[4 * i + j])
}
#endif
INL void dot_pairs(I& acc, B w, B b) {
  int16_t x[32], y[32];
  memcpy(x, w.v, 64);
  memcpy(y, b.v, 64);
  LANES(acc.v[i] += (int32_t)x[2 * i] * y[2 * i] + (int32_t)x[2 * i + 1] * y[2 * i + 1])
}
INL void prefetch(const void* p) { __builtin_prefetch(p); }
INL void sums_of_16(const int8_t* q, int16_t* out) {
  LANES(int s = 0; for (int j = 0; j < 16; j++) s += q[16 * i + j]; out[i] = (int16_t)s)
}
// clang-format on

#undef LANES
#undef BYTES

}  // namespace CANVAS_ISA

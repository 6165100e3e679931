// One packed record -> plain bytes and fp32 scales in the first-level cache, ready for the dot products.
#pragma once
#include "layout.h"
#include "simd.h"

namespace CANVAS_ISA {

// w: vector (group * 16 + quad * 2 + half). scale: per 32 inputs (Q6_K: per 16). mins: int16 pairs per row, so that
// minima and Q6_K's offset become integer dot products with the group sums, times `dmin` at the end.
struct alignas(64) Unpacked {
  uint8_t w[8 * 1024];
  float scale[16 * kTile];
  int16_t mins[8 * 64];
  float dmin[kTile];
};

// AVX-512 leaves high nibbles where they are and halves their scale four times instead of shifting the bytes.
constexpr float kHighScale = kKeepHighNibble ? 1.f / 16 : 1.f;
INL B high_nibbles(B v) {
  return kKeepHighNibble ? and_bytes(v, set1_byte(0xF0)) : and_bytes(shift_right(v, 4), set1_byte(15));
}

INL void unpack_k_scales(const uint8_t* tail, float high, Unpacked& u) {
  const uint16_t *d = (const uint16_t*)(tail + 512), *dmin = (const uint16_t*)(tail + 576);
  for (int h = 0; h < 2; h++) {
    F even = load_half(d + 16 * h), odd = mul(even, set1(high));
    store(u.dmin + 16 * h, load_half(dmin + 16 * h));
    for (int g = 0; g < 8; g++)
      store(u.scale + g * 32 + 16 * h, mul(load_u8(tail + g * 32 + 16 * h), g & 1 ? odd : even));
  }
  for (int i = 0; i < 8; i++) store_bytes(u.mins + 32 * i, widen_u8(tail + 256 + 32 * i));
}

static inline const uint8_t* unpack_q4k(const uint8_t* r, Unpacked& u) {
  const B low = set1_byte(15);
  for (int c = 0; c < 4; c++)
    for (int i = 0; i < 16; i++) {
      B v = load_weight(r + (c * 16 + i) * 64);
      store_bytes(u.w + (c * 32 + i) * 64, and_bytes(v, low));
      store_bytes(u.w + (c * 32 + 16 + i) * 64, high_nibbles(v));
    }
  unpack_k_scales(r + 4096, kHighScale, u);
  return u.w;
}

// Bit `bit` of every byte of h, moved to bit 4.
INL B to_bit4(B h, int bit) {
  return and_bytes(bit < 4 ? shift_left(h, 4 - bit) : shift_right(h, bit - 4), set1_byte(16));
}

static inline const uint8_t* unpack_q5k(const uint8_t* r, Unpacked& u) {
  const B low = set1_byte(15);
  for (int i = 0; i < 16; i++) {
    B h = load_weight(r + 4096 + i * 64);
    for (int c = 0; c < 4; c++) {
      B v = load_weight(r + (c * 16 + i) * 64);
      store_bytes(u.w + (c * 32 + i) * 64, or_bytes(and_bytes(v, low), to_bit4(h, 2 * c)));
      B up = and_bytes(shift_right(v, 4), low);
      store_bytes(u.w + (c * 32 + 16 + i) * 64, or_bytes(up, to_bit4(h, 2 * c + 1)));
    }
  }
  unpack_k_scales(r + 5120, 1.f, u);
  return u.w;
}

static inline const uint8_t* unpack_q6k(const uint8_t* r, Unpacked& u) {
  const B low = set1_byte(15), two = set1_byte(0x30);
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 16; i++) {
      B h = load_weight(r + 4096 + (half * 16 + i) * 64);
      B a = load_weight(r + (half * 32 + i) * 64), b = load_weight(r + (half * 32 + 16 + i) * 64);
      uint8_t* w = u.w + (half * 64 + i) * 64;
      store_bytes(w, or_bytes(and_bytes(a, low), and_bytes(shift_left(h, 4), two)));
      store_bytes(w + 1024, or_bytes(and_bytes(b, low), and_bytes(shift_left(h, 2), two)));
      store_bytes(w + 2048, or_bytes(and_bytes(shift_right(a, 4), low), and_bytes(h, two)));
      store_bytes(w + 3072, or_bytes(and_bytes(shift_right(b, 4), low), and_bytes(shift_right(h, 2), two)));
    }
  const int8_t* s = (const int8_t*)r + 6144;
  const uint16_t* d = (const uint16_t*)(r + 6656);
  for (int h = 0; h < 2; h++) {
    F scale = load_half(d + 16 * h);
    store(u.dmin + 16 * h, scale);
    for (int g = 0; g < 16; g++) store(u.scale + g * 32 + 16 * h, mul(load_s8(s + g * 32 + 16 * h), scale));
  }
  // Offset: 32 * scale of groups 2p and 2p + 1, interleaved per row as the sums of 16 are.
  for (int p = 0; p < 8; p++)
    for (int n = 0; n < kTile; n++) {
      u.mins[p * 64 + 2 * n] = (int16_t)(32 * s[2 * p * 32 + n]);
      u.mins[p * 64 + 2 * n + 1] = (int16_t)(32 * s[(2 * p + 1) * 32 + n]);
    }
  return u.w;
}

INL void unpack_half_scales(const uint8_t* from, int groups, Unpacked& u) {
  for (int i = 0; i < 2 * groups; i++) store(u.scale + 16 * i, load_half((const uint16_t*)from + 16 * i));
}

static inline const uint8_t* unpack_q40(const uint8_t* r, int groups, Unpacked& u) {
  const B low = set1_byte(15);
  for (int g = 0; g < groups; g++)
    for (int i = 0; i < 8; i++) {
      B v = load_weight(r + g * 512 + i * 64);
      store_bytes(u.w + g * 1024 + i * 64, and_bytes(v, low));
      store_bytes(u.w + g * 1024 + 512 + i * 64, and_bytes(shift_right(v, 4), low));
    }
  unpack_half_scales(r + groups * 512, groups, u);
  return u.w;
}

static inline const uint8_t* unpack_q50(const uint8_t* r, int groups, Unpacked& u) {
  const B low = set1_byte(15);
  for (int g = 0; g < groups; g++) {
    const uint8_t* from = r + g * 640;
    B high[2] = {load_weight(from + 512), load_weight(from + 576)};
    for (int i = 0; i < 8; i++) {
      B v = load_weight(from + i * 64), h = high[i & 1];
      uint8_t* w = u.w + g * 1024 + i * 64;
      store_bytes(w, or_bytes(and_bytes(v, low), to_bit4(h, i / 2)));
      store_bytes(w + 512, or_bytes(and_bytes(shift_right(v, 4), low), to_bit4(h, i / 2 + 4)));
    }
  }
  unpack_half_scales(r + groups * 640, groups, u);
  return u.w;
}

static inline const uint8_t* unpack_q80(const uint8_t* r, int groups, Unpacked& u) {
  unpack_half_scales(r + groups * 1024, groups, u);
  return r;
}

template <int KIND> INL const uint8_t* unpack(const uint8_t* r, int groups, Unpacked& u) {
  if (KIND == kQ4K) return unpack_q4k(r, u);
  if (KIND == kQ5K) return unpack_q5k(r, u);
  if (KIND == kQ6K) return unpack_q6k(r, u);
  if (KIND == kQ40) return unpack_q40(r, groups, u);
  if (KIND == kQ50) return unpack_q50(r, groups, u);
  return unpack_q80(r, groups, u);
}

}  // namespace CANVAS_ISA

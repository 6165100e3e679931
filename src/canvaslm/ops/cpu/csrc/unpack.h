// One repacked record -> plain bytes and fp32 scales in the first-level cache, ready for the dot products.
//
// Scales are unpacked ahead; the bytes by the first register block of rows, which uses each vector as it
// appears and leaves it for the blocks that follow. The arithmetic of unpacking then hides behind the dot
// products.
#pragma once
#include "layout.h"
#include "simd.h"

namespace CANVAS_ISA {

// w: vector (group * 16 + quad * 2 + half). scale: per 32 inputs (Q6_K: per 16). mins: int16 pairs per row,
// so that minima and Q6_K's offset become integer dot products with the group sums, times `dmin` at the end.
struct alignas(64) Unpacked {
  uint8_t w[8 * 1024];
  float scale[16 * kTile];
  int16_t mins[8 * 64];
  float dmin[kTile];
};

// AVX-512 leaves high nibbles where they are and halves their scale four times instead of shifting the bytes.
constexpr float kHighScale = kKeepHighNibble ? 1.f / 16 : 1.f;

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

// Vector (quad j, half h) of group g of a record with 4-bit chunks as in the K-quants' files: low nibbles are
// one group, high nibbles another.
INL B chunk_nibbles(const uint8_t* chunk, int j, int h, bool high) {
  const B v = load_weight(chunk + (j * 2 + h) * 64);
  return and_bytes(shift_right(v, high ? 4 : 0), set1_byte(15));
}

// Bit `bit` of every byte, moved to bit 4.
INL B to_bit4(B v, int bit) { return and_bytes(shift_left(shift_right(v, bit), 4), set1_byte(16)); }

template <int KIND> INL B fresh_weight(const uint8_t* r, int g, int j, int h) {
  const int at = (j * 2 + h) * 64;
  if (KIND == kQ4K) {
    const uint8_t* chunk = r + (g / 2) * 1024;
    if (kKeepHighNibble) return and_bytes(load_weight(chunk + at), set1_byte(g & 1 ? 0xF0 : 0x0F));
    return chunk_nibbles(chunk, j, h, g & 1);
  }
  if (KIND == kQ5K)
    return or_bytes(chunk_nibbles(r + (g / 2) * 1024, j, h, g & 1), to_bit4(load_weight(r + 4096 + at), g));
  if (KIND == kQ6K) {
    const B two = shift_right(load_weight(r + 4096 + (g / 4) * 1024 + at), 2 * (g % 4));
    const B low = chunk_nibbles(r + (g / 4) * 2048 + (g % 2) * 1024, j, h, g % 4 >= 2);
    return or_bytes(low, shift_left(and_bytes(two, set1_byte(3)), 4));
  }
  // Q4_0 and Q5_0: quads 0..3 of a group are low nibbles, 4..7 the high ones.
  const B v = load_weight(r + g * (KIND == kQ50 ? 640 : 512) + (j % 4 * 2 + h) * 64);
  const B low = and_bytes(j < 4 ? v : shift_right(v, 4), set1_byte(15));
  return KIND == kQ40 ? low : or_bytes(low, to_bit4(load_weight(r + g * 640 + 512 + h * 64), j));
}

static inline void unpack_q6k_scales(const uint8_t* r, Unpacked& u) {
  const int8_t* s = (const int8_t*)r + 6144;
  const uint16_t* d = (const uint16_t*)(r + 6656);
  for (int h = 0; h < 2; h++) {
    F scale = load_half(d + 16 * h);
    store(u.dmin + 16 * h, scale);
    for (int g = 0; g < 16; g++) store(u.scale + g * 32 + 16 * h, mul(load_s8(s + g * 32 + 16 * h), scale));
  }
  // Offset: 32 * scale of groups 2p and 2p + 1, interleaved per row as the sums of 16 are.
  for (int p = 0; p < 8; p++)
    for (int n = 0; n < kTile; n += 16)
      store_bytes(u.mins + p * 64 + 2 * n, pairs_times_32(s + 2 * p * 32 + n, s + (2 * p + 1) * 32 + n));
}

INL void unpack_half_scales(const uint8_t* from, int groups, Unpacked& u) {
  for (int i = 0; i < 2 * groups; i++) store(u.scale + 16 * i, load_half((const uint16_t*)from + 16 * i));
}

template <int KIND> INL void unpack_scales(const uint8_t* r, int groups, Unpacked& u) {
  if (KIND == kQ4K) unpack_k_scales(r + 4096, kHighScale, u);
  if (KIND == kQ5K) unpack_k_scales(r + 5120, 1.f, u);
  if (KIND == kQ6K) unpack_q6k_scales(r, u);
  if (KIND == kQ40) unpack_half_scales(r + groups * 512, groups, u);
  if (KIND == kQ50) unpack_half_scales(r + groups * 640, groups, u);
  if (KIND == kQ80) unpack_half_scales(r + groups * 1024, groups, u);
}

}  // namespace CANVAS_ISA

// GGUF rows -> fp32, a block of at most 256 values at a time: row lookups, sparse sums, requantising.
#pragma once
#include "layout.h"
#include "simd.h"

namespace CANVAS_ISA {

INL uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return h;
}

// out[i] = q[i] * scale - least, for 16 or 32 bytes.
INL void scaled(const uint8_t* q, int count, float scale, float least, float* out) {
  for (int i = 0; i < count; i += 16) store(out + i, sub(mul(set1(scale), load_u8(q + i)), set1(least)));
}

static inline void decode_q6k(const uint8_t* b, float* out) {
  uint8_t q[256];
  for (int h = 0; h < 2; h++) {
    const uint8_t *low = b + 64 * h, *high = b + 128 + 32 * h;
    uint8_t* to = q + 128 * h;
    for (int i = 0; i < 32; i++) {
      to[i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
      to[i + 32] = (uint8_t)((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
      to[i + 64] = (uint8_t)(low[i] >> 4 | (high[i] >> 4 & 3) << 4);
      to[i + 96] = (uint8_t)(low[i + 32] >> 4 | (high[i] >> 6) << 4);
    }
  }
  float d = half_to_float(half_at(b + 208));
  for (int g = 0; g < 16; g++) {
    float s = d * (float)(int8_t)b[192 + g];
    scaled(q + 16 * g, 16, s, 32.f * s, out + 16 * g);
  }
}

// Q4_K (fifth == nullptr) and Q5_K.
static inline void decode_k45(const uint8_t* b, const uint8_t* nibbles, const uint8_t* fifth, float* out) {
  float d = half_to_float(half_at(b)), dmin = half_to_float(half_at(b + 2));
  const uint8_t* s = b + 4;
  for (int g = 0; g < 8; g++) {
    uint8_t q[32];
    const uint8_t* from = nibbles + 32 * (g / 2);
    int shift = (g & 1) * 4;
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)(from[i] >> shift & 15);
    if (fifth)
      for (int i = 0; i < 32; i++) q[i] = (uint8_t)(q[i] | (fifth[i] >> g & 1) << 4);
    int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    int least = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
    scaled(q, 32, d * (float)scale, dmin * (float)least, out + 32 * g);
  }
}

INL void decode_q40(const uint8_t* b, float* out) {
  uint8_t q[32];
  for (int i = 0; i < 16; i++) {
    q[i] = b[2 + i] & 15;
    q[i + 16] = b[2 + i] >> 4;
  }
  float d = half_to_float(half_at(b));
  scaled(q, 32, d, 8.f * d, out);
}

INL void decode_q50(const uint8_t* b, float* out) {
  uint8_t q[32];
  uint32_t high;
  memcpy(&high, b + 2, 4);
  for (int i = 0; i < 16; i++) {
    q[i] = (uint8_t)((b[6 + i] & 15) | (high >> i & 1) << 4);
    q[i + 16] = (uint8_t)(b[6 + i] >> 4 | (high >> (i + 16) & 1) << 4);
  }
  float d = half_to_float(half_at(b));
  scaled(q, 32, d, 16.f * d, out);
}

INL void decode_q80(const uint8_t* b, float* out) {
  F d = set1(half_to_float(half_at(b)));
  store(out, mul(d, load_s8((const int8_t*)b + 2)));
  store(out + 16, mul(d, load_s8((const int8_t*)b + 18)));
}

// Values [256 b, 256 b + count) of a row, count <= 256; `out` has room for 256.
static inline void decode_block(int format, const uint8_t* row, int b, int count, float* out) {
  const size_t at = (size_t)b * kBlock;
  switch (format) {
    case kQ4KRows: return decode_k45(row + b * 144, row + b * 144 + 16, nullptr, out);
    case kQ5KRows: return decode_k45(row + b * 176, row + b * 176 + 48, row + b * 176 + 16, out);
    case kQ6KRows: return decode_q6k(row + b * 210, out);
    case kF32Rows: memcpy(out, row + at * 4, (size_t)count * 4); return;
    case kBF16Rows:
      for (int i = 0; i < count; i++) out[i] = bf16_to_float(half_at(row + (at + (size_t)i) * 2));
      return;
    case kF16Rows:
      for (int i = 0; i < count; i++) out[i] = half_to_float(half_at(row + (at + (size_t)i) * 2));
      return;
    default: break;
  }
  for (int g = 0; g < count / 32; g++) {
    size_t i = at / 32 + (size_t)g;
    if (format == kQ40Rows) decode_q40(row + i * 18, out + 32 * g);
    if (format == kQ50Rows) decode_q50(row + i * 22, out + 32 * g);
    if (format == kQ80Rows) decode_q80(row + i * 34, out + 32 * g);
  }
}

}  // namespace CANVAS_ISA

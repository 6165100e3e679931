// Repacking that computes: rows of any format -> int8 with one scale per (output, 256 inputs), or the
// transpose of a table (its columns as outputs), which is what the dense soft embedding multiplies with.
#pragma once
#include "decode.h"
#include "gemm.h"

namespace CANVAS_ISA {

INL void put_value(int kind, uint8_t* rec, int input, int r, float value, float inverse) {
  if (kind == kF32) {
    memcpy(rec + ((size_t)input * kTile + (size_t)r) * 4, &value, 4);
  } else {
    const size_t at =
        ((size_t)(input / 4) * 2 + (size_t)(r / 16)) * 64 + (size_t)(r % 16) * 4 + (size_t)(input % 4);
    rec[at] = (uint8_t)((int)__builtin_rintf(value * inverse) + 128);
  }
}

// One output's `count` <= 256 values (stride apart) into row r of a record; kind kInt8 or kF32.
static void put_output(int kind, const float* x, size_t stride, int count, int groups, int r, uint8_t* rec) {
  float top = 0.f, inverse = 0.f;
  if (kind == kInt8) {
    for (int i = 0; i < count; i++) top = max(top, __builtin_fabsf(x[(size_t)i * stride]));
    inverse = top > 0 ? 127.f / top : 0.f;
    if (!(inverse < 3e38f)) top = inverse = 0.f;
    ((float*)(rec + groups * 1024))[r] = top / 127.f;
  }
  for (int i = 0; i < groups * kGroup; i++)
    put_value(kind, rec, i, r, i < count ? x[(size_t)i * stride] : 0.f, inverse);
}

// One output's `count` <= 256 values, which lie side by side, into row r of an int8 record.
static void put_row(const float* x, int count, int groups, int r, uint8_t* rec) {
  int8_t q[kBlock];
  Sums sums;
  quantize_block(x, count, q, &sums);
  ((float*)(rec + groups * 1024))[r] = sums.scale;
  for (int quad = 0; quad < groups * 8; quad++) {
    uint32_t four;
    memcpy(&four, q + 4 * quad, 4);
    four ^= 0x80808080u;
    memcpy(rec + ((size_t)quad * 2 + (size_t)(r / 16)) * 64 + (size_t)(r % 16) * 4, &four, 4);
  }
}

static void requantize(int format, const uint8_t* src, int n, int k, uint8_t* dst) {
  const size_t row = row_bytes(format, k), tile = tile_bytes(kInt8, k);
  parallel(tiles_of(n), [&](int t, int) {
    float values[kBlock];
    uint8_t* rec = dst + (size_t)t * tile;
    for (int b = 0; b < blocks_of(k); b++) {
      const int groups = groups_in(k, b), count = min(kBlock, k - b * kBlock);
      for (int r = 0; r < kTile; r++) {
        const int output = t * kTile + r;
        if (output < n)
          decode_block(format, src + (size_t)output * row, b, count, values);
        else
          memset(values, 0, sizeof values);
        put_row(values, count, groups, r, rec);
      }
      rec += record_bytes(kInt8, groups);
    }
  });
}

// src: `rows` rows of `columns`; dst: a repacked matrix [columns, rows].
static void transpose(int kind, int format, const uint8_t* src, int rows, int columns, uint8_t* dst) {
  const size_t row = row_bytes(format, columns), tile = tile_bytes(kind, rows);
  const int strips = blocks_of(columns);
  parallel(blocks_of(rows) * strips, [&](int item, int slot) {
    const int b = item / strips, strip = item % strips;
    const int count = min(kBlock, rows - b * kBlock), width = min(kBlock, columns - strip * kBlock);
    const int groups = groups_in(rows, b);
    float* values = (float*)scratch(slot, 1, (size_t)kBlock * kBlock * 4);
    for (int i = 0; i < count; i++)
      decode_block(format, src + ((size_t)b * kBlock + (size_t)i) * row, strip, width, values + i * kBlock);
    uint8_t* rec = dst + (size_t)b * record_bytes(kind, 8);
    for (int r = 0; r < (width + kTile - 1) / kTile * kTile; r++) {
      uint8_t* to = rec + (size_t)(strip * (kBlock / kTile) + r / kTile) * tile;
      put_output(kind, values + r, kBlock, r < width ? count : 0, groups, r % kTile, to);
    }
  });
}

// out [count, k] = rows ids[i] of a table.
static void gather(int format, const uint8_t* src, int k, const int64_t* ids, int count, float* out) {
  const size_t row = row_bytes(format, k);
  parallel(count, [&](int i, int) {
    float values[kBlock];
    for (int b = 0; b < blocks_of(k); b++) {
      const int n = min(kBlock, k - b * kBlock);
      decode_block(format, src + (size_t)ids[i] * row, b, n, values);
      memcpy(out + (size_t)i * (size_t)k + b * kBlock, values, (size_t)n * 4);
    }
  });
}

}  // namespace CANVAS_ISA

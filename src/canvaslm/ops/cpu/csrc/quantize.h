// Activations as int8: one scale per (row, 256 inputs), and the group sums that fold offsets and minima in.
#pragma once
#include "layout.h"
#include "parallel.h"
#include "simd.h"

namespace CANVAS_ISA {

// What a record needs besides the bytes, one cache line a row.
struct alignas(64) Sums {
  int16_t of32[8];   // sums of 32 inputs
  int16_t of16[16];  // sums of 16 inputs
  int32_t offset;    // -kByteOffset * (sum of all 256)
  float scale;
  int32_t unused[2];
};
static_assert(sizeof(Sums) == 64, "one cache line");

// `rows` rows in panels of 256 inputs: panel b holds q[b][row][256], sums[b][row] (or x[b][row][256] as
// fp32).
struct Activations {
  int rows;
  int8_t* q;
  Sums* sums;
  float* x;
};

INL size_t activation_bytes(bool floats, int k, int rows) {
  size_t each = floats ? kBlock * 4 : kBlock + sizeof(Sums);
  return (size_t)blocks_of(k) * (size_t)rows * each;
}

INL Activations place_activations(void* memory, bool floats, int k, int rows) {
  size_t panel = (size_t)blocks_of(k) * (size_t)rows * kBlock;
  if (floats) return {rows, nullptr, nullptr, (float*)memory};
  return {rows, (int8_t*)memory, (Sums*)((char*)memory + panel), nullptr};
}

INL Activations rows_from(const Activations& a, int first) {
  size_t at = (size_t)first * kBlock;
  return {a.rows, a.q ? a.q + at : nullptr, a.sums ? a.sums + first : nullptr, a.x ? a.x + at : nullptr};
}

static inline void quantize_block(const float* x, int count, int8_t* q, Sums* sums) {
  F v[16], top = zero();
  for (int i = 0; i < 16; i++) {
    v[i] = count >= kBlock ? load(x + 16 * i) : load_n(x + 16 * i, count - 16 * i);
    top = max(top, abs(v[i]));
  }
  float most_abs = peak(top), inverse = most_abs > 0 ? 127.f / most_abs : 0.f;
  // A denormal maximum has no finite inverse; such a block counts as zero.
  if (!(inverse < 3e38f)) inverse = 0.f;
  sums->scale = inverse > 0 ? most_abs / 127.f : 0.f;
  for (int i = 0; i < 16; i++) store_s8(q + 16 * i, to_int(mul(v[i], set1(inverse))));
  sums_of_16(q, sums->of16);
  int total = 0;
  for (int g = 0; g < 8; g++) {
    int s = sums->of16[2 * g] + sums->of16[2 * g + 1];
    sums->of32[g] = (int16_t)s;
    total += s;
  }
  sums->offset = -kByteOffset * total;
}

// Block b of one row into its place.
INL void take_block(const Activations& a, const float* x, int count, int b, int row) {
  size_t at = (size_t)b * (size_t)a.rows + (size_t)row;
  if (a.x) {
    memcpy(a.x + at * kBlock, x, (size_t)count * 4);
    if (count < kBlock) memset(a.x + at * kBlock + count, 0, (size_t)(kBlock - count) * 4);
  } else {
    quantize_block(x, count, a.q + at * kBlock, a.sums + at);
  }
}

INL void take_row(const Activations& a, const float* x, int k, int row) {
  for (int b = 0; b < blocks_of(k); b++) take_block(a, x + b * kBlock, min(kBlock, k - b * kBlock), b, row);
}

INL void copy_row(const Activations& to, int to_row, const Activations& from, int row, int k) {
  for (int b = 0; b < blocks_of(k); b++) {
    size_t d = (size_t)b * (size_t)to.rows + (size_t)to_row, s = (size_t)b * (size_t)from.rows + (size_t)row;
    if (to.x) {
      memcpy(to.x + d * kBlock, from.x + s * kBlock, kBlock * 4);
    } else {
      memcpy(to.q + d * kBlock, from.q + s * kBlock, kBlock);
      to.sums[d] = from.sums[s];
    }
  }
}

// All rows of x [rows, k] (row stride `stride`), in parallel.
static inline void take_rows(const Activations& a, const float* x, size_t stride, int k) {
  const int chunk = 8;
  parallel((a.rows + chunk - 1) / chunk, [&](int item, int) {
    int end = min(a.rows, (item + 1) * chunk);
    for (int r = item * chunk; r < end; r++) take_row(a, x + (size_t)r * stride, k, r);
  });
}

}  // namespace CANVAS_ISA

// dX = dY W, what flows back through y = x @ W.T to its inputs, for weights that are not trained.
//
// Rows of dY lie in the lanes, sixteen a vector, and weights are broadcast: a record's 32 outputs x 32 inputs
// are unpacked to fp32 as they lie, and no copy of W is ever turned round. Weights are exact here; what the
// way forward rounds are activations. A row's sums have one order, whatever the batch.
#pragma once
#include "parallel.h"
#include "unpack.h"

namespace CANVAS_ISA {

constexpr int kBackRows = 256;  // rows a task: their sums for its inputs (64 KiB) stay near
constexpr int kBackGroups = 2;  // groups of inputs a task
// Inputs a register block, of one vector of rows each: sums and what they need must fit the registers.
constexpr int kBackInputs = kGroupRows > 2 ? 8 : 4;

struct Affine {
  F scale, offset;  // w = scale q + offset
};

// Of outputs 16 h .. in group g (of Q6_K: in its half `part`).
template <int KIND> INL Affine affine_of(const uint8_t* r, int groups, int g, int part, int h) {
  if (KIND == kQ4K || KIND == kQ5K) {
    const uint8_t* tail = r + (KIND == kQ4K ? 4096 : 5120);
    const uint8_t* mins = tail + 256 + (g / 2) * 64 + 32 * h + g % 2;
    float least[16];
    for (int i = 0; i < 16; i++) least[i] = -(float)mins[2 * i];
    F scale = mul(load_u8(tail + g * 32 + 16 * h), load_half((const uint16_t*)(tail + 512) + 16 * h));
    if (KIND == kQ4K && kKeepHighNibble && g % 2) scale = mul(scale, set1(1.f / 16));
    return {scale, mul(load(least), load_half((const uint16_t*)(tail + 576) + 16 * h))};
  }
  if (KIND == kQ6K) {
    const F s = load_s8((const int8_t*)r + 6144 + (2 * g + part) * 32 + 16 * h);
    const F scale = mul(s, load_half((const uint16_t*)(r + 6656) + 16 * h));
    return {scale, mul(scale, set1(-32.f))};
  }
  if (KIND == kInt8) {
    const F scale = load((const float*)(r + groups * 1024) + 16 * h);
    return {scale, mul(scale, set1(-128.f))};
  }
  const int bytes = KIND == kQ40 ? 512 : KIND == kQ50 ? 640 : 1024;
  const float zero_at = KIND == kQ40 ? 8.f : KIND == kQ50 ? 16.f : 128.f;
  const F scale = load_half((const uint16_t*)(r + groups * bytes) + g * 32 + 16 * h);
  return {scale, mul(scale, set1(-zero_at))};
}

// Group g of a record -> fp32 w[32 inputs][32 outputs].
template <int KIND> static void unpack_group(const uint8_t* r, int groups, int g, float* w) {
  if (KIND == kBF16 || KIND == kF32) {
    for (int i = 0; i < kGroup * kTile; i += 16) {
      const size_t at = (size_t)g * kGroup * kTile + (size_t)i;
      store(w + i, KIND == kBF16 ? load_bf16((const uint16_t*)r + at) : load((const float*)r + at));
    }
    return;
  }
  constexpr int parts = KIND == kQ6K ? 2 : 1, quads = 8 / parts;
  for (int h = 0; h < 2; h++)
    for (int part = 0; part < parts; part++) {
      const Affine a = affine_of<KIND>(r, groups, g, part, h);
      for (int j = part * quads; j < (part + 1) * quads; j++) {
        const B v = KIND == kQ80 || KIND == kInt8 ? load_weight(r + g * 1024 + (j * 2 + h) * 64)
                                                  : fresh_weight<KIND>(r, g, j, h);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++)
          store(w + (4 * j + c) * kTile + 16 * h, fma(byte_of(v, c), a.scale, a.offset));
      }
    }
}

static void unpack_any_group(int kind, const uint8_t* r, int groups, int g, float* w) {
  switch (kind) {
    case kQ4K: return unpack_group<kQ4K>(r, groups, g, w);
    case kQ5K: return unpack_group<kQ5K>(r, groups, g, w);
    case kQ6K: return unpack_group<kQ6K>(r, groups, g, w);
    case kQ40: return unpack_group<kQ40>(r, groups, g, w);
    case kQ50: return unpack_group<kQ50>(r, groups, g, w);
    case kQ80: return unpack_group<kQ80>(r, groups, g, w);
    case kInt8: return unpack_group<kInt8>(r, groups, g, w);
    case kBF16: return unpack_group<kBF16>(r, groups, g, w);
    default: return unpack_group<kF32>(r, groups, g, w);
  }
}

// c[input][rows] += sum over 32 outputs of w[input][output] * dy[output][16 rows], for 16 rows.
INL void add_outputs(const float* w, const float* dy, float* c, size_t rows) {
  for (int i = 0; i < kGroup; i += kBackInputs) {
    F sum[kBackInputs];
#pragma GCC unroll 8
    for (int a = 0; a < kBackInputs; a++) sum[a] = load(c + (size_t)(i + a) * rows);
#pragma GCC unroll 4
    for (int n = 0; n < kTile; n++) {
      const F y = load(dy + n * 16);
#pragma GCC unroll 8
      for (int a = 0; a < kBackInputs; a++) sum[a] = fma(set1(w[(i + a) * kTile + n]), y, sum[a]);
    }
#pragma GCC unroll 8
    for (int a = 0; a < kBackInputs; a++) store(c + (size_t)(i + a) * rows, sum[a]);
  }
}

// dY [rows, n] -> [rows / 16][n rounded up to whole tiles][16], zeros where there is nothing.
static float* turn_rows(const float* dy, size_t stride, int rows, int n) {
  const int outputs = tiles_of(n) * kTile, blocks = (rows + 15) / 16;
  const size_t panel = (size_t)outputs * 16;
  float* turned = (float*)scratch(-1, 0, (size_t)blocks * panel * sizeof(float));
  parallel(blocks, [&](int block, int) {
    float* to = turned + (size_t)block * panel;
    const int count = min(16, rows - block * 16);
    memset(to, 0, panel * sizeof(float));
    for (int m = 0; m < count; m++) {
      const float* from = dy + (size_t)(block * 16 + m) * stride;
      for (int i = 0; i < n; i++) to[(size_t)i * 16 + (size_t)m] = from[i];
    }
  });
  return turned;
}

// dX [rows, k] = dY [rows, n] @ W [n, k].
static void matmul_back(const Matrix& w, const float* dy, size_t dy_stride, int rows, float* dx,
                        size_t dx_stride) {
  const float* turned = turn_rows(dy, dy_stride, rows, w.n);
  const size_t panel = (size_t)tiles_of(w.n) * kTile * 16, stride = tile_bytes(w.kind, w.k);
  constexpr int inputs = kBackGroups * kGroup;
  const int chunks = (w.k + inputs - 1) / inputs, row_blocks = (rows + kBackRows - 1) / kBackRows;
  parallel(chunks * row_blocks, [&](int item, int slot) {
    const int first = item % chunks * inputs, row = item / chunks * kBackRows;
    const int count = min(kBackRows, rows - row), vectors = (count + 15) / 16;
    const size_t width = (size_t)vectors * 16;
    float* unpacked = (float*)scratch(slot, 0, (size_t)kGroup * kTile * sizeof(float));
    float* c = (float*)scratch(slot, 1, (size_t)inputs * kBackRows * sizeof(float));
    memset(c, 0, (size_t)inputs * width * sizeof(float));
    const int block = first / kBlock, groups = groups_in(w.k, block), from = first % kBlock / kGroup;
    const uint8_t* record = w.data + (size_t)block * record_bytes(w.kind, 8);
    for (int t = 0; t < tiles_of(w.n); t++, record += stride)
      for (int g = from; g < min(from + kBackGroups, groups); g++) {
        unpack_any_group(w.kind, record, groups, g, unpacked);
        for (int v = 0; v < vectors; v++)
          add_outputs(unpacked, turned + (size_t)(row / 16 + v) * panel + (size_t)t * kTile * 16,
                      c + (size_t)(g - from) * kGroup * width + (size_t)v * 16, width);
      }
    const int last = min(inputs, w.k - first);
    for (int m = 0; m < count; m++)
      for (int i = 0; i < last; i++)
        dx[(size_t)(row + m) * dx_stride + (size_t)(first + i)] = c[(size_t)i * width + (size_t)m];
  });
}

}  // namespace CANVAS_ISA

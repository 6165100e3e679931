// Matrix products over repacked tiles: the tile driver every other kernel uses, and y = x @ W.T.
#pragma once
#include "micro.h"

namespace CANVAS_ISA {

// Rows handled at once: a panel of them (64 KiB) and four result tiles (128 KiB) stay in the second-level
// cache.
constexpr int kRowBlock = 256;
// Up to so many rows weights are read in the order in which they lie.
constexpr int kFewRows = 8;

INL void any_record(int kind, const uint8_t* r, Unpacked& u, const Activations& a, int rows, float* c,
                    int groups, bool first, Ahead ahead) {
  switch (kind) {
    case kQ4K: return record_times_rows<kQ4K>(r, u, a, rows, c, groups, first, ahead);
    case kQ5K: return record_times_rows<kQ5K>(r, u, a, rows, c, groups, first, ahead);
    case kQ6K: return record_times_rows<kQ6K>(r, u, a, rows, c, groups, first, ahead);
    case kQ40: return record_times_rows<kQ40>(r, u, a, rows, c, groups, first, ahead);
    case kQ50: return record_times_rows<kQ50>(r, u, a, rows, c, groups, first, ahead);
    case kQ80: return record_times_rows<kQ80>(r, u, a, rows, c, groups, first, ahead);
    case kInt8: return record_times_rows<kInt8>(r, u, a, rows, c, groups, first, ahead);
    case kBF16: return record_times_rows<kBF16>(r, u, a, rows, c, groups, first, ahead);
    default: return record_times_rows<kF32>(r, u, a, rows, c, groups, first, ahead);
  }
}

// Tiles [tile, tile + count) of W times rows [0, rows) of `a`, over input blocks [from, to) only ->
// c[count][rows][32], added to what is there unless from == 0. Panels of `a` count from `from`. Inputs
// outermost, so that a panel of activations is read `count` times while it is near. `then`: the weights
// needed next, if not those that follow.
static void blocks_times_rows(const Matrix& w, int tile, int count, int from, int to, const Activations& a,
                              int rows, float* c, Unpacked& u, const uint8_t* then) {
  const size_t stride = tile_bytes(w.kind, w.k), full = record_bytes(w.kind, 8);
  const uint8_t* base = w.data + (size_t)tile * stride;
  const int most = w.kind == kInt8 ? kFlatRows : kGroupRows;
  if (!then) then = base + (size_t)count * stride + (size_t)from * full;
  const auto one = [&](int t, int b, const uint8_t* next) {
    const int groups = groups_in(w.k, b);
    const size_t bytes = record_bytes(w.kind, groups), at = (size_t)(b - from) * (size_t)a.rows;
    Activations panel = {a.rows, a.q ? a.q + at * kBlock : nullptr, a.sums ? a.sums + at : nullptr,
                         a.x ? a.x + at * kBlock : nullptr};
    const uint8_t* r = base + (size_t)t * stride + (size_t)b * full;
    const Ahead ahead = Ahead::of(next, bytes, groups, (rows + most - 1) / most);
    any_record(w.kind, r, u, panel, rows, c + (size_t)t * (size_t)rows * kTile, groups, b == 0, ahead);
  };
  const auto record = [&](int t, int b) { return base + (size_t)t * stride + (size_t)b * full; };
  if (rows <= kFewRows) {
    for (int t = 0; t < count; t++)
      for (int b = from; b < to; b++)
        one(t, b, b + 1 < to ? record(t, b + 1) : t + 1 < count ? record(t + 1, from) : then);
    return;
  }
  for (int b = from; b < to; b++)
    for (int t = 0; t < count; t++)
      one(t, b, t + 1 < count ? record(t + 1, b) : b + 1 < to ? record(0, b + 1) : then);
}

INL void tiles_times_rows(const Matrix& w, int tile, int count, const Activations& a, int rows, float* c,
                          Unpacked& u, const uint8_t* then = nullptr) {
  blocks_times_rows(w, tile, count, 0, blocks_of(w.k), a, rows, c, u, then);
}

// The `rows` x `count` tiles of c into y [.., n], leaving out the padding past n.
INL void write_tiles(const float* c, int tile, int count, int rows, int n, float* y, size_t stride) {
  for (int m = 0; m < rows; m++)
    for (int t = 0; t < count; t++) {
      const float* from = c + ((size_t)t * (size_t)rows + (size_t)m) * kTile;
      int column = (tile + t) * kTile;
      float* to = y + (size_t)m * stride + column;
      if (column + kTile <= n) {
        store(to, load(from));
        store(to + 16, load(from + 16));
      } else {
        store_n(to, load(from), n - column);
        store_n(to + 16, load(from + 16), n - column - 16);
      }
    }
}

// y [rows, n] = x [rows, k] @ W.T
static void matmul(const Matrix& w, const float* x, size_t x_stride, int rows, float* y, size_t y_stride) {
  const bool floats = is_float(w.kind);
  Activations a = place_activations(scratch(-1, 0, activation_bytes(floats, w.k, rows)), floats, w.k, rows);
  take_rows(a, x, x_stride, w.k);
  const int tiles = tiles_of(w.n), block = min(rows, kRowBlock), row_blocks = (rows + block - 1) / block;
  // Four tiles a task, fewer when that would leave threads without work.
  int each = 4;
  while (each > 1 && (tiles + each - 1) / each * row_blocks < 4 * pool_threads()) each /= 2;
  const int chunks = (tiles + each - 1) / each;
  parallel(chunks * row_blocks, [&](int item, int slot) {
    Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
    float* c = (float*)scratch(slot, 1, (size_t)kRowBlock * 4 * kTile * sizeof(float));
    const int tile = item % chunks * each, count = min(each, tiles - tile);
    const int row = item / chunks * block, height = min(block, rows - row);
    tiles_times_rows(w, tile, count, rows_from(a, row), height, c, *u);
    write_tiles(c, tile, count, height, w.n, y + (size_t)row * y_stride, y_stride);
  });
}

}  // namespace CANVAS_ISA

// The soft embedding: each row's expected row of the embedding table, from the logits `head` stored.
//
// Where a row's mass lies on few tokens, those table rows are added up one by one in fp32; the rest, at most
// `drop` of the mass, is left out. Where it lies on many, the row goes through a product with the transposed
// table: its largest probabilities are still added one by one, so that what is rounded to int8 is flat. With
// drop == 0 nothing is left out and what int8 rounds off goes through a second product.
#pragma once
#include <cmath>

#include "decode.h"
#include "gemm.h"
#include "head.h"
#include "kernels.h"

namespace CANVAS_ISA {

// Above this many tokens a row is cheaper in the dense product (0.7 us a token; 1.7 ms a row of 262,144).
constexpr int kSparseLimit = 2400;
constexpr float kLadder[] = {1e-3f, 1e-4f, 1e-5f, 1e-6f, 1e-7f};
// Probabilities from here on are always added in fp32: at most 256 a row.
constexpr float kPeak = 1.f / 256;
// Vocabulary quantised at a time: 32 blocks, whose panels stay in the last-level cache.
constexpr int kSoftBlocks = 32;

struct Pick {
  int token;
  float p;
};

struct Picked {
  int count;
  double mass;
};

// Tokens of a row with probability >= least_p into picks, ascending; stops after `limit`.
static Picked pick(const SoftCall& s, int row, float least_p, Pick* picks, int limit) {
  const int tiles = sampling_tiles(s.vocabulary);
  const size_t at = (size_t)row * (size_t)tiles;
  Picked got = {0, 0};
  for (int t = 0; t < tiles; t++) {
    const float shift = s.tile_peak[at + (size_t)t] - s.lse[row];
    if (!(s.tile_mass[at + (size_t)t] > 0) || shift < std::log(least_p))
      continue;  // its likeliest token is too rare
    const uint16_t* stored = s.store + (at + (size_t)t) * kSampleTile;
    const F bound = set1(std::nextafterf(std::log(least_p) - shift, -INFINITY));
    const int columns = min(kSampleTile, s.vocabulary - t * kSampleTile);
    for (int i = 0; i < columns; i += 16) {
      const F x = load_half(stored + i);
      uint32_t hits = greater(x, bound);
      if (columns - i < 16) hits &= (1u << (columns - i)) - 1;
      if (!hits) continue;
      float p[16];
      store(p, exp(add(x, set1(shift))));
      for (; hits; hits &= hits - 1) {
        if (got.count == limit) return {limit + 1, got.mass};
        const int j = __builtin_ctz(hits);
        picks[got.count++] = {t * kSampleTile + i + j, p[j]};
        got.mass += p[j];
      }
    }
  }
  return got;
}

// out [width] = sum of p * table row.
static void add_rows(const SoftCall& s, const Pick* picks, int count, float* out) {
  const size_t row = row_bytes(s.format, s.width);
  memset(out, 0, (size_t)s.width * 4);
  float values[kBlock];
  for (int i = 0; i < count; i++) {
    const uint8_t* from = s.table + (size_t)picks[i].token * row;
    if (i + 2 < count)
      for (size_t b = 0; b < row; b += 64) prefetch(s.table + (size_t)picks[i + 2].token * row + b);
    const F p = set1(picks[i].p);
    for (int b = 0; b < blocks_of(s.width); b++) {
      const int n = min(kBlock, s.width - b * kBlock);
      decode_block(s.format, from, b, n, values);
      float* to = out + b * kBlock;
      int j = 0;
      for (; j + 16 <= n; j += 16) store(to + j, fma(p, load(values + j), load(to + j)));
      if (j < n) store_n(to + j, fma(p, load_n(values + j, n - j), load_n(to + j, n - j)), n - j);
    }
  }
}

// A row whose mass lies on kSparseLimit tokens but for `drop` of it cannot have more entropy than this
// (Fano).
INL float most_sparse_entropy(const SoftCall& s) {
  const float d = s.drop;
  return std::log((float)kSparseLimit) + d * std::log((float)s.vocabulary) - d * std::log(d) -
         (1 - d) * std::log(1 - d) + 1e-3f;
}

// A row's tokens, or false when it needs the dense product; then picks are its peaks. What a small top-k
// keeps is always cheaper one by one, and nothing need be left out.
static bool sparse_row(const SoftCall& s, int row, Pick* picks, int* count) {
  if (!s.transposed.data) {
    *count = pick(s, row, 1e-30f, picks, s.vocabulary).count;
    return true;
  }
  for (float least_p : kLadder) {
    if (!(s.drop > 0) || s.entropy[row] > most_sparse_entropy(s)) break;
    const Picked got = pick(s, row, least_p, picks, kSparseLimit);
    if (got.count > kSparseLimit) break;
    *count = got.count;
    if (1 - got.mass <= s.drop) return true;
  }
  if (s.top_k && s.top_k[row] <= kSparseLimit) {
    *count = pick(s, row, 1e-30f, picks, kSparseLimit).count;
    return true;
  }
  *count = is_float(s.transposed.kind) ? 0 : pick(s, row, kPeak, picks, kSparseLimit).count;
  return false;
}

// Probabilities of 256 tokens of a row; those added one by one are left out.
static void probabilities(const SoftCall& s, int row, int block, float* p) {
  const int tiles = sampling_tiles(s.vocabulary), tile = block * kBlock / kSampleTile;
  const size_t at = (size_t)row * (size_t)tiles + (size_t)tile;
  const float shift = s.tile_peak[at] - s.lse[row];
  if (!(s.tile_mass[at] > 0) || shift < -80.f) {
    memset(p, 0, kBlock * 4);
    return;
  }
  const uint16_t* stored = s.store + at * kSampleTile + (size_t)(block * kBlock % kSampleTile);
  // The same test as `pick`'s, so that a token is in exactly one of the two sums.
  const float bound =
      is_float(s.transposed.kind) ? INFINITY : std::nextafterf(std::log(kPeak) - shift, -INFINITY);
  for (int i = 0; i < kBlock; i += 16) {
    const F x = load_half(stored + i);
    store(p + i, exp(add(x, set1(shift))));
    for (uint32_t peaks = greater(x, set1(bound)); peaks; peaks &= peaks - 1)
      p[i + __builtin_ctz(peaks)] = 0.f;
  }
}

// What rounding left: p - q * scale.
INL void leave_rest(float* p, const int8_t* q, float scale) {
  for (int i = 0; i < kBlock; i += 16) store(p + i, fnma(load_s8(q + i), set1(scale), load(p + i)));
}

// Adds rows [first, first + rows) of `dense` through the transposed table.
static void dense_rows(const SoftCall& s, const int* dense, int rows) {
  const Matrix& w = s.transposed;
  const bool floats = is_float(w.kind);
  const int passes = floats || s.drop > 0 ? 1 : 2, blocks = blocks_of(w.k), tiles = tiles_of(w.n);
  const size_t bytes = activation_bytes(floats, kSoftBlocks * kBlock, rows);
  char* memory = (char*)scratch(-1, 0, bytes * 2);
  float* c = (float*)scratch(-1, 1, (size_t)tiles * (size_t)rows * kTile * 4 * (size_t)passes);
  Activations a[2];
  for (int i = 0; i < 2; i++)
    a[i] = place_activations(memory + (size_t)i * bytes, floats, kSoftBlocks * kBlock, rows);
  for (int from = 0; from < blocks; from += kSoftBlocks) {
    const int to = min(blocks, from + kSoftBlocks);
    parallel(rows, [&](int r, int) {
      float p[kBlock];
      for (int b = from; b < to; b++) {
        const int count = min(kBlock, w.k - b * kBlock);
        probabilities(s, dense[r], b, p);
        take_block(a[0], p, count, b - from, r);
        if (passes == 1) continue;
        const size_t at = (size_t)(b - from) * (size_t)rows + (size_t)r;
        leave_rest(p, a[0].q + at * kBlock, a[0].sums[at].scale);
        take_block(a[1], p, count, b - from, r);
      }
    });
    const int each = 4, strips = (tiles + each - 1) / each;
    parallel(strips * passes, [&](int item, int slot) {
      Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
      const int tile = item % strips * each, pass = item / strips, count = min(each, tiles - tile);
      float* to_c = c + ((size_t)pass * (size_t)tiles + (size_t)tile) * (size_t)rows * kTile;
      blocks_times_rows(w, tile, count, from, to, a[pass], rows, to_c, *u, nullptr);
    });
  }
  parallel(rows, [&](int r, int) {
    float* out = s.out + (size_t)dense[r] * (size_t)s.width;
    for (int pass = 0; pass < passes; pass++)
      for (int i = 0; i < s.width; i += 16) {
        const size_t tile = (size_t)pass * (size_t)tiles + (size_t)(i / kTile);
        const float* part = c + (tile * (size_t)rows + (size_t)r) * kTile + i % kTile;
        store_n(out + i, add(load_n(out + i, s.width - i), load(part)), s.width - i);
      }
  });
}

static void soft(const SoftCall& s) {
  int* dense = (int*)scratch(-1, 2, (size_t)s.rows * 8);
  int* gathered = dense + s.rows;
  const int limit = s.transposed.data ? kSparseLimit : s.vocabulary;
  parallel(s.rows, [&](int r, int slot) {
    Pick* picks = (Pick*)scratch(slot, 2, (size_t)(limit + 1) * sizeof(Pick));
    dense[r] = !sparse_row(s, r, picks, &gathered[r]);
    add_rows(s, picks, gathered[r], s.out + (size_t)r * (size_t)s.width);
  });
  int count = 0;
  int64_t total = 0;
  for (int r = 0; r < s.rows; r++) {
    total += gathered[r];
    if (dense[r]) dense[count++] = r;  // count <= r: compacted in place
  }
  *s.gathered = total, *s.dense_rows = count;
  for (int at = 0; at < count; at += kRowBlock) dense_rows(s, dense + at, min(kRowBlock, count - at));
}

}  // namespace CANVAS_ISA

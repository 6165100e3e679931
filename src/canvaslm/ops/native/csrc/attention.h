// Attention of queries over keys and values, grouped heads, softmax scale 1, without materialised scores.
//
// Products in int16: a key or query is scaled so that its norm stays below 46000, hence every dot product below 2^31
// (Cauchy-Schwarz); values are scaled per (256 keys, component), probabilities so that 256 of them sum to 32767. Keys
// come in chunks of 256, combined as flash attention does: running maximum, running sum, rescaled output (Milakov &
// Gimelshein 2018; Dao et al. 2022). Relative error about 5e-4.
//
// A row is one query of one head; the rows of a key-value head share its keys, 24 at a time.
#pragma once
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"
#include "micro.h"

namespace CANVAS_ISA {

constexpr int kChunk = 256;      // keys
// Distances between rows of scratch: a power of two would put all rows into a few sets of the first-level cache.
constexpr int kPad = 16;                   // of fp32 rows
constexpr int kHalfRow = kChunk + 2 * kPad;  // of int16 rows of 256
constexpr int kScoreRow = kChunk + kPad;
constexpr int kRowsAtOnce = 24;  // rows of a task
constexpr float kNormLimit = 46000.f, kValueLimit = 32000.f, kShareLimit = 32767.f;

struct Range {
  int from, to;
};

// One chunk of one key-value head. k: int16 [8 tiles of 32 keys][width/2][32][2]; v: int16 [width/32][128][32][2].
struct PackedChunk {
  int16_t *k, *v;
  float *k_scale, *v_scale;  // [256], [width]
};

struct AttentionShape {
  int keys, width, chunks, group;  // width: head width rounded up to 32; group: queries per key-value head
  char* memory;

  INL_MEMBER size_t chunk_bytes() const { return (size_t)kChunk * (size_t)width * 4 + kChunk * 4 + (size_t)width * 4; }
  INL_MEMBER PackedChunk chunk(int head, int c) const {
    char* at = memory + ((size_t)head * (size_t)chunks + (size_t)c) * chunk_bytes();
    int16_t *k = (int16_t*)at, *v = k + (size_t)kChunk * (size_t)width;
    float* scales = (float*)(v + (size_t)kChunk * (size_t)width);
    return {k, v, scales, scales + kChunk};
  }
};

// `count` values as fp32, padded with zeros to `width`: where they lie if they can be read there, else in `room`.
INL const float* vector_at(const void* base, int dtype, int64_t at, int count, int width, float* room) {
  if (dtype == 0 && count == width) return (const float*)base + at;
  if (dtype == 0) memcpy(room, (const float*)base + at, (size_t)count * 4);
  else
    for (int i = 0; i < count; i++) room[i] = bf16_to_float(((const uint16_t*)base)[at + i]);
  for (int i = count; i < width; i++) room[i] = 0.f;
  return room;
}

// Key or value `index` (counted over all segments) of a head.
INL const float* key_at(const AttentionCall& c, int index, int head, bool value, int width, float* room) {
  const Segment* s = c.segments;
  for (; index >= s->count; s++) index -= s->count;
  const int64_t at = index * (value ? s->v_token : s->k_token) + head * (value ? s->v_head : s->k_head);
  return vector_at(value ? s->v : s->k, s->dtype, at, c.width, width, room);
}

// int16 with norm below the limit; returns the scale that undoes it.
static float to_int16(const float* x, int width, int16_t* out) {
  F squares = zero(), top = zero();
  for (int i = 0; i < width; i += 16) {
    const F v = load(x + i);
    squares = fma(v, v, squares);
    top = max(top, abs(v));
  }
  const float norm = std::sqrt(sum(squares)), largest = peak(top);
  const float scale = norm > 1e-30f ? least(kNormLimit / norm, 32767.f / largest) : 0.f;
  for (int i = 0; i < width; i += 16) store_s16(out + i, to_int(mul(load(x + i), set1(scale))));
  return scale > 0 ? 1.f / scale : 0.f;
}

static void pack_keys(const AttentionCall& c, const AttentionShape& s, int head, int chunk, float* values) {
  const PackedChunk to = s.chunk(head, chunk);
  const int first = chunk * kChunk, count = least(kChunk, s.keys - first), pairs = s.width / 2;
  int16_t* rows = (int16_t*)(values + s.width);
  for (int n0 = 0; n0 < count; n0 += 16) {
    for (int n = 0; n < 16; n++) {
      int16_t* row = rows + (size_t)n * (size_t)s.width;
      if (n0 + n < count) {
        to.k_scale[n0 + n] = to_int16(key_at(c, first + n0 + n, head, false, s.width, values), s.width, row);
      } else {
        memset(row, 0, (size_t)s.width * 2);
        to.k_scale[n0 + n] = 0.f;
      }
    }
    int32_t* out = (int32_t*)(to.k + (size_t)(n0 / 32) * 32 * (size_t)s.width) + (n0 / 16 % 2) * 16;
    const int32_t* in = (const int32_t*)rows;
    for (int j = 0; j < pairs; j++)
      for (int n = 0; n < 16; n++) out[(size_t)j * 32 + (size_t)n] = in[(size_t)n * (size_t)pairs + (size_t)j];
  }
}

static void pack_values(const AttentionCall& c, const AttentionShape& s, int head, int chunk, float* values) {
  const PackedChunk to = s.chunk(head, chunk);
  const int first = chunk * kChunk, count = least(kChunk, s.keys - first);
  const size_t width = (size_t)s.width;
  for (size_t d = 0; d < width; d += 16) store(to.v_scale + d, set1(1e-20f));
  const float* rows[kChunk + 1];
  for (int n = 0; n < count; n++) {
    const float* row = rows[n] = key_at(c, first + n, head, true, s.width, values + (size_t)n * width);
    for (size_t d = 0; d < width; d += 16) store(to.v_scale + d, max(load(to.v_scale + d), abs(load(row + d))));
  }
  rows[count] = values + (size_t)count * width;  // an odd chunk ends in a value of zeros
  if (count % 2) memset(values + (size_t)count * width, 0, width * 4);
  for (size_t d = 0; d < width; d += 16) {
    const F up = div(set1(kValueLimit), load(to.v_scale + d));
    int32_t* out = (int32_t*)(to.v + (d / 32) * 32 * kChunk) + (d / 16 % 2) * 16;
    for (int n = 0; n < count; n += 2) {
      int16_t even[16], odd[16];
      store_s16(even, to_int(mul(load(rows[n] + d), up)));
      store_s16(odd, to_int(mul(load(rows[n + 1] + d), up)));
      for (int i = 0; i < 16; i++)
        out[(size_t)(n / 2) * 32 + (size_t)i] = (int32_t)((uint32_t)(uint16_t)even[i] | (uint32_t)(uint16_t)odd[i] << 16);
    }
    store(to.v_scale + d, div(set1(1.f), up));
  }
}

// acc[m] += 32 outputs of `pairs` <= 128 int16 pairs of row m; rows are kHalfRow apart, so that addresses are constants.
template <int MR> INL void pair_products(const int16_t* w, const int16_t* a, int pairs, I (&acc)[MR][2]) {
#pragma GCC unroll 1
  for (int j = 0; j < pairs; j++) {
    const B w0 = load_weight(w + (size_t)j * 64), w1 = load_weight(w + (size_t)j * 64 + 32);
    prefetch(w + (size_t)j * 64 + 1024);
    prefetch(w + (size_t)j * 64 + 1056);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const B b = broadcast4(a + m * kHalfRow + 2 * (size_t)j);
      dot_pairs(acc[m][0], w0, b);
      dot_pairs(acc[m][1], w1, b);
    }
  }
}

// Queries come in panels of 256 components: [panel][kRowsAtOnce][256].
struct ScoreStep {  // scores of 32 keys
  const int16_t *keys, *queries;
  const float *k_scale, *q_scale;
  float* scores;
  int width;
  template <int MR> INL_MEMBER void run(int r) const {
    I acc[MR][2];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = zero_int();
#pragma GCC unroll 1
    for (int d = 0; d < width; d += kChunk)
      pair_products<MR>(keys + (size_t)d * 32, queries + (size_t)(d / kChunk) * kRowsAtOnce * kHalfRow + (size_t)r * kHalfRow,
                        least(kChunk, width - d) / 2, acc);
    const F s0 = load(k_scale), s1 = load(k_scale + 16);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const F q = set1(q_scale[r + m]);
      float* to = scores + (size_t)(r + m) * kScoreRow;
      store(to, mul(to_float(acc[m][0]), mul(s0, q)));
      store(to + 16, mul(to_float(acc[m][1]), mul(s1, q)));
    }
  }
};

struct Online {  // running softmax of one row, and what this chunk does to it
  float top, total, keep, gain;
};

struct ValueStep {  // 32 output components: out = out * keep + gain * (shares . values)
  const int16_t *values, *shares;
  const float* v_scale;
  const Online* online;
  float* out;
  int width, pairs;
  template <int MR> INL_MEMBER void run(int r) const {
    I acc[MR][2];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = zero_int();
    pair_products<MR>(values, shares + (size_t)r * kHalfRow, pairs, acc);
    const F s0 = load(v_scale), s1 = load(v_scale + 16);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const F keep = set1(online[r + m].keep), gain = set1(online[r + m].gain);
      float* to = out + (size_t)(r + m) * (size_t)(width + kPad);
      store(to, fma(to_float(acc[m][0]), mul(s0, gain), mul(load(to), keep)));
      store(to + 16, fma(to_float(acc[m][1]), mul(s1, gain), mul(load(to + 16), keep)));
    }
  }
};

// Functions of their own: inlined into a larger one, GCC keeps the accumulators in memory.
__attribute__((noinline)) static void score_tile(const ScoreStep& step, int rows) { in_row_blocks<kFlatRows>(rows, step); }
__attribute__((noinline)) static void value_tile(const ValueStep& step, int rows) { in_row_blocks<kFlatRows>(rows, step); }

// Keys query `token` sees.
INL Range visible(const AttentionCall& c, const AttentionShape& s, int token) {
  if (!c.causal) return {0, s.keys};
  const int at = c.first_query + token;
  return {c.window > 0 ? most(0, at - c.window + 1) : 0, least(s.keys, at + 1)};
}

// Softmax of a row's scores over its visible keys of this chunk -> int16 shares that sum to kShareLimit.
static void softmax_row(float* scores, Range r, int count, Online& o, int16_t* shares) {
  memset(shares, 0, (size_t)(count + 15) / 16 * 32);
  if (r.from >= r.to) {
    o.keep = 1.f, o.gain = 0.f;
    return;
  }
  for (int i = r.from / 16 * 16; i < r.from; i++) scores[i] = -INFINITY;
  for (int i = r.to; i < (r.to + 15) / 16 * 16; i++) scores[i] = -INFINITY;
  F top = set1(-INFINITY), mass = zero();
  for (int i = r.from / 16 * 16; i < r.to; i += 16) top = max(top, load(scores + i));
  const float here = peak(top);
  for (int i = r.from / 16 * 16; i < r.to; i += 16) {
    const F e = exp(sub(load(scores + i), set1(here)));
    store(scores + i, e);
    mass = add(mass, e);
  }
  const float total = sum(mass), above = most(o.top, here), fresh = std::exp(here - above);
  o.keep = std::exp(o.top - above);
  o.gain = fresh * total / kShareLimit;
  o.total = o.total * o.keep + fresh * total;
  o.top = above;
  const F up = set1(kShareLimit / total);
  for (int i = r.from / 16 * 16; i < r.to; i += 16) store_s16(shares + i, to_int(mul(load(scores + i), up)));
}

struct RowsTask {
  int head, first, rows;
};

static void attend_rows(const AttentionCall& c, const AttentionShape& s, const RowsTask& t, int slot) {
  const size_t width = (size_t)s.width;
  const size_t panels = (width + kChunk - 1) / kChunk * kHalfRow, out_row = width + kPad;
  const size_t row_bytes = (out_row + kScoreRow + 1) * 4 + (panels + kHalfRow) * 2 + sizeof(Online);
  float* scores = (float*)scratch(slot, 1, (size_t)kRowsAtOnce * row_bytes + width * 6);
  float* out = scores + (size_t)kRowsAtOnce * kScoreRow;
  int16_t* queries = (int16_t*)(out + (size_t)kRowsAtOnce * out_row);
  int16_t* shares = queries + (size_t)kRowsAtOnce * panels;
  float* q_scale = (float*)(shares + (size_t)kRowsAtOnce * kHalfRow);
  float* one = q_scale + kRowsAtOnce;
  int16_t* small = (int16_t*)(one + width);
  Online* online = (Online*)(small + width);
  Range all = {s.keys, 0};
  for (int r = 0; r < t.rows; r++) {
    const int token = (t.first + r) / s.group, head = t.head * s.group + (t.first + r) % s.group;
    const float* query = vector_at(c.q, 0, token * c.q_token + head * c.q_head, c.width, s.width, one);
    q_scale[r] = to_int16(query, s.width, small);
    for (size_t d = 0; d < width; d += kChunk)
      memcpy(queries + d / kChunk * kRowsAtOnce * kHalfRow + (size_t)r * kHalfRow, small + d, least((size_t)kChunk, width - d) * 2);
    online[r] = {-INFINITY, 0.f, 1.f, 0.f};
    const Range seen = visible(c, s, token);
    all = {least(all.from, seen.from), most(all.to, seen.to)};
  }
  memset(out, 0, (size_t)t.rows * out_row * 4);
  for (int chunk = all.from / kChunk; chunk * kChunk < all.to; chunk++) {
    const PackedChunk p = s.chunk(t.head, chunk);
    const int first = chunk * kChunk, count = least(kChunk, s.keys - first);
    for (int k = 0; k < count; k += 32)
      score_tile({p.k + (size_t)k * width, queries, p.k_scale + k, q_scale, scores + k, s.width}, t.rows);
    for (int r = 0; r < t.rows; r++) {
      const Range seen = visible(c, s, (t.first + r) / s.group);
      softmax_row(scores + (size_t)r * kScoreRow, {most(0, seen.from - first), least(count, seen.to - first)}, count, online[r],
                  shares + (size_t)r * kHalfRow);
    }
    for (int d = 0; d < s.width; d += 32)
      value_tile({p.v + (size_t)d * kChunk, shares, p.v_scale + d, online, out + d, s.width, (count + 1) / 2}, t.rows);
  }
  for (int r = 0; r < t.rows; r++) {
    const int token = (t.first + r) / s.group, head = t.head * s.group + (t.first + r) % s.group;
    float* to = c.out + token * c.out_token + head * c.out_head;
    const F inverse = set1(online[r].total > 0 ? 1.f / online[r].total : 0.f);
    for (int d = 0; d < c.width; d += 16) store_n(to + d, mul(load(out + (size_t)r * out_row + (size_t)d), inverse), c.width - d);
  }
}

static void attention(const AttentionCall& c) {
  AttentionShape s;
  s.keys = 0;
  for (int i = 0; i < c.segment_count; i++) s.keys += c.segments[i].count;
  s.width = (c.width + 31) / 32 * 32, s.group = c.heads / c.kv_heads;
  s.chunks = (s.keys + kChunk - 1) / kChunk;
  s.memory = (char*)scratch(-1, 0, s.chunk_bytes() * (size_t)s.chunks * (size_t)c.kv_heads);
  parallel(c.kv_heads * s.chunks * 2, [&](int item, int slot) {
    const int head = item / 2 / s.chunks, chunk = item / 2 % s.chunks;
    float* values = (float*)scratch(slot, 1, (size_t)(kChunk + 1) * (size_t)s.width * 4);
    if (item % 2) pack_values(c, s, head, chunk, values);
    else pack_keys(c, s, head, chunk, values);
  });
  const int rows = c.tokens * s.group, blocks = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel(c.kv_heads * blocks, [&](int item, int slot) {
    const int first = item % blocks * kRowsAtOnce;
    attend_rows(c, s, {item / blocks, first, least(kRowsAtOnce, rows - first)}, slot);
  });
}

}  // namespace CANVAS_ISA

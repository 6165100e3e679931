// Attention of queries over blocks of keys and values, grouped heads, softmax scale 1, without materialised
// scores.
//
// Products in 16 bits. Scores: see append.h. Values: a key's share of the softmax is multiplied by its
// value's scale before the shares of 256 keys are rounded, so far scaled up that no sum can overflow. Blocks
// of 256 keys are combined as flash attention does: running maximum, running sum, rescaled output (Milakov &
// Gimelshein 2018; Dao et al. 2022). What a query gets depends on nothing but the keys it sees, block by
// block: not on its neighbours, nor on later keys. Relative error about 5e-4 (16-bit keys and values) or 1 %
// (8-bit ones).
//
// A row is one query of one head; the rows of a key-value head share its keys, kRowsAtOnce at a time.
#pragma once
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "append.h"
#include "simd.h"
#include "micro.h"

namespace CANVAS_ISA {

constexpr int kChunk = kKeysInBlock;
// Distances between rows of scratch: a power of two would put all rows into a few sets of the first-level
// cache.
constexpr int kPad = 16;                     // of fp32 rows
constexpr int kHalfRow = kChunk + 2 * kPad;  // of int16 rows of 256
constexpr int kScoreRow = kChunk + kPad;
constexpr int kRowsAtOnce = 24;  // rows that go through a block's first-level tiles together
constexpr int kOnlineRows = 32;  // that, in whole vectors
constexpr int kRowGroups = 4;    // times that many meet a block while it is in the second-level cache
// (limit + 256 / 2) * kValueLimit < 2^31: rounding may add half a step to each share.
constexpr float kShareLimit = 32767.f, kShareSum = 134000.f;
// Scores are kept in powers of two: e^x = 2^(x log2 e). Keys 2^30 times less likely than the best one are
// left out.
constexpr float kLog2E = 1.44269504f, kLost = 30.f;

struct Range {
  int from, to;
  INL_MEMBER bool empty() const { return from >= to; }
};

struct AttentionShape {
  int width, group;    // head width rounded up to 32; queries per key-value head
  int first, context;  // blocks of the context to look at: blocks[first .. first + context)
  int own;             // blocks of the call's own keys, at `own_blocks`
  const uint8_t* const* own_blocks;
};

// One block of one key-value head.
struct Chunk {
  const uint8_t *k, *v;
  const float *k_scale, *v_scale;
  int kind, first, count;  // first: place of its first key; count: keys in it that can be seen
  bool own;
};

static Chunk chunk_at(const AttentionCall& c, const AttentionShape& s, int head, int i) {
  const bool own = i >= s.context;
  const int kind = own ? kKeys16 : c.kind, index = own ? i - s.context : s.first + i, first = index * kChunk;
  const size_t head_bytes = kv_head_bytes(kind, c.width);
  const uint8_t* block = own ? s.own_blocks[index] : c.blocks[index];
  const uint8_t *k = block + (size_t)head * head_bytes, *v = k + kv_matrix_bytes(kind, c.width);
  const float* scales = (const float*)(v + kv_matrix_bytes(kind, c.width));
  return {k, v, scales, scales + kChunk, kind, first, min(kChunk, (own ? c.own.count : c.to) - first), own};
}

// Keys of a chunk that query `token` sees.
INL Range visible(const AttentionCall& c, const Chunk& chunk, int token) {
  if (chunk.own) return {0, chunk.count};
  const int at = c.first_query + token;
  const int from = c.causal && c.window > 0 ? max(c.from, at - c.window + 1) : c.from;
  return {max(0, from - chunk.first), min(chunk.count, c.causal ? at + 1 - chunk.first : chunk.count)};
}

template <class T> INL B load_pairs(const T* p) {
  return sizeof(T) == 2 ? load_weight(p) : load_widened((const int8_t*)p);
}

// acc[m] += 32 outputs of `pairs` <= 128 pairs of row m; rows are kHalfRow apart, so that addresses are
// constants.
template <int MR, class T> INL void pair_products(const T* w, const int16_t* a, int pairs, I (&acc)[MR][2]) {
#pragma GCC unroll 1
  for (int j = 0; j < pairs; j++) {
    const B w0 = load_pairs(w + (size_t)j * 64), w1 = load_pairs(w + (size_t)j * 64 + 32);
    prefetch(w + (size_t)j * 64 + 1024);
    if (sizeof(T) == 2) prefetch(w + (size_t)j * 64 + 1056);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const B b = broadcast4(a + m * kHalfRow + 2 * (size_t)j);
      dot_pairs(acc[m][0], w0, b);
      dot_pairs(acc[m][1], w1, b);
    }
  }
}

// Queries come in panels of 256 components: [panel][kRowsAtOnce][256].
template <class T> struct ScoreStep {  // scores of 32 keys
  const T* keys;
  const int16_t* queries;
  const float *k_scale, *q_scale;
  float* scores;
  int width;
  template <int MR> INL_MEMBER void run(int r) const {
    I acc[MR][2];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = zero_int();
#pragma GCC unroll 1
    for (int d = 0; d < width; d += kChunk)
      pair_products<MR, T>(keys + (size_t)d * 32,
                           queries + (size_t)(d / kChunk) * kRowsAtOnce * kHalfRow + (size_t)r * kHalfRow,
                           min(kChunk, width - d) / 2, acc);
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

struct Online {  // running softmax of the rows of a group, and what a chunk does to them
  alignas(64) float top[kOnlineRows], total[kOnlineRows], keep[kOnlineRows], gain[kOnlineRows];
};

template <class T> struct ValueStep {  // 32 output components: out = out * keep + gain * (shares . values)
  const T* values;
  const int16_t* shares;
  const Online& online;
  float* out;
  int width, pairs;
  template <int MR> INL_MEMBER void run(int r) const {
    I acc[MR][2];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = zero_int();
    pair_products<MR, T>(values, shares + (size_t)r * kHalfRow, pairs, acc);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const F keep = set1(online.keep[r + m]), gain = set1(online.gain[r + m]);
      float* to = out + (size_t)(r + m) * (size_t)(width + kPad);
      store(to, fma(to_float(acc[m][0]), gain, mul(load(to), keep)));
      store(to + 16, fma(to_float(acc[m][1]), gain, mul(load(to + 16), keep)));
    }
  }
};

// Functions of their own: inlined into a larger one, GCC keeps the accumulators in memory.
template <class T> __attribute__((noinline)) static void score_tile(const ScoreStep<T>& step, int rows) {
  in_row_blocks<kFlatRows>(rows, step);
}
template <class T> __attribute__((noinline)) static void value_tile(const ValueStep<T>& step, int rows) {
  in_row_blocks<kFlatRows>(rows, step);
}

// x in lanes from..to, zero in the others, whatever they hold.
INL F only(F x, int from, int to) {
  float lanes[16];
  store(lanes, x);
  for (int i = 0; i < 16; i++)
    if (i < from || i >= to) lanes[i] = 0.f;
  return load(lanes);
}

// 2^x to 3e-6 (a share has 15 bits), exactly 1 at 0; 0 or next to it below -126.
INL F power_of_two(F x) {
  x = max(x, set1(-126.f));
  const F n = round_even(x), r = sub(x, n);
  F p = set1(9.582838043e-3f);
  p = fma(p, r, set1(5.590646341e-2f));
  p = fma(p, r, set1(2.402409911e-1f));
  p = fma(p, r, set1(6.931241751e-1f));
  return scale2(fma(p, r, set1(1.f)), n);
}

// Of the rows of a group in one chunk: largest score, sum of 2^(score - largest), what undoes the shares'
// scale.
struct Found {
  alignas(64) float here[kOnlineRows], mass[kOnlineRows], down[kOnlineRows];
};

// Softmax of a row's scores over the keys r of a chunk -> 16-bit shares, value scales included; zero in the
// rest of `all`. A row that sees nothing here, or only what would be lost beside a score of `before`, gets
// none: returns false.
static bool softmax_row(float* scores, const float* v_scale, Range r, Range all, float most_sum, float before,
                        int row, Found& f, int16_t* shares) {
  memset(shares + all.from / 16 * 16, 0, (size_t)((all.to + 15) / 16 - all.from / 16) * 32);
  f.here[row] = -INFINITY, f.mass[row] = f.down[row] = 0.f;
  if (r.empty()) return false;
  const int begin = r.from / 16 * 16;
  for (int i = begin; i < r.from; i++) scores[i] = -INFINITY;
  for (int i = r.to; i < (r.to + 15) / 16 * 16; i++) scores[i] = -INFINITY;
  F top = set1(-INFINITY), mass = zero(), weighed = zero(), highest = zero();
  for (int i = begin; i < r.to; i += 16) top = max(top, load(scores + i));
  const float here = peak(top);
  if (here < before - kLost) return false;
  for (int i = begin; i < r.to; i += 16) {
    F e = power_of_two(sub(load(scores + i), set1(here))), w = mul(e, load(v_scale + i));
    if (i < r.from || i + 16 > r.to) e = only(e, r.from - i, r.to - i), w = only(w, r.from - i, r.to - i);
    store(scores + i, w);
    mass = add(mass, e), weighed = add(weighed, w), highest = max(highest, w);
  }
  const float largest = peak(highest),
              up = largest > 1e-30f ? min(kShareLimit / largest, most_sum / sum(weighed)) : 0.f;
  f.here[row] = here, f.mass[row] = sum(mass), f.down[row] = up > 0 ? 1.f / up : 0.f;
  for (int i = begin; i < r.to; i += 16) store_s16(shares + i, to_int(mul(load(scores + i), set1(up))));
  return true;
}

// What a chunk does to the running softmax of its rows.
static void join(Online& o, const Found& f, int rows) {
  for (int r = 0; r < rows; r += 16) {
    // Before a row's first key both tops are -inf: any finite number will do then, since what the row has is
    // 0.
    const F top = load(o.top + r), here = load(f.here + r), above = max(max(top, here), set1(-1e30f));
    const F fresh = power_of_two(sub(here, above)), keep = power_of_two(sub(top, above));
    store(o.total + r, fma(fresh, load(f.mass + r), mul(load(o.total + r), keep)));
    store(o.top + r, max(top, here));
    store(o.keep + r, keep);
    store(o.gain + r, mul(fresh, load(f.down + r)));
  }
}

struct RowsTask {
  int head, first, rows;
};

// What a task works in: rows in groups of kRowsAtOnce, each group's queries as ScoreStep wants them.
struct RowsMemory {
  float *scores, *out, *q_scale, *one;
  int16_t *queries, *shares, *small;
  Online* online;          // of each group
  size_t out_row, panels;  // floats of an output row; int16 of a row's queries

  RowsMemory(int slot, int width) {
    const size_t w = (size_t)width, rows = kRowsAtOnce * kRowGroups;
    out_row = w + kPad, panels = (w + kChunk - 1) / kChunk * kHalfRow;
    const size_t floats = kRowsAtOnce * kScoreRow + rows * (out_row + 1) + w,
                 halves = rows * panels + kRowsAtOnce * kHalfRow + w;
    online = (Online*)scratch(slot, 1, kRowGroups * sizeof(Online) + floats * 4 + halves * 2);
    scores = (float*)(online + kRowGroups);
    out = scores + kRowsAtOnce * kScoreRow;
    q_scale = out + rows * out_row, one = q_scale + rows;
    queries = (int16_t*)(one + w);
    shares = queries + rows * panels, small = shares + kRowsAtOnce * kHalfRow;
  }
};

static void load_queries(const AttentionCall& c, const AttentionShape& s, const RowsTask& t, RowsMemory& m) {
  for (int r = 0; r < t.rows; r++) {
    const int token = (t.first + r) / s.group, head = t.head * s.group + (t.first + r) % s.group;
    const float* query = padded(c.q + token * c.q_token + head * c.q_head, c.width, s.width, m.one);
    m.q_scale[r] = kLog2E * to_whole(query, s.width, kNormLimit, 32767.f, m.small);
    int16_t* to =
        m.queries + (size_t)(r / kRowsAtOnce) * kRowsAtOnce * m.panels + (size_t)(r % kRowsAtOnce) * kHalfRow;
    for (int d = 0; d < s.width; d += kChunk)
      memcpy(to + (size_t)(d / kChunk) * kRowsAtOnce * kHalfRow, m.small + d,
             (size_t)min(kChunk, s.width - d) * 2);
  }
  for (int g = 0; g < kRowGroups; g++)
    for (int r = 0; r < kOnlineRows; r++) m.online[g].top[r] = -INFINITY, m.online[g].total[r] = 0.f;
  memset(m.out, 0, (size_t)t.rows * m.out_row * 4);
}

// Rows first.. of the task, kRowsAtOnce at most, meet one chunk.
template <class T> static void meet(const AttentionCall& c, const AttentionShape& s, const RowsTask& t,
                                    int first, const Chunk& chunk, RowsMemory& m) {
  const int rows = min(kRowsAtOnce, t.rows - first);
  auto seen = [&](int r) { return visible(c, chunk, (t.first + first + r) / s.group); };
  Range all = {kChunk, 0};
  for (int r = 0; r < rows; r++) {
    const Range one = seen(r);
    if (!one.empty()) all = {min(all.from, one.from), max(all.to, one.to)};
  }
  if (all.empty()) return;
  const T *keys = (const T*)chunk.k, *values = (const T*)chunk.v;
  const int16_t* queries = m.queries + (size_t)first * m.panels;
  float* out = m.out + (size_t)first * m.out_row;
  Online& online = m.online[first / kRowsAtOnce];
  Found found;
  for (int k = all.from / 32 * 32; k < all.to; k += 32)
    score_tile<T>({keys + (size_t)k * (size_t)s.width, queries, chunk.k_scale + k, m.q_scale + first,
                   m.scores + k, s.width},
                  rows);
  const float most_sum = sizeof(T) == 2 ? kShareSum : INFINITY;  // 256 * 32767 * 127 < 2^31
  bool any = false;
  for (int r = 0; r < rows; r++)
    any |= softmax_row(m.scores + (size_t)r * kScoreRow, chunk.v_scale, seen(r), all, most_sum, online.top[r],
                       r, found, m.shares + (size_t)r * kHalfRow);
  if (!any) return;
  join(online, found, rows);
  const int pair = all.from / 2, pairs = (all.to + 1) / 2 - pair;
  for (int d = 0; d < s.width; d += 32)
    value_tile<T>({values + (size_t)d * kChunk + (size_t)pair * 64, m.shares + 2 * pair, online, out + d,
                   s.width, pairs},
                  rows);
}

static void attend_rows(const AttentionCall& c, const AttentionShape& s, const RowsTask& t, int slot) {
  RowsMemory m(slot, s.width);
  load_queries(c, s, t, m);
  for (int i = 0; i < s.context + s.own; i++) {
    const Chunk chunk = chunk_at(c, s, t.head, i);
    for (int first = 0; first < t.rows; first += kRowsAtOnce)
      if (chunk.kind == kKeys8)
        meet<int8_t>(c, s, t, first, chunk, m);
      else
        meet<int16_t>(c, s, t, first, chunk, m);
  }
  for (int r = 0; r < t.rows; r++) {
    const int token = (t.first + r) / s.group, head = t.head * s.group + (t.first + r) % s.group;
    float* to = c.out + token * c.out_token + head * c.out_head;
    const float total = m.online[r / kRowsAtOnce].total[r % kRowsAtOnce];
    const F inverse = set1(total > 0 ? 1.f / total : 0.f);
    for (int d = 0; d < c.width; d += 16)
      store_n(to + d, mul(load(m.out + (size_t)r * m.out_row + (size_t)d), inverse), c.width - d);
  }
}

// Puts the call's own keys and values into scratch, laid out as blocks are, where they are not packed.
static void pack_own(const AttentionCall& c, AttentionShape& s) {
  s.own = (c.own.count + kChunk - 1) / kChunk, s.own_blocks = c.own_blocks;
  if (c.own_blocks) return;
  const size_t bytes = kv_head_bytes(kKeys16, c.width) * (size_t)c.kv_heads, blocks = (size_t)s.own;
  uint8_t* memory = (uint8_t*)scratch(-1, 0, bytes * blocks + sizeof(uint8_t*) * blocks);
  uint8_t** table = (uint8_t**)(memory + bytes * blocks);
  for (size_t i = 0; i < blocks; i++) table[i] = memory + i * bytes;
  append({c.own, c.kv_heads, c.width, kKeys16, table, 0, nullptr});
  s.own_blocks = table;
}

static void attention(const AttentionCall& c) {
  AttentionShape s;
  s.width = kv_width(c.width), s.group = c.heads / c.kv_heads;
  s.first = c.from / kChunk, s.context = c.to > c.from ? (c.to + kChunk - 1) / kChunk - s.first : 0;
  pack_own(c, s);
  const int rows = c.tokens * s.group, groups = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  // Tasks as large as leaves every thread a few of them.
  const int tall = max(1, min(kRowGroups, groups * c.kv_heads / (4 * pool_threads()))) * kRowsAtOnce;
  const int tasks = (rows + tall - 1) / tall;
  parallel(c.kv_heads * tasks, [&](int item, int slot) {
    const int first = item % tasks * tall;
    attend_rows(c, s, {item / tasks, first, min(tall, rows - first)}, slot);
  });
}

}  // namespace CANVAS_ISA

// Head, soft-cap, temperature, softmax statistics and sampling in one pass over tiles of the vocabulary.
//
// A sampling tile is 1024 tokens, the same as in ops/predict.py: its score is its log-sum-exp plus Gumbel
// noise, the best tile wins, and inside it the token is one inverse-CDF draw. The draw is made whenever a
// tile takes the lead, while its logits are at hand. Every (row, tile) leaves its maximum and mass, which are
// added up in tile order.
#pragma once
#include "restrict.h"
#include "sampling.h"
#include "top_k.h"

namespace CANVAS_ISA {

// What a thread has seen of one row.
struct Lead {
  float score, best;
  int tile, best_tile;
  int64_t sampled, argmax;
};

// Raw logits -> processed ones, in place; returns their maximum. Columns past the vocabulary become -inf.
INL float process(const TileView& v, float cap, float inverse_temperature) {
  const float scale = cap > 0 ? cap * inverse_temperature : inverse_temperature;
  const F twice = set1(cap > 0 ? 2.f / cap : 0.f), out = set1(scale), fall = set1(-2.f * scale),
          one = set1(1.f);
  F top = set1(-INFINITY);
  for (int i = 0; i < v.vectors(); i++) {
    F y = load(v.vector(i));
    // cap * tanh(x / cap) = cap - 2 cap / (e^(2 x / cap) + 1)
    y = cap > 0 ? fma(fall, div(one, add(exp(mul(y, twice)), one)), out) : mul(y, out);
    const int left = v.columns - 16 * i;
    if (left < 16) {
      float t[16];
      store(t, y);
      for (int j = left; j < 16; j++) t[j] = -INFINITY;
      y = load(t);
    }
    top = max(top, y);
    store(v.vector(i), y);
  }
  return peak(top);
}

struct TileSums {
  float mass, weighted;  // sum e, sum e * t with t = logit - maximum, e = exp(t)
};

INL TileSums add_up(const TileView& v, float top, uint16_t* keep) {
  F mass = zero(), weighted = zero();
  const F shift = set1(top), bottom = set1(kFloor);
  for (int i = 0; i < v.vectors(); i++) {
    const F t = max(sub(load(v.vector(i)), shift), bottom), e = exp(t);
    mass = add(mass, e);
    weighted = fma(e, t, weighted);
    if (keep) store_half(keep + 16 * i, t);
  }
  return {sum(mass), sum(weighted)};
}

static int first_equal(const TileView& v, float value) {
  for (int i = 0; i < v.vectors(); i++) {
    const uint32_t hit = equal(load(v.vector(i)), set1(value));
    if (hit) return 16 * i + __builtin_ctz(hit);
  }
  return 0;
}

// First column whose cumulative mass exceeds uniform * total; never one without mass.
static int draw(const TileView& v, float top, double uniform) {
  float e[kSampleTile];
  for (int i = 0; i < v.vectors(); i++)
    store(e + 16 * i, exp(max(sub(load(v.vector(i)), set1(top)), set1(kFloor))));
  double total = 0, seen = 0;
  int last = 0;
  for (int i = 0; i < v.columns; i++) {
    if (e[i] < kLeastMass) e[i] = 0.f;
    if (e[i] > 0) last = i;
    total += e[i];
  }
  const double target = uniform * total;
  for (int i = 0; i < v.columns; i++)
    if ((seen += e[i]) > target) return i;
  return last;
}

// The processed logit of a row's target, the very number that its tile will have: products are the same
// however many rows and tiles go together.
static float target_logit(const HeadCall& h, const Activations& a, int row, int slot) {
  Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
  alignas(64) float c[kTile];
  const int token = (int)h.target[row], tile = token / kTile;
  tiles_times_rows(h.head, tile, 1, rows_from(a, row), 1, c, *u);
  process({c, 1, 0, min(kTile, h.head.n - tile * kTile)}, h.softcap, 1.f / h.temperature[row]);
  return restrict_token(h.restriction, (size_t)row, token, c[token % kTile]);
}

static int count_above(const TileView& v, float value) {
  int count = 0;
  for (int i = 0; i < v.vectors(); i++) {
    float t[16];
    store(t, load(v.vector(i)));
    for (int j = 0; j < 16; j++) count += t[j] > value;
  }
  return count;
}

// `lists`: the rows' shortlists, if any. With a top-k a tile stores no logits and draws no token:
// finish_top_k does.
// `targets`: the rows' targets' logits, if any; `above` counts, per row and tile, the tokens beyond them.
static void head_tile(const HeadCall& h, const Activations& a, int tile, int row, int rows, Lead* leads,
                      float* weighted, Shortlist* lists, const float* targets, int* above, int slot) {
  Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
  float* c = (float*)scratch(slot, 1, (size_t)kSampleTile * kRowBlock * sizeof(float));
  const int first = tile * (kSampleTile / kTile), tiles = tiles_of(h.head.n);
  const int count = min(kSampleTile / kTile, tiles - first),
            columns = min(kSampleTile, h.head.n - tile * kSampleTile);
  const Activations part = rows_from(a, row);
  for (int i = 0; i < count; i += 4)
    tiles_times_rows(h.head, first + i, min(4, count - i), part, rows, c + (size_t)i * (size_t)rows * kTile,
                     *u);

  const int sampling = sampling_tiles(h.head.n);
  for (int m = 0; m < rows; m++) {
    const TileView v = {c, rows, m, columns};
    const size_t r = (size_t)(row + m), at = r * (size_t)sampling + (size_t)tile;
    float top = process(v, h.softcap, 1.f / h.temperature[r]);
    if (restricts(h.restriction, r)) top = restrict_tile(h.restriction, r, v, tile);
    if (targets) above[at] = h.target[r] < 0 ? 0 : count_above(v, targets[r]);
    uint16_t* keep = h.store && !h.top_k ? h.store + at * kSampleTile : nullptr;
    if (!(top > kNothing)) {  // every token forbidden: no mass
      h.tile_peak[at] = kNothing, h.tile_mass[at] = 0.f, weighted[at] = 0.f;
      for (int i = 0; keep && i < kSampleTile; i += 16) store_half(keep + i, set1(kFloor));
      continue;
    }
    const TileSums s = add_up(v, top, keep);
    h.tile_peak[at] = top, h.tile_mass[at] = s.mass, weighted[at] = s.weighted;
    Lead& lead = leads[r];
    if (top > lead.best || (top == lead.best && tile < lead.best_tile)) {
      lead.best = top, lead.best_tile = tile;
      lead.argmax = (int64_t)tile * kSampleTile + first_equal(v, top);
    }
    if (lists) offer(lists[r], v, tile);
    if (h.top_k) continue;
    const float score = top + std::log(s.mass) + h.gumbel[at];
    if (score > lead.score || (score == lead.score && tile < lead.tile)) {
      lead.score = score, lead.tile = tile;
      lead.sampled = (int64_t)tile * kSampleTile + draw(v, top, h.uniform[r]);
    }
  }
}

static void head(const HeadCall& h) {
  const bool floats = is_float(h.head.kind);
  Activations a =
      place_activations(scratch(-1, 0, activation_bytes(floats, h.head.k, h.rows)), floats, h.head.k, h.rows);
  take_rows(a, h.hidden, (size_t)h.head.k, h.head.k);
  const int sampling = sampling_tiles(h.head.n), row_blocks = (h.rows + kRowBlock - 1) / kRowBlock;
  const int threads = pool_threads();
  Lead* leads = (Lead*)scratch(-1, 1, (size_t)threads * (size_t)h.rows * sizeof(Lead));
  float* weighted = (float*)scratch(-1, 2, (size_t)h.rows * (size_t)sampling * 4);
  Shortlist* lists = shortlists(h);
  float* targets = h.target ? (float*)scratch(-1, 5, (size_t)h.rows * 4) : nullptr;
  int* above = h.target ? (int*)scratch(-1, 6, (size_t)h.rows * (size_t)sampling * 4) : nullptr;
  if (targets)
    parallel(h.rows,
             [&](int r, int slot) { targets[r] = h.target[r] < 0 ? 0.f : target_logit(h, a, r, slot); });
  for (int i = 0; i < threads * h.rows; i++) leads[i] = {-INFINITY, -INFINITY, 0, 0, 0, 0};
  parallel(sampling * row_blocks, [&](int item, int slot) {
    const int row = item % row_blocks * kRowBlock;
    head_tile(h, a, item / row_blocks, row, min(kRowBlock, h.rows - row),
              leads + (size_t)slot * (size_t)h.rows, weighted, lists, targets, above, slot);
  });
  for (int r = 0; r < h.rows; r++) {
    Lead one = leads[r];
    for (int t = 1; t < threads; t++) {
      const Lead& other = leads[(size_t)t * (size_t)h.rows + (size_t)r];
      if (other.best > one.best || (other.best == one.best && other.best_tile < one.best_tile))
        one.best = other.best, one.best_tile = other.best_tile, one.argmax = other.argmax;
      if (other.score > one.score || (other.score == one.score && other.tile < one.tile))
        one.score = other.score, one.tile = other.tile, one.sampled = other.sampled;
    }
    h.sampled[r] = one.sampled, h.argmax[r] = one.argmax;
    const size_t at = (size_t)r * (size_t)sampling;
    const RowSums sums = sum_tiles(h.tile_peak + at, h.tile_mass + at, weighted + at, sampling);
    h.lse[r] = sums.lse, h.entropy[r] = sums.entropy, h.logprob[r] = sums.logprob;
    if (targets && h.target[r] >= 0) {
      int64_t rank = 1;
      for (int t = 0; t < sampling; t++) rank += above[at + (size_t)t];
      h.target_rank[r] = rank, h.target_logprob[r] = targets[r] - one.best + sums.logprob;
    }
  }
  if (lists)
    parallel(h.rows, [&](int r, int) {
      name_best(h, lists[r], r);
      if (h.top_k) finish_top_k(h, lists[r], weighted + (size_t)r * (size_t)sampling, r);
    });
}

}  // namespace CANVAS_ISA

// Top-k: a row's k largest logits, caught while the head's tiles pass by, and the softmax over them alone.
//
// Every row has a shortlist that all threads share. A tile adds what does not lie below the list's bound; a
// full list is cut to its best, which raises the bound. Of equal logits the lower token is the better, so
// that the k best are one set, whatever the order in which tiles come. They are exact: fp32, not the fp16
// that `store` keeps.
#pragma once
#include <algorithm>
#include <thread>

#include "sampling.h"

namespace CANVAS_ISA {

struct Candidate {
  float value;
  int token;
};
struct Better {
  INL_MEMBER bool operator()(const Candidate& a, const Candidate& b) const {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
  }
};
struct Earlier {
  INL_MEMBER bool operator()(const Candidate& a, const Candidate& b) const { return a.token < b.token; }
};

struct Shortlist {
  int busy;     // 1 while a thread adds to it
  float bound;  // candidates below are not among the `wanted` best; read without holding the list
  int wanted, count, room;
  Candidate* items;
};

// Candidates a list has room for: some tiles' worth beside the best, so that cutting is rare.
INL int shortlist_room(int wanted) { return wanted + max(wanted, kSampleTile); }

static void cut(Shortlist& s, int to) {
  if (s.count <= to) return;
  std::nth_element(s.items, s.items + (to - 1), s.items + s.count, Better());
  s.count = to;
}

static void offer(Shortlist& s, const TileView& v, int tile) {
  Candidate found[kSampleTile];
  int count = 0;
  float bound;
  __atomic_load(&s.bound, &bound, __ATOMIC_RELAXED);
  const F below = set1(std::nextafterf(bound, -INFINITY));
  for (int i = 0; i < v.vectors(); i++) {
    const float* values = v.vector(i);
    for (uint32_t hits = greater(load(values), below); hits; hits &= hits - 1) {
      const int j = __builtin_ctz(hits);
      found[count++] = {values[j], tile * kSampleTile + 16 * i + j};
    }
  }
  if (!count) return;
  while (__atomic_exchange_n(&s.busy, 1, __ATOMIC_ACQUIRE)) std::this_thread::yield();
  bound = s.bound;
  for (int i = 0; i < count; i++) {
    if (found[i].value < bound) continue;
    if (s.count == s.room) {
      cut(s, s.wanted);
      bound = s.items[s.wanted - 1].value;
    }
    s.items[s.count++] = found[i];
  }
  __atomic_store(&s.bound, &bound, __ATOMIC_RELAXED);
  __atomic_store_n(&s.busy, 0, __ATOMIC_RELEASE);
}

// How many of a row's best tokens a call needs.
INL int wanted_of(const HeadCall& h, int r) { return max(h.top_k ? h.top_k[r] : 0, h.named); }

// Lists for the rows of a call, in scratch memory, or nullptr when the call neither has a top-k nor names
// tokens.
static Shortlist* shortlists(const HeadCall& h) {
  if (!h.top_k && !h.named) return nullptr;
  size_t room = 0;
  for (int r = 0; r < h.rows; r++) room += (size_t)shortlist_room(wanted_of(h, r));
  Shortlist* lists = (Shortlist*)scratch(-1, 3, (size_t)h.rows * sizeof(Shortlist));
  Candidate* items = (Candidate*)scratch(-1, 4, room * sizeof(Candidate));
  for (int r = 0; r < h.rows; r++) {
    const int wanted = wanted_of(h, r);
    lists[r] = {0, -INFINITY, wanted, 0, shortlist_room(wanted), items};
    items += lists[r].room;
  }
  return lists;
}

// Logits of one tile as `head` stores them, all but the candidates at the floor.
static void store_tile(const Candidate* items, int count, int tile, float top, uint16_t* to) {
  float line[kSampleTile];
  for (float& value : line) value = kFloor;
  for (int i = 0; i < count; i++)
    line[items[i].token - tile * kSampleTile] = max(items[i].value - top, kFloor);
  for (int i = 0; i < kSampleTile; i += 16) store_half(to + i, load(line + i));
}

// First of a tile's tokens whose cumulative mass exceeds uniform * total.
static int draw_top_k(const Candidate* items, int count, float top, double total, double uniform) {
  const double target = uniform * total;
  double seen = 0;
  for (int i = 0; i < count; i++)
    if ((seen += std::exp(items[i].value - top)) > target) return items[i].token;
  return items[count - 1].token;
}

// The best tokens of a row, before anything about it is changed.
static void name_best(const HeadCall& h, Shortlist& s, int r) {
  const size_t at = (size_t)r * (size_t)h.named;
  if (!h.named) return;
  cut(s, s.wanted);
  std::sort(s.items, s.items + s.count, Better());
  for (int i = 0; i < h.named; i++) {
    const bool there = i < s.count;  // fewer when tokens are forbidden
    h.top_tokens[at + (size_t)i] = there ? s.items[i].token : 0;
    h.top_logprobs[at + (size_t)i] = there ? s.items[i].value - h.lse[r] : -INFINITY;
  }
}

// Candidates of one tile: their maximum, mass and weighted mass, as add_up's.
static float sum_candidates(const Candidate* items, int count, double* mass, double* weighted) {
  float top = items[0].value;
  for (int i = 1; i < count; i++) top = max(top, items[i].value);
  *mass = *weighted = 0;
  for (int i = 0; i < count; i++) {
    const float t = items[i].value - top, e = std::exp(t);
    *mass += e, *weighted += (double)e * t;
  }
  return top;
}

// Makes a row's tiles, its sample and its log-sum-exp those of the top-k. `weighted`: one float a tile,
// overwritten.
static void finish_top_k(const HeadCall& h, Shortlist& s, float* weighted, int r) {
  const int tiles = sampling_tiles(h.head.n);
  const size_t at = (size_t)r * (size_t)tiles;
  float *tops = h.tile_peak + at, *masses = h.tile_mass + at, lead = -INFINITY;
  cut(s, h.top_k[r]);
  std::sort(s.items, s.items + s.count, Earlier());
  for (int t = 0; t < tiles; t++) tops[t] = kNothing, masses[t] = 0.f;
  for (int from = 0, to; from < s.count; from = to) {
    const int tile = s.items[from].token / kSampleTile;
    for (to = from + 1; to < s.count && s.items[to].token / kSampleTile == tile;) to++;
    const Candidate* items = s.items + from;
    double mass, sum;
    const float top = sum_candidates(items, to - from, &mass, &sum);
    tops[tile] = top, masses[tile] = (float)mass, weighted[tile] = (float)sum;
    const float score = top + (float)std::log(mass) + h.gumbel[at + (size_t)tile];
    if (score > lead) lead = score, h.sampled[r] = draw_top_k(items, to - from, top, mass, h.uniform[r]);
    if (h.store) store_tile(items, to - from, tile, top, h.store + (at + (size_t)tile) * kSampleTile);
  }
  const RowSums sums = sum_tiles(tops, masses, weighted, tiles);
  h.lse[r] = sums.lse, h.top_k_entropy[r] = sums.entropy;
}

}  // namespace CANVAS_ISA

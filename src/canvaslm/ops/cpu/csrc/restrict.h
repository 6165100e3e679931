// What a caller forbids or favours: biases for single tokens, and one bit a token of what is allowed.
//
// Applied to processed logits, after the division by temperature, before anything is made of them: every
// statistic, the sample, the top-k and the soft embedding see it. A row without restrictions is not touched.
#pragma once
#include <algorithm>

#include "sampling.h"

namespace CANVAS_ISA {

INL bool restricts(const RestrictionCall& r, size_t row) {
  const bool biased = r.bias_span && r.bias_span[2 * row] < r.bias_span[2 * row + 1];
  return biased || (r.allowed && r.allowed[row] >= 0);
}

// Adds a row's biases that fall into a tile.
static void add_biases(const RestrictionCall& r, size_t row, const TileView& v, int first) {
  const int *from = r.bias_token + r.bias_span[2 * row], *to = r.bias_token + r.bias_span[2 * row + 1];
  for (const int* at = std::lower_bound(from, to, first); at < to && *at < first + v.columns; at++) {
    const int column = *at - first;
    v.vector(column / 16)[column % 16] += r.bias_value[at - r.bias_token];
  }
}

// Restricts one row of a tile in place; returns its maximum, -inf when every token is forbidden.
static float restrict_tile(const RestrictionCall& r, size_t row, const TileView& v, int tile) {
  const int first = tile * kSampleTile, chosen = r.allowed ? r.allowed[row] : -1;
  if (r.bias_span) add_biases(r, row, v, first);
  const uint32_t* words = chosen < 0 ? nullptr : r.bits + (size_t)chosen * (size_t)r.bit_words + first / 32;
  const F nothing = set1(-INFINITY);
  F top = nothing;
  for (int i = 0; i < v.vectors(); i++) {
    F y = load(v.vector(i));
    if (words) {
      y = choose(words[i / 2] >> (i % 2 * 16) & 0xFFFF, y, nothing);
      store(v.vector(i), y);
    }
    top = max(top, y);
  }
  return peak(top);
}

// One token's processed logit, restricted as its tile would be.
static float restrict_token(const RestrictionCall& r, size_t row, int token, float value) {
  if (r.bias_span) {
    const int *from = r.bias_token + r.bias_span[2 * row], *to = r.bias_token + r.bias_span[2 * row + 1];
    const int* at = std::lower_bound(from, to, token);
    if (at < to && *at == token) value += r.bias_value[at - r.bias_token];
  }
  const int chosen = r.allowed ? r.allowed[row] : -1;
  if (chosen < 0) return value;
  const uint32_t word = r.bits[(size_t)chosen * (size_t)r.bit_words + (size_t)token / 32];
  return word >> (token % 32) & 1 ? value : -INFINITY;
}

}  // namespace CANVAS_ISA

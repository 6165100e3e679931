// Sampling tiles of the vocabulary, and the statistics of a row from those of its tiles.
#pragma once
#include <cmath>

#include "gemm.h"
#include "kernels.h"

namespace CANVAS_ISA {

constexpr int kSampleTile = 1024;
constexpr float kNothing = -3.0e38f;
// Lowest logit below the tile's maximum that is told apart: its mass is nothing in fp32.
constexpr float kFloor = -1000.f;
// What `exp` makes of the floor and of anything near it: no mass at all, whatever its sum.
constexpr float kLeastMass = 2e-38f;

INL int sampling_tiles(int vocabulary) { return (vocabulary + kSampleTile - 1) / kSampleTile; }

struct TileView {  // one row of a result tile: vector i covers columns 16 i .. 16 i + 15
  float* c;
  int rows, row, columns;
  INL_MEMBER float* vector(int i) const {
    return c + ((size_t)(i / 2) * (size_t)rows + (size_t)row) * kTile + (size_t)(i % 2) * 16;
  }
  INL_MEMBER int vectors() const { return (columns + 15) / 16; }
};

struct RowSums {
  float lse, entropy, logprob;  // logprob: of the likeliest token
};

// A row's statistics from the maxima, masses and weighted masses (see add_up) of its tiles, in tile order.
static RowSums sum_tiles(const float* tops, const float* masses, const float* weighted, int tiles) {
  float top = kNothing;
  for (int t = 0; t < tiles; t++) top = max(top, tops[t]);
  double mass = 0, sum = 0;
  for (int t = 0; t < tiles; t++) {
    if (!(masses[t] > 0)) continue;
    const double shift = (double)tops[t] - top, e = std::exp(shift);
    mass += e * masses[t];
    sum += e * (weighted[t] + shift * masses[t]);
  }
  const double log_mass = std::log(mass);
  return {(float)(top + log_mass), max(0.f, (float)(log_mass - sum / mass)), (float)-log_mass};
}

}  // namespace CANVAS_ISA

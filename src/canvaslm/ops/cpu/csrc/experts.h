// The gated MLP of every token's experts in one call: gate-up product, GELU(gate) * up, down product,
// weighted sum.
//
// Three passes, each spread over all threads: quantise every token once and copy it to its experts' places;
// gate-up and activation, 256 inner columns at a time, requantised as they appear; down, a strip of output
// columns at a time over all experts in ascending order. A strip belongs to one thread, so a token's sum has
// one order whatever the batch. A dense MLP is the same with one expert that takes every token.
#pragma once
#include "gemm.h"

namespace CANVAS_ISA {

struct Routing {
  const int* start;    // [experts + 1]: pairs of expert e are start[e] .. start[e + 1]
  const int* token;    // [pairs], ascending within an expert
  const float* share;  // [pairs]
  const int* place;    // [tokens * top]: the pair of each token's i-th choice
};

// Counting sort of (token, choice) by expert.
static Routing route_pairs(const int64_t* index, const float* weights, int tokens, int top, int experts) {
  const size_t pairs = (size_t)tokens * (size_t)top;
  char* at = (char*)scratch(-1, 3, ((size_t)experts * 2 + 2) * 4 + pairs * 12);
  int *start = (int*)at, *next = start + experts + 1, *token = next + experts + 1;
  int* place = token + pairs;
  float* share = (float*)(place + pairs);
  memset(start, 0, ((size_t)experts + 1) * 4);
  for (size_t i = 0; i < pairs; i++) start[index[i] + 1]++;
  for (int e = 0; e < experts; e++) start[e + 1] += start[e];
  memcpy(next, start, ((size_t)experts + 1) * 4);
  for (size_t i = 0; i < pairs; i++) {
    int p = next[index[i]]++;
    token[p] = (int)(i / (size_t)top);
    share[p] = weights[i];
    place[i] = p;
  }
  return {start, token, share, place};
}

// Expert e's own rows are panels of its own: [block][rows of e][256], one expert after the other.
struct ExpertRows {
  char* memory;
  bool floats;
  int k;
  INL_MEMBER Activations of(const Routing& r, int e) const {
    size_t before = activation_bytes(floats, k, r.start[e]);
    return place_activations(memory + before, floats, k, r.start[e + 1] - r.start[e]);
  }
};

struct ExpertTask {
  int expert, row, rows, block;  // `rows` pairs from `row` on, inner columns of `block`
};

static void inner_block(const ExpertTask& t, const Matrix& gate_up, const Activations& in,
                        const Activations& out, int inner, int slot) {
  Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
  const int first = t.block * (kBlock / kTile), tiles = min(kBlock / kTile, inner / kTile - first);
  const size_t tile = (size_t)t.rows * kTile;
  float* c = (float*)scratch(slot, 1, (size_t)kRowBlock * 4 * kTile * sizeof(float));
  float* hidden = (float*)scratch(slot, 2, (size_t)kRowBlock * kBlock * sizeof(float));
  const Activations rows = rows_from(in, t.row);
  for (int i = 0; i < tiles; i += 2) {
    const int count = min(2, tiles - i);
    const uint8_t* up =
        gate_up.data + (size_t)(inner / kTile + first + i) * tile_bytes(gate_up.kind, gate_up.k);
    tiles_times_rows(gate_up, first + i, count, rows, t.rows, c, *u, up);
    tiles_times_rows(gate_up, inner / kTile + first + i, count, rows, t.rows, c + 2 * tile, *u);
    for (int j = 0; j < count; j++)
      for (int m = 0; m < t.rows; m++)
        for (int h = 0; h < kTile; h += 16) {
          const float* g = c + (size_t)j * tile + (size_t)m * kTile + h;
          store(hidden + (size_t)m * kBlock + (i + j) * kTile + h, mul(gelu(load(g)), load(g + 2 * tile)));
        }
  }
  for (int m = 0; m < t.rows; m++)
    take_block(out, hidden + (size_t)m * kBlock, tiles * kTile, t.block, t.row + m);
}

// Adds expert e's part of one strip of output columns.
static void down_strip(const Matrix& down, const Routing& r, int e, const Activations& in, int tile,
                       int count, float* y, size_t stride, int slot) {
  const uint8_t* then =
      down.data + repacked_bytes(down.kind, down.n, down.k) + (size_t)tile * tile_bytes(down.kind, down.k);
  Unpacked* u = (Unpacked*)scratch(slot, 0, sizeof(Unpacked));
  float* c = (float*)scratch(slot, 1, (size_t)kRowBlock * 4 * kTile * sizeof(float));
  for (int row = 0; row < in.rows; row += kRowBlock) {
    const int rows = min(kRowBlock, in.rows - row);
    const int* token = r.token + r.start[e] + row;
    for (int m = 0; m < rows; m++)
      for (int t = 0; t < count * 2; t++) prefetch(y + (size_t)token[m] * stride + tile * kTile + t * 16);
    tiles_times_rows(down, tile, count, rows_from(in, row), rows, c, *u, then);
    for (int m = 0; m < rows; m++) {
      const F share = set1(r.share[r.start[e] + row + m]);
      for (int t = 0; t < count; t++)
        for (int h = 0; h < kTile; h += 16) {
          const int column = (tile + t) * kTile + h, left = down.n - column;
          float* to = y + (size_t)token[m] * stride + column;
          const F part = load(c + ((size_t)t * (size_t)rows + (size_t)m) * kTile + h);
          if (left >= 16)
            store(to, fma(share, part, load(to)));
          else if (left > 0)
            store_n(to, fma(share, part, load_n(to, left)), left);
        }
    }
  }
}

INL Matrix expert_of(const Matrix& all, int e) {
  return {all.kind, all.n, all.k, all.data + (size_t)e * repacked_bytes(all.kind, all.n, all.k)};
}

// y [tokens, n] = sum over each token's experts; gate_up [2 * inner, k], down [n, inner] per expert; inner %
// 32 == 0.
static void experts(const Matrix& gate_up, const Matrix& down, int count, const float* x, int tokens,
                    const int64_t* index, const float* weights, int top, float* y) {
  const bool floats = is_float(gate_up.kind), floats2 = is_float(down.kind);
  const int pairs = tokens * top, inner = down.k, k = gate_up.k;
  const Routing r = route_pairs(index, weights, tokens, top, count);
  ExpertRows in{(char*)scratch(-1, 0, activation_bytes(floats, k, pairs)), floats, k};
  ExpertRows mid{(char*)scratch(-1, 1, activation_bytes(floats2, inner, pairs)), floats2, inner};

  parallel(tokens, [&](int token, int slot) {
    void* one = scratch(slot, 3, activation_bytes(floats, k, 1));
    Activations row = place_activations(one, floats, k, 1);
    take_row(row, x + (size_t)token * (size_t)k, k, 0);
    for (int i = 0; i < top; i++) {
      const int p = r.place[token * top + i], e = (int)index[token * top + i];
      copy_row(in.of(r, e), p - r.start[e], row, 0, k);
    }
    memset(y + (size_t)token * (size_t)down.n, 0, (size_t)down.n * 4);
  });

  // Few experts with many tokens (a dense MLP) are cut by rows as well, or threads would wait for the last
  // block.
  const int cut = pairs / max(1, min(count, pairs)) > 64 ? 128 : kRowBlock, blocks = blocks_of(inner);
  ExpertTask* tasks = (ExpertTask*)scratch(
      -1, 4, ((size_t)count + (size_t)(pairs / cut) + 1) * (size_t)blocks * sizeof(ExpertTask));
  int task_count = 0;
  for (int e = 0; e < count; e++)
    for (int row = r.start[e]; row < r.start[e + 1]; row += cut)
      for (int b = 0; b < blocks; b++)
        tasks[task_count++] = {e, row - r.start[e], min(cut, r.start[e + 1] - row), b};
  parallel(task_count, [&](int i, int slot) {
    const ExpertTask& t = tasks[i];
    inner_block(t, expert_of(gate_up, t.expert), in.of(r, t.expert), mid.of(r, t.expert), inner, slot);
  });

  const int tiles = tiles_of(down.n);
  int each = 4;
  while (each > 1 && (tiles + each - 1) / each < 8 * pool_threads()) each /= 2;
  parallel((tiles + each - 1) / each, [&](int item, int slot) {
    const int tile = item * each, width = min(each, tiles - tile);
    for (int e = 0; e < count; e++)
      if (r.start[e + 1] > r.start[e])
        down_strip(expert_of(down, e), r, e, mid.of(r, e), tile, width, y, (size_t)down.n, slot);
  });
}

}  // namespace CANVAS_ISA

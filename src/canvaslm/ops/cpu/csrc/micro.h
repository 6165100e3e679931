// The innermost loops: one record (32 outputs x 256 inputs) times a few rows of activations.
//
// C is a scratch tile [rows][32] that accumulates over records in ascending order. A row's arithmetic is the
// same in whatever register block it falls, so results never depend on the batch.
#pragma once
#include "layout.h"
#include "quantize.h"
#include "simd.h"
#include "unpack.h"

namespace CANVAS_ISA {

// The record that comes next, fetched a few lines at a time between dot products (65 -> 50 ms per expert
// layer), and whole by the time this one is done, however few rows there are: with four lines a group a
// single row would leave two thirds of it to chance.
struct Ahead {
  const char *at, *end;
  int bytes;  // a time

  static INL_MEMBER Ahead of(const uint8_t* next, size_t bytes, int groups, int row_blocks) {
    const int times = groups * row_blocks, lines = (int)(bytes / 64);
    return {(const char*)next, (const char*)next + bytes, 64 * max(4, (lines + times - 1) / times)};
  }
  INL_MEMBER void fetch() {
    if (at >= end) return;
    for (int i = 0; i < bytes; i += 64) prefetch(at + i);
    at += bytes;
  }
};

// The rows and results of the next register block, while group g of this one is computed.
template <int MR> INL void fetch_next_rows(const int8_t* a, const float* c, int g) {
  const char* next = (const char*)(a + MR * kBlock) + g * MR * 32;
  for (int i = 0; i < MR * 32; i += 64) prefetch(next + i);
  const char* out = (const char*)(c + MR * kTile) + g * MR * 16;
  for (int i = 0; i < MR * 16; i += 64) prefetch(out + i);
}

template <int MR> INL void add_to_tile(F (&f)[MR][2], const Sums* sums, float* c, bool first) {
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++) {
    F s = set1(sums[m].scale);
    for (int h = 0; h < 2; h++) {
      float* to = c + m * kTile + 16 * h;
      store(to, first ? mul(s, f[m][h]) : fma(s, f[m][h], load(to)));
    }
  }
}

constexpr int offset_of(int kind) {
  return kind == kQ40 ? 8 : kind == kQ50 ? 16 : kind == kQ80 ? kByteOffset : 0;
}
constexpr bool has_mins(int kind) { return kind == kQ4K || kind == kQ5K || kind == kQ6K; }

// f -= dmin * (minima . group sums)
template <int MR, int KIND> INL void take_minima(F (&f)[MR][2], const Unpacked& u, const Sums* sums) {
  I a[MR][2];
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++) a[m][0] = a[m][1] = zero_int();
  constexpr int pairs = KIND == kQ6K ? 8 : 4;
#pragma GCC unroll 1
  for (int p = 0; p < pairs; p++) {
    B w0 = load_weight(u.mins + p * 64), w1 = load_weight(u.mins + p * 64 + 32);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      B b = broadcast4((KIND == kQ6K ? sums[m].of16 : sums[m].of32) + 2 * p);
      dot_pairs(a[m][0], w0, b);
      dot_pairs(a[m][1], w1, b);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++)
    for (int h = 0; h < 2; h++) f[m][h] = fnma(to_float(a[m][h]), load(u.dmin + 16 * h), f[m][h]);
}

// Vectors (quad, half 0 and 1) of a group; FRESH: from the record, and left in u.w.
template <int KIND, bool FRESH>
INL void weights_of(B (&v)[2], const uint8_t* w, Unpacked& u, int g, int quad) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    const int at = g * 1024 + quad * 128 + h * 64;
    if (FRESH) {
      v[h] = fresh_weight<KIND>(w, g, quad, h);
      store_bytes(u.w + at, v[h]);
    } else {
      v[h] = load_weight(w + at);
    }
  }
}

// acc += 32 unsigned bytes (see kByteOffset) . activations
template <int MR> INL void dot_bytes(I (&acc)[MR][2], const uint8_t* w, const int8_t* a) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    const B w0 = load_weight(w + j * 128), w1 = load_weight(w + j * 128 + 64);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const B b = broadcast4(a + m * kBlock + j * 4);
      dot_byte(acc[m][0], w0, b);
      dot_byte(acc[m][1], w1, b);
    }
  }
}

// acc += weights . activations over one group of inputs, or its half `part` (Q6_K), for weights of 4 to 6
// bits.
#if !defined(CANVAS_SHORT_SUMS)
template <int MR, int KIND, bool FRESH>
INL void dot_bits(I (&acc)[MR][2], const uint8_t* w, Unpacked& u, const int8_t* a, int g, int part) {
  constexpr int quads = KIND == kQ6K ? 4 : 8;
#pragma GCC unroll 8
  for (int j = 0; j < quads; j++) {
    B v[2];
    weights_of<KIND, FRESH>(v, w, u, g, part * quads + j);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      const B b = broadcast4(a + m * kBlock + g * 32 + (part * quads + j) * 4);
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++)
        if (KIND == kQ4K && kKeepHighNibble)
          dot_byte(acc[m][h], v[h], b);
        else
          dot_low(acc[m][h], v[h], b);
    }
  }
}
#else
// As many products of weights of so many bits as fit into 16 bits: 8 x 2 x 15 x 127, 4 x 2 x 31 x 127,
// 2 x 2 x 63 x 127.
constexpr int short_sum_quads(int kind) {
  return kind == kQ4K || kind == kQ40 ? 8 : kind == kQ5K || kind == kQ50 ? 4 : 2;
}

template <int MR, int KIND, bool FRESH>
INL void dot_bits(I (&acc)[MR][2], const uint8_t* w, Unpacked& u, const int8_t* a, int g, int part) {
  constexpr int quads = KIND == kQ6K ? 4 : 8, fit = short_sum_quads(KIND);
#pragma GCC unroll 4
  for (int first = part * quads; first < (part + 1) * quads; first += fit) {
    I s[MR][2];
#pragma GCC unroll 8
    for (int j = 0; j < fit; j++) {
      B v[2];
      weights_of<KIND, FRESH>(v, w, u, g, first + j);
#pragma GCC unroll 16
      for (int m = 0; m < MR; m++) {
        const B b = broadcast4(a + m * kBlock + g * 32 + (first + j) * 4);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
          if (j)
            add_short(s[m][h], v[h], b);
          else
            s[m][h] = pairs_of(v[h], b);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
      for (int h = 0; h < 2; h++) add_pairs(acc[m][h], s[m][h]);
  }
}
#endif

// Formats with a scale per 32 (or 16) inputs. FRESH: weights come from the record and are left in u.w.
template <int MR, int KIND, bool FRESH> INL void grouped_rows(const uint8_t* w, Unpacked& u, const int8_t* a,
                                                              const Sums* sums, float* c, int groups,
                                                              bool first, Ahead& ahead) {
  F f[MR][2];
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++) f[m][0] = f[m][1] = zero();
  constexpr int parts = KIND == kQ6K ? 2 : 1;
#pragma GCC unroll 1
  for (int g = 0; g < groups; g++) {
    fetch_next_rows<MR>(a, c, g);
    ahead.fetch();
#pragma GCC unroll 2
    for (int part = 0; part < parts; part++) {
      I acc[MR][2];
#pragma GCC unroll 16
      for (int m = 0; m < MR; m++)
        acc[m][0] = acc[m][1] = offset_of(KIND) ? set1_int(-offset_of(KIND) * sums[m].of32[g]) : zero_int();
      if constexpr (KIND == kQ80)
        dot_bytes<MR>(acc, w + g * 1024, a + g * 32);
      else
        dot_bits<MR, KIND, FRESH>(acc, w, u, a, g, part);
      const float* s = u.scale + (g * parts + part) * kTile;
      F s0 = load(s), s1 = load(s + 16);
#pragma GCC unroll 16
      for (int m = 0; m < MR; m++) {
        f[m][0] = fma(to_float(acc[m][0]), s0, f[m][0]);
        f[m][1] = fma(to_float(acc[m][1]), s1, f[m][1]);
      }
    }
  }
  if (has_mins(KIND)) take_minima<MR, KIND>(f, u, sums);
  add_to_tile<MR>(f, sums, c, first);
}

// One scale per 256 inputs: int32 all the way.
template <int MR> INL void flat_rows(const uint8_t* w, const float* d, const int8_t* a, const Sums* sums,
                                     float* c, int groups, bool first, Ahead& ahead) {
  I acc[MR][2];
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = set1_int(sums[m].offset);
#pragma GCC unroll 1
  for (int g = 0; g < groups; g++) {
    fetch_next_rows<MR>(a, c, g);
    ahead.fetch();
    dot_bytes<MR>(acc, w + g * 1024, a + g * 32);
  }
  F f[MR][2], s0 = load(d), s1 = load(d + 16);
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++) {
    f[m][0] = mul(to_float(acc[m][0]), s0);
    f[m][1] = mul(to_float(acc[m][1]), s1);
  }
  add_to_tile<MR>(f, sums, c, first);
}

// bf16 and fp32 weights in fp32 arithmetic.
template <int MR, int KIND>
INL void float_rows(const uint8_t* w, const float* x, float* c, int inputs, bool first, Ahead& ahead) {
  F f[MR][2];
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++)
    for (int h = 0; h < 2; h++) f[m][h] = first ? zero() : load(c + m * kTile + 16 * h);
#pragma GCC unroll 2
  for (int k = 0; k < inputs; k++) {
    if (k % 8 == 0) ahead.fetch();
    F w0, w1;
    if (KIND == kBF16) {
      const uint16_t* p = (const uint16_t*)w + (size_t)k * kTile;
      w0 = load_bf16(p), w1 = load_bf16(p + 16);
    } else {
      const float* p = (const float*)w + (size_t)k * kTile;
      w0 = load(p), w1 = load(p + 16);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
      F b = set1(x[(size_t)m * kBlock + (size_t)k]);
      f[m][0] = fma(w0, b, f[m][0]);
      f[m][1] = fma(w1, b, f[m][1]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; m++)
    for (int h = 0; h < 2; h++) store(c + m * kTile + 16 * h, f[m][h]);
}

// Calls step.run<height>(at), height in [MR, MOST].
template <int MR, int MOST, class Step> INL void run_height(const Step& step, int height, int at) {
  if (height == MR)
    step.template run<MR>(at);
  else if constexpr (MR < MOST)
    run_height<MR + 1, MOST>(step, height, at);
}

// Splits `rows` into register blocks of nearly equal height, at most MOST.
template <int MOST, class Step> INL void in_row_blocks(int rows, const Step& step) {
  int blocks = (rows + MOST - 1) / MOST, at = 0;
  for (int b = 0; b < blocks; b++) {
    int height = (rows - at + blocks - b - 1) / (blocks - b);
    run_height<1, MOST>(step, height, at);
    at += height;
  }
}

template <int KIND> struct GroupedStep {
  const uint8_t* record;
  Unpacked& u;
  const Activations& a;
  float* c;
  int groups;
  bool first;
  Ahead& ahead;
  template <int MR> INL_MEMBER void run(int m) const {
    const int8_t* q = a.q + (size_t)m * kBlock;
    float* to = c + (size_t)m * kTile;
    if (KIND == kQ80)
      grouped_rows<MR, KIND, false>(record, u, q, a.sums + m, to, groups, first, ahead);
    else if (m == 0)
      grouped_rows<MR, KIND, true>(record, u, q, a.sums + m, to, groups, first, ahead);
    else
      grouped_rows<MR, KIND, false>(u.w, u, q, a.sums + m, to, groups, first, ahead);
  }
};

struct FlatStep {
  const uint8_t* w;
  const float* d;
  const Activations& a;
  float* c;
  int groups;
  bool first;
  Ahead& ahead;
  template <int MR> INL_MEMBER void run(int m) const {
    flat_rows<MR>(w, d, a.q + (size_t)m * kBlock, a.sums + m, c + (size_t)m * kTile, groups, first, ahead);
  }
};

template <int KIND> struct FloatStep {
  const uint8_t* w;
  const Activations& a;
  float* c;
  int inputs;
  bool first;
  Ahead& ahead;
  template <int MR> INL_MEMBER void run(int m) const {
    float_rows<MR, KIND>(w, a.x + (size_t)m * kBlock, c + (size_t)m * kTile, inputs, first, ahead);
  }
};

// One record times `rows` rows. `panel` points at the record's panel of activations.
template <int KIND> __attribute__((noinline)) static void record_times_rows(const uint8_t* r, Unpacked& u,
                                                                            const Activations& panel,
                                                                            int rows, float* c, int groups,
                                                                            bool first, Ahead ahead) {
  if (KIND == kInt8) {
    const float* d = (const float*)(r + groups * 1024);
    in_row_blocks<kFlatRows>(rows, FlatStep{r, d, panel, c, groups, first, ahead});
  } else if (KIND == kBF16 || KIND == kF32) {
    in_row_blocks<kGroupRows>(rows, FloatStep<KIND>{r, panel, c, groups * kGroup, first, ahead});
  } else {
    unpack_scales<KIND>(r, groups, u);
    in_row_blocks<kGroupRows>(rows, GroupedStep<KIND>{r, u, panel, c, groups, first, ahead});
  }
}

}  // namespace CANVAS_ISA

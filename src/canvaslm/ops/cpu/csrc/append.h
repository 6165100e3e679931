// Appends keys and values to blocks, quantised for attention (layout: kv.h).
//
// Every key and every value has a scale of its own, so what a token is quantised to depends on no other. A
// 16-bit key is scaled so that its norm stays below 46000, as a query's does: a dot product then stays below
// 2^31 (Cauchy-Schwarz).
#pragma once
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace CANVAS_ISA {

constexpr float kNormLimit = 46000.f;
// Of a 16-bit value: with the shares' limit (attention.h) this splits what an int32 sum can hold. More here
// would leave the shares of 256 equal keys too few steps, less would cost values with one large component
// theirs.
constexpr float kValueLimit = 16000.f;

// One head of a block: T is int16_t or int8_t.
template <class T> struct BlockHead {
  T *k, *v;
  float *k_scale, *v_scale;
  INL_MEMBER BlockHead(uint8_t* at, int width) {
    const size_t each = (size_t)kKeysInBlock * (size_t)kv_width(width);
    k = (T*)at, v = k + each;
    k_scale = (float*)(v + each), v_scale = k_scale + kKeysInBlock;
  }
};

INL void store_whole(int16_t* p, I x) { store_s16(p, x); }
INL void store_whole(int8_t* p, I x) { store_s8(p, x); }
// Two neighbours in one machine word, the even one first in memory.
INL int32_t both(int16_t even, int16_t odd) {
  return (int32_t)((uint32_t)(uint16_t)even | (uint32_t)(uint16_t)odd << 16);
}
INL int16_t both(int8_t even, int8_t odd) {
  return (int16_t)((uint32_t)(uint8_t)even | (uint32_t)(uint8_t)odd << 8);
}

// Whole numbers with norm and largest component below the limits; returns the scale that undoes it.
template <class T>
static float to_whole(const float* x, int width, float most_norm, float most_peak, T* out) {
  F squares = zero(), top = zero();
  for (int i = 0; i < width; i += 16) {
    const F v = load(x + i);
    squares = fma(v, v, squares);
    top = max(top, abs(v));
  }
  const float norm = std::sqrt(sum(squares)), largest = peak(top);
  const float scale = norm > 1e-30f ? min(most_norm / norm, most_peak / largest) : 0.f;
  for (int i = 0; i < width; i += 16) store_whole(out + i, to_int(mul(load(x + i), set1(scale))));
  return scale > 0 ? 1.f / scale : 0.f;
}
static float quantise_key(const float* x, int width, int16_t* out) {
  return to_whole(x, width, kNormLimit, 32767.f, out);
}
static float quantise_key(const float* x, int width, int8_t* out) {
  return to_whole(x, width, INFINITY, 127.f, out);
}
static float quantise_value(const float* x, int width, int16_t* out) {
  return to_whole(x, width, INFINITY, kValueLimit, out);
}
static float quantise_value(const float* x, int width, int8_t* out) {
  return to_whole(x, width, INFINITY, 127.f, out);
}

// A vector of `count` floats, padded with zeros to `width`: where it lies if it can be read there, else in
// `room`.
INL const float* padded(const float* at, int count, int width, float* room) {
  if (count == width) return at;
  memcpy(room, at, (size_t)count * 4);
  for (int i = count; i < width; i++) room[i] = 0.f;
  return room;
}

// Tokens from..to of `fresh` into places `at`.. of one head of a block.
struct Stretch {
  int from, to, at;
};

template <class T> static void append_keys(const FreshKeyValues& f, int count, int head, Stretch s,
                                           BlockHead<T> to, char* room) {
  const int width = kv_width(count), pairs = width / 2;
  float* one = (float*)room;
  T* rows = (T*)(one + width);
  typedef decltype(both(T(), T())) Pair;
  while (s.from < s.to) {
    const int n = min(s.to - s.from, 16 - s.at % 16), lane = s.at % 32;
    for (int i = 0; i < n; i++) {
      const float* x = padded(f.k + (s.from + i) * f.k_token + head * f.k_head, count, width, one);
      to.k_scale[s.at + i] = quantise_key(x, width, rows + (size_t)i * (size_t)width);
    }
    Pair* out = (Pair*)(to.k + (size_t)(s.at / 32) * 32 * (size_t)width) + lane;
    const Pair* in = (const Pair*)rows;
    for (int j = 0; j < pairs; j++)
      for (int i = 0; i < n; i++) out[(size_t)j * 32 + (size_t)i] = in[(size_t)i * (size_t)pairs + (size_t)j];
    s.from += n, s.at += n;
  }
}

template <class T> static void append_values(const FreshKeyValues& f, int count, int head, Stretch s,
                                             BlockHead<T> to, char* room) {
  const int width = kv_width(count);
  float* one = (float*)room;
  T *even = (T*)(one + width), *odd = even + width;
  typedef decltype(both(T(), T())) Pair;
  auto put = [&](int token, int at, T* out) {
    to.v_scale[at] =
        quantise_value(padded(f.v + token * f.v_token + head * f.v_head, count, width, one), width, out);
  };
  while (s.from < s.to) {
    Pair* out = (Pair*)to.v + (size_t)(s.at / 2) * 32;
    const int n = s.at % 2 == 0 && s.from + 1 < s.to ? 2 : 1;
    put(s.from, s.at, even);
    if (n == 2) put(s.from + 1, s.at + 1, odd);
    for (int d = 0; d < width; d += 32) {
      Pair* row = out + (size_t)(d / 32) * 32 * (kKeysInBlock / 2);
      if (n == 2)
        for (int i = 0; i < 32; i++) row[i] = both(even[d + i], odd[d + i]);
      else
        for (int i = 0; i < 32; i++) ((T*)row)[2 * i + s.at % 2] = even[d + i];
    }
    s.from += n, s.at += n;
  }
}

static inline size_t append_room(int width) { return (size_t)kv_width(width) * (4 + 16 * 2); }

// Keys (values if `value`) of one head and one block.
static void append_head(const FreshKeyValues& f, int count, int kind, int head, bool value, Stretch s,
                        uint8_t* block, int slot) {
  char* room = (char*)scratch(slot, 1, append_room(count));
  uint8_t* at = block + (size_t)head * kv_head_bytes(kind, count);
  if (kind == kKeys8) {
    const BlockHead<int8_t> to(at, count);
    value ? append_values(f, count, head, s, to, room) : append_keys(f, count, head, s, to, room);
  } else {
    const BlockHead<int16_t> to(at, count);
    value ? append_values(f, count, head, s, to, room) : append_keys(f, count, head, s, to, room);
  }
}

// Where a token goes, and the first token that goes to a place or behind it.
INL int place_of(const AppendCall& c, int token) { return c.first + (c.places ? c.places[token] : token); }
static int token_at(const AppendCall& c, int place) {
  if (!c.places) return min(c.fresh.count, max(0, place - c.first));
  int low = 0, high = c.fresh.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (place_of(c, middle) < place)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Work is cut at places that are multiples of 64, so that two threads never write into one cache line.
static void append(const AppendCall& c) {
  if (!c.fresh.count) return;
  constexpr int kCut = 64;
  const int begin = place_of(c, 0) / kCut, pieces = place_of(c, c.fresh.count - 1) / kCut + 1 - begin;
  parallel(pieces * c.kv_heads * 2, [&](int item, int slot) {
    const int piece = (begin + item % pieces) * kCut, head = item / pieces / 2;
    const int end = token_at(c, piece + kCut);
    for (int from = token_at(c, piece), to; from < end; from = to) {  // tokens side by side go together
      const int place = place_of(c, from);
      for (to = from + 1; to < end && place_of(c, to) == place + to - from;) to++;
      append_head(c.fresh, c.width, c.kind, head, item / pieces % 2, {from, to, place % kKeysInBlock},
                  c.blocks[piece / kKeysInBlock], slot);
    }
  });
}

}  // namespace CANVAS_ISA

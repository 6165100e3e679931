// Keys and values quantised once: what the calls of attention look like, and how a block lies in memory.
//
// A block holds 256 consecutive tokens of one layer, one key-value head after the other. Of a head: keys in
// tiles of 32 [8][width / 2][32][2], values in tiles of 32 components [width / 32][128][32][2], then one fp32
// scale for each key and one for each value. So a 16-bit pair of neighbouring components (of keys) or tokens
// (of values) meets one lane of dot_pairs. Every token lies in places of its own: a later one can be put
// beside it, and nothing of it changes.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int kKeysInBlock = 256;

// The numbers are part of the C ABI (see attention.py).
enum KeyKind { kKeys16 = 0, kKeys8 = 1 };

static inline int kv_width(int width) { return (width + 31) / 32 * 32; }
static inline size_t kv_matrix_bytes(int kind, int width) {
  return (size_t)kKeysInBlock * (size_t)kv_width(width) * (kind == kKeys8 ? 1 : 2);
}
static inline size_t kv_head_bytes(int kind, int width) {
  return 2 * kv_matrix_bytes(kind, width) + 2 * kKeysInBlock * sizeof(float);
}

struct FreshKeyValues {  // fp32 keys and values of consecutive tokens; strides in elements
  const float *k, *v;
  int64_t k_token, k_head, v_token, v_head;
  int count;
};

struct AppendCall {  // puts `fresh` into blocks; token i goes to place first + i, or to first + places[i],
                     // counted from the first block
  FreshKeyValues fresh;
  int kv_heads, width, kind;
  uint8_t* const* blocks;
  int first;
  const int32_t* places;  // ascending; null: 0, 1, 2, ...
};

struct AttentionCall {
  const float* q;
  int64_t q_token, q_head;
  int tokens, heads, kv_heads, width;
  const uint8_t* const* blocks;  // the context; `kind` says how it is stored
  int kind;
  int from, to;  // places of the context that may be seen, counted from the first block; from == to: none
  FreshKeyValues own;                // keys and values that every query sees after the context; count 0: none
  const uint8_t* const* own_blocks;  // where they lie packed, in 16 bits; null: `own` points at them
  int first_query;                   // place of query 0 in the context; used when causal
  int causal;  // 1: query i sees the context up to place first_query + i, and `own` must be empty
  int window;  // 0, or places a causal query sees, its own included
  float* out;
  int64_t out_token, out_head;
};

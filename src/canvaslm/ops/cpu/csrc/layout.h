// How repacked weights lie in memory, and in packed files: after a change, raise LAYOUT in
// weights/packed/file.py.
//
// A matrix [n, k] is cut into tiles of 32 output rows, a tile into records of 256 inputs (the last one
// short). Inside a record the bytes are in VNNI order: a 64-byte vector holds 16 rows x 4 consecutive inputs,
// and the two halves of the 32 rows alternate, so that a vector index reads (quad * 2 + half). Rows past n
// are zero. Every record is a multiple of 64 bytes; `groups` counts the 32-input groups in it (8 in a full
// one).
#pragma once
#include <cstddef>
#include <cstdint>

// Kinds of layout. The numbers are part of the C ABI (see loader.py).
// clang-format off
enum Kind {
  kQ4K = 0,  // nibbles 4096 | scale u8[8][32] | min u8[4][32][2] | d, dmin f16[32]  w = d s q - dmin m
  kQ5K = 1,  // nibbles 4096 | fifth bits 1024 | scale | min | d | dmin  the same, q < 32
  kQ6K = 2,  // nibbles 4096 | two high bits 2048 | scale s8[16][32] | d f16[32]  w = d s (q - 32)
  kQ40 = 3,  // per group: nibbles 512; then d f16[groups][32]  w = d (q - 8)
  kQ50 = 4,  // per group: nibbles 512, fifth bits 128; then d f16[groups][32]  w = d (q - 16)
  kQ80 = 5,  // per group: bytes 1024; then d f16[groups][32]  w = d (q - 128)
  kInt8 = 6,  // per group: bytes 1024; then d f32[32]  w = d (q - 128)
  kBF16 = 7,  // bf16 [inputs][32]
  kF32 = 8,  // fp32 [inputs][32]
  kKinds = 9
};
// clang-format on

// GGUF's own numbers for the formats that repacking reads.
enum Format {
  kF32Rows = 0,
  kF16Rows = 1,
  kQ40Rows = 2,
  kQ50Rows = 6,
  kQ80Rows = 8,
  kQ4KRows = 12,
  kQ5KRows = 13,
  kQ6KRows = 14,
  kBF16Rows = 30
};

constexpr int kTile = 32;    // output rows of a tile
constexpr int kBlock = 256;  // inputs of a record
constexpr int kGroup = 32;   // inputs of a group

struct Matrix {
  int kind;
  int n;  // outputs
  int k;  // inputs
  const uint8_t* data;
};

static inline int blocks_of(int k) { return (k + kBlock - 1) / kBlock; }
static inline int tiles_of(int n) { return (n + kTile - 1) / kTile; }
// Groups of 32 in block `b` of a row of k inputs; a last group may be partly padding.
static inline int groups_in(int k, int b) {
  int left = k - b * kBlock;
  return left >= kBlock ? 8 : (left + kGroup - 1) / kGroup;
}
static inline bool is_float(int kind) { return kind >= kBF16; }

static inline size_t record_bytes(int kind, int groups) {
  size_t g = (size_t)groups;
  switch (kind) {
    case kQ4K: return 4096 + 256 + 256 + 128;
    case kQ5K: return 4096 + 1024 + 256 + 256 + 128;
    case kQ6K: return 4096 + 2048 + 512 + 64;
    case kQ40: return g * (512 + 64);
    case kQ50: return g * (512 + 128 + 64);
    case kQ80: return g * (1024 + 64);
    case kInt8: return g * 1024 + 128;
    case kBF16: return g * kGroup * kTile * 2;
    default: return g * kGroup * kTile * 4;
  }
}
static inline size_t tile_bytes(int kind, int k) {
  int full = k / kBlock, rest = groups_in(k, full);
  return full * record_bytes(kind, 8) + (k % kBlock ? record_bytes(kind, rest) : 0);
}
static inline size_t repacked_bytes(int kind, int n, int k) {
  return (size_t)tiles_of(n) * tile_bytes(kind, k);
}

// Bytes of one row of k inputs in a GGUF format.
static inline size_t row_bytes(int format, int k) {
  size_t c = (size_t)k;
  switch (format) {
    case kF32Rows: return c * 4;
    case kF16Rows:
    case kBF16Rows: return c * 2;
    case kQ40Rows: return c / 32 * 18;
    case kQ50Rows: return c / 32 * 22;
    case kQ80Rows: return c / 32 * 34;
    case kQ4KRows: return c / 256 * 144;
    case kQ5KRows: return c / 256 * 176;
    case kQ6KRows: return c / 256 * 210;
    default: return 0;
  }
}

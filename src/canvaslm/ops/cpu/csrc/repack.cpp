#include "repack.h"

#include <cstring>

namespace {

// Where the four bytes of row r, quad q (four inputs) lie among vectors ordered (quad, half).
inline size_t quad_at(int quad, int r) { return ((size_t)quad * 2 + r / 16) * 64 + (size_t)(r % 16) * 4; }
inline void put(uint8_t* base, int quad, int r, uint32_t four) { memcpy(base + quad_at(quad, r), &four, 4); }
inline uint32_t word(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}

// 6-bit scale and min of group g in the 12 bytes K-quants share (ggml's get_scale_min_k4).
void scale_and_min(const uint8_t* s, int g, uint8_t* scale, uint8_t* least) {
  if (g < 4) {
    *scale = s[g] & 63;
    *least = s[g + 4] & 63;
  } else {
    *scale = (uint8_t)((s[g + 4] & 15) | (s[g - 4] >> 6) << 4);
    *least = (uint8_t)(s[g + 4] >> 4 | (s[g] >> 6) << 4);
  }
}

// Scales, minima, d and dmin of one row of a Q4_K or Q5_K block; `tail` is where a record's scales begin.
void put_scales(const uint8_t* block, int r, uint8_t* tail) {
  for (int g = 0; g < 8; g++)
    scale_and_min(block + 4, g, tail + g * 32 + r, tail + 256 + (g / 2) * 64 + r * 2 + (g & 1));
  memcpy(tail + 512 + r * 2, block, 2);
  memcpy(tail + 576 + r * 2, block + 2, 2);
}

// Nibbles of four 32-byte chunks: low = group 2c, high = group 2c + 1, as in the file.
void put_chunks(const uint8_t* nibbles, int r, uint8_t* rec) {
  for (int i = 0; i < 32; i++) put(rec, i, r, word(nibbles + 4 * i));
}

void row_q4k(const uint8_t* block, int r, uint8_t* rec) {
  put_chunks(block + 16, r, rec);
  put_scales(block, r, rec + 4096);
}

void row_q5k(const uint8_t* block, int r, uint8_t* rec) {
  put_chunks(block + 48, r, rec);
  for (int i = 0; i < 8; i++) put(rec + 4096, i, r, word(block + 16 + 4 * i));  // bit g: group g
  put_scales(block, r, rec + 5120);
}

void row_q6k(const uint8_t* block, int r, uint8_t* rec) {
  put_chunks(block, r, rec);  // half h, chunk c: low = group 4h + c, high = group 4h + c + 2
  for (int i = 0; i < 16; i++) put(rec + 4096, i, r, word(block + 128 + 4 * i));  // bits 2j: group 4h + j
  for (int g = 0; g < 16; g++) rec[6144 + g * 32 + r] = block[192 + g];
  memcpy(rec + 6656 + r * 2, block + 208, 2);
}

// 16 bytes of nibbles: low = inputs 0..15, high = 16..31 of one group.
void row_q40(const uint8_t* block, int r, int g, int groups, uint8_t* rec) {
  for (int i = 0; i < 4; i++) put(rec + g * 512, i, r, word(block + 2 + 4 * i));
  memcpy(rec + groups * 512 + g * 64 + r * 2, block, 2);
}

// Bit 4 j + byte of `bits` -> bit j of that byte: the fifth bits of quad j's four inputs.
uint32_t fifth_bits(uint32_t bits) {
  uint32_t out = 0;
  for (int byte = 0; byte < 4; byte++) {
    uint32_t x = (bits >> byte) & 0x11111111u;
    x = (x | x >> 3) & 0x03030303u;
    x = (x | x >> 6) & 0x000F000Fu;
    x = (x | x >> 12) & 0xFFu;
    out |= x << (8 * byte);
  }
  return out;
}

void row_q50(const uint8_t* block, int r, int g, int groups, uint8_t* rec) {
  for (int i = 0; i < 4; i++) put(rec + g * 640, i, r, word(block + 6 + 4 * i));
  put(rec + g * 640 + 512, 0, r, fifth_bits(word(block + 2)));
  memcpy(rec + groups * 640 + g * 64 + r * 2, block, 2);
}

void row_q80(const uint8_t* block, int r, int g, int groups, uint8_t* rec) {
  for (int i = 0; i < 8; i++) put(rec + g * 1024, i, r, word(block + 2 + 4 * i) ^ 0x80808080u);
  memcpy(rec + groups * 1024 + g * 64 + r * 2, block, 2);
}

// Empty rows must read as zero: q = 128 for the byte kinds (their scale is zero too).
void clear(int kind, int groups, uint8_t* rec) {
  memset(rec, 0, record_bytes(kind, groups));
  if (kind == kQ80 || kind == kInt8) memset(rec, 128, (size_t)groups * 1024);
}

void row_floats(const uint8_t* row, int r, int from, int count, size_t width, uint8_t* rec) {
  for (int i = 0; i < count; i++)
    memcpy(rec + ((size_t)i * kTile + r) * width, row + ((size_t)from + i) * width, width);
}

void repack_block(int kind, const uint8_t* row, int k, int b, int r, uint8_t* rec) {
  int groups = groups_in(k, b), left = k - b * kBlock < kBlock ? k - b * kBlock : kBlock;
  switch (kind) {
    case kQ4K: return row_q4k(row + (size_t)b * 144, r, rec);
    case kQ5K: return row_q5k(row + (size_t)b * 176, r, rec);
    case kQ6K: return row_q6k(row + (size_t)b * 210, r, rec);
    case kBF16: return row_floats(row, r, b * kBlock, left, 2, rec);
    case kF32: return row_floats(row, r, b * kBlock, left, 4, rec);
    default: break;
  }
  for (int g = 0; g < groups; g++) {
    size_t i = (size_t)b * 8 + (size_t)g;
    if (kind == kQ40) row_q40(row + i * 18, r, g, groups, rec);
    if (kind == kQ50) row_q50(row + i * 22, r, g, groups, rec);
    if (kind == kQ80) row_q80(row + i * 34, r, g, groups, rec);
  }
}

int exact_kind(int format) {
  switch (format) {
    case kQ4KRows: return kQ4K;
    case kQ5KRows: return kQ5K;
    case kQ6KRows: return kQ6K;
    case kQ40Rows: return kQ40;
    case kQ50Rows: return kQ50;
    case kQ80Rows: return kQ80;
    case kBF16Rows: return kBF16;
    case kF32Rows: return kF32;
    default: return -1;
  }
}

}  // namespace

bool repack_tiles(int kind, int format, const uint8_t* src, int n, int k, int first, int tiles,
                  uint8_t* dst) {
  if (exact_kind(format) != kind) return false;
  size_t row = row_bytes(format, k), tile = tile_bytes(kind, k);
  for (int t = first; t < first + tiles; t++) {
    uint8_t* rec = dst + (size_t)t * tile;
    int rows = n - t * kTile < kTile ? n - t * kTile : kTile;
    for (int b = 0; b < blocks_of(k); b++) {
      int groups = groups_in(k, b);
      if (rows < kTile || k % kGroup) clear(kind, groups, rec);
      for (int r = 0; r < rows; r++)
        repack_block(kind, src + ((size_t)t * kTile + (size_t)r) * row, k, b, r, rec);
      rec += record_bytes(kind, groups);
    }
  }
  return true;
}

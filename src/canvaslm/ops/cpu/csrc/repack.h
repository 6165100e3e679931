// GGUF rows -> repacked tiles. Compiled once, without any instruction set: repacking waits for memory.
#pragma once
#include "layout.h"

// Repacks `tiles` tiles from `first` on. `src` are the rows of the whole matrix in `format`; `dst` is the
// whole matrix. False when this kind cannot hold this format exactly.
bool repack_tiles(int kind, int format, const uint8_t* src, int n, int k, int first, int tiles, uint8_t* dst);

// GGUF rows -> packed tiles. Compiled once, without any instruction set: packing waits for memory.
#pragma once
#include "layout.h"

// Packs `tiles` tiles from `first` on. `src` are the rows of the whole matrix in `format`; `dst` is the whole matrix.
// False when this kind cannot hold this format exactly.
bool pack_tiles(int kind, int format, const uint8_t* src, int n, int k, int first, int tiles, uint8_t* dst);

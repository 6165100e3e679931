// The machine's ceiling for int8 products, measured with the kernels' own instructions on data in the
// first-level cache.
#pragma once
#include "micro.h"
#include "parallel.h"

namespace CANVAS_ISA {

// Every thread multiplies kFlatRows rows x 256 inputs with 32 outputs, `times` times; returns the
// multiply-adds of all.
static double ceiling(int times) {
  const int threads = pool_threads();
  parallel(threads, [&](int, int slot) {
    uint8_t* w = (uint8_t*)scratch(slot, 0, 32768);
    const int8_t* a = (const int8_t*)w + 8192;
    I acc[kFlatRows][2];
#pragma GCC unroll 16
    for (int m = 0; m < kFlatRows; m++) acc[m][0] = acc[m][1] = zero_int();
#pragma GCC unroll 1
    for (int t = 0; t < 8 * times; t++) {
      const uint8_t* wp = w + t % 8 * 1024;
      const int8_t* ap = a + t % 8 * 32;
      dot_bytes<kFlatRows>(acc, wp, ap);
    }
    F all = zero();
#pragma GCC unroll 16
    for (int m = 0; m < kFlatRows; m++) all = add(all, add(to_float(acc[m][0]), to_float(acc[m][1])));
    store((float*)(w + 16384), all);  // or the compiler may leave the work out
  });
  return (double)times * threads * kFlatRows * 32 * 256;
}

}  // namespace CANVAS_ISA

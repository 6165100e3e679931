// parallel(items, f): f(item, slot) for every item, over the pool.
#pragma once
#include "pool.h"
#include "simd.h"

namespace CANVAS_ISA {

template <class Body> INL void parallel(int items, const Body& body) {
  struct Call {
    static void one(void* context, int item, int slot) { (*(const Body*)context)(item, slot); }
  };
  pool_run(items, &Call::one, (void*)&body);
}

}  // namespace CANVAS_ISA

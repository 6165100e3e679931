// A small pool of threads that sleeps when idle. One job at a time: callers queue on a mutex.
#pragma once
#include <cstddef>

// Runs body(context, item, slot) for every item in [0, items); slot < pool_threads() names the thread's
// scratch.
typedef void (*PoolBody)(void* context, int item, int slot);
void pool_run(int items, PoolBody body, void* context);
int pool_threads();
void pool_set_threads(int count);

// Held for the length of one operation, so that scratch memory and threads belong to one caller.
struct Operation {
  Operation();
  ~Operation();
};

// Scratch that lives as long as the library: `which` < 8 buffers per slot, slot -1 shared by all. Grows,
// never shrinks by itself; returns 64-byte aligned memory. scratch_release gives all of it back.
constexpr int kMaxThreads = 256;
void* scratch(int slot, int which, size_t bytes);
void scratch_release();

// Huge-page backed memory, zeroed. nullptr when there is none.
void* huge_alloc(size_t bytes);
void huge_free(void* memory, size_t bytes);

#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough to bridge the Python between two operations of a layer, short enough not to starve a neighbour.
constexpr auto kSpin = std::chrono::microseconds(60);

template <class Done> bool spin_until(Done done) {
  auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 64; i++) {
      if (done()) return true;
      pause_cpu();
    }
    if (std::chrono::steady_clock::now() - start > kSpin) return false;
  }
}

struct Pool {
  std::mutex operation;  // one operation at a time
  std::mutex mutex;
  std::condition_variable wake, finished;
  std::vector<std::thread> workers;
  int threads = 1;
  std::atomic<uint64_t> job{0};
  std::atomic<int> next{0}, busy{0};
  std::atomic<bool> stopping{false};
  int items = 0;
  PoolBody body = nullptr;
  void* context = nullptr;

  void work(int slot) {
    for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(context, i, slot);
  }

  void loop(int slot) {
    for (uint64_t seen = 0;;) {
      auto ready = [&] { return job.load(std::memory_order_acquire) != seen || stopping.load(); };
      if (!spin_until(ready)) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, ready);
      }
      if (stopping) return;
      seen++;  // jobs cannot overtake a worker: each waits for all of them
      work(slot);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_one();
      }
    }
  }

  void start() {
    stopping = false;
    job = 0;
    try {
      for (int slot = 1; slot < threads; slot++) workers.emplace_back([this, slot] { loop(slot); });
    } catch (...) {  // no more threads to be had: work with those that started
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    for (auto& w : workers) w.join();
    workers.clear();
  }

  void run(int count, PoolBody f, void* c) {
    if (threads > 1 && workers.empty()) start();
    items = count, body = f, context = c;
    next.store(0, std::memory_order_relaxed);
    if (workers.empty() || count < 2) return work(0);
    busy.store((int)workers.size(), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex);
      job.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    work(0);
    auto done = [&] { return busy.load(std::memory_order_acquire) == 0; };
    if (!spin_until(done)) {
      std::unique_lock<std::mutex> lock(mutex);
      finished.wait(lock, done);
    }
  }
};

// Never destroyed: joining threads while a process exits is how libraries hang.
Pool* the_pool = nullptr;
std::once_flag once;

Pool& pool() {
  std::call_once(once, [] {
    the_pool = new Pool;
#if !defined(_WIN32)
    // Threads do not survive a fork: the child starts its own, and leaks what described its parent's.
    pthread_atfork(nullptr, nullptr, [] {
      int threads = the_pool->threads;
      the_pool = new Pool;
      the_pool->threads = threads;
    });
#endif
  });
  return *the_pool;
}

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;
};
Buffer buffers[kMaxThreads + 1][8];

constexpr size_t kHuge = size_t(2) << 20;
size_t rounded(size_t bytes) { return (bytes + kHuge - 1) / kHuge * kHuge; }

}  // namespace

void pool_run(int items, PoolBody body, void* context) { pool().run(items, body, context); }
int pool_threads() { return pool().threads; }

void pool_set_threads(int count) {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.operation);
  count = count < 1 ? 1 : count > kMaxThreads ? kMaxThreads : count;
  if (count == p.threads) return;
  p.stop();
  p.threads = count;
}

Operation::Operation() { pool().operation.lock(); }
Operation::~Operation() { pool().operation.unlock(); }

void* scratch(int slot, int which, size_t bytes) {
  Buffer& b = buffers[slot + 1][which];
  if (b.bytes < bytes) {
    if (b.memory) huge_free(b.memory, b.bytes);
    b.bytes = rounded(bytes);
    b.memory = huge_alloc(b.bytes);
    if (!b.memory) {
      fprintf(stderr, "canvaslm: out of memory for %zu bytes of scratch\n", bytes);
      abort();  // nothing above can go on: a kernel is half way through
    }
  }
  return b.memory;
}

void scratch_release() {
  Operation held;
  for (auto& slot : buffers)
    for (auto& b : slot) {
      if (b.memory) huge_free(b.memory, b.bytes);
      b = Buffer{};
    }
}

#if defined(_WIN32)
void* huge_alloc(size_t bytes) {
  void* p = _aligned_malloc(rounded(bytes), 4096);
  if (p) memset(p, 0, rounded(bytes));
  return p;
}
void huge_free(void* memory, size_t) { _aligned_free(memory); }
#else
size_t whole_pages(size_t bytes) {
  static const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

// Maps one huge page more than asked and gives the ends back, so that the rest starts on a huge-page
// boundary. What does not fill a huge page gets small ones: hundreds of weights would lose a megabyte each.
void* huge_alloc(size_t bytes) {
  size_t want = whole_pages(bytes);
  void* map = mmap(nullptr, want + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  uintptr_t start = (uintptr_t)map, aligned = (start + kHuge - 1) / kHuge * kHuge;
  if (aligned > start) munmap(map, aligned - start);
  if (aligned < start + kHuge) munmap((void*)(aligned + want), start + kHuge - aligned);
#if defined(MADV_HUGEPAGE)
  if (want >= kHuge) madvise((void*)aligned, want / kHuge * kHuge, MADV_HUGEPAGE);
#endif
  return (void*)aligned;
}
void huge_free(void* memory, size_t bytes) { munmap(memory, whole_pages(bytes)); }
#endif

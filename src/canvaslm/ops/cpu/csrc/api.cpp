// The C ABI: raw pointers and sizes, checked by the Python side. One operation at a time.
#include <cstring>
#include <initializer_list>

#include "kernels.h"
#include "repack.h"
#include "pool.h"

#define API extern "C" __attribute__((visibility("default")))

namespace plain {
extern const Kernels kernels;
}
#if defined(CANVAS_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if defined(CANVAS_ARM)
namespace neon {
extern const Kernels kernels;
}
#endif
#if defined(CANVAS_X86)
#include <cpuid.h>
#endif
#if defined(CANVAS_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

#if defined(CANVAS_X86)
// By hand: __builtin_cpu_supports does not link into a shared library with every toolchain (zig).
bool bit(unsigned reg, int n) { return reg >> n & 1; }

bool x86_runs(bool avx512) {
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const bool fma = bit(c, 12), saves = bit(c, 27), f16c = bit(c, 29);
  if (!fma || !saves || !f16c) return false;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6) return false;  // the system keeps the ymm registers
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return false;
  if (!avx512) return true;
  const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
  return (low & 0xE0) == 0xE0 && f && dq && bw && vl && vnni;
}
#endif

bool runs_here(const char* isa) {
  if (!strcmp(isa, "plain")) return true;
#if defined(CANVAS_X86)
  if (!strcmp(isa, "avx2")) return x86_runs(false);
  if (!strcmp(isa, "avx512")) return x86_runs(true);
#endif
#if defined(CANVAS_ARM)
  if (!strcmp(isa, "neon")) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1 << 20);  // HWCAP_ASIMDDP
#else
    return true;  // every 64-bit Apple processor
#endif
  }
#endif
  return false;
}

const Kernels* named(const char* isa) {
#if defined(CANVAS_X86)
  if (!strcmp(isa, "avx512")) return &avx512::kernels;
  if (!strcmp(isa, "avx2")) return &avx2::kernels;
#endif
#if defined(CANVAS_ARM)
  if (!strcmp(isa, "neon")) return &neon::kernels;
#endif
  return &plain::kernels;
}

const Kernels* best() {
  for (const char* isa : {"avx512", "avx2", "neon"})
    if (runs_here(isa)) return named(isa);
  return &plain::kernels;
}

const Kernels* current = nullptr;
const Kernels& kernels() {
  if (!current) current = best();
  return *current;
}

struct RepackJob {
  int kind, format, n, k;
  const uint8_t* src;
  uint8_t* dst;
};
constexpr int kTilesPerTask = 4;

void repack_some(void* context, int item, int) {
  const RepackJob& j = *(const RepackJob*)context;
  int first = item * kTilesPerTask, left = tiles_of(j.n) - first;
  repack_tiles(j.kind, j.format, j.src, j.n, j.k, first, left < kTilesPerTask ? left : kTilesPerTask, j.dst);
}

}  // namespace

API int canvas_abi() { return 4; }
// Bytes of a call structure as these sources have it, which must be what the caller's declaration takes; 0:
// not known.
API size_t canvas_struct_size(const char* name) {
  if (!strcmp(name, "Matrix")) return sizeof(Matrix);
  if (!strcmp(name, "RestrictionCall")) return sizeof(RestrictionCall);
  if (!strcmp(name, "HeadCall")) return sizeof(HeadCall);
  if (!strcmp(name, "SoftCall")) return sizeof(SoftCall);
  if (!strcmp(name, "FreshKeyValues")) return sizeof(FreshKeyValues);
  if (!strcmp(name, "AppendCall")) return sizeof(AppendCall);
  if (!strcmp(name, "AttentionCall")) return sizeof(AttentionCall);
  return 0;
}
API const char* canvas_isa() { return kernels().name; }
// 0, or 1 when this machine lacks `isa`.
API int canvas_use_isa(const char* isa) {
  if (!runs_here(isa)) return 1;
  Operation held;
  current = named(isa);
  return 0;
}
API void canvas_set_threads(int count) { pool_set_threads(count); }
API int canvas_threads() { return pool_threads(); }
API void* canvas_alloc(size_t bytes) { return huge_alloc(bytes); }
API void canvas_free(void* memory, size_t bytes) { huge_free(memory, bytes); }
API void canvas_release_scratch() { scratch_release(); }
API size_t canvas_repacked_bytes(int kind, int n, int k) { return repacked_bytes(kind, n, k); }

// Repacks rows of `format` into `kind`; 0, or 1 when that pair is not supported.
API int canvas_repack(int kind, int format, const uint8_t* src, int n, int k, uint8_t* dst) {
  Operation held;
  if (kind == kInt8) {
    kernels().requantize(format, src, n, k, dst);
    return 0;
  }
  if (!repack_tiles(kind, format, src, n, k, 0, 0, dst)) return 1;
  RepackJob job = {kind, format, n, k, src, dst};
  pool_run((tiles_of(n) + kTilesPerTask - 1) / kTilesPerTask, repack_some, &job);
  return 0;
}
API void canvas_transpose(int kind, int format, const uint8_t* src, int rows, int columns, uint8_t* dst) {
  Operation held;
  kernels().transpose(kind, format, src, rows, columns, dst);
}
API void canvas_gather(int format, const uint8_t* src, int k, const int64_t* ids, int count, float* out) {
  Operation held;
  kernels().gather(format, src, k, ids, count, out);
}
API void canvas_matmul(int kind, const uint8_t* w, int n, int k, const float* x, int64_t x_stride, int rows,
                       float* y, int64_t y_stride) {
  Operation held;
  kernels().matmul({kind, n, k, w}, x, (size_t)x_stride, rows, y, (size_t)y_stride);
}
API void canvas_matmul_back(int kind, const uint8_t* w, int n, int k, const float* dy, int64_t dy_stride,
                            int rows, float* dx, int64_t dx_stride) {
  Operation held;
  kernels().matmul_back({kind, n, k, w}, dy, (size_t)dy_stride, rows, dx, (size_t)dx_stride);
}
// 0, or 1 when an expert id is out of range.
API int canvas_experts(int gate_up_kind, const uint8_t* gate_up, int down_kind, const uint8_t* down,
                       int count, int inner, int n, int k, const float* x, int tokens, const int64_t* index,
                       const float* weights, int top, float* y) {
  for (int64_t i = 0; i < (int64_t)tokens * top; i++)
    if (index[i] < 0 || index[i] >= count) return 1;
  Operation held;
  kernels().experts({gate_up_kind, 2 * inner, k, gate_up}, {down_kind, n, inner, down}, count, x, tokens,
                    index, weights, top, y);
  return 0;
}
API void canvas_head(const HeadCall* call) {
  Operation held;
  kernels().head(*call);
}
API void canvas_soft(const SoftCall* call) {
  Operation held;
  kernels().soft(*call);
}
// Bytes of a block of one layer with `kv_heads` heads.
API size_t canvas_block_bytes(int kind, int kv_heads, int width) {
  return kv_head_bytes(kind, width) * (size_t)kv_heads;
}
API void canvas_append(const AppendCall* call) {
  Operation held;
  kernels().append(*call);
}
API void canvas_attention(const AttentionCall* call) {
  Operation held;
  kernels().attention(*call);
}
API void canvas_rms_norm(const float* x, const float* weight, const float* residual, float scale, float eps,
                         int rows, int width, float* out) {
  Operation held;
  kernels().rms_norm(x, weight, residual, scale, eps, rows, width, out);
}
API void canvas_join(const float* a, const float* wa, const float* b, const float* wb, const float* w,
                     const float* residual, float scale, float eps, int rows, int width, float* out) {
  Operation held;
  kernels().join(a, wa, b, wb, w, residual, scale, eps, rows, width, out);
}
API void canvas_norm_rope(float* x, const float* weight, const float* cos, const float* sin, float eps,
                          int tokens, int heads, int width, int64_t stride) {
  Operation held;
  kernels().norm_rope(x, weight, cos, sin, eps, tokens, heads, width, stride);
}
API void canvas_route(const float* x, const float* scale, int kind, const uint8_t* proj, int experts,
                      int width, const float* per_expert, int tokens, int top, float eps, int64_t* index,
                      float* weights) {
  Operation held;
  kernels().route(x, scale, {kind, experts, width, proj}, per_expert, tokens, top, eps, index, weights);
}
// Multiply-adds done by `times` rounds of every thread; the caller holds the watch.
API double canvas_ceiling(int times) {
  Operation held;
  return kernels().ceiling(times);
}

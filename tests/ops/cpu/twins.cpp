// Compares two instruction sets' kernels on the same packed weights: for machines that only run under
// emulation, where starting Python is too slow. Compiled by test_native_emulated.py with OTHER set to the
// namespace under test.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "repack.h"
#include "pool.h"

namespace plain {
extern const Kernels kernels;
}
namespace OTHER {
extern const Kernels kernels;
}

static uint32_t state = 1;
static float uniform() {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 16777216.f - 0.5f;
}

static std::vector<float> randoms(size_t count, float scale = 1.f) {
  std::vector<float> x(count);
  for (auto& v : x) v = uniform() * scale;
  return x;
}

// Rows of a format with random bytes below 60, so that every scale is small and finite.
static std::vector<uint8_t> rows(int format, int n, int k) {
  std::vector<uint8_t> raw(row_bytes(format, k) * (size_t)n);
  for (auto& b : raw) b = (uint8_t)((uniform() + 0.5f) * 60);
  return raw;
}

struct Weight {
  Matrix m;
  size_t bytes;
};

static Weight weight(int kind, int format, int n, int k, int count = 1) {
  size_t each = repacked_bytes(kind, n, k);
  uint8_t* data = (uint8_t*)huge_alloc(each * (size_t)count);
  for (int i = 0; i < count; i++) {
    auto raw = rows(format, n, k);
    if (kind == kInt8)
      plain::kernels.requantize(format, raw.data(), n, k, data + each * (size_t)i);
    else if (!repack_tiles(kind, format, raw.data(), n, k, 0, tiles_of(n), data + each * (size_t)i))
      abort();
  }
  return {{kind, n, k, data}, each * (size_t)count};
}

static int failures = 0;
static void compare(const char* name, const std::vector<float>& a, const std::vector<float>& b,
                    double bound = 1e-5) {
  double wrong = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) wrong += std::pow(a[i] - b[i], 2), size += std::pow(a[i], 2);
  double error = std::sqrt(wrong / (size > 0 ? size : 1));
  bool good = error < bound && size > 0;
  printf("%-12s %.1e %s\n", name, error, good ? "ok" : "WRONG");
  failures += !good;
}

static void products() {
  const int kinds[][3] = {{kQ4K, kQ4KRows, 512},  {kQ5K, kQ5KRows, 512}, {kQ6K, kQ6KRows, 512},
                          {kQ40, kQ40Rows, 352},  {kQ50, kQ50Rows, 352}, {kQ80, kQ80Rows, 352},
                          {kInt8, kQ80Rows, 352}, {kF32, kF32Rows, 100}};
  for (auto& c : kinds) {
    Weight w = weight(c[0], c[1], 40, c[2]);
    if (c[0] == kF32)
      for (size_t i = 0; i < w.bytes / 4; i++) ((float*)w.m.data)[i] = uniform();
    auto x = randoms(7 * (size_t)c[2]);
    std::vector<float> a(7 * 40), b(7 * 40);
    plain::kernels.matmul(w.m, x.data(), (size_t)c[2], 7, a.data(), 40);
    OTHER::kernels.matmul(w.m, x.data(), (size_t)c[2], 7, b.data(), 40);
    compare("product", a, b);
  }
}

static void mixture() {
  Weight up = weight(kQ4K, kQ4KRows, 128, 256, 3), down = weight(kQ50, kQ50Rows, 256, 64, 3);
  auto x = randoms(5 * 256, 1e-3f);
  int64_t index[10] = {0, 1, 1, 2, 2, 0, 1, 0, 0, 2};
  auto shares = randoms(10);
  std::vector<float> a(5 * 256), b(5 * 256);
  plain::kernels.experts(up.m, down.m, 3, x.data(), 5, index, shares.data(), 2, a.data());
  OTHER::kernels.experts(up.m, down.m, 3, x.data(), 5, index, shares.data(), 2, b.data());
  compare("experts", a, b, 1e-2);  // a hair's difference before requantising moves a byte
}

// Two blocks of context packed by each set itself, then causal queries, then a canvas with keys of its own.
static void attentions() {
  auto q = randoms(2 * 9 * 64), k = randoms(300 * 64), v = randoms(300 * 64);
  const Kernels* sets[2] = {&plain::kernels, &OTHER::kernels};
  for (int kind : {kKeys16, kKeys8}) {
    std::vector<float> out[2][2];
    for (int i = 0; i < 2; i++) {
      uint8_t* memory = (uint8_t*)huge_alloc(2 * kv_head_bytes(kind, 64));
      uint8_t* blocks[2] = {memory, memory + kv_head_bytes(kind, 64)};
      FreshKeyValues fresh = {k.data(), v.data(), 64, 0, 64, 0, 270},
                     own = {k.data() + 270 * 64, v.data() + 270 * 64, 64, 0, 64, 0, 30};
      sets[i]->append({fresh, 1, 64, kind, blocks, 0});
      for (int causal = 0; causal < 2; causal++) {
        out[i][causal].resize(9 * 128);
        AttentionCall c = {q.data(), 128, 64,  9,   2,   1,      64,  blocks,
                           kind,     5,   270, own, 255, causal, 100, out[i][causal].data(),
                           128,      64};
        if (causal) c.own.count = 0;
        sets[i]->attention(c);
      }
    }
    compare("causal", out[0][1], out[1][1], 1e-4);
    compare("canvas", out[0][0], out[1][0], 1e-4);
  }
}

struct HeadOut {
  std::vector<uint16_t> store = std::vector<uint16_t>(4 * 2048);
  std::vector<float> peak = std::vector<float>(8), mass = std::vector<float>(8),
                     entropy = std::vector<float>(4), logprob = std::vector<float>(4),
                     lse = std::vector<float>(4), soft = std::vector<float>(4 * 256);
  std::vector<int64_t> sampled = std::vector<int64_t>(4), argmax = std::vector<int64_t>(4);
};

static void vocabulary() {
  Weight head = weight(kInt8, kQ80Rows, 1500, 256);
  auto table = rows(kQ80Rows, 1500, 256);
  Weight transposed = {{kInt8, 256, 1500, nullptr}, 0};
  uint8_t* t = (uint8_t*)huge_alloc(repacked_bytes(kInt8, 256, 1500));
  plain::kernels.transpose(kInt8, kQ80Rows, table.data(), 1500, 256, t);
  transposed.m.data = t;
  auto states = randoms(4 * 256, 1e-4f), gumbel = randoms(8);
  float heat[4] = {1, 1, 0.5f, 2};
  double draws[4] = {0.1, 0.5, 0.9, 0.99};
  HeadOut out[2];
  const Kernels* sets[2] = {&plain::kernels, &OTHER::kernels};
  // Row 1: every third token and a biased one; row 2: two tokens alone; row 3: a bias.
  std::vector<uint32_t> bits(2 * 47);
  for (int t = 0; t < 1500; t += 3) bits[(size_t)t / 32] |= 1u << t % 32;
  bits[47] = 1u << 7, bits[47 + 46] = 1u << 20;
  const int spans[] = {0, 0, 0, 1, 1, 1, 1, 3}, tokens[] = {6, 5, 1400}, allowed[] = {-1, 0, 1, -1};
  const float values[] = {1.5f, -INFINITY, 20.f};
  const RestrictionCall restriction = {spans, tokens, values, allowed, bits.data(), 47};
  for (int i = 0; i < 2; i++) {
    HeadOut& o = out[i];
    HeadCall h = {head.m,
                  states.data(),
                  4,
                  30.f,
                  heat,
                  restriction,
                  gumbel.data(),
                  draws,
                  o.store.data(),
                  o.peak.data(),
                  o.mass.data(),
                  o.sampled.data(),
                  o.argmax.data(),
                  o.entropy.data(),
                  o.logprob.data(),
                  o.lse.data()};
    sets[i]->head(h);
    int64_t gathered, dense;
    SoftCall s = {
        o.store.data(), o.peak.data(), o.mass.data(), o.lse.data(), o.entropy.data(), nullptr, 4,
        1500,           256,           kQ80Rows,      table.data(), transposed.m,     0.f,     o.soft.data(),
        &gathered,      &dense};
    sets[i]->soft(s);
  }
  compare("entropy", out[0].entropy, out[1].entropy);
  compare("logprob", out[0].logprob, out[1].logprob);
  compare("soft", out[0].soft, out[1].soft, 1e-2);
  bool same = out[0].sampled == out[1].sampled && out[0].argmax == out[1].argmax;
  for (const HeadOut& o : out)
    same =
        same && o.sampled[1] % 3 == 0 && (o.sampled[2] == 7 || o.sampled[2] == 1492) && o.argmax[3] == 1400;
  printf("%-12s %s\n", "tokens", same ? "ok" : "WRONG");
  failures += !same;
}

static void small_steps() {
  auto x = randoms(6 * 72), w = randoms(72), r = randoms(6 * 72);
  std::vector<float> a(6 * 72), b(6 * 72);
  plain::kernels.rms_norm(x.data(), w.data(), r.data(), 0.5f, 1e-6f, 6, 72, a.data());
  OTHER::kernels.rms_norm(x.data(), w.data(), r.data(), 0.5f, 1e-6f, 6, 72, b.data());
  compare("rms_norm", a, b);
  auto cos = randoms(6 * 12), sin = randoms(6 * 12), y = x;
  plain::kernels.norm_rope(x.data(), nullptr, cos.data(), sin.data(), 1e-6f, 6, 3, 24, 72);
  OTHER::kernels.norm_rope(y.data(), nullptr, cos.data(), sin.data(), 1e-6f, 6, 3, 24, 72);
  compare("norm_rope", x, y);
}

int main() {
  pool_set_threads(2);
  products();
  mixture();
  attentions();
  vocabulary();
  small_steps();
  printf("%s\n", failures ? "FAILED" : "all agree");
  return failures != 0;
}

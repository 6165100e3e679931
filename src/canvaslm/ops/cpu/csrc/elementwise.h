// What works element by element between the products: normalisation, rotary embedding, residuals, routing.
// Memory-bound, so each reads and writes its rows once.
#pragma once
#include <cmath>

#include "gemm.h"

namespace CANVAS_ISA {

INL float inverse_rms(const float* x, int width, float eps) {
  F squares = zero();
  int i = 0;
  for (; i + 16 <= width; i += 16) {
    F v = load(x + i);
    squares = fma(v, v, squares);
  }
  if (i < width) {
    F v = load_n(x + i, width - i);
    squares = fma(v, v, squares);
  }
  return 1.f / __builtin_sqrtf(sum(squares) / (float)width + eps);
}

// Rows are handed out a few at a time: a row alone is less work than handing it out.
template <class Body> INL void over_rows(int rows, const Body& body) {
  const int chunk = 16;
  parallel((rows + chunk - 1) / chunk, [&](int item, int slot) {
    for (int r = item * chunk; r < min(rows, (item + 1) * chunk); r++) body(r, slot);
  });
}

// out = (residual + x / rms(x) * weight) * scale; weight and residual may be nullptr. out may be x or
// residual.
static void rms_norm(const float* x, const float* weight, const float* residual, float scale, float eps,
                     int rows, int width, float* out) {
  over_rows(rows, [&](int r, int) {
    const size_t at = (size_t)r * (size_t)width;
    const F inverse = set1(inverse_rms(x + at, width, eps)), factor = set1(scale);
    for (int i = 0; i < width; i += 16) {
      const int left = width - i;
      F v = mul(load_n(x + at + i, left), inverse);
      if (weight) v = mul(v, load_n(weight + i, left));
      if (residual) v = add(v, load_n(residual + at + i, left));
      store_n(out + at + i, mul(v, factor), left);
    }
  });
}

// The end of a layer: out = (residual + norm(norm(a, wa) + norm(b, wb), w)) * scale.
static void join(const float* a, const float* wa, const float* b, const float* wb, const float* w,
                 const float* residual, float scale, float eps, int rows, int width, float* out) {
  over_rows(rows, [&](int r, int slot) {
    const size_t at = (size_t)r * (size_t)width;
    float* both = (float*)scratch(slot, 0, (size_t)width * 4 + 64);
    const F ia = set1(inverse_rms(a + at, width, eps)), ib = set1(inverse_rms(b + at, width, eps));
    for (int i = 0; i < width; i += 16) {
      const int left = width - i;
      F v = mul(mul(load_n(a + at + i, left), ia), load_n(wa + i, left));
      F u = mul(mul(load_n(b + at + i, left), ib), load_n(wb + i, left));
      store_n(both + i, add(v, u), left);
    }
    const F inverse = set1(inverse_rms(both, width, eps)), factor = set1(scale);
    for (int i = 0; i < width; i += 16) {
      const int left = width - i;
      F v = mul(mul(load_n(both + i, left), inverse), load_n(w + i, left));
      store_n(out + at + i, mul(add(load_n(residual + at + i, left), v), factor), left);
    }
  });
}

// Per head, in place: x = rotate(x / rms(x) * weight). x [tokens, heads, width], token stride in elements;
// cos and sin [tokens, width / 2] of the rotate-half layout, or nullptr for no rotation; weight [width] or
// nullptr.
static void norm_rope(float* x, const float* weight, const float* cos, const float* sin, float eps,
                      int tokens, int heads, int width, int64_t stride) {
  over_rows(tokens, [&](int t, int) {
    for (int h = 0; h < heads; h++) {
      float* v = x + (int64_t)t * stride + (int64_t)h * width;
      const F inverse = set1(inverse_rms(v, width, eps));
      const int half = width / 2, step = cos ? half : width;
      for (int i = 0; i < step; i += 16) {
        const int left = step - i;
        F a = mul(load_n(v + i, left), inverse);
        if (weight) a = mul(a, load_n(weight + i, left));
        if (!cos) {
          store_n(v + i, a, left);
          continue;
        }
        F b = mul(load_n(v + half + i, left), inverse);
        if (weight) b = mul(b, load_n(weight + half + i, left));
        const F c = load_n(cos + (size_t)t * (size_t)half + i, left),
                s = load_n(sin + (size_t)t * (size_t)half + i, left);
        store_n(v + i, fnma(b, s, mul(a, c)), left);
        store_n(v + half + i, fma(a, s, mul(b, c)), left);
      }
    }
  });
}

// The `top` largest of logits, softmax over all, renormalised over the chosen (which cancels the softmax's
// own sum), times per_expert. Descending; equal logits: the lower expert first.
INL void choose(float* logits, int count, const float* per_expert, int top, int64_t* index, float* weights) {
  float total = 0.f, first = 0.f;
  for (int i = 0; i < top; i++) {
    int best = 0;
    for (int e = 1; e < count; e++)
      if (logits[e] > logits[best]) best = e;
    if (i == 0) first = logits[best];
    index[i] = best;
    total += weights[i] = __builtin_expf(logits[best] - first);
    logits[best] = -INFINITY;
  }
  for (int i = 0; i < top; i++) weights[i] = weights[i] / total * (per_expert ? per_expert[index[i]] : 1.f);
}

// Router: logits = (x / rms(x) * scale) @ proj.T, then `choose`. proj F32 or BF16.
static void route(const float* x, const float* scale, const Matrix& proj, const float* per_expert, int tokens,
                  int top, float eps, int64_t* index, float* weights) {
  const int width = proj.k, count = proj.n;
  float* normed = (float*)scratch(-1, 5, (size_t)tokens * (size_t)width * 4);
  float* logits = (float*)scratch(-1, 6, (size_t)tokens * (size_t)count * 4);
  over_rows(tokens, [&](int t, int) {
    const size_t at = (size_t)t * (size_t)width;
    const F inverse = set1(inverse_rms(x + at, width, eps));
    for (int i = 0; i < width; i += 16)
      store_n(normed + at + i, mul(mul(load_n(x + at + i, width - i), inverse), load_n(scale + i, width - i)),
              width - i);
  });
  matmul(proj, normed, (size_t)width, tokens, logits, (size_t)count);
  over_rows(tokens, [&](int t, int) {
    choose(logits + (size_t)t * (size_t)count, count, per_expert, top, index + (size_t)t * (size_t)top,
           weights + (size_t)t * (size_t)top);
  });
}

}  // namespace CANVAS_ISA

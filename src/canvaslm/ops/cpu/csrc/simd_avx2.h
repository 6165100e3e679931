// AVX2 with FMA and F16C: a lane vector is two registers. Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace CANVAS_ISA {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
typedef I B;

#define CANVAS_SHORT_SUMS       // there is no four-products-into-32-bits: see add_short
constexpr int kByteOffset = 0;  // vpmaddubsw saturates above 127, so dot_byte works on `byte - 128` itself
constexpr int kGroupRows = 2;
constexpr int kFlatRows = 3;
constexpr bool kKeepHighNibble = false;

INL F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INL F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INL F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INL void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
INL F load_n(const float* p, int n) {
  if (n >= 16) return load(p);
  float t[16] = {0};
  if (n > 0) memcpy(t, p, 4 * (size_t)n);
  return load(t);
}
INL void store_n(float* p, F x, int n) {
  if (n >= 16) return store(p, x);
  float t[16];
  store(t, x);
  if (n > 0) memcpy(p, t, 4 * (size_t)n);
}
INL F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INL F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
INL F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INL F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
INL F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INL F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
INL F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
INL F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
INL F abs(F x) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)};
}
INL F round_even(F x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
INL __m256 power2(__m256 n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INL F scale2(F x, F n) { return {_mm256_mul_ps(x.a, power2(n.a)), _mm256_mul_ps(x.b, power2(n.b))}; }
INL float sum(F x) {
  __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
INL float peak(F x) {
  __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
INL F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INL I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
INL F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
INL void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, 0));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, 0));
}
INL __m256 bf16_8(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INL F load_bf16(const uint16_t* p) { return {bf16_8(p), bf16_8(p + 8)}; }
INL F load_u8(const uint8_t* p) {
  __m128i v = _mm_loadu_si128((const __m128i*)p);
  return to_float(I{_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))});
}
INL F load_s8(const int8_t* p) {
  __m128i v = _mm_loadu_si128((const __m128i*)p);
  return to_float(I{_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))});
}
INL void store_s16(int16_t* p, I x) {
  __m256i t = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
  _mm256_storeu_si256((__m256i*)p, t);
}
INL void store_s8(int8_t* p, I x) {
  __m256i t = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1)));
}
INL uint32_t greater(F x, F y) {
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)) |
         (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)) << 8;
}
// Lane i of x where bit i of `lanes` is set, else of y.
INL F choose(uint32_t lanes, F x, F y) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i low = _mm256_and_si256(_mm256_set1_epi32((int)lanes), bits);
  const __m256i high = _mm256_and_si256(_mm256_set1_epi32((int)(lanes >> 8)), bits);
  return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, bits))),
          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(_mm256_cmpeq_epi32(high, bits)))};
}
INL uint32_t equal(F x, F y) {
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) |
         (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)) << 8;
}

INL I zero_int() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INL I set1_int(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INL B load_bytes(const void* p) {
  return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)p + 1)};
}
INL void store_bytes(void* p, B x) {
  _mm256_store_si256((__m256i*)p, x.a);
  _mm256_store_si256((__m256i*)p + 1, x.b);
}
INL B set1_byte(uint8_t x) { return {_mm256_set1_epi8((char)x), _mm256_set1_epi8((char)x)}; }
INL B and_bytes(B x, B y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
INL B or_bytes(B x, B y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
INL F byte_of(B x, int c) {
  const __m256i low = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * c), low)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.b, 8 * c), low))};
}
INL B shift_right(B x, int n) {
  __m128i c = _mm_cvtsi32_si128(n);
  return {_mm256_srl_epi16(x.a, c), _mm256_srl_epi16(x.b, c)};
}
INL B shift_left(B x, int n) {
  __m128i c = _mm_cvtsi32_si128(n);
  return {_mm256_sll_epi16(x.a, c), _mm256_sll_epi16(x.b, c)};
}
INL B widen_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p + 1))};
}

// (32 a, 32 b) of each of 16 signed bytes, as int16 pairs.
INL __m256i pairs_of_8(const int8_t* a, const int8_t* b) {
  const __m256i low = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)a)), 5);
  const __m256i high = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)b)), 21);
  return _mm256_blend_epi16(low, high, 0xAA);
}
INL B pairs_times_32(const int8_t* a, const int8_t* b) {
  return {pairs_of_8(a, b), pairs_of_8(a + 8, b + 8)};
}

INL B broadcast4(const void* p) {
  __m256i r;
  asm volatile("vpbroadcastd %1,%0" : "=x"(r) : "m"(*(const int32_t*)p));
  return {r, r};
}
INL __m256i load_half_weight(const void* p) {
  __m256i r;
  asm volatile("vmovdqa %1,%0" : "=x"(r) : "m"(*(const __m256i*)p));
  return r;
}
INL B load_weight(const void* p) { return {load_half_weight(p), load_half_weight((const char*)p + 32)}; }
INL B load_widened(const int8_t* p) {
  return {_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)p)),
          _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)p + 1))};
}
// Pairs of products of unsigned bytes below 128 with signed ones, as int16. Sums of several that cannot
// overflow are kept as int16 and widened once: two instructions for 32 products instead of three.
INL I pairs_of(B w, B b) { return {_mm256_maddubs_epi16(w.a, b.a), _mm256_maddubs_epi16(w.b, b.b)}; }
// Inline assembly, or GCC 12 reorders the sums into trees whose leaves do not fit into sixteen registers.
INL void add_products(__m256i& sum, __m256i w, __m256i b) {
  __m256i pairs;
  asm volatile("vpmaddubsw %3,%2,%1\n\tvpaddw %1,%0,%0" : "+x"(sum), "=&x"(pairs) : "x"(w), "x"(b));
}
INL void add_short(I& sum, B w, B b) {
  add_products(sum.a, w.a, b.a);
  add_products(sum.b, w.b, b.b);
}
INL void add_pairs(I& acc, I sums) {
  const __m256i one = _mm256_set1_epi16(1);
  acc = {_mm256_add_epi32(acc.a, _mm256_madd_epi16(sums.a, one)),
         _mm256_add_epi32(acc.b, _mm256_madd_epi16(sums.b, one))};
}
// |w| * (b with w's sign): |w| <= 128 keeps the int16 pair sums from saturating (128 * 127 * 2 < 32768).
INL __m256i signed_quad(__m256i acc, __m256i w, __m256i b) {
  w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(b, w));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INL void dot_byte(I& acc, B w, B b) { acc = {signed_quad(acc.a, w.a, b.a), signed_quad(acc.b, w.b, b.b)}; }
INL void dot_pairs(I& acc, B w, B b) {
  acc = {_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.a, b.a)),
         _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.b, b.b))};
}
INL void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

INL void sums_of_16(const int8_t* q, int16_t* out) {
  const __m256i ones = _mm256_set1_epi8(1), wide = _mm256_set1_epi16(1);
  for (int g = 0; g < 16; g += 2) {
    __m256i v = _mm256_loadu_si256((const __m256i*)(q + 16 * g));
    __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, v), wide);
    s = _mm256_hadd_epi32(s, s);
    s = _mm256_hadd_epi32(s, s);
    out[g] = (int16_t)_mm256_extract_epi32(s, 0);
    out[g + 1] = (int16_t)_mm256_extract_epi32(s, 4);
  }
}

}  // namespace CANVAS_ISA

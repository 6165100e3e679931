// AVX-512 (F, BW, DQ, VL) with VNNI. Included by simd.h only.
#pragma once
#include <immintrin.h>

namespace CANVAS_ISA {

typedef __m512 F;
typedef __m512i I;
typedef __m512i B;

constexpr int kByteOffset = 128;        // vpdpbusd takes any unsigned byte: the caller subtracts 128 * sum
constexpr int kGroupRows = 6;           // rows per register block: 6 x 2 int32 + 6 x 2 fp32 accumulators
constexpr int kFlatRows = 12;           // 12 x 2 accumulators of one kind
constexpr bool kKeepHighNibble = true;  // unsigned bytes up to 240 are fine, so high nibbles need no shift

INL F set1(float x) { return _mm512_set1_ps(x); }
INL F zero() { return _mm512_setzero_ps(); }
INL F load(const float* p) { return _mm512_loadu_ps(p); }
INL void store(float* p, F x) { _mm512_storeu_ps(p, x); }
INL __mmask16 first_lanes(int n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
INL F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INL void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
INL F add(F a, F b) { return _mm512_add_ps(a, b); }
INL F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INL F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INL F div(F a, F b) { return _mm512_div_ps(a, b); }
INL F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INL F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
INL F max(F a, F b) { return _mm512_max_ps(a, b); }
INL F min(F a, F b) { return _mm512_min_ps(a, b); }
INL F abs(F a) { return _mm512_abs_ps(a); }
INL F round_even(F a) { return _mm512_roundscale_ps(a, 8); }
INL F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }
INL float sum(F a) { return _mm512_reduce_add_ps(a); }
INL float peak(F a) { return _mm512_reduce_max_ps(a); }
INL F to_float(I a) { return _mm512_cvtepi32_ps(a); }
INL I to_int(F a) { return _mm512_cvtps_epi32(a); }
INL F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INL void store_half(uint16_t* p, F a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, 0)); }
INL F load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INL F load_u8(const uint8_t* p) { return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))); }
INL F load_s8(const int8_t* p) { return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
INL void store_s8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }
INL void store_s16(int16_t* p, I a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a)); }
INL uint32_t greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
// Lane i of x where bit i of `lanes` is set, else of y.
INL F choose(uint32_t lanes, F x, F y) { return _mm512_mask_blend_ps((__mmask16)lanes, y, x); }
INL uint32_t equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

INL I zero_int() { return _mm512_setzero_si512(); }
INL I set1_int(int x) { return _mm512_set1_epi32(x); }
INL B load_bytes(const void* p) { return _mm512_load_si512(p); }
INL void store_bytes(void* p, B a) { _mm512_store_si512(p, a); }
INL B set1_byte(uint8_t x) { return _mm512_set1_epi8((char)x); }
INL B and_bytes(B a, B b) { return _mm512_and_si512(a, b); }
INL B or_bytes(B a, B b) { return _mm512_or_si512(a, b); }
INL F byte_of(B x, int c) {
  const __m512i low = _mm512_set1_epi32(255);
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x, (unsigned)(8 * c)), low));
}
INL B shift_right(B a, int n) { return _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)); }
INL B shift_left(B a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }
INL B widen_u8(const uint8_t* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p)); }

// (32 a, 32 b) of each of 16 signed bytes, as int16 pairs.
INL B pairs_times_32(const int8_t* a, const int8_t* b) {
  const __m512i low = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)a)), 5);
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)b)), 21);
  return _mm512_mask_blend_epi16(0xAAAAAAAA, low, high);
}

// Inline assembly: GCC 12 copies and spills the accumulators around the intrinsics, 15-20 % of the speed;
// volatile, or it still copies them at the end of a loop.
INL B broadcast4(const void* p) {
  B r;
  asm volatile("vpbroadcastd %1,%0" : "=v"(r) : "m"(*(const int32_t*)p));
  return r;
}
INL B load_weight(const void* p) {
  B r;
  asm volatile("vmovdqa64 %1,%0" : "=v"(r) : "m"(*(const __m512i*)p));
  return r;
}
// 32 signed bytes as int16.
INL B load_widened(const int8_t* p) {
  B r;
  asm volatile("vpmovsxbw %1,%0" : "=v"(r) : "m"(*(const __m256i*)p));
  return r;
}
INL void dot_low(I& acc, B w, B b) { asm volatile("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(w), "v"(b)); }
INL void dot_byte(I& acc, B w, B b) { asm volatile("vpdpbusd %2,%1,%0" : "+v"(acc) : "v"(w), "v"(b)); }
INL void dot_pairs(I& acc, B w, B b) { asm volatile("vpdpwssd %2,%1,%0" : "+v"(acc) : "v"(w), "v"(b)); }
INL void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

// Sums of 16 consecutive int8 of q[256] -> out[16].
INL void sums_of_16(const int8_t* q, int16_t* out) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i all = _mm512_setzero_si512();
  const __mmask16 pick[4] = {0x1111, 0x2222, 0x4444, 0x8888};
  for (int v = 0; v < 4; v++) {
    __m512i s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(q + 64 * v));
    s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, (_MM_PERM_ENUM)0xB1));
    s = _mm512_add_epi32(s, _mm512_shuffle_epi32(s, (_MM_PERM_ENUM)0x4E));
    all = _mm512_mask_mov_epi32(all, pick[v], s);  // lane 4 L + v holds the sum of group 4 v + L
  }
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  store_s16(out, _mm512_permutexvar_epi32(order, all));
}

}  // namespace CANVAS_ISA

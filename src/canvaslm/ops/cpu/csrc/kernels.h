// The kernels of one instruction set, as a table of functions.
#pragma once
#include "kv.h"
#include "layout.h"

// What is added to the processed logits, and which tokens are forbidden; all nullptr: nothing is changed.
struct RestrictionCall {
  const int* bias_span;  // [rows, 2]: a row's biases lie between these two, ascending by token; or nullptr
  const int* bias_token;
  const float* bias_value;  // -inf forbids
  const int* allowed;       // [rows]: a row of `bits`, or -1 for all tokens; or nullptr
  const uint32_t* bits;     // [.., bit_words]: bit t % 32 of word t / 32 allows token t
  int bit_words;            // n / 32, rounded up
};

struct HeadCall {
  Matrix head;
  const float* hidden;  // [rows, k]
  int rows;
  float softcap;             // 0: none
  const float* temperature;  // [rows]
  RestrictionCall restriction;
  const float* gumbel;    // [rows, sampling tiles]
  const double* uniform;  // [rows]
  uint16_t* store;        // fp16 [rows, n rounded up to 1024]: logit - tile's maximum; or nullptr
  float* tile_peak;       // [rows, sampling tiles]
  float* tile_mass;       // [rows, sampling tiles]: sum exp(logit - tile's maximum)
  int64_t* sampled;       // [rows] each from here on
  int64_t* argmax;
  float* entropy;
  float* logprob;  // of argmax
  float* lse;
  const int* top_k;       // [rows], 0 < k < n, or nullptr: sample, `lse` and tiles are of the k largest
  float* top_k_entropy;   // [rows] with top_k: of the k largest (`entropy`: of all)
  int named;              // how many of the most probable tokens to name, at most n
  int64_t* top_tokens;    // [rows, named], best first
  float* top_logprobs;    // of all tokens
  const int64_t* target;  // [rows] tokens to judge, -1: none; or nullptr
  float* target_logprob;  // [rows] of all tokens
  int64_t* target_rank;   // [rows]: 1 + the tokens whose logit is larger
};

struct SoftCall {
  const uint16_t* store;
  const float* tile_peak;
  const float* tile_mass;
  const float* lse;
  const float* entropy;
  const int* top_k;  // [rows], or nullptr: all tokens
  int rows, vocabulary, width;
  int format;  // GGUF rows of the embedding table
  const uint8_t* table;
  Matrix transposed;  // [width, vocabulary]; data == nullptr: sparse sums only
  float drop;         // largest mass a row may lose; 0: none
  float* out;         // [rows, width]
  int64_t* gathered;  // counters: table rows added one by one; rows that went through the dense product
  int64_t* dense_rows;
};

struct Kernels {
  const char* name;
  void (*matmul)(const Matrix&, const float* x, size_t x_stride, int rows, float* y, size_t y_stride);
  void (*matmul_back)(const Matrix&, const float* dy, size_t dy_stride, int rows, float* dx,
                      size_t dx_stride);
  void (*experts)(const Matrix& gate_up, const Matrix& down, int count, const float* x, int tokens,
                  const int64_t* index, const float* weights, int top, float* y);
  void (*requantize)(int format, const uint8_t* src, int n, int k, uint8_t* dst);
  void (*transpose)(int kind, int format, const uint8_t* src, int rows, int columns, uint8_t* dst);
  void (*gather)(int format, const uint8_t* src, int k, const int64_t* ids, int count, float* out);
  void (*head)(const HeadCall&);
  void (*soft)(const SoftCall&);
  void (*append)(const AppendCall&);
  void (*attention)(const AttentionCall&);
  void (*rms_norm)(const float* x, const float* weight, const float* residual, float scale, float eps,
                   int rows, int width, float* out);
  void (*join)(const float* a, const float* wa, const float* b, const float* wb, const float* w,
               const float* residual, float scale, float eps, int rows, int width, float* out);
  void (*norm_rope)(float* x, const float* weight, const float* cos, const float* sin, float eps, int tokens,
                    int heads, int width, int64_t stride);
  void (*route)(const float* x, const float* scale, const Matrix& proj, const float* per_expert, int tokens,
                int top, float eps, int64_t* index, float* weights);
  double (*ceiling)(int times);
};

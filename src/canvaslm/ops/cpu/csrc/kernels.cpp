// All kernels for one instruction set: compiled once per set, with CANVAS_ISA as the name of the namespace.
#include "kernels.h"

#include "simd.h"
//
#include "attention.h"
#include "backward.h"
#include "ceiling.h"
#include "experts.h"
#include "gemm.h"
#include "elementwise.h"
#include "head.h"
#include "requant.h"
#include "soft.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace CANVAS_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    TEXT(CANVAS_ISA), matmul,    matmul_back, experts, requantize, transpose, gather, head, soft,
    append,           attention, rms_norm,    join,    norm_rope,  route,     ceiling};

}  // namespace CANVAS_ISA

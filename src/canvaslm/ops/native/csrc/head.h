#pragma once
#include "gemm.h"
#include "kernels.h"
namespace CANVAS_ISA { static void head(const HeadCall&) {} }

/* Matrices of bfloat16. One column, or a few, as wherever there is AVX-512; many by
 * bf16_matrix.inc. */
#define V_ISA avx512bf16
#include "kernels/isa/x86_512.h"

#include "kernels/body/names.inc"

#include "kernels/body/float_matrix.inc"

#include "kernels/body/bf16_matrix.inc"

FLOAT_MATVEC(BF16)

/* Few columns, which the memory bus bounds: vectors of 256 bits, as two of them are loaded and used
 * in the time of one of 512 on Zen 4, and cross fewer cache lines. */
#define V_ISA         avx512vnni
#define V_GRIDS_APART /* grid_matvec.c has their kernels, and reads `strided` */
#include "kernels/isa/x86_256.h"

#include "kernels/body/names.inc"

#include "kernels/body/types.inc"

#include "kernels/body/grid_types.inc"

#include "kernels/body/octet.inc"

#include "kernels/body/matvec.inc"
#include "kernels/body/quantize.inc"

/* All but few columns: matvec.c and grid_matvec.c. */
#define V_ISA avx512vnni
#include "kernels/isa/x86_512.h"

#include "kernels/body/names.inc"

#include "kernels/body/exp.inc"
#include "kernels/body/types.inc"

#include "kernels/body/grid_types.inc"

#include "kernels/body/attend.inc"
#include "kernels/body/chunk.inc"

#include "kernels/body/delta.inc"
#include "kernels/body/float_matrix.inc"
#include "kernels/body/float_types.inc"
#include "kernels/body/panel.inc"
#include "kernels/body/roof.inc"
#include "kernels/body/scan.inc"
#include "kernels/body/vector.inc"

#define V_ISA neon
#include "kernels/isa/neon.h"

#include "kernels/body/names.inc"

#include "kernels/body/exp.inc"
#include "kernels/body/types.inc"

#include "kernels/body/grid_types.inc"

#include "kernels/body/attend.inc"
#include "kernels/body/chunk.inc"

#include "kernels/body/delta.inc"
#include "kernels/body/float_matrix.inc"
#include "kernels/body/float_types.inc"
#include "kernels/body/octet.inc"

#include "kernels/body/matvec.inc"
#include "kernels/body/panel.inc"
#include "kernels/body/quantize.inc"
#include "kernels/body/roof.inc"
#include "kernels/body/scan.inc"
#include "kernels/body/vector.inc"

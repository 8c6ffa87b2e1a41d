/* What the matrix products of bytes serve: those of quantised types, and the roof of integers. */
#define V_ISA neon_i8mm
#include "kernels/isa/neon.h"

#include "kernels/body/names.inc"

#include "kernels/body/types.inc"

#include "kernels/body/grid_types.inc"

#include "kernels/body/octet.inc"

#include "kernels/body/matvec.inc"
#include "kernels/body/panel.inc"
#include "kernels/body/roof.inc"

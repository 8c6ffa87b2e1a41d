#include "kernels/isa/avx2/vec.h"

#include "kernels/body/all.inc"

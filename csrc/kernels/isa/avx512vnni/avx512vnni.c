#include "kernels/isa/avx512vnni/vec.h"

#include "kernels/body/all.inc"

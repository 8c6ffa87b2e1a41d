/* The scalar truth of every kernel: plain C, sums in double, speed no matter. Faster kernels are
 * tested against these. */
#ifndef MMRT_KERNELS_REF_H
#define MMRT_KERNELS_REF_H

#include "kernels/kernels.h"

#define MMRT_FORMAT(id, name, elements, bytes)                                                     \
    mmrt_matvec_fn mmrt_matvec_##name##_ref;                                                       \
    mmrt_matmul_fn mmrt_matmul_##name##_ref;
#define MMRT_FORMAT_SIZE_ONLY(id, name, elements, bytes)
#include "quant/formats.def"

mmrt_quantize_fn mmrt_quantize_ref;
mmrt_rms_norm_fn mmrt_rms_norm_ref;
mmrt_centre_fn mmrt_centre_ref;
mmrt_add_fn mmrt_add_ref;
mmrt_activate_fn mmrt_activate_ref;
mmrt_glu_fn mmrt_glu_ref;
mmrt_largest_fn mmrt_largest_ref;
mmrt_exponentials_fn mmrt_exponentials_ref;
mmrt_attend_fn mmrt_attend_ref;
mmrt_attend_merge_fn mmrt_attend_merge_ref;
mmrt_delta_fn mmrt_delta_ref;
mmrt_scan_fn mmrt_scan_ref;
mmrt_roof_fn mmrt_roof_ref;

#endif

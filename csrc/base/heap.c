#include "mmrt.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

void mmrt_trim_heap(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

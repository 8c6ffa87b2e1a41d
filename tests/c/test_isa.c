/* The choice of an instruction set. With an argument: that it is the set of that name. */
#define _GNU_SOURCE
#include "mmrt.h"
#include "check.h"

#include <stdlib.h>

int main(int argc, char **argv) {
    mmrt_error error;
    mmrt_isa chosen = MMRT_ISA_COUNT;
    unsetenv("MMRT_ISA");
    CHECK(mmrt_isa_choose(&chosen, &error) == MMRT_OK);
    CHECK(chosen < MMRT_ISA_COUNT && !mmrt_isa_missing(chosen));
    if (argc > 1 && strcmp(mmrt_isa_name(chosen), argv[1]) != 0) {
        fprintf(stderr, "chosen: %s, expected: %s\n", mmrt_isa_name(chosen), argv[1]);
        return 1;
    }
    CHECK(!mmrt_isa_missing(MMRT_ISA_REF));
    for (int isa = 0; isa < MMRT_ISA_COUNT; isa++) {
        setenv("MMRT_ISA", mmrt_isa_name((mmrt_isa)isa), 1);
        if (mmrt_isa_missing((mmrt_isa)isa)) {
            CHECK_STATUS(mmrt_isa_choose(&chosen, &error), MMRT_UNSUPPORTED, &error,
                         mmrt_isa_name((mmrt_isa)isa));
        } else {
            CHECK_STATUS(mmrt_isa_choose(&chosen, &error), MMRT_OK, &error, "");
            CHECK(chosen == (mmrt_isa)isa);
        }
    }
    setenv("MMRT_ISA", "mmx", 1);
    CHECK_STATUS(mmrt_isa_choose(&chosen, &error), MMRT_ARGUMENT, &error, "mmx");
    return check_result();
}

#define _GNU_SOURCE
#include "mmrt.h"

#include "base/status.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Bits of CPUID leaves, and of XCR0: what the system saves on a context switch. A processor may
 * have AVX-512 while the system does not save its registers: then it must not be used. */
enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    LEAF7_EBX_AVX512F = 1 << 16,
    LEAF7_EBX_AVX512DQ = 1 << 17,
    LEAF7_EBX_AVX512BW = 1 << 30,
    LEAF7_ECX_AVX512VNNI = 1 << 11,
    LEAF7_1_EAX_AVX512BF16 = 1 << 5, /* of subleaf 1 */
    XCR0_AVX = 0x06,                 /* XMM, YMM */
    XCR0_AVX512 = 0xe6,              /* and opmask, both halves of ZMM */
};
#define LEAF7_EBX_AVX512VL (1u << 31)

static bool has(uint32_t reg, uint32_t bits) {
    return (reg & bits) == bits;
}

static bool processor_has(mmrt_isa isa) {
    uint32_t a, b, c, d, leaf1_c;
    if (!__get_cpuid(1, &a, &b, &leaf1_c, &d) || !has(leaf1_c, LEAF1_ECX_OSXSAVE))
        return false;
    uint32_t xcr0, high;
    /* volatile: it must not be moved before the check, where it would be an invalid opcode */
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    bool avx2 = has(leaf1_c, LEAF1_ECX_FMA | LEAF1_ECX_F16C) && has(b, LEAF7_EBX_AVX2) &&
                has(xcr0, XCR0_AVX);
    bool vnni =
        avx2 && has(xcr0, XCR0_AVX512) && has(c, LEAF7_ECX_AVX512VNNI) &&
        has(b, LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512DQ | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL);
    switch (isa) {
    case MMRT_ISA_AVX2: return avx2;
    case MMRT_ISA_AVX512VNNI: return vnni;
    case MMRT_ISA_AVX512BF16:
        return vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, LEAF7_1_EAX_AVX512BF16);
    default: return false;
    }
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Bits of what the system says that programs may use; older headers lack names for them. */
enum {
    HWCAP_DOT_PRODUCTS = 1 << 20,   /* of AT_HWCAP: asimddp */
    HWCAP2_INT8_MATRICES = 1 << 13, /* of AT_HWCAP2: i8mm */
};

static bool processor_has(mmrt_isa isa) {
    const bool dot_products = getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCTS;
    switch (isa) {
    case MMRT_ISA_NEON: return dot_products;
    case MMRT_ISA_NEON_I8MM: return dot_products && getauxval(AT_HWCAP2) & HWCAP2_INT8_MATRICES;
    default: return false;
    }
}

#else
static bool processor_has(mmrt_isa isa) {
    (void)isa;
    return false;
}
#endif

static bool in_build(mmrt_isa isa) {
    switch (isa) {
#ifdef MMRT_BUILD_AVX2
    case MMRT_ISA_AVX2: return true;
#endif
#ifdef MMRT_BUILD_AVX512VNNI
    case MMRT_ISA_AVX512VNNI: return true;
#endif
#ifdef MMRT_BUILD_AVX512BF16
    case MMRT_ISA_AVX512BF16: return true;
#endif
#ifdef MMRT_BUILD_NEON
    case MMRT_ISA_NEON: return true;
#endif
#ifdef MMRT_BUILD_NEON_I8MM
    case MMRT_ISA_NEON_I8MM: return true;
#endif
    default: return isa == MMRT_ISA_REF;
    }
}

const char *mmrt_isa_name(mmrt_isa isa) {
    static const char *const names[] = {
#define MMRT_ISA(id, name) name,
#include "base/isa.def"
#undef MMRT_ISA
    };
    return names[isa];
}

static bool offered[MMRT_ISA_COUNT];
static pthread_once_t offered_once = PTHREAD_ONCE_INIT;

/* Asked once: a virtual machine takes 10 microseconds or more for each CPUID. */
static void ask_processor(void) {
    for (mmrt_isa isa = 0; isa < MMRT_ISA_COUNT; isa++)
        offered[isa] = isa == MMRT_ISA_REF || processor_has(isa);
}

const char *mmrt_isa_missing(mmrt_isa isa) {
    if (!in_build(isa))
        return "not in this build";
    pthread_once(&offered_once, ask_processor);
    if (!offered[isa])
        return "not offered by this processor or system";
    return NULL;
}

mmrt_status mmrt_isa_choose(mmrt_isa *out, mmrt_error *err) {
    const char *forced = getenv("MMRT_ISA");
    for (int isa = MMRT_ISA_COUNT - 1; isa >= 0; isa--) {
        const char *missing = mmrt_isa_missing(isa);
        if (forced && *forced) {
            if (strcmp(forced, mmrt_isa_name(isa)) != 0)
                continue;
            if (missing)
                return mmrt_fail(err, MMRT_UNSUPPORTED, "MMRT_ISA=%s: this instruction set is %s",
                                 forced, missing);
        }
        if (!missing) {
            *out = isa;
            return MMRT_OK;
        }
    }
    return mmrt_fail(err, MMRT_ARGUMENT, "MMRT_ISA=%s: no such instruction set (ref, avx2, ...)",
                     forced);
}

mmrt_set mmrt_cpu_affinity(void) {
    mmrt_set set = {{0}};
    if (sched_getaffinity(0, sizeof set, (cpu_set_t *)&set) != 0)
        set = (mmrt_set){{0}};
    return set;
}

int mmrt_cpu_count(void) {
    mmrt_set set = mmrt_cpu_affinity();
    int cpus = mmrt_set_count(&set);
    double quota = mmrt_cgroup_cpus("/proc/self/cgroup", "/proc/self/mountinfo");
    if (quota > 0 && quota < cpus)
        cpus = (int)(quota + 0.5);
    return cpus > 0 ? cpus : 1;
}

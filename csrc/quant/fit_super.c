#include "fit_super.h"
#include "fit.h"
#include "lanes.h"

#include <math.h>

struct problem {
    const struct mmrt_super_type *type;
    const float *x;
    int n_subs;
    /* The best line of each sub-block on its own. Where its q leave the lowest or highest level
     * unused there are more of them, alike but for q that are all one larger or smaller. */
    struct mmrt_line wishes[16][3];
    int n_wishes[16];
};

static int within(float value, int lo, int hi) {
    return value <= (float)lo ? lo : value >= (float)hi ? hi : (int)lrintf(value);
}

static struct mmrt_line line_of(const struct mmrt_super *fit, int s, int m) {
    return (struct mmrt_line){fit->d * (float)s, fit->dmin * (float)m};
}

static float error_of(const float *x, const struct mmrt_super_type *type, struct mmrt_line line) {
    lanes sum = all(0);
    for (int i = 0; i < type->size; i += LANES) {
        const lanes v = load(x + i);
        const lanes error = v + line.min - line.scale * on_line(v, line, type->q_lo, type->q_hi);
        sum += error * error;
    }
    return total(sum);
}

static void make_wishes(struct problem *p, int b) {
    const struct mmrt_super_type *type = p->type;
    const float *x = p->x + b * type->size;
    struct mmrt_line *wishes = p->wishes[b];
    p->n_wishes[b] = 1;
    if (!type->m_hi) {
        wishes[0] = (struct mmrt_line){mmrt_fit_scale(x, type->size, type->q_lo, type->q_hi), 0};
        return;
    }
    const struct mmrt_line line = mmrt_fit_line(x, type->size, type->q_hi, true);
    int8_t q[32], low = type->q_hi, high = 0;
    mmrt_round_line(x, type->size, line, 0, type->q_hi, q);
    for (int i = 0; i < type->size; i++) {
        low = q[i] < low ? q[i] : low;
        high = q[i] > high ? q[i] : high;
    }
    wishes[0] = line;
    if (high < type->q_hi)
        wishes[p->n_wishes[b]++] = (struct mmrt_line){line.scale, line.min + line.scale};
    if (low > 0 && line.min >= line.scale)
        wishes[p->n_wishes[b]++] = (struct mmrt_line){line.scale, line.min - line.scale};
}

/* For a sub-block: the best s and m for the block's d and dmin, at most one from what rounding a
 * wish would give. Returns the squared error. */
static float choose_levels(const struct problem *p, struct mmrt_super *fit, int b) {
    static const float offsets[] = {0, -1, 1};
    const struct mmrt_super_type *type = p->type;
    const float *x = p->x + b * type->size;
    float least = INFINITY;
    for (int w = 0; w < p->n_wishes[b]; w++) {
        const struct mmrt_line wish = p->wishes[b][w];
        const float s_wish = fit->d != 0 ? wish.scale / fit->d : 0;
        const float m_wish = fit->dmin != 0 ? wish.min / fit->dmin : 0;
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < (type->m_hi ? 3 : 1); j++) {
                const int s = within(s_wish + offsets[i], type->s_lo, type->s_hi);
                const int m = within(m_wish + offsets[j], 0, type->m_hi);
                const float found = error_of(x, type, line_of(fit, s, m));
                if (found < least) {
                    least = found;
                    fit->s[b] = s;
                    fit->m[b] = m;
                }
            }
    }
    return least;
}

/* For given d and dmin: the best s and m of each sub-block, and its q. Returns the squared error.
 */
static float choose(const struct problem *p, struct mmrt_super *fit) {
    const struct mmrt_super_type *type = p->type;
    float error = 0;
    for (int b = 0; b < p->n_subs; b++) {
        const int first = b * type->size;
        error += choose_levels(p, fit, b);
        mmrt_round_line(p->x + first, type->size, line_of(fit, fit->s[b], fit->m[b]), type->q_lo,
                        type->q_hi, fit->q + first);
    }
    return error;
}

/* For given s, m and q: the best d and dmin, a regression of x on s * q and -m. */
static void solve_units(const struct problem *p, struct mmrt_super *fit) {
    const int size = p->type->size;
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (int b = 0; b < p->n_subs; b++) {
        float q1 = 0, qq = 0, x1 = 0, xq = 0;
        for (int i = b * size; i < (b + 1) * size; i++) {
            const float q = fit->q[i];
            q1 += q;
            qq += q * q;
            x1 += p->x[i];
            xq += p->x[i] * q;
        }
        const double s = fit->s[b], m = fit->m[b];
        aa += s * s * (double)qq;
        ab -= s * m * (double)q1;
        bb += m * m * size;
        ax += s * (double)xq;
        bx -= m * (double)x1;
    }
    const double determinant = aa * bb - ab * ab;
    if (determinant > 1e-9 * aa * bb) {
        fit->d = (float)((ax * bb - bx * ab) / determinant);
        fit->dmin = (float)((bx * aa - ax * ab) / determinant);
    } else if (aa > 0) {
        fit->d = (float)(ax / aa);
    }
}

/* Units such that the largest wishes are just within reach, and then the best levels for the units,
 * the best units for the levels, as long as it helps. */
void mmrt_fit_super(const float *x, const struct mmrt_super_type *type, struct mmrt_super *best) {
    enum { ROUNDS = 3 };
    struct problem p = {.type = type, .x = x, .n_subs = 256 / type->size};
    float scale = 0, min = 0; /* the largest */
    for (int b = 0; b < p.n_subs; b++) {
        make_wishes(&p, b);
        const struct mmrt_line *first = p.wishes[b], *last = first + p.n_wishes[b] - 1;
        const float low = fminf(first->min, last->min); /* for units as small as can be */
        scale = fabsf(first->scale) > fabsf(scale) ? first->scale : scale;
        min = low > min ? low : min;
    }
    struct mmrt_super fit = {.d = scale / (float)(type->s_lo ? type->s_lo : type->s_hi),
                             .dmin = type->m_hi ? min / (float)type->m_hi : 0};
    float least = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        fit.d = mmrt_rounded_f16(fit.d);
        fit.dmin = mmrt_rounded_f16(fit.dmin);
        const float error = choose(&p, &fit);
        if (!(error < least))
            break;
        least = error;
        *best = fit;
        solve_units(&p, &fit);
    }
}

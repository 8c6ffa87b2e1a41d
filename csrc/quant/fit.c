#include "fit.h"
#include "f16.h"
#include "lanes.h"

#include <math.h>

enum { REFINEMENTS = 4 };

float mmrt_rounded_f16(float value) {
    return mmrt_f16_to_f32(mmrt_f32_to_f16(value));
}

/* ---- one scale ---- */

/* Sums of x * q and q * q. The best scale for these q is xq / qq, and lowers the squared error by
 * xq^2 / qq. */
struct products {
    float xq, qq;
};

static bool better(struct products a, struct products b) {
    return a.xq * a.xq * b.qq > b.xq * b.xq * a.qq;
}

static struct products products_at(const float *x, int n, float inverse, int lo, int hi) {
    lanes xq = all(0), qq = all(0);
    for (int i = 0; i < n; i += LANES) {
        const lanes v = load(x + i), q = rounded(v * inverse, lo, hi);
        xq += v * q;
        qq += q * q;
    }
    return (struct products){total(xq), total(qq)};
}

/* Too small to be told from 0 in binary16, and to be divided by without care. */
static bool is_nothing(float size) {
    return size < 1e-15f;
}

static float largest_of(const float *x, int n) {
    float largest = 0;
    for (int i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

/* Tries scales that put the largest value near the end of the range or beyond it, then improves the
 * best of them: the best scale for its q, the best q for that scale, and so on. */
float mmrt_fit_scale(const float *x, int n, int lo, int hi) {
    const float largest = largest_of(x, n);
    if (is_nothing(largest))
        return 0;
    const float last = (float)-lo + 0.6f, first = fmaxf(last - 6, 0.55f * last), step = 0.25f;
    struct products best = {0, 1};
    for (float level = first; level <= last; level += step)
        for (int sign = lo == -hi ? 1 : -1; sign <= 1; sign += 2) {
            const struct products at = products_at(x, n, (float)sign * level / largest, lo, hi);
            if (better(at, best))
                best = at;
        }
    for (int i = 0; i < REFINEMENTS; i++) {
        const struct products next = products_at(x, n, best.qq / best.xq, lo, hi);
        if (!better(next, best))
            break;
        best = next;
    }
    return best.xq / best.qq;
}

/* ---- a scale and a minimum ---- */

struct line_fit {
    struct mmrt_line line;
    float gain; /* by how much the line lowers the squared error */
};

/* The best line for the q that `line` gives: a linear regression of x on q. sum: of x. */
static struct line_fit regressed(const float *x, int n, struct mmrt_line line, int hi, bool only_up,
                                 float sum) {
    lanes in_q = all(0), in_qq = all(0), in_xq = all(0);
    const float inverse = 1 / line.scale;
    for (int i = 0; i < n; i += LANES) {
        const lanes v = load(x + i), q = rounded((v + line.min) * inverse, 0, hi);
        in_q += q;
        in_qq += q * q;
        in_xq += v * q;
    }
    const float q = total(in_q), qq = total(in_qq), xq = total(in_xq);
    const float determinant = (float)n * qq - q * q;
    if (determinant > 0) {
        const float scale = ((float)n * xq - q * sum) / determinant;
        const float min = (q * xq - qq * sum) / determinant;
        if (scale > 0 && (min >= 0 || !only_up))
            return (struct line_fit){{scale, min}, scale * xq - min * sum};
    }
    if (only_up && xq > 0)
        return (struct line_fit){{xq / qq, 0}, xq * xq / qq};
    return (struct line_fit){{0, 0}, 0};
}

/* Tries lines that begin and end a part of a quantum inside or outside of the range, then improves
 * the best as above. */
struct mmrt_line mmrt_fit_line(const float *given, int n, int hi, bool only_up) {
    static const float insets[] = {-0.6f, 0, 0.6f}; /* in quanta */
    float low = given[0], high = given[0], x[32], sum = 0;
    for (int i = 1; i < n; i++) {
        low = given[i] < low ? given[i] : low;
        high = given[i] > high ? given[i] : high;
    }
    if (only_up && low > 0)
        low = 0;
    if (is_nothing(high - low))
        return (struct mmrt_line){0, -low};
    const float base = only_up ? 0 : low; /* sums of small numbers round less */
    for (int i = 0; i < n; i++) {
        x[i] = given[i] - base;
        sum += x[i];
    }
    const float quantum = (high - low) / (float)hi;
    struct line_fit best = {{0, 0}, 0};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            const struct mmrt_line line = {quantum * (1 - (insets[i] + insets[j]) / (float)hi),
                                           base - low - quantum * insets[i]};
            const struct line_fit found = regressed(x, n, line, hi, only_up, sum);
            if (found.gain > best.gain)
                best = found;
        }
    for (int i = 0; i < REFINEMENTS && best.line.scale > 0; i++) {
        const struct line_fit next = regressed(x, n, best.line, hi, only_up, sum);
        if (!(next.gain > best.gain))
            break;
        best = next;
    }
    return (struct mmrt_line){best.line.scale, best.line.min - base};
}

void mmrt_round_line(const float *x, int n, struct mmrt_line line, int lo, int hi, int8_t *q) {
    for (int i = 0; i < n; i += LANES) {
        const lanes level = on_line(load(x + i), line, lo, hi);
        for (int j = 0; j < LANES; j++)
            q[i + j] = (int8_t)level[j];
    }
}

/* ---- given values ---- */

/* The value that is nearest to v. */
static lanes nearest(lanes v, const int8_t values[16]) {
    lanes value = all(values[0]);
    for (int i = 1; i < 16; i++) {
        const float step = (float)(values[i] - values[i - 1]);
        const float middle = 0.5f * (float)(values[i] + values[i - 1]);
        value += select(v > middle, all(step), all(0));
    }
    return value;
}

static struct products products_of(const float *x, int n, float inverse, const int8_t values[16]) {
    lanes xq = all(0), qq = all(0);
    for (int i = 0; i < n; i += LANES) {
        const lanes v = load(x + i), q = nearest(v * inverse, values);
        xq += v * q;
        qq += q * q;
    }
    return (struct products){total(xq), total(qq)};
}

float mmrt_fit_values(const float *x, int n, const int8_t values[16]) {
    const float largest = largest_of(x, n), end = (float)-values[0];
    if (is_nothing(largest))
        return 0;
    struct products best = {0, 1};
    for (float level = 0.65f * end; level <= 1.07f * end; level += 0.05f * end)
        for (int sign = -1; sign <= 1; sign += 2) {
            const struct products at = products_of(x, n, (float)sign * level / largest, values);
            if (better(at, best))
                best = at;
        }
    for (int i = 0; i < REFINEMENTS; i++) {
        const struct products next = products_of(x, n, best.qq / best.xq, values);
        if (!better(next, best))
            break;
        best = next;
    }
    return best.xq / best.qq;
}

void mmrt_round_values(const float *x, int n, float scale, const int8_t values[16], int8_t *q) {
    const float inverse = scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < n; i++) {
        q[i] = 0;
        while (q[i] < 15 && x[i] * inverse > 0.5f * (float)(values[(int)q[i]] + values[q[i] + 1]))
            q[i]++;
    }
}

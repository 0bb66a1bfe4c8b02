/* The CPU kernels: each row (data point) is read from memory once, every sum is float64; and linear
 * assignment.
 *
 * Plain C with the vector types that GCC and Clang share; compiled on first use and called through
 * ctypes (see native.py), which releases Python's lock meanwhile. A row's numbers depend on that
 * row alone and are added up in one fixed order: the same on any number of threads.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

/* ---- inner products -------------------------------------------------------------------------- */

#define LANES 8
typedef double V __attribute__((vector_size(LANES * sizeof(double))));
typedef float F32 __attribute__((vector_size(LANES * sizeof(float))));
typedef double F64 __attribute__((vector_size(LANES * sizeof(double))));

static double total(V v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* TILE columns of a and b stay in the cache while those of all K rows of f pass. Processors fetch
 * ahead within a page; asking for the next one (AHEAD) is worth a half for many f. */
#define TILE 8192
#define AHEAD 1024

#define DEFINE(T, VT, UINT, SUFFIX)                                                                \
    static inline V load_##SUFFIX(const T *p) {                                                    \
        VT v;                                                                                      \
        memcpy(&v, p, sizeof v);                                                                   \
        return __builtin_convertvector(v, V);                                                      \
    }                                                                                              \
                                                                                                   \
    /* f: k pointers to (n, d); a, b: (n, d); out (k, n, 3): <f,a>, <f,b>, <f,f>. */               \
    API void llfc_dots_##SUFFIX(const T *const *f, int64_t k, const T *a, const T *b, int64_t n,   \
                                int64_t d, int64_t first, int64_t last, double *out) {             \
        for (int64_t i = first; i < last; i++) {                                                   \
            for (int64_t m = 0; m < k; m++)                                                        \
                memset(out + (m * n + i) * 3, 0, 3 * sizeof(double));                              \
            for (int64_t start = 0; start < d; start += TILE) {                                    \
                int64_t width = d - start < TILE ? d - start : TILE;                               \
                int64_t whole = width - width % LANES;                                             \
                const T *ra = a + i * d + start, *rb = b + i * d + start;                          \
                for (int64_t m = 0; m < k; m++) {                                                  \
                    const T *rf = f[m] + i * d + start;                                            \
                    V fa = {0}, fb = {0}, ff = {0}, ga = {0}, gb = {0}, gg = {0};                  \
                    int64_t j = 0;                                                                 \
                    for (; j + 2 * LANES <= whole; j += 2 * LANES) {                               \
                        __builtin_prefetch(rf + j + AHEAD);                                        \
                        V x = load_##SUFFIX(rf + j), y = load_##SUFFIX(rf + j + LANES);            \
                        V a0 = load_##SUFFIX(ra + j);                                              \
                        V a1 = load_##SUFFIX(ra + j + LANES);                                      \
                        V b0 = load_##SUFFIX(rb + j);                                              \
                        V b1 = load_##SUFFIX(rb + j + LANES);                                      \
                        fa += x * a0;                                                              \
                        fb += x * b0;                                                              \
                        ff += x * x;                                                               \
                        ga += y * a1;                                                              \
                        gb += y * b1;                                                              \
                        gg += y * y;                                                               \
                    }                                                                              \
                    for (; j < whole; j += LANES) {                                                \
                        V x = load_##SUFFIX(rf + j);                                               \
                        fa += x * load_##SUFFIX(ra + j);                                           \
                        fb += x * load_##SUFFIX(rb + j);                                           \
                        ff += x * x;                                                               \
                    }                                                                              \
                    double sums[3] = {total(fa + ga), total(fb + gb), total(ff + gg)};             \
                    for (; j < width; j++) {                                                       \
                        double x = rf[j];                                                          \
                        sums[0] += x * ra[j];                                                      \
                        sums[1] += x * rb[j];                                                      \
                        sums[2] += x * x;                                                          \
                    }                                                                              \
                    double *to = out + (m * n + i) * 3;                                            \
                    for (int s = 0; s < 3; s++) to[s] += sums[s];                                  \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* x, y: (n, d); out (n, 4): <x,x>, <x,y>, <y,y>, |x-y|^2. */                                  \
    API void pair_sums_##SUFFIX(const T *x, const T *y, int64_t d, int64_t first, int64_t last,    \
                                double *out) {                                                     \
        for (int64_t i = first; i < last; i++) {                                                   \
            double sums[4] = {0};                                                                  \
            for (int64_t start = 0; start < d; start += TILE) {                                    \
                int64_t width = d - start < TILE ? d - start : TILE, j = 0;                        \
                const T *rx = x + i * d + start, *ry = y + i * d + start;                          \
                V xx = {0}, xy = {0}, yy = {0}, dd = {0};                                          \
                for (; j + LANES <= width; j += LANES) {                                           \
                    V u = load_##SUFFIX(rx + j), v = load_##SUFFIX(ry + j), w = u - v;             \
                    xx += u * u;                                                                   \
                    xy += u * v;                                                                   \
                    yy += v * v;                                                                   \
                    dd += w * w;                                                                   \
                }                                                                                  \
                double part[4] = {total(xx), total(xy), total(yy), total(dd)};                     \
                for (; j < width; j++) {                                                           \
                    double u = rx[j], v = ry[j], w = u - v;                                        \
                    part[0] += u * u;                                                              \
                    part[1] += u * v;                                                              \
                    part[2] += v * v;                                                              \
                    part[3] += w * w;                                                              \
                }                                                                                  \
                for (int s = 0; s < 4; s++) sums[s] += part[s];                                    \
            }                                                                                      \
            memcpy(out + 4 * i, sums, sizeof sums);                                                \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static int rescaled_##SUFFIX(const T *from, int64_t d, double *to, double *scale) {            \
        /* Bit patterns below the sign are ordered as the moduli are, infinity and NaN on top. */  \
        UINT largest = 0;                                                                          \
        for (int64_t j = 0; j < d; j++) {                                                          \
            UINT bits;                                                                             \
            memcpy(&bits, from + j, sizeof bits);                                                  \
            bits &= (UINT)-1 >> 1;                                                                 \
            largest = bits > largest ? bits : largest;                                             \
        }                                                                                          \
        T top;                                                                                     \
        memcpy(&top, &largest, sizeof top);                                                        \
        if (!(top - top == 0)) return 0;                                                           \
        int exponent = 0;                                                                          \
        frexp((double)top, &exponent);                                                             \
        *scale = top > 0 ? ldexp(1.0, exponent - 1) : 1.0;                                         \
        /* In two steps, for 1 / 2^-1074 is not finite. */                                         \
        double half = top > 0 ? ldexp(1.0, -((exponent - 1) / 2)) : 1.0;                           \
        double rest = top > 0 ? ldexp(1.0, (exponent - 1) / 2 - (exponent - 1)) : 1.0;             \
        for (int64_t j = 0; j < d; j++) {                                                          \
            double v = (double)from[j] * half * rest;                                              \
            to[j] = v > 1e-60 || v < -1e-60 ? v : 0.0;                                             \
        }                                                                                          \
        return 1;                                                                                  \
    }

/* ---- Dist_sigma: notation and proofs as in llfc_core/metrics/weak_additivity.py -------------- */

#define TOLERANCE 1e-13
static const double ZERO_NORM = 64 * 2.220446049250313e-16 * 2.220446049250313e-16;

typedef struct { double c0, c1, c2; } Quadratic; /* Bernstein coefficients on a segment */

static inline double ratio(double over, double under) { return over > 0 ? over / under : 0; }

static inline double squared(double over, double q, double p) { return ratio(over * over, q * p); }

static inline Quadratic blossom(double p0, double q0, double p1, double q1, double pp, double pq,
                                double qq) {
    Quadratic f = {p0 * p0 * pp + 2 * p0 * q0 * pq + q0 * q0 * qq,
                   p0 * p1 * pp + (p0 * q1 + p1 * q0) * pq + q0 * q1 * qq,
                   p1 * p1 * pp + 2 * p1 * q1 * pq + q1 * q1 * qq};
    return f;
}

static inline double inner_bound(Quadratic n, Quadratic q, Quadratic p) {
    double bound = ratio(2 * n.c0 * n.c1, q.c0 * p.c1 + q.c1 * p.c0);
    double next = ratio(2 * (n.c0 * n.c2 + 2 * n.c1 * n.c1),
                        q.c0 * p.c2 + 4 * q.c1 * p.c1 + q.c2 * p.c0);
    bound = next > bound ? next : bound;
    next = ratio(2 * n.c1 * n.c2, q.c1 * p.c2 + q.c2 * p.c1);
    return next > bound ? next : bound;
}

static inline void halve(Quadratic f, Quadratic *left, Quadratic *right) {
    double l = (f.c0 + f.c1) / 2, r = (f.c1 + f.c2) / 2, m = (l + r) / 2;
    *left = (Quadratic){f.c0, l, m};
    *right = (Quadratic){m, r, f.c2};
}

typedef struct { Quadratic n, q, p; double p0, q0, p1, q1; } Segment;

typedef struct { double best, p, q; } Top; /* the largest F^2 so far and the weights p : q of it */

/* Branch and bound on one segment, the left half first. */
static void search(Segment from, Top *top) {
    enum { DEEP = 128 };
    Segment stack[DEEP];
    int size = 0;
    stack[size++] = from;
    while (size) {
        Segment s = stack[--size], l, r;
        if (!(inner_bound(s.n, s.q, s.p) > (1 + 2 * TOLERANCE) * top->best)) continue;
        halve(s.n, &l.n, &r.n);
        halve(s.q, &l.q, &r.q);
        halve(s.p, &l.p, &r.p);
        l.p0 = s.p0, l.q0 = s.q0, r.p1 = s.p1, r.q1 = s.q1;
        l.p1 = r.p0 = (s.p0 + s.p1) / 2, l.q1 = r.q0 = (s.q0 + s.q1) / 2;
        double value = squared(l.n.c2, l.q.c2, l.p.c2);
        if (value > top->best) *top = (Top){value, l.p1, l.q1};
        if (size + 2 > DEEP) continue; /* 2^-126 of a segment: nothing is left to find */
        stack[size++] = r;
        stack[size++] = l;
    }
}

typedef struct { uint64_t key; uint32_t at; } Item; /* the bits of r > 0 sort as r does */

/* Sorted by key; the other array is scratch. Returns whichever holds the result. */
static Item *sorted(Item *items, Item *other, int64_t m) {
    if (m <= 40) {
        for (int64_t i = 1; i < m; i++) {
            Item it = items[i];
            int64_t j = i;
            for (; j > 0 && items[j - 1].key > it.key; j--) items[j] = items[j - 1];
            items[j] = it;
        }
        return items;
    }
    int64_t counts[8][256];
    memset(counts, 0, sizeof counts);
    for (int64_t i = 0; i < m; i++)
        for (int digit = 0; digit < 8; digit++) counts[digit][items[i].key >> 8 * digit & 255]++;
    for (int digit = 0; digit < 8; digit++) {
        if (counts[digit][items[0].key >> 8 * digit & 255] == m) continue;
        int64_t place = 0;
        for (int c = 0; c < 256; c++) {
            int64_t many = counts[digit][c];
            counts[digit][c] = place;
            place += many;
        }
        for (int64_t i = 0; i < m; i++)
            other[counts[digit][items[i].key >> 8 * digit & 255]++] = items[i];
        Item *swap = items;
        items = other;
        other = swap;
    }
    return items;
}

typedef struct {
    double *a, *b;       /* (d) the rescaled row; then what the sort has gathered */
    double *x, *y;       /* (d) a_j and |b_j| of the kinked coordinates */
    double *p, *q;       /* (d) tau and 1 - tau at each kink, ascending */
    double *down;        /* (2 d) sum and slope of the falling hinges, at each kink */
    double *after;       /* (d) the sum of a^2 over later kinks */
    Item *items, *other; /* (d) */
} Work;

typedef struct { double pp, pq, qq; } Agreeing; /* <s(a),s(a)>, <s(a),s(b)>, <s(b),s(b)> */

/* The kinked coordinates into x, y (how many is returned), the others into sums. */
static int64_t split(const Work *w, int64_t d, Agreeing *sums) {
    double pp = 0, pq = 0, qq = 0;
    V vp = {0}, vm = {0}, vq = {0};
    int64_t m = 0, j = 0;
    for (; j + LANES <= d; j += LANES) {
        V a, b;
        memcpy(&a, w->a + j, sizeof a);
        memcpy(&b, w->b + j, sizeof b);
        V zero = {0}, product = a * b;
        /* A positive a of a kinked coordinate meets b < 0, and the other way round: so what is left
           of either after masking by the sign of the other is that of the agreeing ones. */
        __typeof__(a < b) right = product >= 0;
        V ra = (V)((__typeof__(right))a & (a > zero) & right);
        V rb = (V)((__typeof__(right))b & (b > zero) & right);
        vp += ra * ra;
        vm += ra * rb;
        vq += rb * rb;
        for (int l = 0; l < LANES; l++) { /* written always, kept where kinked: no branch to miss */
            w->x[m] = w->a[j + l];
            w->y[m] = fabs(w->b[j + l]);
            m += product[l] < 0;
        }
    }
    for (; j < d; j++) {
        double a = w->a[j], b = w->b[j];
        if (a * b < 0) {
            w->x[m] = a;
            w->y[m++] = fabs(b);
        } else {
            double ra = a > 0 ? a : 0, rb = b > 0 ? b : 0;
            pp += ra * ra;
            pq += ra * rb;
            qq += rb * rb;
        }
    }
    *sums = (Agreeing){pp + total(vp), pq + total(vm), qq + total(vq)};
    return m;
}

static Top exact_row(Work *w, int64_t d) {
    Agreeing e;
    int64_t m = split(w, d, &e);
    Top top = {0, 0, 1};
    if (m == 0) return top;
    for (int64_t j = 0; j < m; j++) {
        double r = w->y[j] / fabs(w->x[j]);
        memcpy(&w->items[j].key, &r, sizeof r);
        w->items[j].at = (uint32_t)j;
    }
    const Item *order = sorted(w->items, w->other, m);
    double *x = w->a, *y = w->b, *p = w->p, *q = w->q, *r = w->after;
    for (int64_t k = 0; k < m; k++) {
        memcpy(r + k, &order[k].key, sizeof *r);
        x[k] = w->x[order[k].at]; /* with its sign: positive if U_j is 0 up to tau_j */
        y[k] = w->y[order[k].at];
        p[k] = r[k] / (1 + r[k]);
        q[k] = 1 / (1 + r[k]);
    }
    double *step = w->x; /* x and y of the split are used up */
    for (int64_t k = 0; k + 1 < m; k++) step[k] = (r[k + 1] - r[k]) * q[k + 1] * q[k];

    /* From the right: hinges that close as alpha grows, and the sums of a^2 still to come. */
    double *down = w->down, *after = w->after;
    double open = 0, slope = 0, value = 0, later = 0, all_pp = e.pp, all_qq = e.qq;
    for (int64_t k = m - 1; k >= 0; k--) {
        if (k + 1 < m) {
            double s = step[k];
            value += s * (2 * slope + s * open);
            slope += s * open;
        }
        if (x[k] < 0) {
            open += (y[k] - x[k]) * (y[k] - x[k]);
            all_qq += y[k] * y[k];
        } else {
            all_pp += x[k] * x[k];
        }
        down[2 * k] = value;
        down[2 * k + 1] = slope;
        after[k] = later;
        later += x[k] * x[k];
    }
    /* From the left: values at the kinks, then bounds on the segments. */
    open = slope = value = 0;
    double before = 0;
    for (int64_t k = 0; k < m; k++) {
        if (k) {
            double s = step[k - 1];
            value += s * (2 * slope + s * open);
            slope += s * open;
        }
        if (x[k] > 0) open += (x[k] + y[k]) * (x[k] + y[k]);
        before += y[k] * y[k];
        double pp = p[k] * p[k], pq = 2 * p[k] * q[k], qq = q[k] * q[k];
        double N = pp * after[k] + qq * before;
        double Q = value + down[2 * k] + pp * e.pp + pq * e.pq + qq * e.qq;
        double P = pp * all_pp + pq * e.pq + qq * all_qq;
        if (Q <= ZERO_NORM * N) Q = 0;
        double F = squared(N, Q, P);
        if (F > top.best) top = (Top){F, p[k], q[k]};
    }
    open = slope = value = before = 0;
    for (int64_t k = 0; k + 1 < m; k++) {
        double weight = (fabs(x[k]) + y[k]) * (fabs(x[k]) + y[k]), s = step[k];
        if (x[k] > 0) open += weight;
        before += y[k] * y[k];
        double gained = s * (2 * slope + s * open);
        Segment on;
        on.p0 = p[k], on.q0 = q[k], on.p1 = p[k + 1], on.q1 = q[k + 1];
        on.n = blossom(p[k], q[k], p[k + 1], q[k + 1], after[k], 0, before);
        on.q = blossom(p[k], q[k], p[k + 1], q[k + 1], e.pp, e.pq, e.qq);
        on.p = blossom(p[k], q[k], p[k + 1], q[k + 1], all_pp, e.pq, all_qq);
        on.q.c0 += value + down[2 * k];
        on.q.c1 += value + s * slope + down[2 * k + 2] + s * down[2 * k + 3];
        on.q.c2 += value + gained + down[2 * k + 2];
        value += gained;
        slope += s * open;
        search(on, &top);
    }
    return top;
}

/* Between bounds: the largest F^2 on a grid of bins + 1 values, and what it may be in between. */
static Top histogram_row(const Work *w, int64_t d, int64_t bins, double *sums, double *relative,
                         double *upper) {
    Agreeing e;
    V va = {0}, vb = {0};
    double norm_a = 0, norm_b = 0;
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES) {
        V a, b;
        memcpy(&a, w->a + j, sizeof a);
        memcpy(&b, w->b + j, sizeof b);
        va += a * a;
        vb += b * b;
    }
    for (; j < d; j++) norm_a += w->a[j] * w->a[j], norm_b += w->b[j] * w->b[j];
    norm_a = sqrt(norm_a + total(va)), norm_b = sqrt(norm_b + total(vb));
    double scale = norm_a > 0 && norm_b > 0 ? norm_a / norm_b : 1;
    *relative = scale;
    int64_t m = split(w, d, &e);
    Top top = {0, 0, 1};
    *upper = 0;
    if (m == 0) return top;
    e.pq *= scale, e.qq *= scale * scale;
    /* Five sums by direction (falling, rising) and cell of tau: a^2, b^2, w^2, w^2 s, w^2 s^2. */
    enum { X2, Y2, M0, M1, M2, SUMS = 8 };
    memset(sums, 0, 2 * bins * SUMS * sizeof *sums);
    double *place = w->p, *other = w->q;
    for (j = 0; j < m; j++) { /* divisions apart from the scattered sums: they vectorise */
        double x = w->x[j], y = w->y[j] * scale;
        other[j] = y;
        place[j] = y / (fabs(x) + y) * bins;
    }
    for (j = 0; j < m; j++) {
        double x = w->x[j], y = other[j], width = fabs(x) + y;
        int64_t cell = (int64_t)place[j];
        cell = cell < bins ? cell : bins - 1;
        double inside = place[j] - cell;
        int64_t rising = x > 0;
        double lever = width * ((rising ? 1 - inside : inside) / bins);
        double *s = sums + SUMS * (2 * cell + rising);
        s[X2] += x * x;
        s[Y2] += y * y;
        s[M0] += width * width;
        s[M1] += width * lever;
        s[M2] += lever * lever;
    }
    double all_pp = e.pp, all_qq = e.qq, step = 1.0 / bins;
    for (int64_t c = 0; c < bins; c++) {
        all_pp += sums[SUMS * (2 * c + 1) + X2];
        all_qq += sums[SUMS * 2 * c + Y2];
    }
    double *down = w->down, *after = w->after, *weight = w->p; /* at each of bins + 1 nodes */
    double open = 0, slope = 0, value = 0, later = 0;
    down[2 * bins] = down[2 * bins + 1] = after[bins] = weight[bins] = 0;
    for (int64_t c = bins - 1; c >= 0; c--) {
        const double *s = sums + SUMS * 2 * c;
        later += s[X2] + s[SUMS + X2];
        after[c] = later;
        value += s[M2] + step * (2 * slope + step * open);
        slope += s[M1] + step * open;
        open += s[M0];
        down[2 * c] = value;
        down[2 * c + 1] = slope;
        weight[c] = open;
    }
    open = slope = value = 0;
    double before = 0;
    for (int64_t c = 0; c <= bins; c++) {
        double p0 = c * step, q0 = (bins - c) * step;
        double pp = p0 * p0, pq = 2 * p0 * q0, qq = q0 * q0;
        double N = pp * after[c] + qq * before;
        double Q = value + down[2 * c] + pp * e.pp + pq * e.pq + qq * e.qq;
        double F = squared(N, Q, pp * all_pp + pq * e.pq + qq * all_qq);
        if (F > top.best) top = (Top){F, p0, q0};
        if (c == bins) break;
        const double *s = sums + SUMS * 2 * c;
        double p1 = (c + 1) * step, q1 = (bins - c - 1) * step;
        double rises = step * (2 * slope + step * open);
        double right = down[2 * c + 2], grows = down[2 * c + 3];
        /* Without the hinges inside the cell: a lower bound of Q. */
        Quadratic on_q = blossom(p0, q0, p1, q1, e.pp, e.pq, e.qq);
        on_q.c0 += value + right + step * (2 * grows + step * weight[c + 1]);
        on_q.c1 += value + step * slope + right + step * grows;
        on_q.c2 += value + rises + right;
        Quadratic on_p = blossom(p0, q0, p1, q1, all_pp, e.pq, all_qq);
        double y2 = s[Y2] + s[SUMS + Y2], bound = INFINITY;
        for (int side = 0; side < 2; side++) { /* either branch bounds what the cell's kinks give */
            Quadratic on_n = blossom(p0, q0, p1, q1, after[c + side], 0, before + side * y2);
            double b = inner_bound(on_n, on_q, on_p);
            double first = squared(on_n.c0, on_q.c0, on_p.c0);
            double last = squared(on_n.c2, on_q.c2, on_p.c2);
            b = first > b ? first : b;
            b = last > b ? last : b;
            bound = b < bound ? b : bound;
        }
        *upper = bound > *upper ? bound : *upper;
        before += y2;
        value += s[SUMS + M2] + rises;
        slope += s[SUMS + M1] + step * open;
        open += s[SUMS + M0];
    }
    return top;
}

/* a, b: (n, d); out (n, 3): Dist_sigma, alpha, upper bound. bins = 0: the exact maximum.
 * Returns 0; 1 where an entry is not finite; 2 where memory is short. */
#define DEFINE_DIST(T, SUFFIX)                                                                     \
    API int dist_sigma_##SUFFIX(const T *a, const T *b, int64_t d, int64_t first, int64_t last,    \
                                int64_t bins, double *out) {                                       \
        int64_t room = (d > bins + 1 ? d : bins + 1) + LANES;                                      \
        double *memory = malloc(sizeof(double) * (9 * room + 16 * bins));                          \
        Item *items = malloc(sizeof(Item) * 2 * (bins ? 1 : room));                                \
        int status = memory && items ? 0 : 2;                                                      \
        for (int64_t i = first; i < last && !status; i++) {                                        \
            Work w = {memory,            memory + room,     memory + 2 * room, memory + 3 * room,  \
                      memory + 4 * room, memory + 5 * room, memory + 6 * room, memory + 8 * room,  \
                      items,             items + room};                                            \
            double scale_a, scale_b, relative = 1, upper = 0;                                      \
            if (!rescaled_##SUFFIX(a + i * d, d, w.a, &scale_a) ||                                 \
                !rescaled_##SUFFIX(b + i * d, d, w.b, &scale_b)) {                                 \
                status = 1;                                                                        \
                break;                                                                             \
            }                                                                                      \
            Top top = bins ? histogram_row(&w, d, bins, memory + 9 * room, &relative, &upper)      \
                           : exact_row(&w, d);                                                     \
            double distance = sqrt(top.best);                                                      \
            double *to = out + 3 * i;                                                              \
            to[0] = distance;                                                                      \
            to[1] = distance > 0                                                                   \
                        ? 1 / (1 + (top.q / top.p) * (scale_a / (scale_b / relative)))             \
                        : 0;                                                                       \
            upper = sqrt(upper);                                                                   \
            to[2] = upper > distance ? upper : distance;                                           \
        }                                                                                          \
        free(memory);                                                                              \
        free(items);                                                                               \
        return status;                                                                             \
    }

DEFINE(float, F32, uint32_t, float32)
DEFINE(double, F64, uint64_t, float64)
DEFINE_DIST(float, float32)
DEFINE_DIST(double, float64)

/* ---- linear assignment ----------------------------------------------------------------------- */

/* max over permutations of sum_i s[i][x(i)]. A column j has a price p_j, and row i wants the column
 * where s[i][j] - p_j is largest. Where each row has a column that it wants, the assignment is
 * optimal, whatever the prices began as (any are a feasible start of the dual). First rows bid for
 * columns (Jonker and Volgenant's augmenting row reduction, 1987), which leaves few; each of these
 * then gets a column by a shortest augmenting path (as in Crouse, 2016), dense, a row at a time. */

typedef int64_t M64 __attribute__((vector_size(LANES * sizeof(int64_t))));
typedef int32_t M32 __attribute__((vector_size(LANES * sizeof(int32_t))));

#define BIDDING 16 /* rounds; more of them leave fewer rows, which no longer pays */

static inline V loaded(const double *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline V all(double x) { return (V){x, x, x, x, x, x, x, x}; }

static inline V either(M64 which, V a, V b) { return (V)(((M64)a & which) | ((M64)b & ~which)); }

/* The first column where s - p is largest; that value, and the largest of the others. */
static int64_t wanted(const double *s, const double *p, int64_t n, double *best, double *next) {
    V one = all(-INFINITY), two = one;
    M64 at = {0}, here = {0, 1, 2, 3, 4, 5, 6, 7};
    int64_t j = 0, found = 0;
    for (; j + LANES <= n; j += LANES, here += LANES) {
        V x = loaded(s + j) - loaded(p + j);
        M64 more = x > one;
        V loser = either(more, one, x);
        one = either(more, x, one);
        at = (here & more) | (at & ~more);
        two = either(loser > two, loser, two);
    }
    double a = -INFINITY, b = -INFINITY;
    for (int l = 0; l < LANES; l++) {
        int beats = one[l] > a || (one[l] == a && at[l] < found);
        double loser = beats ? a : one[l];
        b = loser > b ? loser : b;
        b = two[l] > b ? two[l] : b;
        if (beats) a = one[l], found = at[l];
    }
    for (; j < n; j++) {
        double x = s[j] - p[j], loser = x > a ? a : x;
        b = loser > b ? loser : b;
        if (x > a) a = x, found = j;
    }
    *best = a;
    *next = b;
    return found;
}

typedef struct {
    double *distance;   /* (n) of the shortest path to each column; infinite once it is scanned */
    double *open;       /* (n) prices; infinite once the column is scanned */
    double *final;      /* (n) distances of the columns scanned */
    int32_t *from;      /* (n) the last row on the path to each column */
    int32_t *row;       /* (n) by column, the row that has it; -1: nobody */
    int32_t *scanned;   /* (n) columns */
    int32_t *spare;     /* (n) columns that nobody has; */
    int64_t spares;     /* so many of them */
    int32_t *left, *later; /* (n) rows without a column */
} Market;

/* Paths to all columns by way of row i, which is reached at `base`: the nearest column not scanned,
 * the first of equals, and its distance. */
static int64_t relax(const Market *m, const double *s, int64_t n, int32_t i, double base,
                     double *distance) {
    V least = all(INFINITY), up = all(base);
    M32 self = {i, i, i, i, i, i, i, i}, at = {0}, here = {0, 1, 2, 3, 4, 5, 6, 7};
    int64_t j = 0, nearest = 0;
    for (; j + LANES <= n; j += LANES, here += LANES) {
        V new = loaded(m->open + j) - loaded(s + j) + up, old = loaded(m->distance + j);
        M64 less = new < old;
        M32 from, changed = __builtin_convertvector(less, M32);
        memcpy(&from, m->from + j, sizeof from);
        new = either(less, new, old);
        from = (self & changed) | (from & ~changed);
        memcpy(m->distance + j, &new, sizeof new);
        memcpy(m->from + j, &from, sizeof from);
        less = new < least;
        changed = __builtin_convertvector(less, M32);
        least = either(less, new, least);
        at = (here & changed) | (at & ~changed);
    }
    double low = INFINITY;
    for (int l = 0; l < LANES; l++)
        if (least[l] < low || (least[l] == low && at[l] < nearest)) low = least[l], nearest = at[l];
    for (; j < n; j++) {
        double new = m->open[j] - s[j] + base;
        if (new < m->distance[j]) m->distance[j] = new, m->from[j] = i;
        if (m->distance[j] < low) low = m->distance[j], nearest = j;
    }
    *distance = low;
    return nearest;
}

/* Gives row `first` a column, others perhaps another one. 0 where numbers are not finite. */
static int augment(Market *m, const double *s, int64_t n, int32_t first, double *p,
                   int64_t *columns) {
    int64_t size = 0, end = -1;
    int32_t i = first;
    double base = 0, low; /* distances up to a constant, which changes no difference of prices */
    memcpy(m->open, p, n * sizeof *p);
    for (int64_t j = 0; j < n; j++) m->distance[j] = INFINITY;
    for (;;) {
        int64_t j = relax(m, s + i * n, n, i, base, &low);
        if (!(low < INFINITY)) return 0;
        for (int64_t k = 0; k < m->spares && end < 0; k++) /* of equals, one that ends the search */
            if (m->distance[m->spare[k]] <= low) {
                end = m->spare[k];
                m->spare[k] = m->spare[--m->spares];
            }
        if (end >= 0) break;
        i = m->row[j];
        base = low + (s[i * n + j] - p[j]);
        m->scanned[size++] = (int32_t)j;
        m->final[j] = low;
        m->open[j] = m->distance[j] = INFINITY;
    }
    for (int64_t k = 0; k < size; k++) p[m->scanned[k]] += low - m->final[m->scanned[k]];
    do {
        int64_t before = columns[i = m->from[end]];
        m->row[end] = i;
        columns[i] = end;
        end = before;
    } while (i != first);
    return 1;
}

static int assign(Market *m, const double *s, int64_t n, double *p, int64_t *columns) {
    double best, next;
    for (int64_t j = 0; j < n; j++) m->open[j] = -INFINITY;
    for (int64_t i = 0; i < n; i++) { /* no higher than the keenest row would pay */
        wanted(s + i * n, p, n, &best, &next);
        int64_t odd = 0;
        for (int64_t j = 0; j < n; j++) {
            double x = s[i * n + j] - best;
            odd += !(x - x == 0);
            m->open[j] = x > m->open[j] ? x : m->open[j];
        }
        if (odd) return 0;
    }
    memcpy(p, m->open, n * sizeof *p);
    int64_t left = 0;
    for (int64_t j = 0; j < n; j++) m->row[j] = -1;
    for (int64_t i = 0; i < n; i++) {
        int64_t j = wanted(s + i * n, p, n, &best, &next);
        if (m->row[j] < 0) {
            m->row[j] = (int32_t)i;
            columns[i] = j;
        } else {
            m->left[left++] = (int32_t)i;
        }
    }
    for (int round = 0; round < BIDDING && left; round++) {
        int64_t kept = 0, bids = 4 * left;
        for (int64_t k = 0; k < left;) {
            int32_t i = m->left[k++];
            int64_t j = wanted(s + i * n, p, n, &best, &next);
            int32_t other = m->row[j];
            p[j] += best - next;
            m->row[j] = i;
            columns[i] = j;
            if (other < 0) continue;
            if (best > next && bids-- > 0)
                m->left[--k] = other; /* bids again at once, elsewhere */
            else
                m->later[kept++] = other;
        }
        int32_t *swap = m->left;
        m->left = m->later;
        m->later = swap;
        left = kept;
    }
    m->spares = 0;
    for (int64_t j = 0; j < n; j++)
        if (m->row[j] < 0) m->spare[m->spares++] = (int32_t)j;
    for (int64_t k = 0; k < left; k++)
        if (!augment(m, s, n, m->left[k], p, columns)) return 0;
    return 1;
}

/* s: (k, n, n); prices (k, n): where to begin, then the optimum's; columns (k, n): x. No products, so
 * the same on every processor. Returns 0; 1 where numbers are not finite; 2 where memory is short. */
API int linear_assignment(const double *s, int64_t k, int64_t n, double *prices, int64_t *columns) {
    double *memory = malloc((3 * sizeof(double) + 6 * sizeof(int32_t)) * (n + 1));
    if (!memory || n >= INT32_MAX) {
        free(memory);
        return 2;
    }
    int32_t *whole = (int32_t *)(memory + 3 * n);
    Market m = {memory,        memory + n,    memory + 2 * n, whole,         whole + n,
                whole + 2 * n, whole + 3 * n, 0,              whole + 4 * n, whole + 5 * n};
    int status = 0;
    for (int64_t i = 0; i < k && !status; i++)
        status = !assign(&m, s + i * n * n, n, prices + i * n, columns + i * n);
    free(memory);
    return status;
}

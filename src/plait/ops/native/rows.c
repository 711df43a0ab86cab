/* Kernels that pass once over rows of channels: the first-order scan, the short depthwise convolution, and one token of
   the matrix recurrences. */
#include "parallel.h"
#include "vectors.h"

/* Channels that one piece of work holds: rows as long as can be, since memory likes to be read in order, but a row's
   running state stays in the first-level cache. */
#define CHANNELS 2048

typedef struct {
    const float *log_a, *u, *state;    /* (B, T, D) contiguous, (N, D) or NULL */
    float *h;                          /* (B, T, D) */
    const float *d_h;                  /* (B, T, D) */
    float *d_log_a, *d_u, *d_state;    /* NULL forward */
    const int64_t *start, *length;     /* first row of each sequence in (B T, D), and its tokens */
    int64_t sequences, D;
    int64_t width;                     /* channels of a piece; set here */
} scan;

/* Channels of a piece so that all threads have work. */
static int64_t share_channels(int64_t D, int64_t sequences, int64_t threads) {
    int64_t parts = (threads + sequences - 1) / sequences, width = ((D + parts - 1) / parts + W - 1) / W * W;
    return width < CHANNELS ? width : CHANNELS;
}

static inline int64_t pieces_of(int64_t D, int64_t width) { return (D + width - 1) / width; }

/* A vector at the channels' end: lanes beyond `left` are 0. */
static inline vec load_part(const float *p, int64_t left) {
    if (left >= W) return load(p);
    float x[W] = {0};
    for (int64_t i = 0; i < left; i++) x[i] = p[i];
    return load(x);
}

static inline void store_part(float *p, vec x, int64_t left) {
    if (left >= W) {
        store(p, x);
        return;
    }
    for (int64_t i = 0; i < left; i++) p[i] = x[i];
}

/* h_t = e^{log_a_t} h_{t-1} + u_t */
static void scan_forward(void *job, int64_t index, float *h) {
    const scan *g = job;
    int64_t pieces = pieces_of(g->D, g->width), n = index / pieces, first = index % pieces * g->width;
    int64_t width = g->D - first < g->width ? g->D - first : g->width;
    for (int64_t d = 0; d < width; d += W)
        store(h + d, g->state ? load_part(g->state + n * g->D + first + d, width - d) : splat(0));
    for (int64_t t = 0; t < g->length[n]; t++) {
        int64_t row = (g->start[n] + t) * g->D + first;
        for (int64_t d = 0; d < width; d += W) {
            int64_t onward = row + d + g->D;
            expect_to_read(g->log_a + onward), expect_to_read(g->u + onward), expect_to_write(g->h + onward);
            vec a = exponential(load_part(g->log_a + row + d, width - d));
            vec next = a * load(h + d) + load_part(g->u + row + d, width - d);
            store(h + d, next);
            store_part(g->h + row + d, next, width - d);
        }
    }
}

/* d_u_t = d_h_t + a_{t+1} d_u_{t+1};  d_log_a_t = a_t h_{t-1} d_u_t;  d_state = a_1 d_u_1 */
static void scan_backward(void *job, int64_t index, float *carry) {
    const scan *g = job;
    int64_t pieces = pieces_of(g->D, g->width), n = index / pieces, first = index % pieces * g->width;
    int64_t width = g->D - first < g->width ? g->D - first : g->width;
    for (int64_t d = 0; d < width; d += W) store(carry + d, splat(0));
    for (int64_t t = g->length[n] - 1; t >= 0; t--) {
        int64_t row = (g->start[n] + t) * g->D + first;
        const float *before = t ? g->h + row - g->D : g->state ? g->state + n * g->D + first : NULL;
        for (int64_t d = 0; d < width; d += W) {
            int64_t onward = row + d - g->D;
            expect_to_read(g->log_a + onward), expect_to_read(g->d_h + onward), expect_to_read(g->h + onward - g->D);
            expect_to_write(g->d_u + onward), expect_to_write(g->d_log_a + onward);
            vec a = exponential(load_part(g->log_a + row + d, width - d));
            vec d_u = load(carry + d) + load_part(g->d_h + row + d, width - d);
            store_part(g->d_u + row + d, d_u, width - d);
            vec back = a * d_u;
            vec h = before ? load_part(before + d, width - d) : splat(0);
            store_part(g->d_log_a + row + d, back * h, width - d);
            store(carry + d, back);
        }
    }
    for (int64_t d = 0; g->d_state && d < width; d += W)
        store_part(g->d_state + n * g->D + first + d, load(carry + d), width - d);
}

static int64_t scan_floats(const scan *g) {
    int64_t rows = 0;
    for (int64_t n = 0; n < g->sequences; n++) rows += g->length[n];
    return rows * g->D;
}

static int run_scan(piece run, scan *g, int threads, team gomp) {
    threads = worthwhile(threads, scan_floats(g));
    g->width = share_channels(g->D, g->sequences, threads);
    return run_pieces(run, g, g->sequences * pieces_of(g->D, g->width), g->width, threads, gomp);
}

int plait_scan_forward(scan *g, int threads, team gomp) {
    expect_to_fill(g->h, scan_floats(g));
    return run_scan(scan_forward, g, threads, gomp);
}

int plait_scan_backward(scan *g, int threads, team gomp) {
    expect_to_fill(g->d_u, scan_floats(g));
    expect_to_fill(g->d_log_a, scan_floats(g));
    return run_scan(scan_backward, g, threads, gomp);
}

typedef struct {
    const float *x, *weight, *bias;  /* (B, T + taps - 1, C), (taps, C), (C) or NULL */
    float *y;                        /* (B, T, C) */
    const float *d_y;
    float *d_x, *d_weight;           /* d_weight (B, taps, C): summed over B outside */
    int64_t B, T, C, taps;
} convolution;

/* Channels of a piece: `taps` rows of x stay in the first-level cache. */
#define NARROW 512

/* y_t = bias + sum_j weight_j x_{t+j} */
static void convolution_forward(void *job, int64_t index, float *unused) {
    const convolution *g = job;
    (void)unused;
    int64_t b = index / pieces_of(g->C, NARROW), first = index % pieces_of(g->C, NARROW) * NARROW;
    int64_t last = first + NARROW < g->C ? first + NARROW : g->C;
    const float *x = g->x + b * (g->T + g->taps - 1) * g->C;
    for (int64_t t = 0; t < g->T; t++)
        for (int64_t c = first; c < last; c += W) {
            vec y = g->bias ? load_part(g->bias + c, last - c) : splat(0);
            for (int64_t j = 0; j < g->taps; j++)
                y += load_part(g->weight + j * g->C + c, last - c) * load_part(x + (t + j) * g->C + c, last - c);
            store_part(g->y + (b * g->T + t) * g->C + c, y, last - c);
        }
}

/* d_x_s = sum_j weight_j d_y_{s-j};  d_weight_j = sum_t d_y_t x_{t+j} */
static void convolution_backward(void *job, int64_t index, float *sums) {
    const convolution *g = job;
    int64_t b = index / pieces_of(g->C, NARROW), first = index % pieces_of(g->C, NARROW) * NARROW;
    int64_t length = g->T + g->taps - 1;
    int64_t last = first + NARROW < g->C ? first + NARROW : g->C;
    const float *x = g->x + b * length * g->C, *d_y = g->d_y + b * g->T * g->C;
    memset(sums, 0, g->taps * NARROW * sizeof(float));
    for (int64_t s = 0; s < length; s++)
        for (int64_t c = first; c < last; c += W) {
            vec d_x = splat(0), here = load_part(x + s * g->C + c, last - c);
            for (int64_t j = 0; j < g->taps; j++) {
                if (s < j || s - j >= g->T) continue;
                vec d = load_part(d_y + (s - j) * g->C + c, last - c);
                float *sum = sums + j * NARROW + c - first;
                d_x += load_part(g->weight + j * g->C + c, last - c) * d;
                store(sum, load(sum) + here * d);
            }
            store_part(g->d_x + (b * length + s) * g->C + c, d_x, last - c);
        }
    for (int64_t j = 0; j < g->taps; j++)
        memcpy(g->d_weight + (b * g->taps + j) * g->C + first, sums + j * NARROW, (last - first) * sizeof(float));
}

int plait_convolution_forward(convolution *g, int threads, team gomp) {
    threads = worthwhile(threads, g->B * g->T * g->C);
    return run_pieces(convolution_forward, g, g->B * pieces_of(g->C, NARROW), 0, threads, gomp);
}

int plait_convolution_backward(convolution *g, int threads, team gomp) {
    threads = worthwhile(threads, g->B * g->T * g->C);
    return run_pieces(convolution_backward, g, g->B * pieces_of(g->C, NARROW), g->taps * NARROW, threads, gomp);
}

typedef struct {
    const float *q, *k, *v, *beta, *log_decay; /* (B, H, K), (B, H, K), (B, HV, V), (B, HV) or NULL, (B, HV[, K]) or NULL */
    const float *before;                       /* (B, HV, K, V) or NULL */
    float *after, *o;                          /* (B, HV, K, V), which may be `before` itself; (B, HV, V) */
    int64_t heads, group, rows, K, V, per_channel; /* value heads; value heads per key head; B HV */
    float scale;
} token;

/* Vectors of columns that stay in registers together. */
#define STRIPE 4

/* The columns of one state from `first` on. Constants where the call is expanded: `whole`, the stripe is full; `delta`,
   the rule erases; `old`, there is a state before. */
static inline __attribute__((always_inline)) void step_stripe(const token *g, const float *q, const float *k,
                                                              const float *v, const float *decay, float match,
                                                              float beta, const float *before, float *after, float *o,
                                                              int64_t first, const int whole, const int delta,
                                                              const int old) {
    int64_t V = g->V, left = V - first;
    vec write[STRIPE], read[STRIPE];
    UNROLL for (int p = 0; p < STRIPE; p++) write[p] = read[p] = splat(0);
    for (int64_t i = 0; delta && old && i < g->K; i++) {
        const float *row = before + i * V + first;
        vec by_key = splat(k[i] * decay[i]), by_query = splat(q[i] * decay[i]);
        UNROLL for (int p = 0; p < STRIPE; p++) {
            vec s = whole ? load(row + p * W) : load_part(row + p * W, left - p * W);
            write[p] += by_key * s;
            read[p] += by_query * s;
        }
    }
    UNROLL for (int p = 0; p < STRIPE; p++) {
        vec value = whole ? load(v + first + p * W) : load_part(v + first + p * W, left - p * W);
        if (delta) value = splat(beta) * (value - write[p]);
        write[p] = value;
    }
    for (int64_t i = 0; i < g->K; i++) {
        const float *row = before + i * V + first;
        float *to = after + i * V + first;
        vec f = splat(decay[i]), key = splat(k[i]), query = splat(q[i]);
        UNROLL for (int p = 0; p < STRIPE; p++) {
            vec s = key * write[p];
            if (old) s += f * (whole ? load(row + p * W) : load_part(row + p * W, left - p * W));
            if (!delta) read[p] += query * s;
            if (whole)
                store(to + p * W, s);
            else
                store_part(to + p * W, s, left - p * W);
        }
    }
    UNROLL for (int p = 0; p < STRIPE; p++) {
        if (delta) read[p] += splat(match) * write[p];
        store_part(o + first + p * W, splat(g->scale) * read[p], left - p * W);
    }
}

/* S~ = e^g S;  S = S~ + k w^T with w = v or beta (v - S~^T k);  o = S^T (scale q).
   Without beta one pass over the state does it all. With beta one pass over S~ finds what k and q read, since
   o = scale (S~^T q + (q . k) w), and one more, from the first-level cache, writes S. */
static void step(void *job, int64_t index, float *decay) {
    const token *g = job;
    int64_t K = g->K, V = g->V, key_row = index / g->heads * (g->heads / g->group) + index % g->heads / g->group;
    const float *q = g->q + key_row * K, *k = g->k + key_row * K, *v = g->v + index * V;
    const float *before = g->before ? g->before + index * K * V : NULL;
    float *after = g->after + index * K * V, *o = g->o + index * V;
    float beta = g->beta ? g->beta[index] : 1;
    vec head = splat(g->log_decay && !g->per_channel ? expf(g->log_decay[index]) : 1), product = splat(0);
    for (int64_t i = 0; i < K; i += W) {
        store(decay + i, g->per_channel ? exponential(load_part(g->log_decay + index * K + i, K - i)) : head);
        product += load_part(q + i, K - i) * load_part(k + i, K - i);
    }
    float match = sum_lanes(product);
    for (int64_t first = 0; first < V; first += STRIPE * W) {
#define STEP(whole, delta, old) \
    step_stripe(g, q, k, v, decay, match, beta, before, after, o, first, whole, delta, old)
        if (V - first >= STRIPE * W && before && g->beta)
            STEP(1, 1, 1);
        else if (V - first >= STRIPE * W && before)
            STEP(1, 0, 1);
        else if (g->beta)
            STEP(0, 1, before != NULL);
        else
            STEP(0, 0, before != NULL);
#undef STEP
    }
}

int plait_step(token *g, int threads, team gomp) {
    return run_pieces(step, g, g->rows, g->K + W, worthwhile(threads, g->rows * g->K * g->V), gomp);
}

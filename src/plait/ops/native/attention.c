/* Linear attention and the delta rule, chunk by chunk (GLA, 2312.06635, section 4; DeltaNet, 2406.06484; Gated
   DeltaNet, 2412.06464; Kimi Delta Attention, 2510.26692), forward and backward.

   In a chunk of c tokens that enters with state S, with E_i = e^{G_i} the decay since the chunk's start and
   L_j = e^{G_end - G_j} the decay to its end:

     P_ij = q_i . k_j e^{G_i - G_j} for j <= i        N = (I + A)^{-1} diag(beta) (V - (E K) S),  or N = V
     A_ij = beta_i k_i . k_j e^{G_i - G_j} for j < i  O = (E Q) S + P N
                                                      S' = diag(E_end) S + (L K)^T N

   All factors are products of decays, so they lie in [0, 1] and nothing overflows. */
#include "attention.h"

#include "channels.h"
#include "parallel.h"

static int64_t padded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

static float to_float(const void *p, int64_t i, int64_t type) {
    if (type == FLOAT32) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void put(void *p, int64_t i, int64_t type, float x) {
    if (type == FLOAT32) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t *)p)[i] = x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0; /* nearest even */
}

/* Where the chunk being treated lies. */
typedef struct {
    int64_t n, head, row, token, count, c; /* sequence; value head; row of the batch; first token; tokens; padded */
    int64_t ahead;                         /* tokens from here to the chunk that is treated next */
} place;

/* Rows of one head into (c, width) with zeros in the padding. */
static void fetch(const tensor *x, place at, int64_t head, int64_t width, int64_t wide, float scale, float *to) {
    for (int64_t i = 0; i < at.count; i++) {
        int64_t start = at.row * x->batch + (at.token + i) * x->token + head * x->head;
        if (x->type == FLOAT32) {
            const float *from = (const float *)x->data + start;
            for (int64_t d = 0; d < width; d++) to[i * wide + d] = scale * from[d];
            for (int64_t d = 0; d < width; d += LINE) expect_to_read(from + at.ahead * x->token + d);
        } else {
            for (int64_t d = 0; d < width; d++) to[i * wide + d] = scale * to_float(x->data, start + d, x->type);
        }
        for (int64_t d = width; d < wide; d++) to[i * wide + d] = 0;
    }
    memset(to + at.count * wide, 0, (at.c - at.count) * wide * sizeof(float));
}

static void deliver(const tensor *x, place at, int64_t width, int64_t wide, float scale, const float *from) {
    for (int64_t i = 0; i < at.count; i++) {
        int64_t start = at.row * x->batch + (at.token + i) * x->token + at.head * x->head;
        if (x->type == FLOAT32) {
            float *to = (float *)x->data + start;
            for (int64_t d = 0; d < width; d++) to[d] = scale * from[i * wide + d];
            for (int64_t d = 0; d < width; d += LINE) expect_to_write(to + at.ahead * x->token + d);
        } else {
            for (int64_t d = 0; d < width; d++) put(x->data, start + d, x->type, scale * from[i * wide + d]);
        }
    }
}

static void fetch_state(const float *from, int64_t K, int64_t V, int64_t wide_k, int64_t wide_v, float *to) {
    memset(to, 0, wide_k * wide_v * sizeof(float));
    for (int64_t k = 0; from && k < K; k++) memcpy(to + k * wide_v, from + k * V, V * sizeof(float));
}

static void deliver_state(float *to, int64_t K, int64_t V, int64_t wide_v, const float *from) {
    for (int64_t k = 0; k < K; k++) memcpy(to + k * V, from + k * wide_v, V * sizeof(float));
}

/* Everything about one chunk that forward makes and backward makes again. */
typedef struct {
    float *q, *k, *v, *kt;         /* (c, K), (c, K), (c, V), (K, c) */
    float *beta, *a;               /* (c); decay (c) or (c, K) */
    float *enter, *leave;          /* E and L, (c) or (c, K) */
    float *eq, *ek, *lk;           /* E Q, E K, L K: (c, K) */
    float *p, *kk, *A;             /* (c, c): P; k_i . k_j e^{G_i - G_j}; beta times that */
    float *x, *n;                  /* (c, V): V - (E K) S; N */
    float *S;                      /* (K, V) */
    block_decay blocks;            /* per channel */
    float *scratch;                /* (c + 32, K) */
} chunk;

static float *cut(float **from, int64_t size) {
    float *here = *from;
    *from += padded(size);
    return here;
}

static void lay_out(chunk *w, float **from, int64_t c, int64_t K, int64_t V) {
    float **rows[] = {&w->q, &w->k, &w->kt, &w->a, &w->enter, &w->leave, &w->eq, &w->ek, &w->lk,
                      &w->blocks.before, &w->blocks.after};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) *rows[i] = cut(from, c * K);
    w->blocks.whole = cut(from, c / BLOCK * K);
    w->v = cut(from, c * V), w->x = cut(from, c * V), w->n = cut(from, c * V);
    w->p = cut(from, c * c), w->kk = cut(from, c * c), w->A = cut(from, c * c);
    w->beta = cut(from, c), w->S = cut(from, K * V), w->scratch = cut(from, (c + 2 * BLOCK) * K);
}

static int64_t chunk_floats(int64_t c, int64_t K, int64_t V) {
    return 12 * c * K + 3 * c * V + 3 * c * c + K * V + 2 * BLOCK * K + c / BLOCK * K + c + 16 * 24;
}

/* Decays of the chunk and their products, per token or per token and channel. */
static void fetch_decay(const attention *g, place at, int64_t K, chunk *w) {
    if (g->per_channel) {
        fetch(&g->log_decay, at, at.head, g->K, K, 1, w->a); /* padding has log decay 0 */
        for (int64_t e = 0; e < at.c * K; e += W) store(w->a + e, exponential(load(w->a + e)));
        w->blocks.a = w->a;
        block_products(at.c, K, &w->blocks);
        for (int64_t n = 0; n < K; n += W) {
            vec e = splat(1);
            for (int64_t i = 0; i < at.c; i++) store(w->enter + i * K + n, e *= load(w->a + i * K + n));
            e = splat(1);
            for (int64_t i = at.c - 1; i >= 0; e *= load(w->a + i * K + n), i--) store(w->leave + i * K + n, e);
        }
        return;
    }
    const float *g0 = (const float *)g->log_decay.data + at.row * g->log_decay.batch + at.head * g->log_decay.head;
    for (int64_t i = 0; i < at.c; i++)
        w->a[i] = g->log_decay.data && i < at.count ? expf(g0[(at.token + i) * g->log_decay.token]) : 1;
    float e = 1;
    for (int64_t i = 0; i < at.c; i++) w->enter[i] = e *= w->a[i];
    e = 1;
    for (int64_t i = at.c - 1; i >= 0; e *= w->a[i], i--) w->leave[i] = e;
}

/* to = factor x, with a factor per row or per element. */
static void scale_rows(const attention *g, int64_t c, int64_t K, const float *factor, const float *x, float *to) {
    for (int64_t i = 0; i < c; i++)
        for (int64_t n = 0; n < K; n += W)
            store(to + i * K + n, (g->per_channel ? load(factor + i * K + n) : splat(factor[i])) * load(x + i * K + n));
}

/* to += factor x. */
static void add_scaled_rows(const attention *g, int64_t c, int64_t K, const float *factor, const float *x, float *to) {
    for (int64_t i = 0; i < c; i++)
        for (int64_t n = 0; n < K; n += W) {
            vec f = g->per_channel ? load(factor + i * K + n) : splat(factor[i]);
            store(to + i * K + n, load(to + i * K + n) + f * load(x + i * K + n));
        }
}

/* Multiply the lower triangles of one or two (c, c) matrices by e^{G_i - G_j}, decay per head; zeros above. */
static void decay_scores(int64_t c, const float *a, float *p, float *q) {
    float d[c] __attribute__((aligned(64)));
    for (int64_t i = 0; i < c; i++) {
        int64_t end = padded(i + 1);
        for (int64_t j = 0; j < i; j++) d[j] *= a[i];
        d[i] = 1;
        for (int64_t j = i + 1; j < end; j++) d[j] = 0;
        for (int64_t j = 0; j < end; j++) p[i * c + j] *= d[j];
        for (int64_t j = 0; q && j < end; j++) q[i * c + j] *= d[j];
    }
}

/* Decay of the whole chunk times the state. */
static void decay_state(const attention *g, int64_t c, int64_t K, int64_t V, const float *enter, float *S) {
    for (int64_t k = 0; k < K; k++) {
        vec f = splat(g->per_channel ? enter[(c - 1) * K + k] : enter[c - 1]);
        for (int64_t v = 0; v < V; v += W) store(S + k * V + v, f * load(S + k * V + v));
    }
}

/* From inputs and the entering state to everything up to N. `empty`: the state is zero. */
static void prepare(const attention *g, place at, int64_t K, int64_t V, int empty, chunk *w) {
    int64_t c = at.c, key_head = at.head / g->group;
    fetch(&g->q, at, key_head, g->K, K, g->scale, w->q);
    fetch(&g->k, at, key_head, g->K, K, 1, w->k);
    fetch(&g->v, at, at.head, g->V, V, 1, w->v);
    fetch_decay(g, at, K, w);
    transpose(c, K, w->k, K, w->kt, c);
    int delta = g->beta.data != NULL;
    if (g->per_channel) {
        channel_scores(c, K, w->q, delta ? w->k : NULL, w->k, w->kt, &w->blocks, w->p, w->kk, w->scratch);
    } else {
        product_to_lower(c, K, w->q, K, w->kt, c, w->p, c);
        if (delta) product_to_lower(c, K, w->k, K, w->kt, c, w->kk, c);
        decay_scores(c, w->a, w->p, delta ? w->kk : NULL);
    }
    scale_rows(g, c, K, w->enter, w->q, w->eq);
    scale_rows(g, c, K, w->leave, w->k, w->lk);
    if (!delta) return;
    const float *b = (const float *)g->beta.data + at.row * g->beta.batch + at.head * g->beta.head;
    for (int64_t i = 0; i < c; i++) w->beta[i] = i < at.count ? b[(at.token + i) * g->beta.token] : 0;
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = 0; j < padded(i + 1); j++) w->A[i * c + j] = w->beta[i] * w->kk[i * c + j];
    scale_rows(g, c, K, w->enter, w->k, w->ek);
    memcpy(w->x, w->v, c * V * sizeof(float));
    if (!empty) product(c, V, K, w->ek, K, 1, w->S, V, w->x, V, SUBTRACT);
    for (int64_t i = 0; i < c; i++)
        for (int64_t v = 0; v < V; v += W) store(w->n + i * V + v, splat(w->beta[i]) * load(w->x + i * V + v));
    solve_unit_lower(c, V, w->A, c, w->n, V);
}

static place chunk_at(const attention *g, int64_t n, int64_t head, int64_t index, int64_t ahead) {
    int64_t token = index * g->size, left = g->length[n] - token, count = left < g->size ? left : g->size;
    return (place){n, head, g->row[n], g->first[n] + token, count, padded(count), ahead * g->size};
}

static int64_t chunks_of(const attention *g, int64_t n) { return (g->length[n] + g->size - 1) / g->size; }

/* One sequence and one head, from its first chunk to its last. */
static void forward(void *job, int64_t index, float *scratch) {
    const attention *g = job;
    int64_t n = index / g->heads, head = index % g->heads, K = padded(g->K), V = padded(g->V);
    int64_t area = g->K * g->V;
    chunk w;
    lay_out(&w, &scratch, g->size, K, V);
    float *o = w.x; /* free once N is there */
    fetch_state(g->state ? g->state + index * area : NULL, g->K, g->V, K, V, w.S);
    for (int64_t i = 0; i < chunks_of(g, n); i++) {
        place at = chunk_at(g, n, head, i, 1);
        int empty = i == 0 && !g->state;
        if (g->saved) deliver_state(g->saved + ((g->chunk[n] + i) * g->heads + head) * area, g->K, g->V, V, w.S);
        prepare(g, at, K, V, empty, &w);
        const float *N = g->beta.data ? w.n : w.v;
        if (!empty) product(at.c, V, K, w.eq, K, 1, w.S, V, o, V, SET);
        product_of_lower(at.c, V, w.p, at.c, N, V, o, V, empty ? SET : ADD);
        deliver(&g->o, at, g->V, V, 1, o);
        decay_state(g, at.c, K, V, w.enter, w.S);
        product(K, V, at.c, w.lk, 1, K, N, V, w.S, V, ADD);
    }
    deliver_state(g->last + index * area, g->K, g->V, V, w.S);
}

typedef struct {
    float *d_o, *d_n, *nt;                  /* (c, V), (c, V), (V, c) */
    float *d_q, *d_write, *d_erase, *part;  /* (c, K): of k where it writes and where it erases */
    float *d_p, *d_A;                       /* (c, c) */
    float *dS, *turned;                     /* (K, V), (V, K) */
    float *onward;                          /* (K): sum over V of S dS at the chunk's end */
} gradients;

static int64_t gradient_floats(int64_t c, int64_t K, int64_t V) {
    return 3 * c * V + 4 * c * K + 2 * c * c + 2 * K * V + K + 16 * 12;
}

static void lay_out_gradients(gradients *d, float **from, int64_t c, int64_t K, int64_t V) {
    d->d_o = cut(from, c * V), d->d_n = cut(from, c * V), d->nt = cut(from, c * V);
    d->d_q = cut(from, c * K), d->d_write = cut(from, c * K), d->d_erase = cut(from, c * K), d->part = cut(from, c * K);
    d->d_p = cut(from, c * c), d->d_A = cut(from, c * c);
    d->dS = cut(from, K * V), d->turned = cut(from, K * V), d->onward = cut(from, K);
}

/* Zeros above the diagonal, or from it on, inside the diagonal blocks. */
static void clear_upper(int64_t c, int from, float *p) {
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = i + from; j < padded(i + 1); j++) p[i * c + j] = 0;
}

/* Gradients of scores x_i . k_j e^{G_i - G_j} from d_p: d_x is set, d_k set or added to. */
static void scores_backward(const attention *g, int64_t c, int64_t K, chunk *w, const float *x, float *d_p, float *d_x,
                            float *d_k, int mode) {
    if (g->per_channel) {
        memset(d_x, 0, c * K * sizeof(float));
        if (mode == SET) memset(d_k, 0, c * K * sizeof(float));
        channel_scores_backward(c, K, x, w->k, &w->blocks, d_p, d_x, d_k, w->scratch);
        return;
    }
    decay_scores(c, w->a, d_p, NULL);
    product_of_lower(c, K, d_p, c, w->k, K, d_x, K, SET);
    product_of_lower_transposed(c, K, d_p, c, x, K, d_k, K, mode);
}

/* d log a_t = sum over V of S~_t dS~_t. Moving back from the chunk's end: what S holds there, plus what the queries of
   this and later tokens read, minus what they wrote, plus what they erased. */
static void decay_backward(const attention *g, place at, int64_t K, const chunk *w, const gradients *d) {
    const tensor *out = &g->d_log_decay;
    float *to = (float *)out->data + at.row * out->batch + at.head * out->head;
    int delta = g->beta.data != NULL;
    for (int64_t i = 0; i < at.c; i++)
        for (int64_t n = 0; n < K; n += W) {
            int64_t e = i * K + n;
            vec erased = delta ? load(d->d_erase + e) : splat(0);
            store(d->part + e, load(w->q + e) * load(d->d_q + e) + load(w->k + e) * (erased - load(d->d_write + e)));
        }
    if (g->per_channel) {
        for (int64_t i = at.c - 1; i >= 0; i--)
            for (int64_t n = 0; n < K; n += W) { /* from here on `part` holds the gradient */
                int64_t e = i * K + n;
                vec sum = load(d->onward + n) + load(d->part + e);
                store(d->onward + n, sum);
                store(d->part + e, (vec)((ivec)sum & (load(w->a + e) > 0)));
            }
        deliver(out, at, g->K, K, 1, d->part);
        return;
    }
    double sum = 0; /* large terms of both signs */
    for (int64_t k = 0; k < K; k++) sum += d->onward[k];
    for (int64_t i = at.c - 1; i >= 0; i--) {
        vec row = splat(0);
        for (int64_t n = 0; n < K; n += W) row += load(d->part + i * K + n);
        sum += sum_lanes(row);
        if (i < at.count) to[(at.token + i) * out->token] = w->a[i] > 0 ? (float)sum : 0;
    }
}

static void backward_chunk(const attention *g, place at, int64_t K, int64_t V, int empty, const float *end, chunk *w,
                           gradients *d) {
    int64_t c = at.c;
    int delta = g->beta.data != NULL;
    prepare(g, at, K, V, empty, w);
    float *N = delta ? w->n : w->v;
    fetch(&g->d_o, at, at.head, g->V, V, 1, d->d_o);
    for (int64_t k = 0; k < K; k++) { /* before dS changes */
        vec sum = splat(0);
        for (int64_t v = 0; v < V; v += W) sum += load(end + k * V + v) * load(d->dS + k * V + v);
        d->onward[k] = sum_lanes(sum);
    }
    /* O = (E Q) S + P N */
    product_of_lower_transposed(c, V, w->p, c, d->d_o, V, d->d_n, V, SET);
    transpose(c, V, N, V, d->nt, c);
    product_to_lower(c, V, d->d_o, V, d->nt, c, d->d_p, c);
    clear_upper(c, 1, d->d_p);
    scores_backward(g, c, K, w, w->q, d->d_p, d->d_q, d->d_write, SET);
    if (!empty) {
        transpose(K, V, w->S, V, d->turned, K);
        product(c, K, V, d->d_o, V, 1, d->turned, K, d->part, K, SET);
        add_scaled_rows(g, c, K, w->enter, d->part, d->d_q);
    }
    /* S' = diag(E_end) S + (L K)^T N */
    product(c, V, K, w->lk, K, 1, d->dS, V, d->d_n, V, ADD);
    float *turned_dS = w->scratch; /* (V, K), in two halves where it does not fit */
    for (int64_t v = 0; v < V; v += c) {
        int64_t wide = V - v < c ? V - v : c;
        transpose(K, wide, d->dS + v, V, turned_dS, K);
        product(c, K, wide, N + v, V, 1, turned_dS, K, d->part, K, v ? ADD : SET);
    }
    add_scaled_rows(g, c, K, w->leave, d->part, d->d_write);
    decay_state(g, c, K, V, w->enter, d->dS);
    product(K, V, c, w->eq, 1, K, d->d_o, V, d->dS, V, ADD);
    if (delta) { /* N = (I + A)^{-1} diag(beta) X, X = V - (E K) S */
        solve_unit_lower_transposed(c, V, w->A, c, d->d_n, V);
        product_to_lower(c, V, d->d_n, V, d->nt, c, d->d_A, c); /* minus the gradient of A */
        clear_upper(c, 0, d->d_A);
        const tensor *out = &g->d_beta;
        float *to = (float *)out->data + at.row * out->batch + at.head * out->head;
        for (int64_t i = 0; i < c; i++) {
            vec sum = splat(0);
            for (int64_t v = 0; v < V; v += W) sum += load(d->d_n + i * V + v) * load(w->x + i * V + v);
            float written = sum_lanes(sum);
            for (int64_t j = 0; j < i; j++) written -= d->d_A[i * c + j] * w->kk[i * c + j];
            if (i < at.count) to[(at.token + i) * out->token] = written;
            for (int64_t j = 0; j < padded(i + 1); j++) d->d_A[i * c + j] *= -w->beta[i];
            for (int64_t v = 0; v < V; v += W)
                store(d->d_n + i * V + v, splat(w->beta[i]) * load(d->d_n + i * V + v));
        }
        scores_backward(g, c, K, w, w->k, d->d_A, d->d_erase, d->d_write, ADD);
        if (!empty) {
            product(c, K, V, d->d_n, V, 1, d->turned, K, d->part, K, SET);
            for (int64_t e = 0; e < c * K; e += W) store(d->part + e, -load(d->part + e));
            add_scaled_rows(g, c, K, w->enter, d->part, d->d_erase);
        }
        product(K, V, c, w->ek, 1, K, d->d_n, V, d->dS, V, SUBTRACT);
    }
    deliver(&g->d_v, at, g->V, V, 1, d->d_n);
    if (g->d_log_decay.data) decay_backward(g, at, K, w, d);
    deliver(&g->d_q, at, g->K, K, g->scale, d->d_q);
    for (int64_t e = 0; delta && e < c * K; e += W) store(d->d_write + e, load(d->d_write + e) + load(d->d_erase + e));
    deliver(&g->d_k, at, g->K, K, 1, d->d_write);
}

/* One sequence and one head, from its last chunk to its first. */
static void backward(void *job, int64_t index, float *scratch) {
    const attention *g = job;
    int64_t n = index / g->heads, head = index % g->heads, K = padded(g->K), V = padded(g->V);
    int64_t area = g->K * g->V;
    chunk w;
    gradients d;
    lay_out(&w, &scratch, g->size, K, V);
    lay_out_gradients(&d, &scratch, g->size, K, V);
    float *end = cut(&scratch, K * V);
    fetch_state(g->d_last ? g->d_last + index * area : NULL, g->K, g->V, K, V, d.dS);
    fetch_state(g->last + index * area, g->K, g->V, K, V, end);
    for (int64_t i = chunks_of(g, n) - 1; i >= 0; i--) {
        const float *entering = g->saved + ((g->chunk[n] + i) * g->heads + head) * area;
        fetch_state(entering, g->K, g->V, K, V, w.S);
        for (int64_t e = 0; i && e < area; e += LINE) expect_to_read(entering - g->heads * area + e);
        backward_chunk(g, chunk_at(g, n, head, i, -1), K, V, i == 0 && !g->state, end, &w, &d);
        float *swap = end;
        end = w.S, w.S = swap;
    }
    if (g->d_state) deliver_state(g->d_state + index * area, g->K, g->V, V, d.dS);
}

static void expect_to_fill_rows(const attention *g, const tensor *x, int64_t width) {
    int64_t tokens = 0;
    for (int64_t n = 0; n < g->sequences; n++) tokens += g->length[n];
    expect_to_fill(x->data, tokens * g->heads * width / (x->type == BFLOAT16 ? 2 : 1));
}

/* Both return 0, or 1 when memory ran out. */
int plait_attention_forward(attention *g, int threads, team gomp) {
    expect_to_fill_rows(g, &g->o, g->V);
    if (g->saved) expect_to_fill(g->saved, g->chunk[g->sequences] * g->heads * g->K * g->V);
    int64_t floats = chunk_floats(g->size, padded(g->K), padded(g->V));
    return run_pieces(forward, g, g->sequences * g->heads, floats, threads, gomp);
}

int plait_attention_backward(attention *g, int threads, team gomp) {
    expect_to_fill_rows(g, &g->d_q, g->K);
    expect_to_fill_rows(g, &g->d_k, g->K);
    expect_to_fill_rows(g, &g->d_v, g->V);
    if (g->per_channel) expect_to_fill_rows(g, &g->d_log_decay, g->K);
    int64_t K = padded(g->K), V = padded(g->V);
    int64_t floats = chunk_floats(g->size, K, V) + gradient_floats(g->size, K, V) + K * V + 16;
    return run_pieces(backward, g, g->sequences * g->heads, floats, threads, gomp);
}

/* Softmax attention of blocks of queries over chosen keys, forward only. Scores stand with a key to a row and a query to
   a lane, so that the softmax never sums across lanes; keys are read where they lie, values are copied together. */
#include "matrix.h"
#include "parallel.h"

#define TILE 64     /* keys at a time */
#define QUERIES 128 /* at a time, a multiple of BLOCK */

static const float NEVER = -1e30f; /* exp of it is 0 beside any score */

typedef struct {
    const float *q, *k, *v;  /* (B, H, T, D), (B, G, S, D), (B, G, S, DV), channels contiguous */
    float *o;                /* (B, H, T, DV), contiguous */
    float *sums;             /* (B, H, S): what a key receives from all queries; NULL where nobody asks */
    const int64_t *index;    /* pages of keys; NULL for every key */
    const int64_t *begin, *end; /* (B, X, M): where the pages of a block of queries stand in index */
    int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token; /* strides */
    int64_t B, H, X, G, T, S, D, DV; /* X: heads that choose keys for themselves, each for H / X query heads */
    int64_t block, page, first;      /* queries of a block; keys of a page; position of the first query */
    float scale;
} softmax;

/* Some queries that share their keys, and the thread's memory for them. */
typedef struct {
    const softmax *g;
    const float *k, *v;
    const int64_t *index, *end; /* pages still to come */
    int64_t next, rows, columns; /* next key within the page; queries; the same, padded */
    int64_t earliest, latest;   /* position of a query */
    float *q, *s, *o, *most, *total, *keys, *values;
    int32_t position[QUERIES], slot[TILE];
} work;

static int64_t padded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

static int64_t blocks(const softmax *g) { return (g->T + g->block - 1) / g->block; }

static size_t scratch_floats(const softmax *g) {
    return QUERIES * (g->D + TILE + padded(g->DV) + 2) + TILE * (g->D + padded(g->DV));
}

/* The slots of the next keys that the latest query may see; how many. */
static int64_t next_keys(work *w) {
    const softmax *g = w->g;
    int64_t count = 0, last = w->latest < g->S - 1 ? w->latest : g->S - 1;
    if (!g->index) {
        for (; count < TILE && w->next <= last; count++) w->slot[count] = (int32_t)w->next++;
    } else {
        while (count < TILE && w->index < w->end) {
            int64_t slot = *w->index * g->page + w->next;
            if (slot <= last) w->slot[count++] = (int32_t)slot;
            if (++w->next == g->page || slot >= last) w->index++, w->next = 0;
        }
    }
    for (int64_t j = count; j < padded(count); j++) w->slot[j] = -1;
    return count;
}

/* From slot j, how many keys lie side by side; at least 1, a pad counts as none. */
static int64_t side_by_side(const work *w, int64_t j, int64_t count) {
    int64_t n = 1;
    while (j + n < count && w->slot[j + n] == w->slot[j] + n) n++;
    return n;
}

/* Ask for the values of these keys, and for the next keys where their place is known. */
static void expect_rows(const work *w, int64_t count) {
    const softmax *g = w->g;
    for (int64_t j = 0; j < count; j++) {
        const float *values = w->v + w->slot[j] * g->v_token, *keys = w->k + (w->slot[j] + TILE) * g->k_token;
        for (int64_t c = 0; c < g->DV; c += LINE) expect_to_read(values + c);
        for (int64_t c = 0; !g->index && c < g->D; c += LINE) expect_to_read(keys + c);
    }
}

/* s (keys, queries) = K Q^T, with NEVER where a query comes before a key. */
static void score(work *w, int64_t count) {
    const softmax *g = w->g;
    expect_rows(w, count);
    for (int64_t j = 0, run; j < count; j += run) {
        run = side_by_side(w, j, count) / ROWS * ROWS;
        const float *keys = w->k + w->slot[j] * g->k_token;
        int64_t stride = g->k_token;
        if (!run) {
            run = ROWS, stride = g->D, keys = w->keys;
            for (int64_t i = 0; i < ROWS; i++)
                if (j + i < count)
                    memcpy(w->keys + i * g->D, w->k + w->slot[j + i] * g->k_token, g->D * sizeof(float));
                else
                    memset(w->keys + i * g->D, 0, g->D * sizeof(float));
        }
        product(run, w->columns, g->D, keys, stride, 1, w->q, w->columns, w->s + j * w->columns, w->columns, SET);
    }
    for (int64_t j = 0; j < (count + ROWS - 1) / ROWS * ROWS; j++) {
        float *s = w->s + j * w->columns;
        if (j >= count) {
            for (int64_t i = 0; i < w->columns; i += W) store(s + i, splat(NEVER));
        } else if (w->slot[j] > w->earliest) {
            ivec slot = w->slot[j] - (ivec){0};
            for (int64_t i = 0; i < w->columns; i += W) {
                ivec later = *(const ivec *)(w->position + i) < slot;
                store(s + i, (vec)(((ivec)load(s + i) & ~later) | ((ivec)splat(NEVER) & later)));
            }
        }
    }
}

/* o, total = o, total scaled to the new largest score, plus what these keys give. */
static void accumulate(work *w, int64_t count) {
    const softmax *g = w->g;
    int64_t width = padded(g->DV), columns = w->columns, keys = (count + ROWS - 1) / ROWS * ROWS;
    float fade[QUERIES];
    for (int64_t i = 0; i < columns; i += W) {
        vec before = load(w->most + i), most = before, total;
        for (int64_t j = 0; j < keys; j++) {
            vec s = load(w->s + j * columns + i);
            ivec larger = s > most;
            most = (vec)(((ivec)s & larger) | ((ivec)most & ~larger));
        }
        vec less = exponential(before - most);
        total = load(w->total + i) * less;
        for (int64_t j = 0; j < keys; j++) {
            vec p = exponential(load(w->s + j * columns + i) - most);
            total += p;
            store(w->s + j * columns + i, p);
        }
        store(w->most + i, most), store(w->total + i, total), store(fade + i, less);
    }
    for (int64_t i = 0; i < columns; i++)
        if (fade[i] != 1)
            for (int64_t c = 0; c < width; c += W) store(w->o + i * width + c, load(w->o + i * width + c) * splat(fade[i]));
    const float *values = w->v + w->slot[0] * g->v_token;
    int64_t stride = g->v_token;
    if (width != g->DV || side_by_side(w, 0, count) < count) {
        values = w->values, stride = width;
        for (int64_t j = 0; j < count; j++)
            memcpy(w->values + j * width, w->v + w->slot[j] * g->v_token, g->DV * sizeof(float));
    }
    product(columns, width, count, w->s, 1, columns, values, stride, w->o, width, ADD);
}

/* What each of these keys receives: the weights' sums over queries. */
static void add_sums(work *w, int64_t count, float *sums) {
    int64_t columns = w->columns;
    for (int64_t j = 0; j < count; j++) {
        vec sum = splat(0);
        for (int64_t i = 0; i < columns; i += W)
            sum += exponential(load(w->s + j * columns + i) - load(w->most + i)) * load(w->total + i);
        sums[w->slot[j]] += sum_lanes(sum);
    }
}

/* Block m of the queries of heads h to h + group, which share the keys of owner x. */
static void attend_block(const softmax *g, int64_t b, int64_t x, int64_t m, float *scratch) {
    int64_t group = g->H / g->X, begin = m * g->block, width = padded(g->DV);
    int64_t length = g->T - begin < g->block ? g->T - begin : g->block, all = group * length;
    int64_t kv = x / (g->X / g->G);
    work w = {.g = g, .k = g->k + b * g->k_batch + kv * g->k_head, .v = g->v + b * g->v_batch + kv * g->v_head};
    w.q = scratch, w.s = w.q + QUERIES * g->D, w.o = w.s + QUERIES * TILE, w.most = w.o + QUERIES * width;
    w.total = w.most + QUERIES, w.keys = w.total + QUERIES, w.values = w.keys + TILE * g->D;
    if (width != g->DV) memset(w.values, 0, TILE * width * sizeof(float));
    int64_t place = (b * g->X + x) * blocks(g) + m;
    for (int64_t r = 0; r < all; r += QUERIES) {
        w.rows = all - r < QUERIES ? all - r : QUERIES, w.columns = padded(w.rows);
        w.earliest = INT64_MAX, w.latest = -1;
        for (int64_t i = 0; i < w.columns; i++) {
            int64_t row = r + (i < w.rows ? i : 0), token = begin + row % length, position = g->first + token;
            const float *q = g->q + b * g->q_batch + (x * group + row / length) * g->q_head + token * g->q_token;
            for (int64_t d = 0; d < g->D; d++) w.q[d * w.columns + i] = i < w.rows ? q[d] * g->scale : 0;
            w.position[i] = (int32_t)position;
            w.earliest = position < w.earliest ? position : w.earliest;
            w.latest = position > w.latest ? position : w.latest;
        }
        for (int64_t i = 0; i < w.columns; i++) w.most[i] = NEVER, w.total[i] = 0;
        memset(w.o, 0, w.columns * width * sizeof(float));
        for (int pass = 0; pass < (g->sums ? 2 : 1); pass++) {
            w.next = 0;
            if (g->index) w.index = g->index + g->begin[place], w.end = g->index + g->end[place];
            for (int64_t count; (count = next_keys(&w));) {
                score(&w, count);
                if (pass)
                    add_sums(&w, count, g->sums + (b * g->H + x) * g->S);
                else
                    accumulate(&w, count);
            }
            if (pass) break;
            for (int64_t i = 0; i < w.columns; i++) /* 0 for a query that saw none of its keys */
                w.total[i] = i < w.rows && w.most[i] > NEVER ? 1 / w.total[i] : 0;
            for (int64_t i = 0; i < w.rows; i++) {
                int64_t row = r + i, token = begin + row % length, h = x * group + row / length;
                float *o = g->o + ((b * g->H + h) * g->T + token) * g->DV;
                for (int64_t c = 0; c < g->DV; c++) o[c] = w.total[i] ? w.o[i * width + c] * w.total[i] : 0;
            }
        }
    }
}

static void one_block(void *job, int64_t index, float *scratch) {
    const softmax *g = job;
    int64_t count = blocks(g), x = index / count;
    attend_block(g, x / g->X, x % g->X, count - 1 - index % count, scratch); /* the longest first */
}

static void one_head(void *job, int64_t index, float *scratch) {
    const softmax *g = job;
    for (int64_t m = 0; m < blocks(g); m++) attend_block(g, index / g->X, index % g->X, m, scratch);
}

int plait_softmax(softmax *g, int threads, team gomp) {
    int64_t heads = g->B * g->X;
    expect_to_fill(g->o, g->B * g->H * g->T * g->DV);
    if (g->sums) return run_pieces(one_head, g, heads, scratch_floats(g), threads, gomp); /* no two write one sum */
    return run_pieces(one_block, g, heads * blocks(g), scratch_floats(g), threads, gomp);
}

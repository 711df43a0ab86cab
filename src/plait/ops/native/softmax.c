/* Softmax attention of blocks of queries over chosen keys, and its gradients. Scores stand with a key to a row and a query to
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
    float *lse;              /* (B, H, T): log of each query's sum; NULL where nobody asks */
    const float *d_o, *rest; /* gradients: of o, and d_o o less that of lse (B, H, T), all contiguous */
    float *d_q, *d_k, *d_v;  /* (B, H, T, D); (parts, B, G, S, D) and (parts, B, G, S, DV), zeros at first */
    const int64_t *index;    /* pages of keys; NULL for every key */
    const int64_t *begin, *end; /* (B, X, M): where the pages of a block of queries stand in index */
    const int64_t *starts, *stored, *firsts; /* (B, G): slot where a row's keys begin, how many there are, and which of
                                                them is the first query's own; NULL: 0, S and first everywhere */
    int64_t q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token; /* strides */
    int64_t B, H, X, G, T, S, D, DV; /* X: heads that choose keys for themselves, each for H / X query heads */
    int64_t block, page, first;      /* queries of a block; keys of a page; position of the first query */
    int64_t window, sinks;           /* of the keys, a query sees the last and the first ones; 0: all up to its own */
    int64_t parts;                   /* shares of the blocks whose gradients of keys and values stand apart */
    float scale;
} softmax;

/* Some queries that share their keys, and the thread's memory for them. */
typedef struct {
    const softmax *g;
    const float *k, *v;
    const int64_t *index, *end; /* pages still to come */
    int64_t next, rows, columns; /* next key within the page; queries; the same, padded */
    int64_t stored, first;       /* keys of this row and head; position of the first query */
    int64_t earliest, latest;   /* position of a query */
    float *q, *s, *o, *most, *total, *keys, *values;
    int32_t position[QUERIES], slot[TILE];
} work;

static int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

static int64_t padded(int64_t n) { return whole(n, BLOCK); }

/* Few queries (the heads that share a list) fill no block: they are padded to whole vectors and rows of a product. */
static int64_t lanes(int64_t n) { return whole(n, W > ROWS ? W : ROWS); }

static int64_t blocks(const softmax *g) { return (g->T + g->block - 1) / g->block; }

static size_t scratch_floats(const softmax *g) {
    return QUERIES * (g->D + TILE + padded(g->DV) + 2) + TILE * (g->D + padded(g->DV));
}

/* The slots of the next keys that the latest query may see; how many. */
static int64_t next_keys(work *w) {
    const softmax *g = w->g;
    int64_t count = 0, last = w->latest < w->stored - 1 ? w->latest : w->stored - 1;
    if (!g->index) {
        int64_t near = g->window ? w->earliest - g->window + 1 : 0;
        for (; count < TILE; count++) {
            if (w->next < near && w->next >= g->sinks) w->next = near;
            if (w->next > last) break;
            w->slot[count] = (int32_t)w->next++;
        }
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
/* Heads without channels have no memory, and memcpy may not see its address. */
static void copy(float *to, const float *from, int64_t count) {
    if (count) memcpy(to, from, count * sizeof(float));
}

static void expect_rows(const work *w, int64_t count) {
    const softmax *g = w->g;
    for (int64_t j = 0; j < count; j++) {
        const float *values = w->v + w->slot[j] * g->v_token, *keys = w->k + (w->slot[j] + TILE) * g->k_token;
        for (int64_t c = 0; c < g->DV; c += LINE) expect_to_read(values + c);
        for (int64_t c = 0; !g->index && c < g->D; c += LINE) expect_to_read(keys + c);
    }
}

static void never_where(float *s, ivec hidden) {
    store(s, (vec)(((ivec)load(s) & ~hidden) | ((ivec)splat(NEVER) & hidden)));
}

/* s (keys, queries) = K Q^T, with NEVER where a query does not see a key. */
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
                    copy(w->keys + i * g->D, w->k + w->slot[j + i] * g->k_token, g->D);
                else
                    memset(w->keys + i * g->D, 0, g->D * sizeof(float));
        }
        product(run, w->columns, g->D, keys, stride, 1, w->q, w->columns, w->s + j * w->columns, w->columns, SET);
    }
    for (int64_t j = 0; j < whole(count, ROWS); j++) {
        float *s = w->s + j * w->columns;
        if (j >= count) {
            for (int64_t i = 0; i < w->columns; i += W) store(s + i, splat(NEVER));
        } else if (w->slot[j] > w->earliest) {
            ivec slot = w->slot[j] - (ivec){0};
            for (int64_t i = 0; i < w->columns; i += W) never_where(s + i, *(const ivec *)(w->position + i) < slot);
        }
        if (j < count && g->window && w->slot[j] >= g->sinks && w->latest - w->slot[j] >= g->window) {
            ivec end = (int32_t)(w->slot[j] + g->window - 1) - (ivec){0};
            for (int64_t i = 0; i < w->columns; i += W) never_where(s + i, *(const ivec *)(w->position + i) > end);
        }
    }
}

/* o, total = o, total scaled to the new largest score, plus what these keys give. */
static void accumulate(work *w, int64_t count) {
    const softmax *g = w->g;
    int64_t width = padded(g->DV), columns = w->columns, keys = whole(count, ROWS);
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
            copy(w->values + j * width, w->v + w->slot[j] * g->v_token, g->DV);
    }
    product(whole(w->rows, ROWS), width, count, w->s, 1, columns, values, stride, w->o, width, ADD);
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

/* Queries of owner x against the keys of its row and key head. */
static work work_of(const softmax *g, int64_t b, int64_t x) {
    int64_t kv = x / (g->X / g->G), at = b * g->G + kv, start = g->starts ? g->starts[at] : 0;
    return (work){.g = g,
                  .k = g->k + b * g->k_batch + kv * g->k_head + start * g->k_token,
                  .v = g->v + b * g->v_batch + kv * g->v_head + start * g->v_token,
                  .stored = g->stored ? g->stored[at] : g->S,
                  .first = g->firsts ? g->firsts[at] : g->first};
}

/* Block m of the queries of heads h to h + group, which share the keys of owner x. */
static void attend_block(const softmax *g, int64_t b, int64_t x, int64_t m, float *scratch) {
    int64_t group = g->H / g->X, begin = m * g->block, width = padded(g->DV);
    int64_t length = g->T - begin < g->block ? g->T - begin : g->block, all = group * length;
    work w = work_of(g, b, x);
    w.q = scratch, w.s = w.q + QUERIES * g->D, w.o = w.s + QUERIES * TILE, w.most = w.o + QUERIES * width;
    w.total = w.most + QUERIES, w.keys = w.total + QUERIES, w.values = w.keys + TILE * g->D;
    if (width != g->DV) memset(w.values, 0, TILE * width * sizeof(float));
    int64_t place = (b * g->X + x) * blocks(g) + m;
    for (int64_t r = 0; r < all; r += QUERIES) {
        w.rows = all - r < QUERIES ? all - r : QUERIES, w.columns = lanes(w.rows);
        w.earliest = INT64_MAX, w.latest = -1;
        for (int64_t i = 0; i < w.columns; i++) {
            int64_t row = r + (i < w.rows ? i : 0), token = begin + row % length, position = w.first + token;
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
            for (int64_t i = 0; g->stored && i < w.rows; i++) /* padding stands behind a row's last key */
                if (w.position[i] >= w.stored) w.most[i] = NEVER;
            for (int64_t i = 0; g->lse && i < w.rows; i++) {
                int64_t row = r + i, token = begin + row % length, h = x * group + row / length;
                g->lse[(b * g->H + h) * g->T + token] = w.most[i] > NEVER ? w.most[i] + logf(w.total[i]) : -INFINITY;
            }
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

/* Memory of a thread for gradients: queries and what they get with a query to a row and to a lane. */
typedef struct {
    work w;
    float *q, *d_o, *d_o_lanes, *d_q, *d_s, *lse, *rest, *values, *product;
} gradient;

static size_t gradient_floats(const softmax *g) {
    int64_t keys = padded(g->D), values = padded(g->DV), most = keys > values ? keys : values;
    return QUERIES * (g->D + TILE * 2 + 2 * keys + values + g->DV + 2) + TILE * (keys + values + most);
}

/* Rows of keys or values side by side, with zeros up to `width` channels and whole groups of rows. */
static void gather(const work *w, int64_t count, const float *from, int64_t stride, int64_t channels, int64_t width,
                   float *to) {
    memset(to, 0, whole(count, ROWS) * width * sizeof(float));
    for (int64_t j = 0; j < count; j++) copy(to + j * width, from + w->slot[j] * stride, channels);
}

static void add_rows(const work *w, int64_t count, const float *from, int64_t width, float *to, int64_t channels) {
    for (int64_t j = 0; j < count; j++) {
        float *row = to + w->slot[j] * channels;
        for (int64_t c = 0; c < channels; c++) row[c] += from[j * width + c];
    }
}

/* What these keys get from the block's queries, and the queries from them. */
static void pass_back(gradient *d, int64_t count, float *d_k, float *d_v) {
    work *w = &d->w;
    const softmax *g = w->g;
    int64_t columns = w->columns, rows = whole(count, ROWS), width = padded(g->D), wide = padded(g->DV);
    gather(w, count, w->v, g->v_token, g->DV, wide, d->values);
    score(w, count);
    product(rows, columns, g->DV, d->values, wide, 1, d->d_o_lanes, columns, d->d_s, columns, SET);
    for (int64_t j = 0; j < rows; j++)
        for (int64_t i = 0; i < columns; i += W) {
            vec p = exponential(load(w->s + j * columns + i) - load(d->lse + i));
            store(w->s + j * columns + i, p);
            store(d->d_s + j * columns + i, p * (load(d->d_s + j * columns + i) - load(d->rest + i)));
        }
    product(rows, wide, w->rows, w->s, columns, 1, d->d_o, wide, d->product, wide, SET);
    add_rows(w, count, d->product, wide, d_v, g->DV);
    product(rows, width, w->rows, d->d_s, columns, 1, d->q, width, d->product, width, SET);
    add_rows(w, count, d->product, width, d_k, g->D);
    const float *keys = w->k + w->slot[0] * g->k_token;
    int64_t stride = g->k_token;
    if (width != g->D || side_by_side(w, 0, count) < count)
        gather(w, count, w->k, g->k_token, g->D, width, w->keys), keys = w->keys, stride = width;
    product(whole(w->rows, ROWS), width, count, d->d_s, 1, columns, keys, stride, d->d_q, width, ADD);
}

/* Block m of the queries of owner x: writes d_q, adds to d_k and d_v (S, channels). */
static void block_back(const softmax *g, int64_t b, int64_t x, int64_t m, float *d_k, float *d_v, float *scratch) {
    int64_t group = g->H / g->X, begin = m * g->block, width = padded(g->D), wide = padded(g->DV);
    int64_t length = g->T - begin < g->block ? g->T - begin : g->block, all = group * length;
    int64_t place = (b * g->X + x) * blocks(g) + m;
    gradient d = {.w = work_of(g, b, x)};
    work *w = &d.w;
    w->q = scratch, w->s = w->q + QUERIES * g->D, d.d_s = w->s + QUERIES * TILE, d.q = d.d_s + QUERIES * TILE;
    d.d_q = d.q + QUERIES * width, d.d_o = d.d_q + QUERIES * width, d.d_o_lanes = d.d_o + QUERIES * wide;
    d.lse = d.d_o_lanes + QUERIES * g->DV, d.rest = d.lse + QUERIES, w->keys = d.rest + QUERIES;
    d.values = w->keys + TILE * width, d.product = d.values + TILE * wide;
    for (int64_t r = 0; r < all; r += QUERIES) {
        w->rows = all - r < QUERIES ? all - r : QUERIES, w->columns = lanes(w->rows);
        w->earliest = INT64_MAX, w->latest = -1;
        memset(d.q, 0, w->columns * width * sizeof(float)), memset(d.d_q, 0, w->columns * width * sizeof(float));
        memset(d.d_o, 0, w->columns * wide * sizeof(float));
        for (int64_t i = 0; i < w->columns; i++) {
            int64_t row = r + (i < w->rows ? i : 0), token = begin + row % length, h = x * group + row / length;
            int64_t position = w->first + token, at = (b * g->H + h) * g->T + token;
            const float *q = g->q + b * g->q_batch + h * g->q_head + token * g->q_token, *d_o = g->d_o + at * g->DV;
            int real = i < w->rows;
            for (int64_t c = 0; c < g->D; c++) w->q[c * w->columns + i] = real ? q[c] * g->scale : 0;
            for (int64_t c = 0; c < g->DV; c++) d.d_o_lanes[c * w->columns + i] = real ? d_o[c] : 0;
            for (int64_t c = 0; real && c < g->D; c++) d.q[i * width + c] = q[c] * g->scale;
            if (real) copy(d.d_o + i * wide, d_o, g->DV);
            d.lse[i] = real && g->lse[at] > NEVER ? g->lse[at] : -NEVER; /* no weight for those without keys */
            d.rest[i] = real ? g->rest[at] : 0;
            w->position[i] = (int32_t)position;
            w->earliest = position < w->earliest ? position : w->earliest;
            w->latest = position > w->latest ? position : w->latest;
        }
        w->next = 0, w->index = g->index + g->begin[place], w->end = g->index + g->end[place];
        for (int64_t count; (count = next_keys(w));) pass_back(&d, count, d_k, d_v);
        for (int64_t i = 0; i < w->rows; i++) {
            int64_t row = r + i, token = begin + row % length, h = x * group + row / length;
            float *to = g->d_q + ((b * g->H + h) * g->T + token) * g->D;
            for (int64_t c = 0; c < g->D; c++) to[c] = d.d_q[i * width + c] * g->scale;
        }
    }
}

/* A part of the blocks of all owners of one key head: no other piece writes to the same keys and values. */
static void one_part(void *job, int64_t index, float *scratch) {
    const softmax *g = job;
    int64_t heads = g->B * g->G, part = index / heads, head = index % heads, owners = g->X / g->G;
    float *d_k = g->d_k + index * g->S * g->D, *d_v = g->d_v + index * g->S * g->DV;
    for (int64_t x = 0; x < owners; x++)
        for (int64_t m = part; m < blocks(g); m += g->parts)
            block_back(g, head / g->G, head % g->G * owners + x, m, d_k, d_v, scratch);
}

int plait_softmax_backward(softmax *g, int threads, team gomp) {
    return run_pieces(one_part, g, g->parts * g->B * g->G, gradient_floats(g), threads, gomp);
}

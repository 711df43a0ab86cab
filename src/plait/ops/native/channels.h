/* Scores under decay per channel: P_ij = sum_d x_id k_jd e^{G_id - G_jd}, without ever forming e^{-G}.

   Inside a block of 16 tokens the factors are running products of the decays; between blocks they split into a product
   from the later block's start (before), one up to the earlier block's end (after), and those of whole blocks between. */
#pragma once

#include "matrix.h"

typedef struct {
    const float *a; /* (c, K) decay of each token: e^g */
    float *before;  /* (c, K) product from the block's start to the token, the token's own included */
    float *after;   /* (c, K) product after the token to the block's end */
    float *whole;   /* (c / 16, K) product over the block */
} block_decay;

static void block_products(int64_t c, int64_t K, block_decay *d) {
    for (int64_t i0 = 0; i0 < c; i0 += BLOCK)
        for (int64_t n = 0; n < K; n += W) {
            vec p = splat(1);
            for (int64_t i = i0; i < i0 + BLOCK; i++) store(d->before + i * K + n, p *= load(d->a + i * K + n));
            store(d->whole + i0 / BLOCK * K + n, p);
            p = splat(1);
            for (int64_t i = i0 + BLOCK - 1; i >= i0; i--) {
                store(d->after + i * K + n, p);
                p *= load(d->a + i * K + n);
            }
        }
}

/* Diagonal block of two score matrices at once: lanes are the tokens j, and m_j = k_j e^{G_i - G_j} moves on with i.
   y may be NULL. Entries above the diagonal are 0. */
static void diagonal_scores(int64_t c, int64_t K, const float *x, const float *y, const float *kt, const float *a,
                            float *p, float *q) {
    enum { PARTS = BLOCK / W };
    const ivec lane = LANES;
    for (int part = 0; part < PARTS; part++) {
        vec s[BLOCK], t[BLOCK];
        UNROLL for (int i = 0; i < BLOCK; i++) s[i] = t[i] = splat(0);
        for (int64_t n = 0; n < K; n++) {
            vec m = load(kt + n * c + part * W);
            UNROLL for (int i = 0; i < BLOCK; i++) {
                ivec earlier = lane + part * W < i;
                vec f = (vec)(((ivec)splat(a[i * K + n]) & earlier) | ((ivec)splat(1) & ~earlier));
                m *= f;
                s[i] += splat(x[i * K + n]) * m;
                if (y) t[i] += splat(y[i * K + n]) * m;
            }
        }
        UNROLL for (int i = 0; i < BLOCK; i++) {
            ivec kept = lane + part * W <= i;
            store(p + i * c + part * W, (vec)((ivec)s[i] & kept));
            if (y) store(q + i * c + part * W, (vec)((ivec)t[i] & kept));
        }
    }
}

/* P (c, c) from x and, where y is given, Q from y; kt is K transposed (K, c); scratch holds (K + 2 * 16, c). */
static void channel_scores(int64_t c, int64_t K, const float *x, const float *y, const float *k, const float *kt,
                           const block_decay *d, float *p, float *q, float *scratch) {
    float *moved = scratch, *rows = scratch + K * c; /* keys times e^{G_end - G_j}, transposed; rows of x times before */
    for (int64_t i0 = 0; i0 < c; i0 += BLOCK) {
        for (int pass = 0; i0 && pass < (y ? 2 : 1); pass++) {
            const float *from = (pass ? y : x) + i0 * K, *before = d->before + i0 * K;
            for (int64_t e = 0; e < BLOCK * K; e += W) store(rows + e, load(from + e) * load(before + e));
            product(BLOCK, i0, K, rows, K, 1, moved, c, (pass ? q : p) + i0 * c, c, SET);
        }
        diagonal_scores(c, K, x + i0 * K, y ? y + i0 * K : NULL, kt + i0, d->a + i0 * K, p + i0 * c + i0,
                        y ? q + i0 * c + i0 : NULL);
        if (i0 + BLOCK == c) break;
        const float *whole = d->whole + i0 / BLOCK * K;
        for (int64_t n = 0; n < K; n++)
            for (int64_t j = 0; j < i0; j += W) store(moved + n * c + j, load(moved + n * c + j) * splat(whole[n]));
        const float *key = k + i0 * K, *after = d->after + i0 * K;
        for (int64_t e = 0; e < BLOCK * K; e += W) store(rows + e, load(key + e) * load(after + e));
        transpose(BLOCK, K, rows, K, moved + i0, c);
    }
}

/* d_x += and d_k += from d_p, the gradient of P, which is 0 above the diagonal. scratch holds (c + 16, K). */
static void channel_scores_backward(int64_t c, int64_t K, const float *x, const float *k, const block_decay *d,
                                    const float *d_p, float *d_x, float *d_k, float *scratch) {
    float *moved = scratch, *part = scratch + c * K;
    for (int64_t i0 = 0; i0 < c; i0 += BLOCK) { /* moved: keys before i0 times e^{G_{i0 - 1} - G_j} */
        if (i0) {
            product(BLOCK, K, i0, d_p + i0 * c, c, 1, moved, K, part, K, SET);
            for (int64_t e = 0; e < BLOCK * K; e += W)
                store(d_x + i0 * K + e, load(d_x + i0 * K + e) + load(part + e) * load(d->before + i0 * K + e));
        }
        for (int64_t n = 0; n < K; n += W)
            for (int64_t i = i0; i < i0 + BLOCK; i++) {
                vec s = splat(0);
                for (int64_t j = i0; j <= i; j++)
                    s = s * load(d->a + j * K + n) + splat(d_p[i * c + j]) * load(k + j * K + n);
                store(d_x + i * K + n, load(d_x + i * K + n) + s);
            }
        const float *whole = d->whole + i0 / BLOCK * K;
        for (int64_t j = 0; j < i0; j++)
            for (int64_t n = 0; n < K; n += W) store(moved + j * K + n, load(moved + j * K + n) * load(whole + n));
        for (int64_t e = i0 * K; e < (i0 + BLOCK) * K; e += W) store(moved + e, load(k + e) * load(d->after + e));
    }
    for (int64_t j0 = c - BLOCK; j0 >= 0; j0 -= BLOCK) { /* moved: x after the block times e^{G_i - G_end} */
        int64_t next = j0 + BLOCK;
        if (next < c) {
            product(BLOCK, K, c - next, d_p + next * c + j0, 1, c, moved + next * K, K, part, K, SET);
            for (int64_t e = 0; e < BLOCK * K; e += W)
                store(d_k + j0 * K + e, load(d_k + j0 * K + e) + load(part + e) * load(d->after + j0 * K + e));
        }
        for (int64_t n = 0; n < K; n += W)
            for (int64_t j = j0; j < next; j++) {
                vec s = splat(0);
                for (int64_t i = next - 1; i >= j; i--) {
                    if (i + 1 < next) s *= load(d->a + (i + 1) * K + n);
                    s += splat(d_p[i * c + j]) * load(x + i * K + n);
                }
                store(d_k + j * K + n, load(d_k + j * K + n) + s);
            }
        const float *whole = d->whole + j0 / BLOCK * K;
        for (int64_t i = next; i < c; i++)
            for (int64_t n = 0; n < K; n += W) store(moved + i * K + n, load(moved + i * K + n) * load(whole + n));
        for (int64_t e = j0 * K; e < next * K; e += W) store(moved + e, load(x + e) * load(d->before + e));
    }
}

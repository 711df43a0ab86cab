/* Products of small matrices that stay in the cache: C (=, += or -=) A B. */
#pragma once

#include "vectors.h"

enum { SET = 0, ADD = 1, SUBTRACT = -1 };

#define MICRO_KERNEL(NAME, R, NV)                                                                                     \
    static inline void product_##NAME(int64_t depth, const float *a, int64_t row, int64_t column, const float *b,     \
                                    int64_t ldb, float *c, int64_t ldc, int mode) {                                   \
        vec s[R][NV];                                                                                                 \
        UNROLL for (int i = 0; i < R; i++) UNROLL for (int j = 0; j < NV; j++) s[i][j] = splat(0);                    \
        for (int64_t k = 0; k < depth; k++) {                                                                         \
            vec y[NV];                                                                                                \
            UNROLL for (int j = 0; j < NV; j++) y[j] = load(b + k * ldb + j * W);                                     \
            UNROLL for (int i = 0; i < R; i++) {                                                                      \
                vec x = splat(a[i * row + k * column]);                                                               \
                UNROLL for (int j = 0; j < NV; j++) s[i][j] += x * y[j];                                              \
            }                                                                                                         \
        }                                                                                                             \
        UNROLL for (int i = 0; i < R; i++) UNROLL for (int j = 0; j < NV; j++) {                                      \
            float *p = c + i * ldc + j * W;                                                                           \
            vec x = s[i][j];                                                                                          \
            if (mode == ADD) x = load(p) + x;                                                                         \
            if (mode == SUBTRACT) x = load(p) - x;                                                                    \
            store(p, x);                                                                                              \
        }                                                                                                             \
    }

MICRO_KERNEL(1, ROWS, 1)
MICRO_KERNEL(2, ROWS, 2)
MICRO_KERNEL(3, ROWS, 3)
/* One vector of columns leaves registers for eight rows: fewer sums at work than that wait for each other. */
MICRO_KERNEL(tall, 8, 1)

/* C (M, N) with rows ldc apart; A (M, depth) with any strides, so that A may be a transposed view; B (depth, N) with
   rows ldb apart. M is a multiple of ROWS and N of W. */
static void product(int64_t M, int64_t N, int64_t depth, const float *a, int64_t row, int64_t column, const float *b,
                    int64_t ldb, float *c, int64_t ldc, int mode) {
    for (int64_t n = 0; n < N;) {
        int64_t left = (N - n) / W, width = left == 4 || left == 2 ? 2 : left >= 3 ? 3 : 1;
        for (int64_t m = 0, rows; m < M; m += rows) {
            rows = width == 1 && M - m >= 8 ? 8 : ROWS;
            const float *am = a + m * row;
            float *cm = c + m * ldc + n;
            if (width == 3)
                product_3(depth, am, row, column, b + n, ldb, cm, ldc, mode);
            else if (width == 2)
                product_2(depth, am, row, column, b + n, ldb, cm, ldc, mode);
            else if (rows == 8)
                product_tall(depth, am, row, column, b + n, ldb, cm, ldc, mode);
            else
                product_1(depth, am, row, column, b + n, ldb, cm, ldc, mode);
        }
        n += width * W;
    }
}

/* C = lower triangle of A B by blocks: row block I gets its columns up to I's own. */
static void product_to_lower(int64_t size, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                             float *c, int64_t ldc) {
    for (int64_t i = 0; i < size; i += BLOCK)
        product(BLOCK, i + BLOCK, depth, a + i * lda, lda, 1, b, ldb, c + i * ldc, ldc, SET);
}

/* C (=, +=, -=) L B, with L lower triangular (zeros above the diagonal inside its diagonal blocks). */
static void product_of_lower(int64_t size, int64_t N, const float *l, int64_t ldl, const float *b, int64_t ldb,
                             float *c, int64_t ldc, int mode) {
    for (int64_t i = 0; i < size; i += BLOCK)
        product(BLOCK, N, i + BLOCK, l + i * ldl, ldl, 1, b, ldb, c + i * ldc, ldc, mode);
}

/* C (=, +=, -=) L^T B. */
static void product_of_lower_transposed(int64_t size, int64_t N, const float *l, int64_t ldl, const float *b,
                                        int64_t ldb, float *c, int64_t ldc, int mode) {
    for (int64_t j = 0; j < size; j += BLOCK)
        product(BLOCK, N, size - j, l + j * ldl + j, 1, ldl, b + j * ldb, ldb, c + j * ldc, ldc, mode);
}

/* Solve (I + A) X = B in place of B (size, N); A is read below its diagonal only. Exact substitution: powers of A,
   which faster inverses form, grow with repeated keys. */
static void solve_unit_lower(int64_t size, int64_t N, const float *a, int64_t lda, float *b, int64_t ldb) {
    for (int64_t i0 = 0; i0 < size; i0 += BLOCK) {
        if (i0) product(BLOCK, N, i0, a + i0 * lda, lda, 1, b, ldb, b + i0 * ldb, ldb, SUBTRACT);
        const float *d = a + i0 * lda + i0;
        for (int64_t n = 0; n < N; n += W) {
            vec x[BLOCK];
            UNROLL for (int i = 0; i < BLOCK; i++) x[i] = load(b + (i0 + i) * ldb + n);
            UNROLL for (int i = 1; i < BLOCK; i++) UNROLL for (int j = 0; j < i; j++) x[i] -= splat(d[i * lda + j]) * x[j];
            UNROLL for (int i = 0; i < BLOCK; i++) store(b + (i0 + i) * ldb + n, x[i]);
        }
    }
}

/* Solve (I + A)^T X = B in place of B. */
static void solve_unit_lower_transposed(int64_t size, int64_t N, const float *a, int64_t lda, float *b, int64_t ldb) {
    for (int64_t i0 = size - BLOCK; i0 >= 0; i0 -= BLOCK) {
        int64_t after = i0 + BLOCK;
        if (after < size)
            product(BLOCK, N, size - after, a + after * lda + i0, 1, lda, b + after * ldb, ldb, b + i0 * ldb, ldb,
                    SUBTRACT);
        const float *d = a + i0 * lda + i0;
        for (int64_t n = 0; n < N; n += W) {
            vec x[BLOCK];
            UNROLL for (int i = 0; i < BLOCK; i++) x[i] = load(b + (i0 + i) * ldb + n);
            UNROLL for (int i = BLOCK - 2; i >= 0; i--)
                UNROLL for (int j = BLOCK - 1; j > i; j--) x[i] -= splat(d[j * lda + i]) * x[j];
            UNROLL for (int i = 0; i < BLOCK; i++) store(b + (i0 + i) * ldb + n, x[i]);
        }
    }
}

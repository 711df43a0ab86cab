/* Vectors of the widest kind that this build may use, in the compilers' own vector extension: one source serves
   AVX-512, AVX2, SSE and NEON. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define W 16
#define INTERLEAVE_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define INTERLEAVE_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LANES {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif defined(__AVX2__)
#define W 8
#define INTERLEAVE_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define INTERLEAVE_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define LANES {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define W 4
#define INTERLEAVE_LOW 0, 4, 1, 5
#define INTERLEAVE_HIGH 2, 6, 3, 7
#define LANES {0, 1, 2, 3}
#endif

/* Rows of a matrix product held in registers at once, beside up to three vectors of columns. */
#if W == 8 || (W == 4 && !defined(__aarch64__))
#define ROWS 4
#else
#define ROWS 8
#endif

/* Rows that are treated together: matrices are padded to multiples of it. */
#define BLOCK 16

typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

#define UNROLL _Pragma("GCC unroll 16")

static inline vec splat(float x) { return x - (vec){0}; }

static inline vec load(const float *p) { return *(const vec *)p; }

static inline void store(float *p, vec x) { *(vec *)p = x; }

/* exp(x) for x <= 0, within 2 units in the last place; 0 below -87.3. Polynomial of degree 6 on [-ln2/2, ln2/2]. */
static inline vec exponential(vec x) {
    const vec lowest = splat(-87.3f);
    ivec dead = x < lowest;
    x = (vec)(((ivec)x & ~dead) | ((ivec)lowest & dead));
    const vec shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = x * splat(1.44269504088896341f) + shift;
    ivec power = ((ivec)n - (ivec)shift) << 23;
    n -= shift;
    vec r = x - n * splat(0.693359375f);
    r -= n * splat(-2.12194440e-4f);
    vec p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    return (vec)(((ivec)p + power) & ~dead);
}

/* Floats of a cache line. */
#define LINE 16

/* Ask for a cache line ahead of its use, where rows lie too far apart for the processor to foresee it. An address beyond
   the data does no harm. */
static inline void expect_to_read(const float *p) { __builtin_prefetch(p, 0, 2); }

static inline void expect_to_write(const float *p) { __builtin_prefetch(p, 1, 2); }

static inline float sum_lanes(vec x) {
    float total = 0;
    for (int i = 0; i < W; i++) total += x[i];
    return total;
}

/* to[j][i] = from[i][j]; both sizes are multiples of W. */
static inline void transpose(int64_t rows, int64_t columns, const float *from, int64_t ld_from, float *to,
                             int64_t ld_to) {
    for (int64_t r = 0; r < rows; r += W)
        for (int64_t c = 0; c < columns; c += W) {
            vec x[W], y[W];
            UNROLL for (int i = 0; i < W; i++) x[i] = load(from + (r + i) * ld_from + c);
            for (int step = W; step > 1; step /= 2) {
                UNROLL for (int i = 0; i < W / 2; i++) {
                    y[2 * i] = __builtin_shufflevector(x[i], x[i + W / 2], INTERLEAVE_LOW);
                    y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + W / 2], INTERLEAVE_HIGH);
                }
                UNROLL for (int i = 0; i < W; i++) x[i] = y[i];
            }
            UNROLL for (int i = 0; i < W; i++) store(to + (c + i) * ld_to + r, x[i]);
        }
}

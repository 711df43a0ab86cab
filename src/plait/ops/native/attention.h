/* Arguments of the chunkwise recurrences, as plait.ops.native passes them. Strides are in elements. */
#pragma once

#include <stdint.h>

enum { FLOAT32 = 0, BFLOAT16 = 1 };

/* (B, T, H) outside, channels contiguous inside. `data` is NULL where an argument is absent. */
typedef struct {
    void *data;
    int64_t batch, token, head, type;
} tensor;

typedef struct {
    tensor q, k, v, beta, log_decay; /* beta and log_decay are fp32 */
    tensor o;
    float *state, *last, *saved; /* (N, H, K, V); (N, H, K, V); (chunks, H, K, V) or NULL */
    tensor d_o, d_q, d_k, d_v, d_beta, d_log_decay;
    float *d_last, *d_state;
    const int64_t *row, *first, *length, *chunk; /* of each sequence: row, first token, tokens, first chunk overall */
    int64_t sequences, heads, group;             /* value heads; value heads per key head */
    int64_t K, V, size, per_channel;             /* widths; tokens of a chunk, a multiple of 16 */
    float scale;
} attention;

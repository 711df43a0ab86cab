/* Independent pieces of work over threads. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

typedef void (*piece)(void *job, int64_t index, float *scratch);

/* GOMP_parallel of the OpenMP runtime that PyTorch has loaded; NULL where there is none, or after a fork, which that
   runtime does not survive. Sharing its threads matters: two sets of threads would spin against each other. */
typedef void (*team)(void (*run)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    piece run;
    void *job;
    int64_t count;
    size_t scratch;
    atomic_llong next;
    atomic_int failed;
} queue;

/* Numbers below 1e-38 count as 0 while a kernel runs: a state that fades is full of them, and processors with SSE take
   a hundred cycles for each. Returns what `restore_tiny` sets back. */
static unsigned flush_tiny(void) {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* results, operands */
    return before;
#else
    return 0;
#endif
}

static void restore_tiny(unsigned before) {
#ifdef __SSE__
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

static void take_pieces(void *data) {
    queue *q = data;
    float *scratch = NULL;
    if (posix_memalign((void **)&scratch, 64, (q->scratch + 1) * sizeof(float))) {
        atomic_store(&q->failed, 1);
        return;
    }
    unsigned before = flush_tiny();
    for (int64_t i; (i = atomic_fetch_add(&q->next, 1)) < q->count;) q->run(q->job, i, scratch);
    restore_tiny(before);
    free(scratch);
}

static void *take_pieces_in_thread(void *data) {
    take_pieces(data);
    return NULL;
}

/* Returns 0, or 1 when memory ran out. `scratch` is in floats, for each thread. */
static int run_pieces(piece run, void *job, int64_t count, size_t scratch, int64_t threads, team gomp) {
    queue q = {run, job, count, scratch, 0, 0};
    if (threads > count) threads = count;
    if (threads <= 1) {
        take_pieces(&q);
    } else if (gomp) {
        gomp(take_pieces, &q, (unsigned)threads, 0);
    } else {
        pthread_t others[threads - 1];
        int64_t started = 0;
        while (started < threads - 1 && !pthread_create(&others[started], NULL, take_pieces_in_thread, &q)) started++;
        take_pieces(&q);
        for (int64_t i = 0; i < started; i++) pthread_join(others[i], NULL);
    }
    return atomic_load(&q.failed) && atomic_load(&q.next) < count;
}

/* How many threads pay for a single pass over so many floats: waking one takes as long as a pass over a part of the
   second-level cache, and far longer where others use the processors. */
static inline int worthwhile(int threads, int64_t floats) {
    int64_t shares = floats >> 17; /* 512 KiB each */
    return shares < 1 ? 1 : shares < threads ? (int)shares : threads;
}

/* Fresh memory costs more than the arithmetic when the system hands it out in small pages: ask for large ones. */
static void expect_to_fill(void *data, int64_t floats) {
#ifdef MADV_HUGEPAGE
    const uintptr_t large = 2 << 20;
    uintptr_t first = ((uintptr_t)data + large - 1) / large * large, end = ((uintptr_t)data + floats * 4) / large * large;
    if (data && end > first) madvise((void *)first, end - first, MADV_HUGEPAGE); /* a wish: it may fail */
#else
    (void)data, (void)floats;
#endif
}

/* Text drawn from a language model of fixed context, token by token; for the samples that train one. */
#ifndef SAMPLES_SAMPLING_H
#define SAMPLES_SAMPLING_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

typedef struct sampling {
    int64_t  count; /* tokens to draw */
    uint64_t seed;
    double   temperature;                             /* lower is safer */
    void (*take)(const void *context, int32_t token); /* each token, on rank 0 */
    const void *context;
} sampling;

/* Draws an index from softmax(logits/temperature). */
static int32_t sampling_draw(const float *logits, int64_t n, double temperature, uint64_t *state) {
    double highest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) highest = fmax(highest, logits[i]);
    for (int64_t i = 0; i < n; i++) sum += exp((logits[i] - highest) / temperature);
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    double at = sum * (double)(*state >> 11) / 9007199254740992.0;
    for (int64_t i = 0; i < n; i++)
        if ((at -= exp((logits[i] - highest) / temperature)) < 0) return (int32_t)i;
    return (int32_t)n - 1;
}

/* `logits` [B, context, vocabulary] of a trainer whose input is "tokens" [B, context]. Every rank computes the same row. */
static weft_status sampling_run(weft_trainer *trainer, weft_tensor *logits, sampling how) {
    weft_evaluator *evaluator = NULL;
    int32_t         share, shares;
    int64_t         context = weft_tensor_shape(logits).dim[1], vocabulary = weft_tensor_shape(logits).dim[2];
    size_t          bytes = (size_t)(context * vocabulary) * sizeof(float);
    int32_t        *window = calloc((size_t)context, sizeof *window);
    float          *rows = malloc(bytes);
    weft_status     status = window && rows ? weft_evaluator_create(trainer, &logits, 1, &evaluator) : WEFT_E_NO_MEMORY;
    if (!window || !rows) fprintf(stderr, "sampling: no memory for logits [%lld, %lld]\n", (long long)context, (long long)vocabulary);
    weft_trainer_share(trainer, &share, &shares);
    weft_batch batch = {.field_count = 1, .global_rows = shares, .first_row = share, .local_rows = 1};
    batch.field[0] = (weft_batch_field){"tokens", WEFT_I32, weft_shape(1, context), window};
    for (int64_t i = 0, length = 1; i < how.count && status == WEFT_OK; i++) {
        if ((status = weft_evaluator_run(evaluator, &batch)) != WEFT_OK) break;
        if ((status = weft_evaluator_fetch(evaluator, 0, rows, bytes)) != WEFT_OK) break;
        int32_t next = sampling_draw(rows + (length - 1) * vocabulary, vocabulary, how.temperature, &how.seed);
        if (length == context) memmove(window, window + 1, (size_t)--length * sizeof *window);
        window[length++] = next;
        if (weft_world_rank(weft_trainer_world(trainer)) == 0) how.take(how.context, next);
    }
    weft_evaluator_release(evaluator);
    free(window);
    free(rows);
    return status;
}

#endif

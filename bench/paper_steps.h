/* Steps of models that are described, played on the simulated wire. */
#ifndef WEFT_BENCH_PAPER_STEPS_H
#define WEFT_BENCH_PAPER_STEPS_H

#include <stdint.h>

/* A step as one strategy has it. Bytes and seconds are one rank's. */
typedef struct paper_step {
    int32_t data, tensor, pipeline, chunks, micro, zero, layers, per_host; /* chunks: runs of layers of a stage's rank, by turns; else 1 */
    double  forward_s, backward_s, update_s; /* of one layer and micro-batch; of all parameters */
    double  layer_bytes;                     /* of a layer's gradients */
    double  sum_bytes, stage_bytes;          /* of a micro-batch: what a sum over ranks along tensor is of; what passes between two stages */
    double  near_bytes, far_bytes, near_s, far_s, memory_bytes; /* in a second, of links inside of hosts and of each rank's between them, with their latencies, and of memory */
    double  shrink; /* messages are so many times shorter, and links and memory slower */
} paper_step;

/* How long it takes, in simulated seconds. Where it cannot be played: says why, and ends the program with 1. */
double paper_step_play(const paper_step *step);

#endif

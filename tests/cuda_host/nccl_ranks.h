/* Ranks with a device and a group of an NCCL engine on it, and the verdict in which all of them are to end: what tests of the engines share. */
#ifndef WEFT_TESTS_CUDA_HOST_NCCL_RANKS_H
#define WEFT_TESTS_CUDA_HOST_NCCL_RANKS_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collective/cases.h"
#include "cuda/cuda.h"
#include "cuda/nccl_engine.h"
#include "cuda_host/control.h"
#include "transport/ranks.h"

typedef struct nccl_rank {
    wefti_device *device;
    wefti_group  *over, *group;
    arenas        memory; /* the device's: the stand-in's is memory that the host can look at */
} nccl_rank;

/* Of `how` are looked at: in_flight, nodes. With a device whose streams run late and in random order, or at once. */
static inline void nccl_rank_open(rank_world *world, const wefti_collective_engine *engine, size_t bytes, bool lazy, wefti_group_options how, nccl_rank *rank) {
    char  host[16];
    void *memory = NULL;
    snprintf(host, sizeof host, "rank %d", (int)world->rank);
    setenv("NCCL_HOSTID", host, 1);
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = (uint64_t)world->rank + 1, .lazy = lazy});
    *rank = (nccl_rank){.over = group_of_all(world, NULL), .memory.bytes = bytes};
    CHECK_OK(wefti_cuda_create(NULL, &rank->device));
    how.device = rank->device;
    how.over = rank->over;
    how.size = world->size;
    how.index = world->rank;
    how.id = 7;
    CHECK_OK(engine->open(&how, &rank->group));
    CHECK_OK(rank->device->vtable->allocate(rank->device, bytes, "a test's buffers", &memory));
    rank->memory.exported = rank->memory.foreign = memory;
}

static inline void nccl_rank_close(nccl_rank *rank) {
    rank->group->engine->close(rank->group);
    rank->device->vtable->deallocate(rank->device, rank->memory.exported, rank->memory.bytes);
    rank->device->vtable->release(rank->device);
    CLOSE(rank->over);
}

/* All ranks but `dead` (-1: none) end with `status` and `words`, within `most_s` of what a rank says was the wreck, else of the beginning. */
static inline void nccl_ranks_expect(int size, weft_status (*run)(ranks *, int32_t), int32_t dead, weft_status status, const char *words, double most_s) {
    uint64_t begin_ns = ranks_now();
    ranks   *all = ranks_start(size, run);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++) {
        const rank_result *result = &all->results[rank];
        if (rank == dead) continue;
        cr_expect(atomic_load(&result->finished), "rank %d of %d did not end", (int)rank, size);
        cr_expect(result->status == status && strstr(result->message, words), "rank %d of %d: %s: %s; due was %s with '%s'", (int)rank, size,
                  weft_status_name(result->status), result->message, weft_status_name(status), words);
        uint64_t since_ns = all->wrecked_ns ? all->wrecked_ns : begin_ns;
        double   took_s = (double)(result->at_ns - since_ns) / 1e9;
        cr_expect(result->at_ns < since_ns || took_s <= most_s, "rank %d of %d took %.2f s, allowed %.2f", (int)rank, size, took_s, most_s);
    }
    ranks_free(all);
}

#endif

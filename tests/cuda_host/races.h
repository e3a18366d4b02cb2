/* Races between threads of a launch, found access by access (races.cpp). The scheduler tells what happens. */
#ifndef TESTS_CUDA_HOST_RACES_H
#define TESTS_CUDA_HOST_RACES_H

#include <stddef.h>
#include <stdint.h>

namespace weft_host {

/* Who runs now; nobody (or nobody of interest): thread -1. Set at each switch of fibers, with stretch 0. */
struct running_thread {
    int         thread;
    uint32_t    stretch; /* the detector's own */
    const char *stack, *stack_end;
};
extern running_thread races_running;

void races_begin_launch();
void races_begin_block(const unsigned char *shared, size_t shared_bytes);
/* Whether another block of the launch is to be looked at: not after many accesses. */
bool races_are_looked_for();
/* All accesses of these warps (a bit each) before come before all of theirs after (a barrier); the same of one warp (a collective). */
void races_order_warps(uint32_t warps);
void races_order_warp(int warp);
/* The running thread changes memory atomically: its block hands over what it has written, and takes what others have. */
void races_atomic();

} // namespace weft_host

#endif

/* What the plan's tests share: worlds of one rank on the CPU, and short ways to plan and run. */
#ifndef PLAN_SUPPORT_H
#define PLAN_SUPPORT_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/graph/graph.h"
#include "core/iface/world.h"
#include "core/plan/object.h"
#include "core/plan/plan.h"
#include "weft/batch.h"
#include "weft/layers.h"
#include "weft/loss.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())
#define FAILS(status, call, part)                                                                              \
    do {                                                                                                       \
        weft_status fails_got = (call);                                                                        \
        cr_assert_eq(fails_got, status, "%s gave %s: %s", #call, weft_status_name(fails_got), weft_error_message()); \
        cr_assert(strstr(weft_error_message(), part), "'%s' does not say '%s'", weft_error_message(), part);   \
    } while (0)

/* A world of one rank; the device has one thread. */
weft_world *world_open(wefti_cpu_isa isa);
void        world_close(weft_world *world);

weft_graph *graph_new(uint64_t seed);
/* Plans `outputs` (a NULL-terminated list). */
weft_plan *plan_of(weft_world *world, weft_graph *graph, bool training, weft_plan_options options, weft_tensor *const *outputs);
#define LIST(...) ((weft_tensor *const[]){__VA_ARGS__, NULL})

/* Live blocks never overlap, every operand lies inside its block, totals add up. */
void check_layout(const weft_plan *plan);
/* Items of one op in a plan. */
int32_t count_ops(const weft_plan *plan, weft_op op);

/* Small deterministic numbers in [-1, 1). */
void fill(float *values, int64_t n, uint32_t seed);

#endif

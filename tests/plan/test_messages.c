/* Messages between plans of two ranks, which are processes: no order of the two plans makes them wait for each other. */
#include <criterion/criterion.h>

#include "core/graph/graph.h"
#include "weft.h"
#include "transport/ranks.h"

static weft_tensor *send(weft_tensor *x, int32_t peer) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.peer = peer;
    return wefti_apply(WEFT_OP_SEND, &attrs, &x, 1, NULL);
}
static weft_tensor *receive(weft_graph *graph, int32_t peer, weft_shape shape) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.peer = peer;
    attrs.comm.dtype = WEFT_F32;
    attrs.comm.global = shape;
    return wefti_emit(graph, WEFT_OP_RECEIVE, &attrs, NULL, 0, NULL);
}

enum { MESSAGES = 90 }; /* more than a group has operations in flight */

static const char *wire_name;
static int         order_of_rank_0;

static int64_t elements_of(int i) { return i % 9 == 0 ? 400000 : i % 7 == 0 ? 20000 : 1 + i % 5; }

/* Rank 0 sends all and then reads all, or the other way round, or turn by turn; rank 1 turn by turn: it sends before it reads. */
static weft_tensor *messages(weft_graph *g, weft_tensor *x, int32_t peer, int order) {
    weft_tensor *got[MESSAGES], *sum = weft_scalar(g, WEFT_F32, 0);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < MESSAGES; i++) {
            weft_shape shape = weft_shape(elements_of(i));
            bool       turns = order == 2;
            if (turns ? pass == 0 : pass == order) (void)send(weft_mul_scalar(weft_expand(x, shape), i + 1), peer);
            if (turns ? pass == 0 : pass != order) got[i] = receive(g, peer, shape);
            if (turns && pass == 0) sum = weft_add(sum, weft_mean(got[i]));
        }
    for (int i = 0; i < MESSAGES && order != 2; i++) sum = weft_add(sum, weft_mean(got[i]));
    return sum;
}

static weft_status exchange(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_graph *g = NULL;
    weft_plan  *plan = NULL;
    (void)all;
    weft_status status = weft_world_create(&(weft_world_options){.wire = wire_name, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world);
    if (status == WEFT_OK) status = weft_graph_create(NULL, &g);
    if (status == WEFT_OK) {
        weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(1), .replicated = true);
        weft_tensor *sum = messages(g, x, 1 - rank, rank == 0 ? order_of_rank_0 : 2);
        status = weft_plan_create(world, g, &(weft_plan_options){.outputs = &sum, .n_outputs = 1}, &plan);
    }
    for (int run = 0; run < 3 && status == WEFT_OK; run++) {
        float own = (float)(rank + 2 * run + 1), got = 0, want = (float)(1 - rank + 2 * run + 1) * MESSAGES * (MESSAGES + 1) / 2;
        status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(1), &own}, 1);
        if (status == WEFT_OK) status = weft_plan_fetch(plan, 0, &got, sizeof got);
        if (status == WEFT_OK && got != want) status = wefti_fail(WEFT_E_INTERNAL, "run %d: %g came, not %g", run, (double)got, (double)want);
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    weft_world_release(world);
    return status;
}

static void exchanges_in_any_order(const char *wire) {
    wire_name = wire;
    for (order_of_rank_0 = 0; order_of_rank_0 < 3; order_of_rank_0++) {
        ranks *all = ranks_start(2, exchange);
        ranks_join(all);
        for (int32_t rank = 0; rank < 2; rank++)
            cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, order %d, rank %d: %s", wire, order_of_rank_0,
                      (int)rank, all->results[rank].message);
        ranks_free(all);
    }
}
Test(plan_messages, exchanges_in_any_order_over_shm) { exchanges_in_any_order("shm"); }
Test(plan_messages, exchanges_in_any_order_over_tcp) { exchanges_in_any_order("tcp"); }

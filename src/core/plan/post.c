/* Post: a RECEIVE is started as early as its memory is worth it, so that what a peer sends finds its place when it comes.
 *
 * Up to here a RECEIVE stands where the strategy put it: at the place, in the order of all ranks together, where the peer sends. Starting one
 * blocks nobody, and nothing comes before it but the one before it from the same peer. So each moves ahead: the first DEPTH of a peer to the
 * start of the run, and every other to behind the first reader of the one DEPTH before it. A peer that is ahead then sends into memory
 * that waits for it, and of each peer's messages no more than DEPTH + 1 are in memory that nobody has begun to read. Linear in items and reads.
 *
 * What is sent lies in memory until it has gone. Where all ranks' graphs stand in one order, a SEND is waited for before the one SENT_MOST behind it to the same peer is
 * started: no more fly at once anyway (flights.c), and whoever waits so waits for a RECEIVE that stands earlier in that order. Elsewhere the run's end waits. */
#include <string.h>

#include "core/plan/ir.h"

enum { DEPTH = 2, SENT_MOST = 4 };

typedef struct poster {
    wefti_ir *ir;
    int32_t  *reader; /* by position, of RECEIVEs: that of the first reader; n_order: none */
    int32_t  *target; /* by position, of RECEIVEs: the position before which it is started */
    int32_t  *order;  /* the new one */
} poster;

static bool receives(const poster *p, int32_t k) { return p->ir->items[p->ir->order[k]].op == WEFT_OP_RECEIVE; }

static bool sends(const poster *p, int32_t k) { return p->ir->items[p->ir->order[k]].op == WEFT_OP_SEND; }

static bool of_one_peer(const poster *p, int32_t a, int32_t b) {
    const wefti_attrs *left = p->ir->items[p->ir->order[a]].attrs, *right = p->ir->items[p->ir->order[b]].attrs;
    return left->comm.peer == right->comm.peer && left->comm.group == right->comm.group;
}

/* Readers by the producing item: walks the order once, backwards, so that the first one stays. */
static weft_status find_readers(poster *p) {
    wefti_ir *ir = p->ir;
    int32_t  *position = NULL;
    size_t    bytes = (size_t)ir->n_items * sizeof *position;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &position));
    for (int32_t k = 0; k < ir->n_order; k++) {
        position[ir->order[k]] = k;
        p->reader[k] = ir->n_order;
    }
    for (int32_t k = ir->n_order - 1; k >= 0; k--)
        for (int32_t i = 0; i < ir->items[ir->order[k]].n_inputs; i++) {
            int32_t producer = ir->values[ir->values[ir->items[ir->order[k]].inputs[i]].root].item;
            if (producer >= 0) p->reader[position[producer]] = k;
        }
    wefti_free(position, bytes);
    return WEFT_OK;
}

/* The k-th RECEIVE of one peer looks back to the one DEPTH before it; those of a peer are few enough between to look for. */
static void find_targets(poster *p) {
    for (int32_t k = 0; k < p->ir->n_order; k++) {
        if (!receives(p, k)) continue;
        int32_t before = k, n = 0, last = -1;
        while (n < DEPTH && --before >= 0)
            if (receives(p, before) && of_one_peer(p, before, k)) {
                if (last < 0) last = before;
                n++;
            }
        int32_t target = n < DEPTH ? 0 : p->reader[before] + 1;
        if (last >= 0 && p->target[last] > target) target = p->target[last]; /* they are matched by their order */
        p->target[k] = target < k ? target : k;
    }
}

/* RECEIVEs that go to one place keep their order: those of one peer are in it. */
static void reorder(poster *p) {
    wefti_ir *ir = p->ir;
    int32_t   n = 0;
    int32_t  *first = p->reader, *next = p->target; /* lists by target, reusing the arrays: reader is not looked at again */
    memset(first, 0xff, (size_t)ir->n_order * sizeof *first);
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        if (!receives(p, k)) continue;
        int32_t target = p->target[k];
        next[k] = first[target];
        first[target] = k;
    }
    for (int32_t k = 0; k < ir->n_order; k++) {
        for (int32_t at = first[k]; at >= 0; at = next[at]) p->order[n++] = ir->order[at];
        if (!receives(p, k)) p->order[n++] = ir->order[k];
    }
    memcpy(ir->order, p->order, (size_t)n * sizeof *ir->order);
}

/* Those of a peer are few enough between to look for, as above. */
static void find_landings(poster *p) {
    for (int32_t k = 0; k < p->ir->n_order; k++) {
        int32_t before = k, n = 0;
        while (sends(p, k) && n < SENT_MOST && --before >= 0) n += sends(p, before) && of_one_peer(p, before, k);
        if (n == SENT_MOST) p->ir->items[p->ir->order[before]].landed = p->ir->order[k];
    }
}

weft_status wefti_pass_post(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    poster      p = {.ir = ir};
    size_t      bytes = (size_t)ir->n_order * sizeof(int32_t);
    bool        any = false;
    for (int32_t k = 0; k < ir->n_order && !any; k++) any = wefti_item_is_point(&ir->items[ir->order[k]]);
    if (!any) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &p.reader), done);
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &p.target), done);
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &p.order), done);
    WEFTI_TRY_GOTO(find_readers(&p), done);
    find_targets(&p);
    reorder(&p);
    if (ir->graph->in_order) find_landings(&p);
done:
    wefti_free(p.reader, bytes);
    wefti_free(p.target, bytes);
    wefti_free(p.order, bytes);
    return status;
}

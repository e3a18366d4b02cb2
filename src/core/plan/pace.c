/* Pace: parts of parameters are gathered shortly before they are read, and gradients scattered as they come, with few of either at once in memory.
 *
 * Where ranks keep parameters in parts (src/parallel/zero.c), a gather stands where its whole is first read. Each moves ahead, to behind the first
 * reader of an earlier one: so far that as much as a message holds is on the way or there unread, and two of them at least. A reduction of
 * a gradient lets go of the whole gradient when it is waited for, which would be at the end of the step: it is made to land when as much has been
 * started after it. What adds up parts over micro-batches is done then, too, for it would keep a part of each until the end.
 *
 * More on the way would hide more of a slow wire, and hold more memory: bucket_bytes says how much. Linear in items and reads. */
#include <string.h>

#include "core/plan/ir.h"

enum { WINDOW_BYTES = 4 << 20, FEWEST = 2 };

typedef struct pacer {
    wefti_ir *ir;
    int64_t   window;
    int32_t  *place;  /* by item: the position before which it goes now; -1: where it is */
    int32_t  *reader; /* by item: position of the first reader; n_order: none */
    int32_t  *first, *next; /* lists of items by place */
    int32_t  *order;  /* the new one */
    size_t    items_bytes, order_bytes;
} pacer;

static int64_t bytes_of(const wefti_ir *ir, int32_t item) {
    const wefti_item *it = &ir->items[item];
    return wefti_value_bytes(&ir->values[it->op == WEFT_OP_ALL_GATHER ? it->outputs[0] : it->inputs[0]]);
}

static int32_t producer_of(const wefti_ir *ir, int32_t value) { return ir->values[ir->values[value].root].item; }

static void find_readers(pacer *p) {
    const wefti_ir *ir = p->ir;
    for (int32_t k = 0; k < ir->n_order; k++) p->reader[ir->order[k]] = ir->n_order;
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t producer = producer_of(ir, item->inputs[i]);
            if (producer >= 0) p->reader[producer] = k;
        }
    }
}

/* --- gathers --- */

/* What makes the part that is sent, of a variable alone, goes along; other makers are waited for. The place, which may be later. */
static int32_t move_ahead(pacer *p, int32_t index, int32_t place, const int32_t *position) {
    const wefti_ir *ir = p->ir;
    int32_t         maker = producer_of(ir, ir->items[index].inputs[0]);
    bool            free = maker >= 0 && position[maker] >= place && p->place[maker] < 0;
    for (int32_t i = 0; free && i < ir->items[maker].n_inputs; i++) free = producer_of(ir, ir->items[maker].inputs[i]) < 0;
    if (free) p->place[maker] = place;
    else if (maker >= 0 && p->place[maker] < 0 && position[maker] >= place) place = position[maker] + 1;
    return p->place[index] = place;
}

/* Every one behind the first reader of the latest before it that is far enough. */
static void place_fetches(pacer *p, const int32_t *fetches, int32_t n, const int32_t *position) {
    int32_t before = -1; /* the latest that is far enough */
    int64_t between = 0; /* bytes behind it, up to this one */
    for (int32_t k = 0, latest = 0; k < n; k++) {
        between += bytes_of(p->ir, fetches[k]);
        while (before + 1 < k - FEWEST + 1 && between - bytes_of(p->ir, fetches[before + 1]) >= p->window) between -= bytes_of(p->ir, fetches[++before]);
        int32_t place = before < 0 ? 0 : p->reader[fetches[before]] + 1;
        if (place < latest) place = latest; /* they start in their order */
        if (place > position[fetches[k]]) place = position[fetches[k]];
        latest = move_ahead(p, fetches[k], place, position);
    }
}

/* --- reductions --- */

/* Sums of parts are done when the latest of them has landed. */
static void bring_sums(pacer *p, int32_t reduction, int32_t place, const int32_t *position) {
    const wefti_ir *ir = p->ir;
    int32_t         reader = p->reader[reduction];
    if (reader == ir->n_order || place >= reader) return;
    const wefti_item *item = &ir->items[ir->order[reader]];
    if (!(item->flags & WEFTI_NODE_APART)) return;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t producer = producer_of(ir, item->inputs[i]);
        int32_t at = producer < 0 ? -1 : p->place[producer] >= 0 ? p->place[producer] : position[producer];
        if (at > place || (at == place && p->place[producer] < 0)) return;
    }
    p->place[ir->order[reader]] = place;
}

static void land_reductions(pacer *p, const int32_t *reductions, int32_t n, const int32_t *position) {
    int64_t between = 0; /* bytes behind the first that has no end yet, up to this one */
    for (int32_t k = 0, open = 0; k < n; k++) {
        if (k > open) between += bytes_of(p->ir, reductions[k]);
        while (k - open >= FEWEST && between >= p->window) {
            p->ir->items[reductions[open]].landed = reductions[k];
            bring_sums(p, reductions[open], position[reductions[k]], position);
            between -= bytes_of(p->ir, reductions[++open]);
        }
    }
}

/* --- the new order --- */

static void reorder(pacer *p) {
    wefti_ir *ir = p->ir;
    int32_t   n = 0;
    memset(p->first, 0xff, p->order_bytes);
    for (int32_t k = ir->n_order - 1; k >= 0; k--) { /* those that go to one place keep their order */
        int32_t place = p->place[ir->order[k]];
        if (place < 0) continue;
        p->next[k] = p->first[place];
        p->first[place] = k;
    }
    for (int32_t k = 0; k < ir->n_order; k++) {
        for (int32_t at = p->first[k]; at >= 0; at = p->next[at]) p->order[n++] = ir->order[at];
        if (p->place[ir->order[k]] < 0) p->order[n++] = ir->order[k];
    }
    memcpy(ir->order, p->order, (size_t)n * sizeof *ir->order);
}

static weft_status pace(pacer *p) {
    wefti_ir   *ir = p->ir;
    int32_t    *position = NULL, *list = NULL, n = 0;
    weft_status status;
    WEFTI_TRY_GOTO(wefti_alloc(p->items_bytes, "a plan", &position), done);
    WEFTI_TRY_GOTO(wefti_alloc(p->order_bytes, "a plan", &list), done);
    memset(p->place, 0xff, p->items_bytes);
    for (int32_t k = 0; k < ir->n_order; k++) position[ir->order[k]] = k;
    find_readers(p);
    for (int32_t k = 0; k < ir->n_order; k++)
        if (wefti_item_is_fetch(&ir->items[ir->order[k]])) list[n++] = ir->order[k];
    place_fetches(p, list, n, position);
    n = 0;
    for (int32_t k = 0; k < ir->n_order; k++)
        if (ir->items[ir->order[k]].op == WEFT_OP_REDUCE_SCATTER && wefti_item_is_paced(&ir->items[ir->order[k]])) list[n++] = ir->order[k];
    land_reductions(p, list, n, position);
    reorder(p);
done:
    wefti_free(position, p->items_bytes);
    wefti_free(list, p->order_bytes);
    return status;
}

weft_status wefti_pass_pace(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    bool        any = false;
    pacer       p = {.ir = ir, .window = ir->options.base.bucket_bytes > 0 ? ir->options.base.bucket_bytes : WINDOW_BYTES,
                     .items_bytes = (size_t)ir->n_items * sizeof(int32_t), .order_bytes = (size_t)ir->n_order * sizeof(int32_t)};
    for (int32_t k = 0; k < ir->n_order && !any; k++) any = wefti_item_is_paced(&ir->items[ir->order[k]]);
    if (!any) return WEFT_OK;
    WEFTI_TRY_GOTO(wefti_alloc(p.items_bytes, "a plan", &p.place), done);
    WEFTI_TRY_GOTO(wefti_alloc(p.items_bytes, "a plan", &p.reader), done);
    WEFTI_TRY_GOTO(wefti_alloc(p.order_bytes, "a plan", &p.first), done);
    WEFTI_TRY_GOTO(wefti_alloc(p.order_bytes, "a plan", &p.next), done);
    WEFTI_TRY_GOTO(wefti_alloc(p.order_bytes, "a plan", &p.order), done);
    status = pace(&p);
done:
    wefti_free(p.place, p.items_bytes);
    wefti_free(p.reader, p.items_bytes);
    wefti_free(p.first, p.order_bytes);
    wefti_free(p.next, p.order_bytes);
    wefti_free(p.order, p.order_bytes);
    return status;
}

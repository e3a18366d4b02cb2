/* Narrow: where maxima were found, in bytes.
 *
 * MAX_POOL2D says which element of a plane it has chosen, in four bytes an output; for windows of at most 255 elements the place in the window, a byte, says
 * as much to whoever knows the window: the gradient, and the gradient's own. Where nobody else reads an index, and the device takes such
 * ones, it is narrowed. It then leads into its own window whatever it is, which devices need not look at any more. No result changes. Linear. */
#include <string.h>

#include "core/plan/ir.h"

enum { PLACES = 255 /* the last byte is none of them */ };

static bool same_windows(const wefti_attrs *a, const wefti_attrs *b) {
    return memcmp(a->pool.window, b->pool.window, sizeof a->pool.window) == 0 && memcmp(a->pool.stride, b->pool.stride, sizeof a->pool.stride) == 0 &&
           memcmp(a->pool.pad, b->pool.pad, sizeof a->pool.pad) == 0;
}

/* Marks values that somebody reads as what they are now: anybody but those who know the pool's windows. */
static void mark_readers(const wefti_ir *ir, bool *wide) {
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        bool              knows = item->op == WEFT_OP_MAX_POOL2D_BACKWARD || item->op == WEFT_OP_MAX_POOL2D_TAKE;
        for (int32_t i = 0; i < item->n_inputs; i++) {
            const wefti_value *value = &ir->values[item->inputs[i]];
            const wefti_item  *maker = value->item >= 0 ? &ir->items[value->item] : NULL;
            if (!knows || i != 1 || !maker || maker->op != WEFT_OP_MAX_POOL2D || value->output != 1 || !same_windows(maker->attrs, item->attrs))
                wide[item->inputs[i]] = true;
        }
    }
    for (int32_t o = 0; o < ir->n_outputs; o++) wide[ir->outputs[o]] = true;
}

weft_status wefti_pass_narrow(wefti_ir *ir) {
    bool  *wide = NULL;
    size_t bytes = (size_t)ir->n_values * sizeof *wide;
    if (!ir->device->vtable->narrow_pools) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &wide));
    mark_readers(ir, wide);
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        if (item->op != WEFT_OP_MAX_POOL2D || wide[item->outputs[1]]) continue;
        if ((int64_t)item->attrs->pool.window[0] * item->attrs->pool.window[1] <= PLACES) ir->values[item->outputs[1]].dtype = WEFT_U8;
    }
    wefti_free(wide, bytes);
    return WEFT_OK;
}

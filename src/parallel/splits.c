/* The splits of a mesh together: which part of a variable follows from all of them. Variables times windows. */
#include <string.h>

#include "parallel/tensor.h"

static wefti_window_of *window_named(wefti_splits *splits, const char *name) {
    for (int32_t i = 0; i < splits->n_windows; i++)
        if (strcmp(splits->windows[i].name, name) == 0) return &splits->windows[i].window;
    return NULL;
}

/* Experts are blocks of what parameters' axes are split in. */
static void add(wefti_splits *splits, const wefti_tensor_split *split, const wefti_named_window *named) {
    wefti_window_of *known = window_named(splits, named->name), window = named->window;
    if (split->along == WEFTI_MESH_EXPERT) window = (wefti_window_of){.blocks = window.ranks, .block = window.rank, .ranks = 1};
    if (known && known->blocks > 1) window.blocks = known->blocks, window.block = known->block;
    if (known) *known = window;
    else splits->windows[splits->n_windows++] = (wefti_named_window){named->name, window};
}

weft_status wefti_splits_join(wefti_splits *splits) {
    int32_t room = 0;
    for (int32_t i = 0; i < splits->n; i++) room += splits->list[i].along == WEFTI_MESH_SEQUENCE ? 0 : splits->list[i].n_windows;
    WEFTI_TRY(wefti_alloc((size_t)room * sizeof *splits->windows, "windows on variables", &splits->windows));
    splits->windows_room = room;
    for (int32_t i = 0; i < splits->n; i++)
        for (int32_t w = 0; w < splits->list[i].n_windows && splits->list[i].along != WEFTI_MESH_SEQUENCE; w++) add(splits, &splits->list[i], &splits->list[i].windows[w]);
    return WEFT_OK;
}

void wefti_splits_release(wefti_splits *splits) {
    for (int32_t i = 0; i < splits->n; i++) wefti_tensor_release(&splits->list[i]);
    wefti_free(splits->windows, (size_t)splits->windows_room * sizeof *splits->windows);
    *splits = (wefti_splits){.n = 0};
}

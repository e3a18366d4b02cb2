/* Windows on variables: the arithmetic of parts. Copies go run by run: what lies behind the axis is contiguous in both arrays. */
#include <string.h>

#include "core/plan/window.h"

weft_shape wefti_window_shape(const wefti_window_of *window, weft_shape global) {
    if (!wefti_window_is_whole(window)) global.dim[window->axis] /= window->ranks;
    return global;
}

/* Elements before and behind the axis. */
static void around(const wefti_window_of *window, weft_shape global, int64_t *outer_out, int64_t *inner_out) {
    *outer_out = *inner_out = 1;
    for (int32_t i = 0; i < global.rank; i++)
        if (i != window->axis) *(i < window->axis ? outer_out : inner_out) *= global.dim[i];
}

/* Runs of both arrays, from the first on. */
static void copy(const wefti_window_of *window, int32_t rank, weft_shape global, size_t size, char *whole, char *part, bool takes) {
    int64_t outer, inner;
    if (wefti_window_is_whole(window)) {
        size_t bytes = (size_t)weft_shape_elements(global) * size;
        if (bytes) memcpy(takes ? part : whole, takes ? whole : part, bytes);
        return;
    }
    around(window, global, &outer, &inner);
    for (int64_t o = 0; o < outer; o++) {
        int64_t at = o * global.dim[window->axis];
        for (int32_t s = 0; s < window->n_sections; at += window->section[s++]) {
            int64_t count = window->section[s] / window->ranks;
            char   *run = whole + (size_t)((at + count * rank) * inner) * size;
            size_t  bytes = (size_t)(count * inner) * size;
            if (bytes) memcpy(takes ? part : run, takes ? run : part, bytes);
            part += bytes;
        }
    }
}

void wefti_window_take(const wefti_window_of *window, int32_t rank, weft_shape global, size_t size, const void *from_global, void *part_out) {
    copy(window, rank, global, size, (char *)(uintptr_t)from_global, part_out, true);
}

void wefti_window_put(const wefti_window_of *window, int32_t rank, weft_shape global, size_t size, const void *part, void *global_out) {
    copy(window, rank, global, size, global_out, (char *)(uintptr_t)part, false);
}

int64_t wefti_window_index(const wefti_window_of *window, weft_shape global, int64_t element) {
    int64_t outer, inner, begin = 0;
    if (wefti_window_is_whole(window)) return element;
    around(window, global, &outer, &inner);
    int64_t own = global.dim[window->axis] / window->ranks;
    int64_t behind = element % inner, along = element / inner % own, before = element / inner / own;
    for (int32_t s = 0; s < window->n_sections; begin += window->section[s++]) {
        int64_t count = window->section[s] / window->ranks;
        if (along < count) return (before * global.dim[window->axis] + begin + count * window->rank + along) * inner + behind;
        along -= count;
    }
    return 0; /* there is no such element */
}

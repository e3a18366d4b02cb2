/* Windows on variables: the arithmetic of parts. Copies go run by run: what lies behind the axis is contiguous in both arrays. */
#include <string.h>

#include "core/plan/window.h"

/* This rank's block of rows, and how many elements come before it. */
static weft_shape block_of(const wefti_window_of *window, weft_shape global, int64_t *before_out) {
    *before_out = 0;
    if (window->blocks <= 1) return global;
    global.dim[0] /= window->blocks;
    *before_out = weft_shape_elements(global) * window->block;
    return global;
}

/* What the axis leaves of a block. */
static weft_shape along_axis(const wefti_window_of *window, weft_shape global) {
    if (window->ranks > 1) global.dim[window->axis] /= window->ranks;
    return global;
}

weft_shape wefti_window_shape(const wefti_window_of *window, weft_shape global) {
    int64_t before;
    if (window->parts <= 1) return along_axis(window, block_of(window, global, &before));
    return window->row > 0 ? weft_shape(window->each / window->row, window->row) : weft_shape(window->each);
}

/* Elements before and behind the axis. */
static void around(const wefti_window_of *window, weft_shape global, int64_t *outer_out, int64_t *inner_out) {
    *outer_out = *inner_out = 1;
    for (int32_t i = 0; i < global.rank; i++)
        if (i != window->axis) *(i < window->axis ? outer_out : inner_out) *= global.dim[i];
}

static void copy_run(char *whole, char *part, size_t bytes, bool takes) {
    if (bytes) memcpy(takes ? part : whole, takes ? whole : part, bytes);
}

/* Run by run, from the first on. */
static void copy_axis(const wefti_window_of *window, weft_shape global, size_t size, char *whole, char *part, bool takes) {
    int64_t outer, inner;
    around(window, global, &outer, &inner);
    for (int64_t o = 0; o < outer; o++) {
        int64_t at = o * global.dim[window->axis];
        for (int32_t s = 0; s < window->n_sections; at += window->section[s++]) {
            int64_t count = window->section[s] / window->ranks;
            size_t  bytes = (size_t)(count * inner) * size;
            copy_run(whole + (size_t)((at + count * window->rank) * inner) * size, part, bytes, takes);
            part += bytes;
        }
    }
}

/* Elements that this rank really has of what the axis leaves, from `first_out` on. */
static int64_t count_of(const wefti_window_of *window, weft_shape global, int64_t *first_out) {
    int64_t elements = weft_shape_elements(along_axis(window, global));
    *first_out = wefti_min_i64(window->each * window->part, elements);
    return wefti_min_i64(window->each, elements - *first_out);
}

/* The place in a block of an element of what is here; -1: it is beyond the end. */
static int64_t index_in_block(const wefti_window_of *window, weft_shape block, int64_t element) {
    int64_t outer, inner, begin = 0, first;
    if (window->parts > 1) {
        if (element >= count_of(window, block, &first)) return -1;
        element += first;
    }
    if (window->ranks <= 1) return element;
    around(window, block, &outer, &inner);
    int64_t own = block.dim[window->axis] / window->ranks;
    int64_t behind = element % inner, along = element / inner % own, before = element / inner / own;
    for (int32_t s = 0; s < window->n_sections; begin += window->section[s++]) {
        int64_t count = window->section[s] / window->ranks;
        if (along < count) return (before * block.dim[window->axis] + begin + count * window->rank + along) * inner + behind;
        along -= count;
    }
    return -1; /* there is no such element */
}

static void copy(const wefti_window_of *window, weft_shape global, size_t size, char *whole, char *part, bool takes) {
    int64_t first, count;
    global = block_of(window, global, &first);
    whole += (size_t)first * size;
    if (window->ranks <= 1 && window->parts <= 1) {
        copy_run(whole, part, (size_t)weft_shape_elements(global) * size, takes);
        return;
    }
    if (window->parts <= 1) {
        copy_axis(window, global, size, whole, part, takes);
        return;
    }
    count = count_of(window, global, &first);
    if (window->ranks <= 1) copy_run(whole + (size_t)first * size, part, (size_t)count * size, takes);
    else
        for (int64_t i = 0; i < count; i++)
            copy_run(whole + (size_t)index_in_block(window, global, i) * size, part + (size_t)i * size, size, takes);
    if (takes) memset(part + (size_t)count * size, 0, (size_t)(window->each - count) * size);
}

void wefti_window_take(const wefti_window_of *window, weft_shape global, size_t size, const void *from_global, void *part_out) {
    copy(window, global, size, (char *)(uintptr_t)from_global, part_out, true);
}

void wefti_window_put(const wefti_window_of *window, weft_shape global, size_t size, const void *part, void *global_out) {
    copy(window, global, size, global_out, (char *)(uintptr_t)part, false);
}

int64_t wefti_window_index(const wefti_window_of *window, weft_shape global, int64_t element) {
    int64_t    before;
    weft_shape block = block_of(window, global, &before);
    int64_t    index = index_in_block(window, block, element);
    return index < 0 ? -1 : before + index;
}

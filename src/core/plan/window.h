/* Windows: which part of a variable a rank has. */
#ifndef WEFTI_PLAN_WINDOW_H
#define WEFTI_PLAN_WINDOW_H

#include "core/base/base.h"
#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/variables.h"

enum { WEFTI_SECTIONS_MAX = 8 };

/* A variable is dealt out in three ways, one after the other; each may be left out.
 *
 * In blocks: runs of its rows along axis 0, as experts' are.
 *
 * Along one axis of what that leaves. That consists of sections (queries, keys and values of one weight; mostly there is one), each of which is cut into `ranks`
 * equal parts; a rank has its part of each section, one behind the other.
 *
 * Then what that leaves, in its order in memory: `parts` ranks have `each` elements one behind the other, the last ones fewer or none. All have
 * room for `each`; what is beyond the end is nobody's. */
typedef struct wefti_window_of {
    int32_t blocks, block; /* blocks 0 or 1: not dealt out in blocks */
    int32_t ranks, rank; /* ranks 0 or 1: not dealt out along an axis */
    int32_t axis;
    int32_t n_sections;
    int64_t section[WEFTI_SECTIONS_MAX]; /* extents along the axis; multiples of `ranks`, which sum up to the axis' extent */
    int32_t parts, part; /* parts 0 or 1: not dealt out again */
    int64_t each, row;   /* elements of a part; of a row, where parts are of whole rows and shaped so, else 0 */
    int64_t room_bytes;  /* least room for what is here, in which ranks gather equal parts in place; 0: no more than it needs */
} wefti_window_of;

static inline bool wefti_window_is_whole(const wefti_window_of *window) { return window->blocks <= 1 && window->ranks <= 1 && window->parts <= 1; }

/* The shape of a rank's part. */
weft_shape wefti_window_shape(const wefti_window_of *window, weft_shape global);
/* Copies the part of the window's rank between the global array and one that holds the part alone; elements have `size` bytes. What is taken
 * from beyond the end is zero. */
void wefti_window_take(const wefti_window_of *window, weft_shape global, size_t size, const void *from_global, void *part_out);
void wefti_window_put(const wefti_window_of *window, weft_shape global, size_t size, const void *part, void *global_out);
/* The place in the global array of this rank's element; -1: it is beyond the end. */
int64_t wefti_window_index(const wefti_window_of *window, weft_shape global, int64_t element);

/* Windows by the variable's name; whoever has none is whole. */
typedef struct wefti_named_window {
    const char     *name;
    wefti_window_of window;
} wefti_named_window;
typedef struct wefti_windows {
    const wefti_named_window *list;
    int32_t                   n;
} wefti_windows;

/* weft_variables_create, with windows (copied with the set). */
WEFT_MUST_CHECK weft_status wefti_variables_create(weft_world *world, weft_graph *graph, const wefti_windows *windows,
                                                   weft_variables **variables_out);
/* Which part of variable `index` is here. Lives as long as the set. */
const wefti_window_of *wefti_variables_window(const weft_variables *variables, int32_t index);
/* Bytes of this rank's part of a variable, and their copy in host memory. */
int64_t wefti_variables_part_bytes(const weft_variables *variables, int32_t index);
WEFT_MUST_CHECK weft_status wefti_variables_take(const weft_variables *variables, int32_t index, void *part_out);
/* Copies what is to be this rank's part of a variable, from host memory, into it. */
WEFT_MUST_CHECK weft_status wefti_variables_put(weft_variables *variables, int32_t index, const void *part);

#endif

/* Changing the split of a parameter server: who has which rows before and after, and what moves. */
#ifndef WEFTI_SERVER_RESIZE_H
#define WEFTI_SERVER_RESIZE_H

#include "parallel/server/inside.h"

/* Who serves among the ranks of a world. */
typedef struct wefti_layout { int32_t size, servers, first, workers, copies; } wefti_layout; /* copies: 2 with replicas */

static inline int32_t wefti_layout_rank(const wefti_layout *layout, int32_t copy, int32_t share) {
    return layout->first + (share + copy) % layout->servers;
}

/* A table, as all ranks come to know it. Behind it in memory lie [ranks of the new world] clocks. */
typedef struct wefti_moved_table {
    wefti_server_spec spec;
    uint64_t          id, closed;
} wefti_moved_table;

struct wefti_mover; /* resize_rows.c */
struct wefti_rerouted;

/* A change, on one rank. `old`: NULL on a rank that has no part of the server; `fresh`: the server as it will be, which moves nothing but rows so far. */
typedef struct wefti_resize {
    weft_world   *world;
    weft_server  *old, *fresh;
    wefti_layout  before, after;
    int32_t      *old_of, *new_of; /* [ranks after, before] a rank's number in the other world; -1: it is not there */
    uint64_t      job, generation; /* of the server before */
    int32_t       newest;          /* a rank that has that; -1: none */
    int32_t       reference;       /* who tells the others of the tables */
    int32_t       tables;
    uint8_t      *directory;       /* [tables] */
    size_t        directory_bytes, entry_bytes;
    struct wefti_mover    *mover;
    server_mover *movers;          /* of the directory; the last of them is about to end: */
    int32_t       telling;
    uint64_t      steps;
    weft_status   told;
    struct wefti_rerouted *rerouted; /* [rerouted_count] */
    int32_t       rerouted_count;
    uint64_t      resizes;         /* the most that any rank has seen */
    struct wefti_retired *retired; /* room for a wire whose memory is lent */
    weft_server_moved moved;
} wefti_resize;

static inline wefti_moved_table *wefti_moved_table_at(const wefti_resize *resize, int32_t table) {
    return (wefti_moved_table *)(resize->directory + (size_t)table * resize->entry_bytes);
}
static inline uint64_t *wefti_moved_clocks(wefti_moved_table *table) { return (uint64_t *)(table + 1); }

/* resize.c: a server in a world in which the others have none, or change theirs. On failure too *server_out may be one that is to be buried. */
WEFT_MUST_CHECK weft_status wefti_resize_create(weft_world *world, const weft_server_options *options, weft_server **server_out);
void wefti_resize_close(weft_server *server); /* what changes have left in a handle */
/* service.c: */
WEFT_MUST_CHECK weft_status wefti_server_start_thread(weft_server *server, const weft_server_options *options);

enum { WEFTI_NOBODY = -2 }; /* in the place of a rank */
/* resize_rows.c. The directory goes from the reference to all others; blocks. */
WEFT_MUST_CHECK weft_status wefti_resize_send_directory(wefti_resize *resize);
/* Whoever has a share that `rank` (new) needs rows of, and which copy of it; -1: nobody. */
int32_t wefti_resize_source(const wefti_resize *resize, int32_t share, int32_t rank, int32_t *copy_out);
/* Room for what is on the way; then rows move, until all that is to come has come. Blocks; ends where the world has a verdict. */
WEFT_MUST_CHECK weft_status wefti_resize_prepare_rows(wefti_resize *resize);
WEFT_MUST_CHECK weft_status wefti_resize_move_rows(wefti_resize *resize);
void wefti_resize_free_rows(wefti_resize *resize); /* once the fresh server is gone, or all has come */

/* resize_keys.c: the handle's tables and key sets, as the fresh server needs them; and to take them, when `fresh` is the handle's inside and the old one lies in
 * resize->fresh. */
WEFT_MUST_CHECK weft_status wefti_resize_prepare_keys(wefti_resize *resize);
void wefti_resize_take_keys(wefti_resize *resize);
void wefti_resize_free_keys(wefti_resize *resize);

#endif

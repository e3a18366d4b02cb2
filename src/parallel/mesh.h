/* The mesh: ranks of a world in a grid with named axes, by a strategy.
 *
 * Ranks are dealt out with the tensor axis running fastest, as it talks most, then sequence, expert, data, and the pipeline slowest.
 * A COMM node names the axes it talks along by attrs.comm.group, a bit each (wefti_mesh_group), 0 being all of the world. */
#ifndef WEFTI_MESH_H
#define WEFTI_MESH_H

#include "core/iface/collective.h"
#include "core/iface/world.h"
#include "weft/strategy.h"

typedef enum wefti_mesh_axis {
    WEFTI_MESH_TENSOR, WEFTI_MESH_SEQUENCE, WEFTI_MESH_EXPERT, WEFTI_MESH_DATA, WEFTI_MESH_PIPELINE, WEFTI_MESH_AXES
} wefti_mesh_axis;

/* attrs.comm.group of what goes along an axis. */
static inline int64_t wefti_mesh_group(wefti_mesh_axis axis) { return INT64_C(1) << axis; }

enum {
    WEFTI_MESH_GROUPS = 1 << WEFTI_MESH_AXES,
    WEFTI_MESH_BATCH = 1 << WEFTI_MESH_DATA | 1 << WEFTI_MESH_EXPERT,  /* who shares rows of the batch */
    WEFTI_MESH_SAMPLES = WEFTI_MESH_BATCH | 1 << WEFTI_MESH_SEQUENCE,  /* who has a part of what is computed of samples, with parameters alike but for experts */
};

typedef struct wefti_mesh {
    int32_t extent[WEFTI_MESH_AXES]; /* at least 1 */
    int32_t index[WEFTI_MESH_AXES];  /* of this rank */
    struct wefti_group *groups[WEFTI_MESH_GROUPS]; /* by attrs.comm.group: of the world, then of those that differ from this rank in indices of these
                                                      axes alone, in the order of ranks: of each axis, and of axes among WEFTI_MESH_SAMPLES.
                                                      NULL: this rank alone. Axes of all ranks have the world's group */
    struct weft_group  *made[WEFTI_MESH_GROUPS];   /* what has to be released; NULL: nothing */
} wefti_mesh;

const char *wefti_mesh_name(wefti_mesh_axis axis);

/* Extents and indices, without groups. WEFT_E_INVALID naming every extent where they do not multiply to the world's ranks. */
WEFT_MUST_CHECK weft_status wefti_mesh_of(const weft_strategy *strategy, int32_t rank, int32_t ranks, wefti_mesh *mesh_out);
/* The place of a rank of the world on the mesh, and the rank at a place. */
void    wefti_mesh_place(const wefti_mesh *mesh, int32_t rank, int32_t index_out[WEFTI_MESH_AXES]);
int32_t wefti_mesh_rank(const wefti_mesh *mesh, const int32_t index[WEFTI_MESH_AXES]);
/* With groups. Collective over the world. On an error there is nothing to close. */
WEFT_MUST_CHECK weft_status wefti_mesh_make(weft_world *world, const weft_strategy *strategy, wefti_mesh *mesh_out);
/* Releases the groups; closing what is zero does nothing. */
void wefti_mesh_drop(wefti_mesh *mesh);

/* Ranks that share the batch are those along data and along expert. */
static inline int32_t wefti_mesh_batch_ranks(const wefti_mesh *mesh) { return mesh->extent[WEFTI_MESH_DATA] * mesh->extent[WEFTI_MESH_EXPERT]; }
static inline int32_t wefti_mesh_batch_rank(const wefti_mesh *mesh) {
    return mesh->index[WEFTI_MESH_DATA] * mesh->extent[WEFTI_MESH_EXPERT] + mesh->index[WEFTI_MESH_EXPERT];
}

/* How many ranks are along these axes (a bit each), which of them this one is, in the order of ranks, and the group that they are by its shortest name; of the
 * axes of data alone, where these are all of the world, 0. */
int32_t wefti_mesh_ranks_along(const wefti_mesh *mesh, int64_t axes);
int32_t wefti_mesh_rank_along(const wefti_mesh *mesh, int64_t axes);
int64_t wefti_mesh_group_along(const wefti_mesh *mesh, int64_t axes);

/* Whether all ranks are along the data axis. */
static inline bool wefti_mesh_is_data(const wefti_mesh *mesh) {
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++)
        if (axis != WEFTI_MESH_DATA && mesh->extent[axis] != 1) return false;
    return true;
}

#endif

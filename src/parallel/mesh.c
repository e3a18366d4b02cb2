/* The mesh of a strategy. An axis that is left zero has one rank, but data, which takes the ranks that the others leave.
 *
 * Groups are made of the world once for a trainer: a few messages for each axis that is neither one rank nor all of them, and for such axes together. */
#include "parallel/mesh.h"

#include <stdio.h>

#include "weft/collective.h"

static const char *const names[WEFTI_MESH_AXES] = {
    [WEFTI_MESH_TENSOR] = "tensor",  [WEFTI_MESH_SEQUENCE] = "sequence", [WEFTI_MESH_EXPERT] = "expert",
    [WEFTI_MESH_DATA] = "data",      [WEFTI_MESH_PIPELINE] = "pipeline",
};

const char *wefti_mesh_name(wefti_mesh_axis axis) { return names[axis]; }

static int32_t asked(const weft_strategy *strategy, wefti_mesh_axis axis) {
    switch (axis) {
    case WEFTI_MESH_TENSOR: return strategy->tensor;
    case WEFTI_MESH_DATA: return strategy->data;
    case WEFTI_MESH_PIPELINE: return strategy->pipeline;
    case WEFTI_MESH_EXPERT: return strategy->expert;
    case WEFTI_MESH_SEQUENCE: return strategy->sequence;
    default: return 0;
    }
}

static weft_status refuse(const weft_strategy *strategy, int32_t ranks, int64_t product) {
    return wefti_fail(WEFT_E_INVALID, "strategy: data = %d x tensor = %d x pipeline = %d x sequence = %d x expert = %d make %lld, and the world has %d ranks: the "
                      "product must be the number of ranks (0 means 1; data = 0 takes what the others leave)", strategy->data, strategy->tensor,
                      strategy->pipeline, strategy->sequence, strategy->expert, (long long)product, ranks);
}

weft_status wefti_mesh_of(const weft_strategy *strategy, int32_t rank, int32_t ranks, wefti_mesh *mesh) {
    int64_t product = 1;
    *mesh = (wefti_mesh){.extent = {0}};
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++) {
        int32_t extent = asked(strategy, (wefti_mesh_axis)axis);
        if (extent < 0)
            return wefti_fail(WEFT_E_INVALID, "strategy: %s is %d; it must not be negative", names[axis], extent);
        mesh->extent[axis] = extent > 0 ? extent : 1;
        if (product <= ranks) product *= mesh->extent[axis];
    }
    if (strategy->data == 0 && product <= ranks && ranks % product == 0) {
        mesh->extent[WEFTI_MESH_DATA] = (int32_t)(ranks / product);
        product = ranks;
    }
    if (product != ranks) return refuse(strategy, ranks, product);
    wefti_mesh_place(mesh, rank, mesh->index);
    return WEFT_OK;
}

void wefti_mesh_place(const wefti_mesh *mesh, int32_t rank, int32_t index_out[WEFTI_MESH_AXES]) {
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++) {
        index_out[axis] = rank % mesh->extent[axis];
        rank /= mesh->extent[axis];
    }
}

int32_t wefti_mesh_rank(const wefti_mesh *mesh, const int32_t index[WEFTI_MESH_AXES]) {
    int32_t rank = 0;
    for (int32_t axis = WEFTI_MESH_AXES - 1; axis >= 0; axis--) rank = rank * mesh->extent[axis] + index[axis];
    return rank;
}

/* The axes among them along which there is more than one rank. */
static int64_t wide_of(const wefti_mesh *mesh, int64_t axes) {
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++)
        if (mesh->extent[axis] == 1) axes &= ~wefti_mesh_group((wefti_mesh_axis)axis);
    return axes;
}

int32_t wefti_mesh_ranks_along(const wefti_mesh *mesh, int64_t axes) {
    int32_t ranks = 1;
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++)
        if (axes >> axis & 1) ranks *= mesh->extent[axis];
    return ranks;
}

int32_t wefti_mesh_rank_along(const wefti_mesh *mesh, int64_t axes) {
    int32_t rank = 0;
    for (int32_t axis = WEFTI_MESH_AXES - 1; axis >= 0; axis--)
        if (axes >> axis & 1) rank = rank * mesh->extent[axis] + mesh->index[axis];
    return rank;
}

int64_t wefti_mesh_group_along(const wefti_mesh *mesh, int64_t axes) { return wefti_mesh_is_data(mesh) ? 0 : wide_of(mesh, axes); }

/* Of the ranks that share this one's places along all other axes: the first of them says which group it is. */
static weft_status open_along(weft_group *world_group, wefti_mesh *mesh, int64_t axes, int32_t rank) {
    int32_t first[WEFTI_MESH_AXES];
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++) first[axis] = axes >> axis & 1 ? 0 : mesh->index[axis];
    WEFTI_TRY(weft_group_split(world_group, wefti_mesh_rank(mesh, first), rank, &mesh->made[axes]));
    mesh->groups[axes] = wefti_group_inside(mesh->made[axes]);
    return WEFT_OK;
}

weft_status wefti_mesh_make(weft_world *world, const weft_strategy *strategy, wefti_mesh *mesh) {
    weft_group *all = NULL;
    weft_status status = wefti_mesh_of(strategy, world->rank, world->size, mesh);
    WEFTI_TRY(status);
    mesh->groups[0] = world->group;
    for (int64_t axes = 1; axes < WEFTI_MESH_GROUPS && status == WEFT_OK; axes++) {
        int64_t wide = wide_of(mesh, axes);
        bool    one = (axes & (axes - 1)) == 0;
        if (wide != axes || wefti_mesh_ranks_along(mesh, axes) == world->size) { /* of no axis: nobody; of fewer: they came before */
            mesh->groups[axes] = wide == 0 ? NULL : wide == axes ? world->group : mesh->groups[wide];
            continue;
        }
        if (!one && (axes & ~(int64_t)WEFTI_MESH_SAMPLES)) continue; /* nothing goes along these */
        if (!all) status = weft_group_create(world, NULL, &all);
        if (status == WEFT_OK) status = open_along(all, mesh, axes, world->rank);
    }
    weft_group_release(all);
    if (status != WEFT_OK) wefti_mesh_drop(mesh);
    return status;
}

void wefti_mesh_drop(wefti_mesh *mesh) {
    for (int32_t i = 0; i < WEFTI_MESH_GROUPS; i++) weft_group_release(mesh->made[i]);
    *mesh = (wefti_mesh){.extent = {0}};
}

weft_status weft_strategy_share(const weft_strategy *strategy, const weft_world *world, int32_t *rank_out, int32_t *ranks_out) {
    wefti_mesh mesh;
    if (!strategy || !world || !rank_out || !ranks_out) return wefti_fail(WEFT_E_INVALID, "weft_strategy_share: an argument is NULL");
    WEFTI_TRY(wefti_mesh_of(strategy, world->rank, world->size, &mesh));
    *rank_out = wefti_mesh_batch_rank(&mesh);
    *ranks_out = wefti_mesh_batch_ranks(&mesh);
    return WEFT_OK;
}

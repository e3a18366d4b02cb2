/* A strategy's mesh: extents, places, and the groups along its axes, among real processes. */
#include <criterion/criterion.h>
#include <string.h>

#include "weft.h"
#include "parallel/mesh.h"
#include "transport/ranks.h"

#define EXPECT(condition, ...)                                                                               \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            char what[300];                                                                                  \
            snprintf(what, sizeof what, __VA_ARGS__);                                                        \
            return wefti_fail(WEFT_E_INTERNAL, "line %d: %s: %s", __LINE__, #condition, what);               \
        }                                                                                                    \
    } while (0)

Test(mesh, tensor_runs_fastest_and_the_pipeline_slowest) {
    wefti_mesh    mesh;
    weft_strategy three = {.data = 2, .tensor = 2, .pipeline = 3};
    for (int32_t rank = 0; rank < 12; rank++) {
        cr_assert_eq(wefti_mesh_of(&three, rank, 12, &mesh), WEFT_OK, "%s", weft_error_message());
        cr_assert(mesh.index[WEFTI_MESH_TENSOR] == rank % 2 && mesh.index[WEFTI_MESH_DATA] == rank / 2 % 2 &&
                      mesh.index[WEFTI_MESH_PIPELINE] == rank / 4 && mesh.index[WEFTI_MESH_EXPERT] == 0, "rank %d", rank);
        cr_assert(!wefti_mesh_is_data(&mesh));
    }
}

Test(mesh, data_takes_what_the_others_leave) {
    wefti_mesh mesh;
    cr_assert_eq(wefti_mesh_of(&(weft_strategy){.tensor = 2}, 5, 6, &mesh), WEFT_OK);
    cr_assert(mesh.extent[WEFTI_MESH_DATA] == 3 && mesh.index[WEFTI_MESH_DATA] == 2 && mesh.index[WEFTI_MESH_TENSOR] == 1);
    cr_assert_eq(wefti_mesh_of(&(weft_strategy){.data = 0}, 5, 6, &mesh), WEFT_OK);
    cr_assert(mesh.extent[WEFTI_MESH_DATA] == 6 && wefti_mesh_is_data(&mesh));
}

static void refused(weft_strategy wrong, int32_t size, const char *says) {
    wefti_mesh mesh;
    cr_assert_eq(wefti_mesh_of(&wrong, 0, size, &mesh), WEFT_E_INVALID);
    cr_assert(strstr(weft_error_message(), says), "'%s' does not say '%s'", weft_error_message(), says);
}

Test(mesh, that_is_not_the_world_is_refused_with_all_numbers) {
    refused((weft_strategy){.data = 2, .tensor = 3}, 4, "data = 2 x tensor = 3 x pipeline = 0 x sequence = 0 x expert = 0 make 6, and the world has 4 ranks");
    refused((weft_strategy){.tensor = 3}, 4, "data = 0 x tensor = 3 x pipeline = 0 x sequence = 0 x expert = 0 make 3, and the world has 4 ranks");
    refused((weft_strategy){.data = 2}, 4, "data = 2 x tensor = 0 x pipeline = 0 x sequence = 0 x expert = 0 make 2, and the world has 4 ranks");
    refused((weft_strategy){.data = 1 << 30, .tensor = 1 << 30, .pipeline = 1 << 30}, 4, "the world has 4 ranks");
    refused((weft_strategy){.tensor = -1}, 4, "tensor is -1");
}

/* --- groups --- */

static const char *wire;
static weft_strategy how;

static weft_status sum_along(const wefti_mesh *mesh, wefti_mesh_axis axis, int64_t mine, int64_t *sum_out) {
    wefti_group          *group = mesh->groups[wefti_mesh_group(axis)];
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_SUM, .send = &mine, .receive = sum_out, .count = 1};
    *sum_out = mine;
    return group ? wefti_collective_run(group, &call) : WEFT_OK;
}

static weft_status meet(ranks *them, int32_t rank) {
    weft_world *world = NULL;
    wefti_mesh  mesh;
    int32_t     share, shares;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}}, &world));
    WEFTI_TRY(wefti_mesh_make(world, &how, &mesh));
    WEFTI_TRY(weft_strategy_share(&how, world, &share, &shares));
    EXPECT(share == mesh.index[WEFTI_MESH_DATA] && shares == mesh.extent[WEFTI_MESH_DATA], "share %d of %d", share, shares);
    for (int32_t axis = 0, stride = 1; axis < WEFTI_MESH_AXES; stride *= mesh.extent[axis++]) {
        int64_t sum, expected = 0;
        int32_t extent = mesh.extent[axis], first = rank - mesh.index[axis] * stride;
        for (int32_t i = 0; i < extent; i++) expected += first + i * stride;
        WEFTI_TRY(sum_along(&mesh, (wefti_mesh_axis)axis, rank, &sum));
        EXPECT(sum == expected, "along %s: %lld, not %lld", wefti_mesh_name((wefti_mesh_axis)axis), (long long)sum, (long long)expected);
        wefti_group *group = mesh.groups[wefti_mesh_group((wefti_mesh_axis)axis)];
        EXPECT(extent == 1 ? !group : group->size == extent && group->index == mesh.index[axis], "a group of %d", group ? group->size : 1);
        EXPECT((group == world->group) == (extent == them->size), "%s", "an axis of all ranks has the world's group");
    }
    wefti_mesh_drop(&mesh);
    EXPECT(!world->groups, "%s", "a group is left");
    weft_world_release(world);
    return WEFT_OK;
}

static void try(const char *name, int32_t size, weft_strategy strategy) {
    wire = name;
    how = strategy;
    ranks *all = ranks_start(size, meet);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        cr_expect(all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", name, (int)rank, (int)size, all->results[rank].message);
    ranks_free(all);
}

Test(mesh, groups_over_shared_memory) { try("shm", 4, (weft_strategy){.data = 2, .tensor = 2}); }
Test(mesh, groups_over_tcp) { try("tcp", 4, (weft_strategy){.tensor = 2, .pipeline = 2}); }
Test(mesh, groups_of_one_axis) { try("shm", 3, (weft_strategy){.tensor = 3}); }

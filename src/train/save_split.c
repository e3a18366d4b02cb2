/* Saving and loading where a rank has a part of a variable alone: the file is the one that a rank that has all would write.
 *
 * Saving: rank 0 writes, and asks the others of its tensor group for a variable when the writer comes to it, so no rank ever holds more than
 * one whole variable. What it asks for is broadcast first, its end too, so the others follow it wherever a disk stops it. Ranks elsewhere
 * along data have copies, and wait for the outcome. Loading: rank 0 has read and checked the file; each variable is broadcast and every rank
 * takes its part. */
#include <string.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

enum { THE_END = -1 };

static struct wefti_group *group_of(const weft_trainer *trainer) { return trainer->mesh.groups[wefti_mesh_group(WEFTI_MESH_TENSOR)]; }

bool wefti_parts_takes_part(const weft_trainer *trainer) {
    if (trainer->tensor.ranks <= 1) return false;
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++)
        if (axis != WEFTI_MESH_TENSOR && trainer->mesh.index[axis] != 0) return false;
    return true;
}

/* Which variable comes next, or the end. */
static weft_status announce(const weft_trainer *trainer, int64_t *index) {
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_I64, .send = index, .receive = index, .count = 1,
                                  .timeout_ns = WEFTI_AGREE_LIMIT_NS};
    return wefti_collective_run(group_of(trainer), &call);
}

/* This rank's part of a variable in host memory: the variable's own, or a copy in memory that the caller frees. */
static weft_status own_part(const weft_trainer *trainer, int32_t index, size_t bytes, void **part_out, void **copy_out) {
    wefti_device *device = trainer->world->device;
    *part_out = wefti_variables_memory(trainer->variables, index);
    *copy_out = NULL;
    if (device->vtable->host_memory) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "a part of a variable", copy_out));
    void *far = *part_out;
    *part_out = *copy_out;
    return device->vtable->read(device, *copy_out, far, bytes);
}

static weft_status gather(const weft_trainer *trainer, int32_t index, void *parts) {
    weft_variable_info info;
    void              *part, *copy;
    WEFTI_TRY(weft_variables_info(trainer->variables, index, &info));
    size_t      elements = (size_t)weft_shape_elements(wefti_window_shape(wefti_variables_window(trainer->variables, index), info.shape));
    size_t      bytes = elements * weft_dtype_bytes(info.dtype);
    weft_status status = own_part(trainer, index, bytes, &part, &copy);
    if (status == WEFT_OK) {
        wefti_collective_call call = {.kind = WEFTI_GATHER, .dtype = info.dtype, .send = part, .receive = parts, .count = elements,
                                      .timeout_ns = WEFTI_AGREE_LIMIT_NS};
        status = wefti_collective_run(group_of(trainer), &call);
    }
    wefti_free(copy, bytes);
    return status;
}

weft_status wefti_parts_open(weft_trainer *trainer, wefti_gatherer *g) {
    int32_t n = weft_variables_count(trainer->variables);
    *g = (wefti_gatherer){.trainer = trainer, .latest = -1};
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        WEFTI_TRY(weft_variables_info(trainer->variables, i, &info));
        if (!wefti_window_is_whole(wefti_variables_window(trainer->variables, i)) && (size_t)info.bytes > g->bytes) g->bytes = (size_t)info.bytes;
    }
    WEFTI_TRY(wefti_alloc(g->bytes, "a whole variable", &g->whole));
    return wefti_alloc(g->bytes, "the parts of a variable", &g->parts);
}

weft_status wefti_parts_fetch(void *context, uint64_t offset, uint64_t bytes, void *out) {
    const wefti_gathered *one = context;
    wefti_gatherer       *g = one->gatherer;
    const weft_trainer   *trainer = g->trainer;
    if (g->latest != one->index) {
        weft_variable_info     info;
        const wefti_window_of *window = wefti_variables_window(trainer->variables, one->index);
        int64_t                index = one->index;
        WEFTI_TRY(weft_variables_info(trainer->variables, one->index, &info));
        WEFTI_TRY(announce(trainer, &index));
        WEFTI_TRY(gather(trainer, one->index, g->parts));
        for (int32_t r = 0; r < window->ranks; r++)
            wefti_window_put(window, r, info.shape, weft_dtype_bytes(info.dtype), (char *)g->parts + (size_t)(info.bytes / window->ranks) * (size_t)r,
                             g->whole);
        g->latest = one->index;
    }
    memcpy(out, (char *)g->whole + offset, (size_t)bytes);
    return WEFT_OK;
}

weft_status wefti_parts_close(wefti_gatherer *g) {
    int64_t end = THE_END;
    if (!g->trainer) return WEFT_OK;
    weft_status status = announce(g->trainer, &end);
    wefti_free(g->whole, g->bytes);
    wefti_free(g->parts, g->bytes);
    *g = (wefti_gatherer){0};
    return status;
}

weft_status wefti_parts_serve(const weft_trainer *trainer) {
    for (;;) {
        int64_t index = THE_END;
        WEFTI_TRY(announce(trainer, &index));
        if (index == THE_END) return WEFT_OK;
        WEFTI_TRY(gather(trainer, (int32_t)index, NULL));
    }
}

/* --- loading --- */

static weft_status send_all(weft_world *world, void *bytes, size_t size_bytes) {
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = bytes, .receive = bytes, .count = size_bytes};
    return wefti_collective_run(world->group, &call);
}

static weft_status deal_variables(weft_trainer *trainer, const wefti_snapshot *s, void *scratch) {
    size_t  at = 0;
    int32_t n = weft_variables_count(trainer->variables);
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        void *whole = s->bytes ? s->bytes + at : scratch;
        WEFTI_TRY(send_all(trainer->world, whole, (size_t)info.bytes));
        WEFTI_TRY(wefti_variables_place(trainer->variables, i, whole));
        at = wefti_snapshot_next(at, info.bytes);
    }
    return WEFT_OK;
}

weft_status wefti_snapshot_deal(weft_trainer *trainer, weft_loader *loader, wefti_snapshot *s) {
    void   *scratch = NULL;
    size_t  most = 0;
    int32_t n = weft_variables_count(trainer->variables);
    for (int32_t i = 0; i < n && !s->bytes; i++) {
        weft_variable_info info;
        if (wefti_snapshot_holds(trainer, s->bases, i, &info) && (size_t)info.bytes > most) most = (size_t)info.bytes;
    }
    WEFTI_TRY(send_all(trainer->world, &s->numbers, sizeof s->numbers));
    weft_status status = wefti_alloc(most, "a whole variable", &scratch);
    if (status == WEFT_OK && loader) status = weft_loader_restore(loader, &s->numbers.loader);
    status = wefti_agree(trainer->world, status, "making ready to take over the run");
    if (status == WEFT_OK) status = deal_variables(trainer, s, scratch);
    wefti_free(scratch, most);
    if (status == WEFT_OK) wefti_snapshot_take_numbers(trainer, s);
    return wefti_agree(trainer->world, status, "taking over the run");
}

/* Saving and loading where a rank has a part of the run alone: a window of a variable, or some variables and not others. The file is the one that
 * a rank that has all would write.
 *
 * Which variables there are, and who has them, every rank knows alike (wefti_listing). Rank 0 drives: it says to all which variable comes next, and
 * its end too, so the others follow it wherever a disk stops it. Saving: those who hold the variable's parts send them to rank 0, so no rank ever
 * holds more than one whole variable; whoever has a copy only listens. Loading: rank 0 reads the variable and sends it to all, and every rank
 * lays its part aside; they become the run's once everything has been read, and is good. */
#include <string.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

enum { THE_END = -1 };

bool wefti_in_parts(const weft_trainer *trainer) {
    return trainer->mesh.extent[WEFTI_MESH_TENSOR] > 1 || trainer->mesh.extent[WEFTI_MESH_EXPERT] > 1 || trainer->mesh.extent[WEFTI_MESH_PIPELINE] > 1 || trainer->zero.stage > 0;
}

/* --- what there is --- */

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

static wefti_window_of window_of(const weft_trainer *trainer, const char *name) {
    const wefti_windows windows = wefti_trainer_windows(trainer);
    for (int32_t i = 0; i < windows.n; i++)
        if (strcmp(windows.list[i].name, name) == 0) return windows.list[i].window;
    return (wefti_window_of){.ranks = 1};
}

/* A leaf of the trainer's graph, whose variable another stage may have. */
static wefti_listed listed_leaf(const weft_trainer *trainer, const wefti_node *leaf) {
    const weft_tensor *tensor = &leaf->outputs[0];
    wefti_listed       it = {.here = weft_variables_find(trainer->variables, leaf->name), .window = window_of(trainer, leaf->name)};
    it.info = (weft_variable_info){.name = leaf->name, .dtype = tensor->dtype, .shape = tensor->shape,
                                   .bytes = weft_shape_elements(tensor->shape) * (int64_t)weft_dtype_bytes(tensor->dtype)};
    if (trainer->mesh.extent[WEFTI_MESH_PIPELINE] > 1) it.holder[WEFTI_MESH_PIPELINE] = (leaf->place - 1) % trainer->mesh.extent[WEFTI_MESH_PIPELINE];
    return it;
}

static weft_status list_variables(const weft_trainer *trainer, wefti_listing *listing) {
    for (int32_t i = 0; i < listing->n; i++) {
        wefti_listed *it = &listing->list[i];
        *it = (wefti_listed){.here = i, .window = {.ranks = 1}};
        WEFTI_TRY(weft_variables_info(trainer->variables, i, &it->info));
    }
    return WEFT_OK;
}

weft_status wefti_listing_open(const weft_trainer *trainer, wefti_listing *listing) {
    const weft_graph *graph = trainer->graph;
    bool              parts = wefti_in_parts(trainer);
    *listing = (wefti_listing){.n = parts ? 0 : weft_variables_count(trainer->variables)};
    for (int32_t i = 0; i < graph->n_leaves && parts; i++) listing->n += is_variable(graph->leaves[i]);
    WEFTI_TRY(wefti_alloc((size_t)listing->n * sizeof *listing->list, "a run's variables", &listing->list));
    if (!parts) return list_variables(trainer, listing);
    for (int32_t i = 0, n = 0; i < graph->n_leaves; i++)
        if (is_variable(graph->leaves[i])) listing->list[n++] = listed_leaf(trainer, graph->leaves[i]);
    return WEFT_OK;
}

void wefti_listing_close(wefti_listing *listing) {
    wefti_free(listing->list, (size_t)listing->n * sizeof *listing->list);
    *listing = (wefti_listing){0};
}

/* Bytes of one rank's part: the last of a variable may have less in it, and takes as much. */
static size_t part_bytes_of(const wefti_listed *it) {
    return (size_t)weft_shape_elements(wefti_window_shape(&it->window, it->info.shape)) * weft_dtype_bytes(it->info.dtype);
}

/* Bytes of the largest variable, and of the largest part. */
static size_t largest(const wefti_listing *listing) {
    size_t most = 0;
    for (int32_t i = 0; i < listing->n; i++)
        if ((size_t)listing->list[i].info.bytes > most) most = (size_t)listing->list[i].info.bytes;
    return most;
}
static size_t largest_part(const wefti_listing *listing) {
    size_t most = 0;
    for (int32_t i = 0; i < listing->n; i++)
        if (part_bytes_of(&listing->list[i]) > most) most = part_bytes_of(&listing->list[i]);
    return most;
}

/* Parts are counted along tensor, then along expert, then along who else would have the same. */
static int32_t at_least_one(int32_t n) { return n > 1 ? n : 1; }
static int32_t parts_of(const wefti_listed *it) { return at_least_one(it->window.ranks) * at_least_one(it->window.blocks) * at_least_one(it->window.parts); }

static wefti_window_of window_of_part(const wefti_listed *it, int32_t part) {
    wefti_window_of window = it->window;
    int32_t         ranks = at_least_one(window.ranks), blocks = at_least_one(window.blocks);
    window.rank = part % ranks;
    window.block = part / ranks % blocks;
    window.part = part / ranks / blocks;
    return window;
}

/* The rank that has a part, of those which have the same one the first. */
static int32_t holder_of(const weft_trainer *trainer, const wefti_listed *it, int32_t part) {
    int32_t         index[WEFTI_MESH_AXES];
    wefti_window_of window = window_of_part(it, part);
    memcpy(index, it->holder, sizeof index);
    index[WEFTI_MESH_TENSOR] += window.rank;
    index[WEFTI_MESH_EXPERT] += window.block;
    int64_t axes = window.blocks > 1 ? trainer->zero.experts.axes : trainer->zero.among.axes;
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES && window.parts > 1; axis++) { /* as wefti_mesh_rank_along counts */
        if (!(axes >> axis & 1)) continue;
        index[axis] += window.part % trainer->mesh.extent[axis];
        window.part /= trainer->mesh.extent[axis];
    }
    return wefti_mesh_rank(&trainer->mesh, index);
}

bool wefti_listed_is_here(const weft_trainer *trainer, const wefti_listed *it) {
    return !wefti_in_parts(trainer) || (wefti_window_is_whole(&it->window) && holder_of(trainer, it, 0) == trainer->world->rank);
}

int32_t wefti_parts_count(const weft_trainer *trainer) { return trainer->mesh.extent[WEFTI_MESH_PIPELINE] * trainer->mesh.extent[WEFTI_MESH_TENSOR]; }

int32_t wefti_parts_place(const weft_trainer *trainer, int32_t rank) {
    int32_t index[WEFTI_MESH_AXES];
    wefti_mesh_place(&trainer->mesh, rank, index);
    return index[WEFTI_MESH_PIPELINE] * trainer->mesh.extent[WEFTI_MESH_TENSOR] + index[WEFTI_MESH_TENSOR];
}

weft_status wefti_parts_layout(const weft_trainer *trainer, uint64_t *layout_out) {
    wefti_listing listing;
    *layout_out = 0;
    if (!wefti_in_parts(trainer)) return WEFT_OK;
    weft_status status = wefti_listing_open(trainer, &listing);
    uint64_t    hash = WEFTI_HASH_BEGIN;
    for (int32_t i = 0; i < listing.n && status == WEFT_OK; i++) {
        const wefti_listed *it = &listing.list[i];
        const int64_t       numbers[] = {it->info.bytes, it->holder[WEFTI_MESH_PIPELINE], it->window.ranks, it->window.axis, it->window.n_sections, it->window.blocks};
        hash = wefti_hash(wefti_hash(hash, it->info.name, strlen(it->info.name)), numbers, sizeof numbers);
        hash = wefti_hash(hash, it->window.section, sizeof *it->window.section * (size_t)it->window.n_sections);
    }
    wefti_listing_close(&listing);
    *layout_out = hash;
    return status;
}

/* --- what all say and send --- */

static weft_status broadcast(const weft_trainer *trainer, void *bytes, size_t size_bytes) {
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = bytes, .receive = bytes, .count = size_bytes,
                                  .timeout_ns = WEFTI_AGREE_LIMIT_NS};
    return wefti_collective_run(trainer->world->group, &call);
}

/* Which variable comes next, or the end. */
static weft_status announce(const weft_trainer *trainer, int64_t *index) { return broadcast(trainer, index, sizeof *index); }

static weft_status message(const weft_trainer *trainer, wefti_collective_kind kind, int32_t peer, void *bytes, size_t size_bytes) {
    wefti_collective_call call = {.kind = kind, .dtype = WEFT_U8, .root = peer, .send = bytes, .receive = bytes, .count = size_bytes,
                                  .timeout_ns = WEFTI_AGREE_LIMIT_NS};
    return wefti_collective_run(trainer->world->group, &call);
}

/* This rank's part of a variable in host memory: the variable's own, or a copy. */
static weft_status own_part(const wefti_gatherer *g, int32_t index, size_t bytes, void **part_out) {
    wefti_device *device = g->trainer->world->device;
    void         *memory = wefti_variables_memory(g->trainer->variables, index);
    *part_out = device->vtable->host_memory ? memory : g->part;
    return device->vtable->host_memory ? WEFT_OK : device->vtable->read(device, g->part, memory, bytes);
}

/* One part on its way to rank `to`, who puts it where it belongs. */
static weft_status move_part(wefti_gatherer *g, const wefti_listed *it, int32_t part, int32_t to) {
    const weft_trainer *trainer = g->trainer;
    int32_t             from = holder_of(trainer, it, part), rank = trainer->world->rank;
    size_t              bytes = part_bytes_of(it);
    wefti_window_of     window = window_of_part(it, part);
    void               *values = g->part;
    if (rank == from) WEFTI_TRY(own_part(g, it->here, bytes, &values));
    if (rank == from && rank != to) return message(trainer, WEFTI_SEND, to, values, bytes);
    if (rank != to) return WEFT_OK;
    if (rank != from) WEFTI_TRY(message(trainer, WEFTI_RECEIVE, from, values, bytes));
    wefti_window_put(&window, it->info.shape, weft_dtype_bytes(it->info.dtype), values, g->whole);
    return WEFT_OK;
}

weft_status wefti_parts_gather(wefti_gatherer *g, int64_t index, int32_t to) {
    const wefti_listed *it = &g->listing.list[index];
    for (int32_t part = 0; part < parts_of(it); part++) WEFTI_TRY(move_part(g, it, part, to));
    return WEFT_OK;
}

/* --- saving --- */

weft_status wefti_parts_open(weft_trainer *trainer, bool everywhere, wefti_gatherer *g) {
    *g = (wefti_gatherer){.trainer = trainer, .latest = -1};
    WEFTI_TRY(wefti_listing_open(trainer, &g->listing));
    if (!wefti_in_parts(trainer)) return WEFT_OK;
    g->bytes = largest(&g->listing);
    g->part_bytes = largest_part(&g->listing);
    WEFTI_TRY(wefti_alloc(g->part_bytes, "a part of a variable", &g->part));
    return trainer->world->rank == 0 || everywhere ? wefti_alloc(g->bytes, "a whole variable", &g->whole) : WEFT_OK;
}

void wefti_parts_close(wefti_gatherer *g) {
    wefti_free(g->whole, g->bytes);
    wefti_free(g->part, g->part_bytes);
    wefti_listing_close(&g->listing);
    *g = (wefti_gatherer){0};
}

weft_status wefti_parts_fetch(void *context, uint64_t offset, uint64_t bytes, void *out) {
    const wefti_gathered *one = context;
    wefti_gatherer       *g = one->gatherer;
    if (g->latest != one->index) {
        int64_t index = one->index;
        WEFTI_TRY(announce(g->trainer, &index));
        WEFTI_TRY(wefti_parts_gather(g, index, 0));
        g->latest = one->index;
    }
    memcpy(out, (char *)g->whole + offset, (size_t)bytes);
    return WEFT_OK;
}

weft_status wefti_parts_end(const weft_trainer *trainer) {
    int64_t end = THE_END;
    return wefti_in_parts(trainer) ? announce(trainer, &end) : WEFT_OK;
}

weft_status wefti_parts_serve(wefti_gatherer *g) {
    for (;;) {
        int64_t index = THE_END;
        WEFTI_TRY(announce(g->trainer, &index));
        if (index == THE_END) return WEFT_OK;
        WEFTI_TRY(wefti_parts_gather(g, index, 0));
    }
}

/* --- loading --- */

/* Lays this rank's part of what has come aside. */
static void lay_aside(wefti_dealer *d, const wefti_listed *it) {
    if (it->here < 0) return;
    wefti_window_take(&it->window, it->info.shape, weft_dtype_bytes(it->info.dtype), d->whole, d->own + d->at);
    d->at = wefti_snapshot_next(d->at, (int64_t)part_bytes_of(it));
}

weft_status wefti_deal_open(weft_trainer *trainer, wefti_dealer *d) {
    *d = (wefti_dealer){.trainer = trainer};
    WEFTI_TRY(wefti_listing_open(trainer, &d->listing));
    for (int32_t i = 0; i < d->listing.n; i++)
        if (d->listing.list[i].here >= 0) d->own_bytes = wefti_snapshot_next(d->own_bytes, (int64_t)part_bytes_of(&d->listing.list[i]));
    d->whole_bytes = largest(&d->listing);
    WEFTI_TRY(wefti_alloc(d->own_bytes, "this rank's part of a run", &d->own));
    return wefti_alloc(d->whole_bytes, "a whole variable", &d->whole);
}

void wefti_deal_close(wefti_dealer *d) {
    wefti_free(d->own, d->own_bytes);
    wefti_free(d->whole, d->whole_bytes);
    wefti_listing_close(&d->listing);
    *d = (wefti_dealer){0};
}

weft_status wefti_deal_read(wefti_dealer *d, weft_checkpoint *file) {
    for (int64_t i = 0; i < d->listing.n; i++) {
        const wefti_listed *it = &d->listing.list[i];
        WEFTI_TRY(weft_checkpoint_read(file, it->info.name, it->info.dtype, it->info.shape, d->whole));
        WEFTI_TRY(announce(d->trainer, &i));
        WEFTI_TRY(broadcast(d->trainer, d->whole, (size_t)it->info.bytes));
        lay_aside(d, it);
    }
    return WEFT_OK;
}

weft_status wefti_deal_follow(wefti_dealer *d) {
    for (;;) {
        int64_t index = THE_END;
        WEFTI_TRY(announce(d->trainer, &index));
        if (index == THE_END) return WEFT_OK;
        WEFTI_TRY(broadcast(d->trainer, d->whole, (size_t)d->listing.list[index].info.bytes));
        lay_aside(d, &d->listing.list[index]);
    }
}

weft_status wefti_deal_take_over(const wefti_dealer *d) {
    size_t at = 0;
    for (int32_t i = 0; i < d->listing.n; i++) {
        const wefti_listed *it = &d->listing.list[i];
        if (it->here < 0) continue;
        WEFTI_TRY(wefti_variables_put(d->trainer->variables, it->here, d->own + at));
        at = wefti_snapshot_next(at, (int64_t)part_bytes_of(it));
    }
    return WEFT_OK;
}

/* Saving and loading where a rank has a part of the run alone: a window of a variable, or some variables and not others. The file is the one that
 * a rank that has all would write.
 *
 * Which variables there are, and who has them, every rank knows alike (wefti_listing). Rank 0 drives: it says to all which variable comes next, and
 * its end too, so the others follow it wherever a disk stops it. Saving: those who hold the variable's parts send them to rank 0, so no rank ever
 * holds more than one whole variable; whoever has a copy only listens. Loading: rank 0 reads the variable and sends it to all, and every rank
 * lays its part aside; they become the run's once everything has been read, and is good.
 *
 * Where all ranks find the same file, as its checksums say, they read it together: as those who write shards, each has variables of its stage, of which there are
 * about as many bytes for each. In a round every rank reads its next variable and then sends its parts to who has them, all in one order. So each byte is read
 * once, by somebody who checks all of its variable, whoever has a part; and a rank without neighbours in its stage reads what it has, and sends nothing. */
#include <string.h>

#include "core/iface/collective.h"
#include "io/checkpoint.h"
#include "train/trainer.h"

enum { THE_END = -1 };

bool wefti_in_parts(const weft_trainer *trainer) {
    return trainer->mesh.extent[WEFTI_MESH_TENSOR] > 1 || trainer->mesh.extent[WEFTI_MESH_EXPERT] > 1 || trainer->mesh.extent[WEFTI_MESH_PIPELINE] > 1 || trainer->zero.stage > 0;
}

/* --- what there is --- */

/* What ranks give to a server is of a step, and not of the run. */
static bool is_variable(const wefti_node *node) { return (node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE) && !wefti_contribution_to(node->name); }

/* A leaf of the trainer's graph, whose variable another stage may have. */
static wefti_listed listed_leaf(const weft_trainer *trainer, const wefti_node *leaf) {
    const weft_tensor *tensor = &leaf->outputs[0];
    wefti_listed       it = {.here = weft_variables_find(trainer->variables, leaf->name), .window = wefti_trainer_window(trainer, leaf->name)};
    it.info = (weft_variable_info){.name = leaf->name, .dtype = tensor->dtype, .shape = tensor->shape,
                                   .bytes = weft_shape_elements(tensor->shape) * (int64_t)weft_dtype_bytes(tensor->dtype)};
    if (trainer->mesh.extent[WEFTI_MESH_PIPELINE] > 1) it.holder[WEFTI_MESH_PIPELINE] = (leaf->place - 1) % trainer->mesh.extent[WEFTI_MESH_PIPELINE];
    return it;
}

/* Those that are here, NULL: into nothing; how many. */
static int32_t list_variables(const weft_trainer *trainer, wefti_listed *list) {
    int32_t n = 0;
    for (int32_t i = 0; i < weft_variables_count(trainer->variables); i++) {
        wefti_listed it = {.here = i, .window = {.ranks = 1}};
        if (weft_variables_info(trainer->variables, i, &it.info) != WEFT_OK || wefti_contribution_to(it.info.name)) continue;
        if (list) list[n] = it;
        n++;
    }
    return n;
}

weft_status wefti_listing_open(const weft_trainer *trainer, wefti_listing *listing) {
    const weft_graph *graph = trainer->graph;
    bool              parts = wefti_in_parts(trainer);
    *listing = (wefti_listing){.n = parts ? 0 : list_variables(trainer, NULL)};
    for (int32_t i = 0; i < graph->n_leaves && parts; i++) listing->n += is_variable(graph->leaves[i]);
    WEFTI_TRY(wefti_alloc((size_t)listing->n * sizeof *listing->list, "a run's variables", &listing->list));
    if (!parts) (void)list_variables(trainer, listing->list);
    for (int32_t i = 0, n = 0; i < graph->n_leaves && parts; i++)
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

/* Which part of a variable a rank has; -1: none. The other way round than holder_of. */
static int32_t part_of(const weft_trainer *trainer, const wefti_listed *it, int32_t rank) {
    int32_t place[WEFTI_MESH_AXES], ranks = at_least_one(it->window.ranks), blocks = at_least_one(it->window.blocks), part = 0, stride = 1;
    int64_t axes = it->window.blocks > 1 ? trainer->zero.experts.axes : trainer->zero.among.axes;
    wefti_mesh_place(&trainer->mesh, rank, place);
    if (place[WEFTI_MESH_PIPELINE] != it->holder[WEFTI_MESH_PIPELINE]) return -1;
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES && it->window.parts > 1; axis++) {
        if (!(axes >> axis & 1)) continue;
        part += place[axis] * stride;
        stride *= trainer->mesh.extent[axis];
    }
    part = part * blocks + (blocks > 1 ? place[WEFTI_MESH_EXPERT] : 0);
    return part * ranks + (ranks > 1 ? place[WEFTI_MESH_TENSOR] : 0);
}

void wefti_parts_movers(const weft_trainer *trainer, const wefti_listing *listing, int32_t *mover, int64_t *load) {
    for (int32_t i = 0; i < listing->n; i++) {
        const wefti_listed *it = &listing->list[i];
        mover[i] = -1;
        if (wefti_is_compress_error(it->info.name)) continue; /* each rank has its own, and rank 0 all of them */
        for (int32_t r = 0; r < trainer->world->size; r++) {
            int32_t place[WEFTI_MESH_AXES];
            wefti_mesh_place(&trainer->mesh, r, place);
            if (place[WEFTI_MESH_PIPELINE] == it->holder[WEFTI_MESH_PIPELINE] && (mover[i] < 0 || load[r] < load[mover[i]])) mover[i] = r;
        }
        load[mover[i]] += it->info.bytes + 1;
    }
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

static unsigned char *own_slot(const wefti_dealer *d, int32_t i) { return d->own + d->at[i]; }

/* Lays this rank's part of what has come aside. */
static void lay_aside(wefti_dealer *d, int32_t i) {
    const wefti_listed *it = &d->listing.list[i];
    if (it->here >= 0) wefti_window_take(&it->window, it->info.shape, weft_dtype_bytes(it->info.dtype), d->whole, own_slot(d, i));
}

weft_status wefti_deal_open(weft_trainer *trainer, wefti_dealer *d) {
    *d = (wefti_dealer){.trainer = trainer};
    WEFTI_TRY(wefti_listing_open(trainer, &d->listing));
    WEFTI_TRY(wefti_alloc((size_t)d->listing.n * sizeof *d->at, "this rank's part of a run", &d->at));
    for (int32_t i = 0; i < d->listing.n; i++) {
        d->at[i] = d->own_bytes;
        if (d->listing.list[i].here >= 0) d->own_bytes = wefti_snapshot_next(d->own_bytes, (int64_t)part_bytes_of(&d->listing.list[i]));
    }
    d->whole_bytes = largest(&d->listing);
    d->part_bytes = largest_part(&d->listing);
    WEFTI_TRY(wefti_alloc(d->own_bytes, "this rank's part of a run", &d->own));
    WEFTI_TRY(wefti_alloc(d->part_bytes, "a part of a variable", &d->part));
    return wefti_alloc(d->whole_bytes, "a whole variable", &d->whole);
}

void wefti_deal_close(wefti_dealer *d) {
    weft_checkpoint_release(d->file);
    wefti_free(d->at, (size_t)d->listing.n * sizeof *d->at);
    wefti_free(d->own, d->own_bytes);
    wefti_free(d->part, d->part_bytes);
    wefti_free(d->whole, d->whole_bytes);
    wefti_listing_close(&d->listing);
    *d = (wefti_dealer){0};
}

/* --- loading by rank 0 --- */

weft_status wefti_deal_read(wefti_dealer *d, weft_checkpoint *file) {
    for (int64_t i = 0; i < d->listing.n; i++) {
        const weft_variable_info *info = &d->listing.list[i].info;
        if (d->file) { /* it is read by all, once this rank has looked through it */
            WEFTI_TRY(wefti_checkpoint_expect(file, info->name, info->dtype, info->shape));
            continue;
        }
        WEFTI_TRY(weft_checkpoint_read(file, info->name, info->dtype, info->shape, d->whole));
        WEFTI_TRY(announce(d->trainer, &i));
        WEFTI_TRY(broadcast(d->trainer, d->whole, (size_t)info->bytes));
        lay_aside(d, (int32_t)i);
    }
    return WEFT_OK;
}

weft_status wefti_deal_end(const wefti_dealer *d) { return d->file ? WEFT_OK : wefti_parts_end(d->trainer); }

weft_status wefti_deal_follow(wefti_dealer *d) {
    while (!d->file) {
        int64_t index = THE_END;
        WEFTI_TRY(announce(d->trainer, &index));
        if (index == THE_END) return WEFT_OK;
        WEFTI_TRY(broadcast(d->trainer, d->whole, (size_t)d->listing.list[index].info.bytes));
        lay_aside(d, (int32_t)index);
    }
    return WEFT_OK;
}

/* --- loading by all --- */

weft_status wefti_deal_meet(wefti_dealer *d, const char *path) {
    weft_world *world = d->trainer->world;
    int64_t     mark = weft_checkpoint_open(path, &d->file) == WEFT_OK ? (int64_t)(wefti_checkpoint_fingerprint(d->file) >> 1) : 0, marks[2] = {mark, -mark};
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MIN, .send = marks, .receive = marks, .count = 2};
    weft_status           status = wefti_collective_run(world->group, &call);
    if (status == WEFT_OK && mark != 0 && marks[0] == -marks[1]) return WEFT_OK;
    weft_checkpoint_release(d->file); /* rank 0 opens it again, and says what is wrong with it */
    d->file = NULL;
    return status;
}

/* Variable `i` from who has read it to all who have some of it. */
static weft_status hand_out(wefti_dealer *d, int32_t i, int32_t reader) {
    const wefti_listed *it = &d->listing.list[i];
    const weft_trainer *trainer = d->trainer;
    int32_t             rank = trainer->world->rank;
    size_t              bytes = part_bytes_of(it), size = weft_dtype_bytes(it->info.dtype);
    if (rank == reader) lay_aside(d, i);
    if (wefti_window_is_whole(&it->window) && trainer->mesh.extent[WEFTI_MESH_PIPELINE] == 1) {
        wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = reader, .send = own_slot(d, i), .receive = own_slot(d, i), .count = bytes,
                                      .timeout_ns = WEFTI_AGREE_LIMIT_NS};
        return wefti_collective_run(trainer->world->group, &call);
    }
    for (int32_t to = 0; to < trainer->world->size; to++) {
        int32_t part = to == reader ? -1 : part_of(trainer, it, to);
        if (part < 0) continue;
        if (rank == to) WEFTI_TRY(message(trainer, WEFTI_RECEIVE, reader, own_slot(d, i), bytes));
        if (rank != reader) continue;
        wefti_window_of window = window_of_part(it, part);
        wefti_window_take(&window, it->info.shape, size, d->whole, d->part);
        WEFTI_TRY(message(trainer, WEFTI_SEND, to, d->part, bytes));
    }
    return WEFT_OK;
}

/* Who cannot read goes on with the others to the end. */
static weft_status read_rounds(wefti_dealer *d, const int32_t *reader, int32_t *next) {
    int32_t     n = d->listing.n, ranks = d->trainer->world->size, rank = d->trainer->world->rank, left = ranks;
    weft_status status = WEFT_OK;
    for (int32_t round = 0; left > 0; round++) {
        left = 0;
        for (int32_t r = 0; r < ranks; r++) {
            for (next[r] += round > 0; next[r] < n && reader[next[r]] != r;) next[r]++;
            if (next[r] > n) next[r] = n;
            left += next[r] < n;
        }
        const weft_variable_info *info = next[rank] < n ? &d->listing.list[next[rank]].info : NULL;
        if (info && status == WEFT_OK) status = weft_checkpoint_read(d->file, info->name, info->dtype, info->shape, d->whole);
        for (int32_t r = 0; r < ranks; r++)
            if (next[r] < n) WEFTI_TRY(hand_out(d, next[r], r));
    }
    return status;
}

weft_status wefti_deal_share(wefti_dealer *d) {
    size_t      n = (size_t)d->listing.n, ranks = (size_t)d->trainer->world->size;
    int32_t    *reader = NULL, *next = NULL;
    int64_t    *load = NULL;
    weft_status status = wefti_alloc(n * sizeof *reader, "readers of a checkpoint", &reader);
    if (status == WEFT_OK) status = wefti_alloc(ranks * sizeof *next, "readers of a checkpoint", &next);
    if (status == WEFT_OK) status = wefti_alloc(ranks * sizeof *load, "readers of a checkpoint", &load);
    status = wefti_agree(d->trainer->world, status, "making ready to read the run");
    if (status == WEFT_OK) {
        wefti_parts_movers(d->trainer, &d->listing, reader, load);
        status = read_rounds(d, reader, next);
    }
    wefti_free(reader, n * sizeof *reader);
    wefti_free(next, ranks * sizeof *next);
    wefti_free(load, ranks * sizeof *load);
    return status;
}

weft_status wefti_deal_take_over(const wefti_dealer *d) {
    for (int32_t i = 0; i < d->listing.n; i++)
        if (d->listing.list[i].here >= 0) WEFTI_TRY(wefti_variables_put(d->trainer->variables, d->listing.list[i].here, own_slot(d, i)));
    return WEFT_OK;
}

/* Fusion: elementwise ops over one iteration space become one FUSED item, computed tile by tile without storing what is between.
 *
 * Groups grow along the order. An item joins the groups of its producers as long as nothing outside has read them yet: a group then
 * stands where its last member stood, behind all that feeds it and before all that reads it, so no cycle can arise. The first
 * reader outside *seals* a group. Reductions may still join a sealed group, for they need nothing but its values. A group that reads a
 * variable never moves behind the item that overwrites it. Views never join: what is read through a view must be stored. Neighbours
 * that read the same large value join, too, so that it is read once: a gradient that is scaled, summed, and multiplied and summed.
 * Where the device takes it, a group has one normalisation of rows among its members: what makes the rows, and what is made of the result,
 * is then computed on the way, and so are sums over all rows. Where such a group is refused, all groups grow again without that item in any.
 *
 * Before that, cheap producers that are read in several places, all of them elementwise, are copied into each (clone.c), so that they need
 * no memory. Every fused item has to be taken by the device; where it is refused the members stay. Each edge inside a group saves a
 * write or a read, so traffic only falls. Linear: groups have at most WEFTI_FUSED_MAX members. */
#include <string.h>

#include "core/plan/fuse.h"
#include "core/plan/ir.h"

enum {
    MOST_INPUTS = 16, /* more streams than this thrash the first-level cache of common machines */
    FAR = 64,         /* nodes apart: from there on a group may not drag more than one large input along */
    NEAR = 24,        /* nodes apart: up to there groups join that have nothing in common but what they read */
    MOST_NEIGHBOURS = 8
};

typedef struct group {
    int32_t  n_members, n_reductions;
    int32_t  member[WEFTI_FUSED_MAX]; /* items, in order */
    int64_t  key;                     /* where it stands */
    int32_t  rows;                    /* the member that normalises rows; -1: none */
    bool     sealed;
} group;

typedef struct fuser {
    wefti_ir  *ir;
    wefti_uses uses; /* by root */
    group     *groups;
    int32_t    n_groups, groups_capacity;
    int32_t   *group_of; /* by item; -1: none */
    int32_t   *ended;    /* by value: wefti_ir_endings */
    bool      *apart;    /* by item: normalisations whose groups were refused */
    size_t     n_items;
} fuser;

static weft_shape space_of(const wefti_ir *ir, const wefti_item *item) {
    return ir->values[wefti_op_is_reduction(item->op) || item->n_outputs == 0 ? item->inputs[0] : item->outputs[0]].shape;
}

static weft_shape group_space(const fuser *f, const group *g) { return space_of(f->ir, &f->ir->items[g->member[0]]); }

/* The group that computes the memory that `value` looks at; -1: none. */
static int32_t group_behind(const fuser *f, int32_t value) {
    int32_t producer = f->ir->values[f->ir->values[value].root].item;
    return producer < 0 || (size_t)producer >= f->n_items ? -1 : f->group_of[producer];
}

/* Whether all that a reduction adds up is what lies in different rows, of the group's normalisation if it has one. */
static bool sums_rows(const fuser *f, const group *g, const wefti_item *item) {
    if (g->rows < 0) return true;
    int32_t rank = group_space(f, g).rank, rows = f->ir->items[g->rows].attrs->rows.axes;
    return (item->op == WEFT_OP_SUM || item->op == WEFT_OP_MEAN) && item->attrs->reduce.axes == (1u << (rank - rows)) - 1;
}
/* Whether all reductions of a group are such sums beside that normalisation. */
static bool sums_rows_of(const fuser *f, const group *g, int32_t rows) {
    group with = *g;
    with.rows = rows;
    for (int32_t m = 0; m < g->n_members && rows >= 0; m++) {
        const wefti_item *item = &f->ir->items[g->member[m]];
        if (wefti_op_is_reduction(item->op) && !sums_rows(f, &with, item)) return false;
    }
    return true;
}

/* Whether `item` could be computed inside group `g`: what it reads of the group is read element by element. */
static bool reads_in_step(const fuser *f, const wefti_item *item, int32_t g) {
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *value = &f->ir->values[item->inputs[i]];
        if (group_behind(f, item->inputs[i]) != g) continue;
        if (value->root != item->inputs[i] || wefti_op_is_reduction(f->ir->items[value->item].op)) return false;
        if (!weft_shape_equal(value->shape, space_of(f->ir, item))) return false;
    }
    return true;
}

/* Distinct values that the members of a and b (which may be NULL) read from outside; *large_out: those as large as the space, but for variables and what is
 * fed, whose memory nobody waits for. */
static int32_t outside_inputs(const fuser *f, const group *a, const group *b, int32_t *large_out) {
    int32_t seen[3 * 2 * WEFTI_FUSED_MAX], n = 0;
    int64_t elements = weft_shape_elements(group_space(f, a));
    int32_t ia = f->group_of[a->member[0]], ib = b ? f->group_of[b->member[0]] : ia;
    *large_out = 0;
    for (int32_t m = 0; m < a->n_members + (b ? b->n_members : 0); m++) {
        const wefti_item *item = &f->ir->items[m < a->n_members ? a->member[m] : b->member[m - a->n_members]];
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t value = item->inputs[i], behind = group_behind(f, value), at = 0;
            if (behind >= 0 && (behind == ia || behind == ib)) continue;
            while (at < n && seen[at] != value) at++;
            if (at < n) continue;
            seen[n++] = value;
            *large_out += weft_shape_elements(f->ir->values[value].shape) == elements && f->ir->values[f->ir->values[value].root].place == WEFTI_HOME_ARENA;
        }
    }
    return n;
}

/* Moves the members of group `from` into `to`, in order. */
static void absorb(fuser *f, int32_t to, int32_t from) {
    group  *a = &f->groups[to], *b = &f->groups[from];
    int32_t merged[WEFTI_FUSED_MAX], n = 0, i = 0, j = 0;
    while (i < a->n_members || j < b->n_members) {
        bool first = j == b->n_members ||
                     (i < a->n_members && f->ir->items[a->member[i]].key <= f->ir->items[b->member[j]].key);
        merged[n++] = first ? a->member[i++] : b->member[j++];
    }
    for (int32_t m = 0; m < n; m++) f->group_of[merged[m]] = to;
    memcpy(a->member, merged, (size_t)n * sizeof *merged);
    a->n_members = n;
    a->n_reductions += b->n_reductions;
    if (b->rows >= 0) a->rows = b->rows;
    if (b->key > a->key) a->key = b->key;
    b->n_members = 0;
}

/* Whether the group may stand at `key`: before the variables that it reads are overwritten. */
static bool may_move(const fuser *f, const group *g, int64_t key) {
    for (int32_t m = 0; m < g->n_members && key > g->key; m++) {
        const wefti_item *item = &f->ir->items[g->member[m]];
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t ended = f->ended[f->ir->values[item->inputs[i]].root];
            if (ended >= 0 && f->ir->items[ended].key < key) return false;
        }
    }
    return true;
}

static bool may_absorb(const fuser *f, int32_t to, int32_t from) {
    const group *a = &f->groups[to], *b = &f->groups[from];
    int32_t      large;
    int32_t      most = WEFTI_FUSED_MAX - (a->rows >= 0 || b->rows >= 0); /* a normalisation has two results */
    if (b->sealed || a->n_members + b->n_members > most || (a->rows >= 0 && b->rows >= 0)) return false;
    if (!sums_rows_of(f, a, b->rows) || !sums_rows_of(f, b, a->rows)) return false;
    if (!weft_shape_equal(group_space(f, a), group_space(f, b)) || !may_move(f, b, a->key)) return false;
    if (a->key - b->key > (int64_t)FAR * WEFTI_KEY_STEP) {
        outside_inputs(f, b, NULL, &large);
        if (large > 1) return false;
    }
    return outside_inputs(f, a, b, &large) <= MOST_INPUTS;
}

static weft_status open_group(fuser *f, int32_t index, int32_t *group_out) {
    WEFTI_TRY(wefti_ir_room(&f->groups, f->n_groups, &f->groups_capacity, sizeof *f->groups));
    f->groups[f->n_groups] = (group){.n_members = 1, .member = {index}, .key = f->ir->items[index].key, .rows = -1};
    f->group_of[index] = f->n_groups;
    *group_out = f->n_groups++;
    return WEFT_OK;
}

/* What may still come to a group: an elementwise item that reads what it computes, and a reduction of it (or one is there). */
static void look_ahead(const fuser *f, const group *g, bool *reader_out, bool *reduction_out) {
    const wefti_ir *ir = f->ir;
    *reduction_out |= g->n_reductions > 0;
    for (int32_t m = 0; m < g->n_members; m++) {
        int32_t value = ir->items[g->member[m]].outputs[0];
        if (wefti_op_is_reduction(ir->items[g->member[m]].op)) continue;
        for (int32_t u = f->uses.start[value]; u < f->uses.start[value + 1]; u++) {
            const wefti_item *user = &ir->items[f->uses.users[u]];
            if (f->group_of[f->uses.users[u]] >= 0 || !weft_shape_equal(space_of(ir, user), group_space(f, g))) continue;
            *reader_out |= wefti_op_is_elementwise(user->op);
            *reduction_out |= wefti_op_is_reduction(user->op);
        }
    }
}

/* Whether two groups that only share what they read should become one. A reduction's reader seals its group: with one in it, nothing
 * may be waiting to join, for storing that value would cost more than is saved. */
static bool should_join(const fuser *f, const group *a, const group *b) {
    bool reader = false, reduction = false;
    if (a->key - b->key > (int64_t)NEAR * WEFTI_KEY_STEP) return false;
    if (a->rows >= 0 || b->rows >= 0) return true; /* what is made of sums waits (let_wait) */
    look_ahead(f, a, &reader, &reduction);
    look_ahead(f, b, &reader, &reduction);
    return !reader || !reduction;
}

/* Joins near groups that read, as a whole, what the item reads as a whole. */
static void join_neighbours(fuser *f, int32_t index) {
    const wefti_ir   *ir = f->ir;
    const wefti_item *item = &ir->items[index];
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *value = &ir->values[item->inputs[i]];
        int32_t            looked = 0;
        if (value->uniform || !weft_shape_equal(value->shape, space_of(ir, item))) continue;
        for (int32_t u = f->uses.start[value->root]; u < f->uses.start[value->root + 1] && looked < MOST_NEIGHBOURS; u++) {
            int32_t other = f->uses.users[u], own = f->group_of[index], near = f->group_of[other];
            if (ir->items[other].key >= item->key) break; /* users stand in order */
            if (item->key - ir->items[other].key > (int64_t)NEAR * WEFTI_KEY_STEP || near < 0 || near == own) continue;
            looked++;
            if (!should_join(f, &f->groups[own], &f->groups[near])) continue;
            if (reads_in_step(f, item, near) && may_absorb(f, own, near)) absorb(f, own, near);
        }
    }
}

static weft_status place_elementwise(fuser *f, int32_t index) {
    const wefti_item *item = &f->ir->items[index];
    int32_t           own;
    WEFTI_TRY(open_group(f, index, &own));
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t behind = group_behind(f, item->inputs[i]);
        if (behind < 0 || behind == own || !reads_in_step(f, item, behind)) continue;
        if (may_absorb(f, own, behind)) absorb(f, own, behind);
    }
    join_neighbours(f, index);
    return WEFT_OK;
}

/* Groups near by that read what a group reads, which nothing waits to join any more. */
static void join_group(fuser *f, int32_t g) {
    int32_t members[WEFTI_FUSED_MAX], n = f->groups[g].n_members;
    memcpy(members, f->groups[g].member, (size_t)n * sizeof *members);
    for (int32_t m = 0; m < n; m++)
        if (!wefti_op_is_reduction(f->ir->items[members[m]].op)) join_neighbours(f, members[m]);
}

/* A reduction goes to the group that makes what it reads, or waits in one of its own for neighbours. */
static weft_status place_reduction(fuser *f, int32_t index) {
    const wefti_item *item = &f->ir->items[index];
    int32_t           behind = group_behind(f, item->inputs[0]), own;
    if (item->attrs->reduce.axes == 0) return WEFT_OK;
    if (behind >= 0 && reads_in_step(f, item, behind)) {
        group *g = &f->groups[behind];
        if (g->n_members >= WEFTI_FUSED_MAX - 1 || !sums_rows(f, g, item)) return WEFT_OK;
        if (g->sealed && (item->flags & WEFTI_NODE_RECOMPUTED)) return WEFT_OK; /* it would be computed too early */
        if (!g->sealed && !may_move(f, g, item->key)) return WEFT_OK;
        g->member[g->n_members++] = index;
        g->n_reductions++;
        if (!g->sealed) g->key = item->key;
        f->group_of[index] = behind;
        if (!g->sealed) join_group(f, behind);
        return WEFT_OK;
    }
    WEFTI_TRY(open_group(f, index, &own));
    f->groups[own].n_reductions = 1;
    join_neighbours(f, index);
    return WEFT_OK;
}

/* A normalisation goes to the groups that make what it reads, and to neighbours of theirs that wait for no more than their sums. */
static weft_status place_rows(fuser *f, int32_t index) {
    const wefti_item *item = &f->ir->items[index];
    int32_t           own;
    if (weft_shape_elements(space_of(f->ir, item)) == 0) return WEFT_OK;
    WEFTI_TRY(open_group(f, index, &own));
    f->groups[own].rows = index;
    for (int32_t i = 0; i < (item->op == WEFT_OP_NORMALIZE ? 1 : 2); i++) {
        int32_t behind = group_behind(f, item->inputs[i]);
        if (behind >= 0 && behind != own && reads_in_step(f, item, behind) && may_absorb(f, own, behind)) absorb(f, own, behind);
    }
    for (int32_t m = 0; m < f->groups[own].n_members; m++)
        if (f->groups[own].member[m] != index) join_neighbours(f, f->groups[own].member[m]);
    return WEFT_OK;
}

static void seal(fuser *f, int32_t g) {
    if (g >= 0) f->groups[g].sealed = true;
}

/* Seals the groups that `item` reads from outside. */
static void seal_around(fuser *f, int32_t index) {
    const wefti_item *item = &f->ir->items[index];
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t behind = group_behind(f, item->inputs[i]);
        if (behind != f->group_of[index]) seal(f, behind);
    }
}

/* --- readers of sums --- */

enum { SMALL = 1 << 16 /* elements */ };

/* Whether the item makes something small of a sum, so that it may as well wait for who reads that. */
static bool may_wait(const fuser *f, const wefti_item *item) {
    const wefti_ir *ir = f->ir;
    bool            of_sum = false;
    if (!wefti_op_is_elementwise(item->op) || weft_shape_elements(ir->values[item->outputs[0]].shape) > SMALL) return false;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t root = ir->values[item->inputs[i]].root;
        if (f->ended[root] >= 0) return false;
        of_sum = of_sum || (ir->values[root].item >= 0 && wefti_op_is_reduction(ir->items[ir->values[root].item].op));
    }
    return of_sum;
}

/* Moves such items to their first readers, lest they seal groups into which a normalisation would still come: what is made of a gradient's
 * sum, a cast to f32, is read at the end of the backward pass. */
static weft_status let_wait(fuser *f) {
    wefti_ir *ir = f->ir;
    bool      moved = false;
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        wefti_item *item = &ir->items[ir->order[k]];
        int64_t     first = INT64_MAX;
        if (!may_wait(f, item)) continue;
        for (int32_t u = f->uses.start[item->outputs[0]]; u < f->uses.start[item->outputs[0] + 1]; u++)
            first = wefti_min_i64(first, ir->items[f->uses.users[u]].key);
        if (first == INT64_MAX || first - 1 <= item->key) continue;
        item->key = first - 1;
        moved = true;
    }
    if (!moved) return WEFT_OK;
    WEFTI_TRY(wefti_ir_settle(ir));
    wefti_uses_release(&f->uses);
    return wefti_ir_uses(ir, true, &f->uses);
}

static weft_status grow_groups(fuser *f) {
    bool reductions = f->ir->device->vtable->fuses_reductions, rows = f->ir->device->vtable->fuses_rows;
    for (int32_t k = 0; k < f->ir->n_order; k++) {
        int32_t index = f->ir->order[k];
        weft_op op = f->ir->items[index].op;
        if (wefti_op_is_elementwise(op) && !(f->ir->items[index].flags & WEFTI_NODE_APART)) WEFTI_TRY(place_elementwise(f, index));
        else if (reductions && wefti_op_is_reduction(op)) WEFTI_TRY(place_reduction(f, index));
        else if (rows && wefti_op_normalizes(op) && !f->apart[index]) WEFTI_TRY(place_rows(f, index));
        seal_around(f, index);
    }
    return WEFT_OK;
}

/* --- from groups to items --- */

typedef struct builder {
    fuser       *f;
    int32_t      g;
    wefti_fused *fused;
    int32_t      inputs[3 * WEFTI_FUSED_MAX];
    int32_t      outputs[WEFTI_FUSED_MAX];
    int32_t      instruction_of[WEFTI_FUSED_MAX]; /* by member */
    double       flops;
} builder;

/* Where an instruction finds `value`: the input it is, or the instruction that makes it. */
static int32_t source_of(builder *b, int32_t value) {
    const group *g = &b->f->groups[b->g];
    if (group_behind(b->f, value) == b->g) {
        for (int32_t m = 0; m < g->n_members; m++)
            if (b->f->ir->items[g->member[m]].outputs[0] == value) return -1 - b->instruction_of[m];
    }
    for (int32_t i = 0; i < b->fused->n_inputs; i++)
        if (b->inputs[i] == value) return i;
    b->inputs[b->fused->n_inputs] = value;
    return b->fused->n_inputs++;
}

static int32_t add_instruction(builder *b, const wefti_item *item) {
    wefti_fused_instruction fresh;
    memset(&fresh, 0, sizeof fresh);
    fresh.op = item->op;
    fresh.dtype = b->f->ir->values[item->outputs[0]].dtype;
    fresh.attrs = *item->attrs;
    for (int32_t i = 0; i < item->n_inputs; i++) fresh.source[i] = source_of(b, item->inputs[i]);
    for (int32_t i = 0; i < b->fused->n_instructions; i++) /* clones of one producer meet again here */
        if (memcmp(&b->fused->instruction[i], &fresh, sizeof fresh) == 0) return i;
    b->fused->instruction[b->fused->n_instructions] = fresh;
    b->flops += item->flops;
    return b->fused->n_instructions++;
}

/* Whether a member's value is read outside of the group, or kept. */
static bool needed_outside(const fuser *f, int32_t value, int32_t g) {
    for (int32_t o = 0; o < f->ir->n_outputs; o++)
        if (f->ir->values[f->ir->outputs[o]].root == value) return true;
    for (int32_t u = f->uses.start[value]; u < f->uses.start[value + 1]; u++)
        if (f->group_of[f->uses.users[u]] != g) return true;
    return false;
}

/* The instruction whose result a reduction takes: one that copies where it is an input. */
static int32_t reduced_instruction(builder *b, int32_t value) {
    int32_t source = source_of(b, value);
    if (source < 0) return -1 - source;
    wefti_fused_instruction *copy = &b->fused->instruction[b->fused->n_instructions];
    *copy = (wefti_fused_instruction){.op = WEFT_OP_COPY, .dtype = b->f->ir->values[value].dtype, .source = {source}};
    for (int32_t i = 0; i < b->fused->n_instructions; i++)
        if (b->fused->instruction[i].op == WEFT_OP_COPY && b->fused->instruction[i].source[0] == source) return i;
    return b->fused->n_instructions++;
}

static void add_output(builder *b, const wefti_item *item, int32_t instruction) {
    bool                reduced = wefti_op_is_reduction(item->op);
    wefti_fused_output *output = &b->fused->output[b->fused->n_outputs];
    *output = (wefti_fused_output){.instruction = instruction, .reduce = reduced ? (int32_t)item->op : -1,
                                   .axes = reduced ? item->attrs->reduce.axes : 0,
                                   .count = reduced ? item->attrs->reduce.count : 0};
    b->outputs[b->fused->n_outputs++] = item->outputs[0];
}

/* What a row was multiplied with. */
static void add_scale(builder *b, const wefti_item *item, int32_t instruction) {
    int32_t rank = b->fused->space.rank;
    b->fused->output[b->fused->n_outputs] = (wefti_fused_output){.instruction = instruction, .reduce = WEFT_OP_NORMALIZE,
                                                                 .axes = (1u << rank) - (1u << (rank - item->attrs->rows.axes))};
    b->outputs[b->fused->n_outputs++] = item->outputs[1];
}

static weft_status build_program(builder *b) {
    wefti_ir    *ir = b->f->ir;
    const group *g = &b->f->groups[b->g];
    WEFTI_TRY(wefti_bump_take(&ir->keep, sizeof *b->fused, &b->fused));
    b->fused->space = group_space(b->f, g);
    for (int32_t m = 0; m < g->n_members; m++) {
        const wefti_item *item = &ir->items[g->member[m]];
        if (wefti_op_is_reduction(item->op)) {
            add_output(b, item, reduced_instruction(b, item->inputs[0]));
            b->flops += item->flops;
            b->instruction_of[m] = -1;
            continue;
        }
        b->instruction_of[m] = add_instruction(b, item);
        if (needed_outside(b->f, item->outputs[0], b->g)) add_output(b, item, b->instruction_of[m]);
        if (item->op == WEFT_OP_NORMALIZE && needed_outside(b->f, item->outputs[1], b->g)) add_scale(b, item, b->instruction_of[m]);
    }
    return WEFT_OK;
}

/* Puts the FUSED item in the members' place. */
static weft_status add_fused(builder *b, int32_t *item_out) {
    wefti_ir    *ir = b->f->ir;
    const group *g = &b->f->groups[b->g];
    wefti_attrs *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->fused.fused = b->fused;
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_FUSED, attrs, b->fused->n_inputs, b->fused->n_outputs,
                            ir->items[g->member[g->n_members - 1]].name, g->key, item_out));
    wefti_item *fused = &ir->items[*item_out];
    memcpy(fused->inputs, b->inputs, (size_t)b->fused->n_inputs * sizeof *fused->inputs);
    memcpy(fused->outputs, b->outputs, (size_t)b->fused->n_outputs * sizeof *fused->outputs);
    fused->graph_ops = 0;
    fused->micro = ir->items[g->member[g->n_members - 1]].micro;
    fused->flops = b->flops;
    fused->flags = WEFTI_NODE_RECOMPUTED;
    for (int32_t m = 0; m < g->n_members; m++) {
        const wefti_item *member = &ir->items[g->member[m]];
        fused->graph_ops += member->graph_ops;
        if (!(member->flags & WEFTI_NODE_RECOMPUTED)) fused->flags &= ~(uint32_t)WEFTI_NODE_RECOMPUTED;
        fused->flags |= member->flags & WEFTI_NODE_BACKWARD;
    }
    return WEFT_OK;
}

static void replace_members(builder *b, int32_t item) {
    wefti_ir    *ir = b->f->ir;
    const group *g = &b->f->groups[b->g];
    for (int32_t m = 0; m < g->n_members; m++) ir->items[g->member[m]].dead = true;
    for (int32_t o = 0; o < b->fused->n_outputs; o++) {
        ir->values[b->outputs[o]].item = item;
        ir->values[b->outputs[o]].output = o;
    }
}

/* A group whose reductions the device does not take goes on without them. */
static void drop_reductions(fuser *f, int32_t index) {
    group  *g = &f->groups[index];
    int32_t n = 0;
    for (int32_t m = 0; m < g->n_members; m++) {
        if (wefti_op_is_reduction(f->ir->items[g->member[m]].op)) f->group_of[g->member[m]] = -1;
        else g->member[n++] = g->member[m];
    }
    g->n_members = n;
    g->n_reductions = 0;
    if (n > 0) g->key = f->ir->items[g->member[n - 1]].key;
}

/* Tries the groups with a normalisation; *refused_out: one was refused, and its item is to stay apart. */
static weft_status try_rows(fuser *f, bool *refused_out) {
    *refused_out = false;
    for (int32_t g = 0; g < f->n_groups; g++) {
        builder b = {.f = f, .g = g};
        int32_t item;
        int64_t scratch_bytes;
        if (f->groups[g].rows < 0 || f->groups[g].n_members < 2) continue;
        WEFTI_TRY(build_program(&b));
        WEFTI_TRY(add_fused(&b, &item));
        weft_status status = wefti_item_query(f->ir, &f->ir->items[item], &scratch_bytes);
        f->ir->items[item].dead = true;
        if (status != WEFT_OK && status != WEFT_E_UNSUPPORTED) return status;
        if (status != WEFT_OK) f->apart[f->groups[g].rows] = *refused_out = true;
    }
    return WEFT_OK;
}

static weft_status build_group(fuser *f, int32_t index) {
    while (f->groups[index].n_members >= 2) {
        builder b = {.f = f, .g = index};
        int32_t item;
        int64_t scratch_bytes;
        WEFTI_TRY(build_program(&b));
        if (b.fused->n_outputs == 0) return WEFT_OK;
        WEFTI_TRY(add_fused(&b, &item));
        weft_status status = wefti_item_query(f->ir, &f->ir->items[item], &scratch_bytes);
        if (status == WEFT_OK) {
            replace_members(&b, item);
            return WEFT_OK;
        }
        if (status != WEFT_E_UNSUPPORTED) return status;
        f->ir->items[item].dead = true;
        if (f->groups[index].n_reductions == 0) return WEFT_OK;
        drop_reductions(f, index);
    }
    return WEFT_OK;
}

weft_status wefti_pass_fuse(wefti_ir *ir) {
    weft_status status;
    fuser       f = {.ir = ir};
    if (ir->options.base.no_fusion) return WEFT_OK;
    WEFTI_TRY(wefti_clone_cheap(ir));
    f.n_items = (size_t)ir->n_items;
    size_t ended_bytes = (size_t)ir->n_values * sizeof *f.ended;
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &f.ended), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, f.ended), done);
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &f.uses), done);
    if (ir->device->vtable->fuses_rows) WEFTI_TRY_GOTO(let_wait(&f), done);
    WEFTI_TRY_GOTO(wefti_alloc(f.n_items * sizeof *f.group_of, "a plan", &f.group_of), done);
    WEFTI_TRY_GOTO(wefti_alloc(f.n_items * sizeof *f.apart, "a plan", &f.apart), done);
    memset(f.apart, 0, f.n_items * sizeof *f.apart);
    for (bool refused = true; refused;) {
        memset(f.group_of, 0xff, f.n_items * sizeof *f.group_of);
        f.n_groups = 0;
        WEFTI_TRY_GOTO(grow_groups(&f), done);
        WEFTI_TRY_GOTO(try_rows(&f, &refused), done);
    }
    for (int32_t g = 0; g < f.n_groups; g++) WEFTI_TRY_GOTO(build_group(&f, g), done);
    status = wefti_ir_settle(ir);
done:
    wefti_uses_release(&f.uses);
    wefti_free(f.ended, ended_bytes);
    wefti_free(f.groups, (size_t)f.groups_capacity * sizeof *f.groups);
    wefti_free(f.group_of, f.n_items * sizeof *f.group_of);
    wefti_free(f.apart, f.n_items * sizeof *f.apart);
    return status;
}

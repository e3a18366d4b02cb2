/* Schedule: the order of ids, with communication as early and what waits for it as late as dependencies allow.
 *
 * bucket: ALL_REDUCEs whose results are wanted only at the end of the step (gradients) are joined, in the order in which they become
 * ready, into messages of about the asked size; the first is smaller so that the wire starts early. Joined ones never depend on one another.
 *
 * schedule: a list schedule by rank (class, key). A collective stands right behind its last input. What depends on a collective (not on a message) and
 * leads to no further one (updates, metrics) is the *tail*: it comes behind everything else, in the order of the collectives it waits for,
 * so that as many as possible are in flight while there is something to compute. But where everything else would stand still for a collective, what of the tail waits
 * for none that is still in flight comes first: gradients of parameters that are split hide the sums that the backward pass goes on with, and what
 * they read is free again. Recomputed items sink to their first reader. n log n. */
#include <stdlib.h>
#include <string.h>

#include "core/plan/ir.h"

/* --- what depends on communication --- */

typedef struct flow {
    wefti_edges edges;
    int32_t    *depth;  /* by position: collectives on the longest way to it, itself not counted */
    uint8_t    *tail;   /* by position */
    size_t      n;
} flow;

static void flow_release(flow *f) {
    wefti_edges_release(&f->edges);
    wefti_free(f->depth, f->n * sizeof *f->depth);
    wefti_free(f->tail, f->n);
    *f = (flow){0};
}

/* Communication but for gathering new parameters, which nothing in the step waits for: it belongs to the update before it; and old ones, which
 * waits for nothing. */
static bool leads_on(const wefti_item *item) { return wefti_item_is_comm(item) && !wefti_item_has_effect(item) && !wefti_item_is_fetch(item); }

static weft_status flow_of(const wefti_ir *ir, flow *f) {
    weft_status status;
    *f = (flow){.n = (size_t)ir->n_order};
    WEFTI_TRY_GOTO(wefti_ir_edges(ir, &f->edges), failed);
    WEFTI_TRY_GOTO(wefti_alloc(f->n * sizeof *f->depth, "a plan", &f->depth), failed);
    WEFTI_TRY_GOTO(wefti_alloc(f->n, "a plan", &f->tail), failed);
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        /* Who made the plans has said when what a message brings is computed with, as the stages of a pipeline do: it stays where it is. */
        int32_t through = f->depth[k] + (wefti_item_is_comm(item) && !wefti_item_is_point(item) && !wefti_item_is_fetch(item));
        for (int32_t e = f->edges.start[k]; e < f->edges.start[k + 1]; e++)
            if (through > f->depth[f->edges.to[e]]) f->depth[f->edges.to[e]] = through;
    }
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        bool leads = leads_on(&ir->items[ir->order[k]]);
        for (int32_t e = f->edges.start[k]; e < f->edges.start[k + 1] && !leads; e++)
            leads = leads_on(&ir->items[ir->order[f->edges.to[e]]]) || f->tail[f->edges.to[e]] == 2;
        f->tail[k] = leads ? 2 : 0; /* 2: leads to communication */
    }
    for (int32_t k = 0; k < ir->n_order; k++) f->tail[k] = f->tail[k] == 0 && f->depth[k] > 0;
    return WEFT_OK;
failed:
    flow_release(f);
    return status;
}

/* --- as early as possible, as late as possible --- */

/* The key that a recomputed item can sink to: right before its first reader, and before what it reads is overwritten. */
static int64_t sunk_key(const wefti_ir *ir, const wefti_uses *uses, const int32_t *ended, const wefti_item *item) {
    int64_t first = INT64_MAX;
    for (int32_t o = 0; o < item->n_outputs; o++)
        for (int32_t u = uses->start[item->outputs[o]]; u < uses->start[item->outputs[o] + 1]; u++)
            first = wefti_min_i64(first, ir->items[uses->users[u]].key);
    if (first == INT64_MAX) return item->key;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t writer = ended[ir->values[item->inputs[i]].root];
        if (writer >= 0) first = wefti_min_i64(first, ir->items[writer].key);
    }
    return wefti_max_i64(item->key, first - 1);
}

/* Keys of recomputed items, from the last; then those of collectives: right behind the last input. */
static weft_status move_keys(wefti_ir *ir) {
    weft_status status;
    wefti_uses  uses = {0};
    int32_t    *ended = NULL;
    size_t      ended_bytes = (size_t)ir->n_values * sizeof *ended;
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &ended), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, ended), done);
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        wefti_item *item = &ir->items[ir->order[k]];
        if (!(item->flags & WEFTI_NODE_RECOMPUTED) || wefti_item_is_comm(item) || wefti_item_has_effect(item)) continue;
        item->key = sunk_key(ir, &uses, ended, item);
    }
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        /* Messages stand where the order of all ranks has them: a SEND behind what it sends, a RECEIVE where its peer sends (post.c). */
        if (!wefti_item_is_comm(item) || wefti_item_is_point(item) || wefti_item_is_fetch(item)) continue;
        item->key = 0;
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t producer = ir->values[ir->values[item->inputs[i]].root].item;
            if (producer >= 0 && ir->items[producer].key >= item->key) item->key = ir->items[producer].key + 1;
        }
    }
done:
    wefti_uses_release(&uses);
    wefti_free(ended, ended_bytes);
    return status;
}

/* --- the list schedule --- */

typedef struct rank {
    int32_t class;    /* 0, or 1 for the tail */
    int32_t sequence; /* tail: of the latest collective it waits for */
    int64_t key;
    int32_t position;
} rank;

static int compare_ranks(const rank *a, const rank *b) {
    if (a->class != b->class) return a->class < b->class ? -1 : 1;
    if (a->sequence != b->sequence) return a->sequence < b->sequence ? -1 : 1;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->position < b->position ? -1 : a->position > b->position;
}
static int compare_rank_pointers(const void *left, const void *right) { return compare_ranks(left, right); }

enum { WAITED = 1, DONE = 2 };

/* What somebody may stand still for; messages and parts of parameters have places of their own (post.c, pace.c). */
static bool flies(const wefti_item *item) { return leads_on(item) && !wefti_item_is_point(item); }

typedef struct heap {
    int32_t *at, n; /* positions, by rank */
} heap;

typedef struct scheduler {
    wefti_ir *ir;
    flow      flow;
    rank     *ranks;   /* by position */
    int32_t  *waiting; /* by position: edges into it that are not done */
    int32_t  *flying;  /* by position: edges into it from collectives that nobody has waited for */
    int32_t  *source;  /* by edge: where it comes from */
    int32_t  *entry, *another; /* by position: an edge into it from a collective; by edge: the next one; -1: none */
    uint8_t  *state;   /* by position: WAITED (a collective, for which somebody has), DONE */
    heap      main, tail, blocked; /* ready; of the tail those that have nothing flying, and those that have */
    int32_t  *order, n;
} scheduler;

static void push(const scheduler *s, heap *h, int32_t position) {
    int32_t at = h->n++;
    for (; at > 0 && compare_ranks(&s->ranks[position], &s->ranks[h->at[(at - 1) / 2]]) < 0; at = (at - 1) / 2)
        h->at[at] = h->at[(at - 1) / 2];
    h->at[at] = position;
}

static int32_t pop(const scheduler *s, heap *h) {
    int32_t top = h->at[0], last = h->at[--h->n], at = 0;
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && compare_ranks(&s->ranks[h->at[child + 1]], &s->ranks[h->at[child]]) < 0) child++;
        if (compare_ranks(&s->ranks[last], &s->ranks[h->at[child]]) <= 0) break;
        h->at[at] = h->at[child];
        at = child;
    }
    h->at[at] = last;
    return top;
}

/* Numbers the collectives by readiness, and hands the numbers on to what waits for them. */
static weft_status rank_all(scheduler *s) {
    wefti_ir *ir = s->ir;
    rank     *comms = NULL;
    int32_t   n = 0;
    size_t    bytes = (size_t)ir->n_order * sizeof *comms;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &comms));
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        s->ranks[k] = (rank){s->flow.tail[k], 0, item->key, k};
        if (leads_on(item)) comms[n++] = s->ranks[k];
    }
    qsort(comms, (size_t)n, sizeof *comms, compare_rank_pointers);
    for (int32_t i = 0; i < n; i++) s->ranks[comms[i].position].sequence = i + 1;
    wefti_free(comms, bytes);
    for (int32_t k = 0; k < ir->n_order; k++) s->entry[k] = -1;
    for (int32_t k = 0; k < ir->n_order; k++)
        for (int32_t e = s->flow.edges.start[k]; e < s->flow.edges.start[k + 1]; e++) {
            int32_t to = s->flow.edges.to[e];
            s->waiting[to]++;
            s->source[e] = k;
            if (flies(&ir->items[ir->order[k]])) {
                s->flying[to]++;
                s->another[e] = s->entry[to];
                s->entry[to] = e;
            }
            if (!leads_on(&ir->items[ir->order[to]]) && s->ranks[k].sequence > s->ranks[to].sequence)
                s->ranks[to].sequence = s->ranks[k].sequence;
        }
    for (int32_t k = 0; k < ir->n_order; k++)
        if (s->ranks[k].class == 0) s->ranks[k].sequence = 0;
    return WEFT_OK;
}

static void make_ready(scheduler *s, int32_t k) { push(s, s->ranks[k].class == 0 ? &s->main : s->flying[k] == 0 ? &s->tail : &s->blocked, k); }

/* Whoever waits for a collective waits for all who read from it. */
static void wait_for_fliers(scheduler *s, int32_t k) {
    for (int32_t in = s->entry[k]; in >= 0; in = s->another[in]) {
        int32_t from = s->source[in];
        if (s->state[from] & WAITED) continue;
        s->state[from] |= WAITED;
        for (int32_t e = s->flow.edges.start[from]; e < s->flow.edges.start[from + 1]; e++) {
            int32_t to = s->flow.edges.to[e];
            if (--s->flying[to] == 0 && s->waiting[to] == 0 && s->ranks[to].class == 1 && to != k) push(s, &s->tail, to);
        }
    }
}

/* What stands still for nothing; else what of the tail does not; at last the tail, as it is ranked. */
static int32_t next_of(scheduler *s) {
    if (s->main.n > 0) return pop(s, s->tail.n > 0 && s->flying[s->main.at[0]] > 0 ? &s->tail : &s->main);
    bool blocked = s->tail.n == 0 || (s->blocked.n > 0 && compare_ranks(&s->ranks[s->blocked.at[0]], &s->ranks[s->tail.at[0]]) < 0);
    return pop(s, blocked ? &s->blocked : &s->tail);
}

static weft_status run_schedule(scheduler *s) {
    wefti_ir *ir = s->ir;
    for (int32_t k = 0; k < ir->n_order; k++)
        if (s->waiting[k] == 0) make_ready(s, k);
    while (s->main.n + s->tail.n + s->blocked.n > 0) {
        int32_t k = next_of(s);
        if (s->state[k] & DONE) continue; /* it was blocked first */
        s->state[k] |= DONE;
        s->order[s->n++] = ir->order[k];
        wait_for_fliers(s, k);
        for (int32_t e = s->flow.edges.start[k]; e < s->flow.edges.start[k + 1]; e++)
            if (--s->waiting[s->flow.edges.to[e]] == 0) make_ready(s, s->flow.edges.to[e]);
    }
    if (s->n != ir->n_order) return wefti_fail(WEFT_E_INTERNAL, "plan: %d of %d items cannot be ordered", ir->n_order - s->n, ir->n_order);
    if (s->n > 0) memcpy(ir->order, s->order, (size_t)s->n * sizeof *ir->order);
    for (int32_t k = 0; k < s->n; k++) ir->items[ir->order[k]].key = (int64_t)(k + 1) * WEFTI_KEY_STEP;
    return WEFT_OK;
}

weft_status wefti_pass_schedule(wefti_ir *ir) {
    weft_status status;
    scheduler   s = {.ir = ir};
    size_t      n = (size_t)ir->n_order, bytes = 0;
    void       *memory = NULL;
    WEFTI_TRY_GOTO(flow_of(ir, &s.flow), done);
    size_t edges = n > 0 ? (size_t)s.flow.edges.start[n] : 0;
    bytes = n * (sizeof *s.ranks + 7 * sizeof *s.order + sizeof *s.state) + 2 * edges * sizeof *s.source;
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a plan", &memory), done);
    s.ranks = memory;
    int32_t **const by_position[7] = {&s.waiting, &s.flying, &s.entry, &s.main.at, &s.tail.at, &s.blocked.at, &s.order};
    for (size_t i = 0; i < 7; i++) *by_position[i] = (int32_t *)(s.ranks + n) + i * n;
    s.source = s.order + n;
    s.another = s.source + edges;
    s.state = (uint8_t *)(s.another + edges);
    WEFTI_TRY_GOTO(move_keys(ir), done);
    WEFTI_TRY_GOTO(rank_all(&s), done);
    status = run_schedule(&s);
done:
    flow_release(&s.flow);
    wefti_free(memory, bytes);
    return status;
}

/* --- buckets --- */

enum { OPEN_BUCKETS = 16, BUCKET_BYTES = 4 << 20, FIRST_BUCKET_BYTES = 1 << 18 };

typedef struct bucket {
    int32_t depth, reduce, n_members;
    int64_t group, bytes;
    weft_dtype dtype;
    bool    first;
    int32_t first_member; /* in members, linked by next; -1 ends */
    int32_t last_member;
} bucket;

typedef struct bucketer {
    wefti_ir *ir;
    flow      flow;
    int32_t  *next;      /* by position: the next member of its bucket */
    bucket    open[OPEN_BUCKETS];
    int32_t   n_open;
} bucketer;

/* Joins a bucket's members into one item, which stands where the last of them stood. */
static weft_status close_bucket(bucketer *b, bucket *open) {
    wefti_ir *ir = b->ir;
    int32_t   n = 0, joined, at = 0;
    for (int32_t k = open->first_member; k >= 0; k = b->next[k]) n += ir->items[ir->order[k]].n_inputs;
    if (open->n_members > 1) {
        const wefti_item last = ir->items[ir->order[open->last_member]];
        WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_ALL_REDUCE, last.attrs, n, n, last.name, last.key, &joined));
        ir->items[joined].flags = last.flags;
        ir->items[joined].graph_ops = 0;
        for (int32_t k = open->first_member; k >= 0; k = b->next[k]) {
            wefti_item *member = &ir->items[ir->order[k]];
            ir->items[joined].graph_ops += member->graph_ops;
            for (int32_t i = 0; i < member->n_inputs; i++, at++) {
                ir->items[joined].inputs[at] = member->inputs[i];
                ir->items[joined].outputs[at] = member->outputs[i];
                ir->values[member->outputs[i]].item = joined;
                ir->values[member->outputs[i]].output = at;
            }
            member->dead = true;
        }
    }
    *open = (bucket){.depth = open->depth, .reduce = open->reduce, .group = open->group, .dtype = open->dtype,
                     .first_member = -1, .last_member = -1};
    return WEFT_OK;
}

static bucket *bucket_for(bucketer *b, int32_t k) {
    const wefti_item *item = &b->ir->items[b->ir->order[k]];
    bucket            like = {.depth = b->flow.depth[k], .reduce = item->attrs->comm.reduce, .group = item->attrs->comm.group,
                              .dtype = b->ir->values[item->inputs[0]].dtype, .first = true, .first_member = -1, .last_member = -1};
    for (int32_t i = 0; i < b->n_open; i++) {
        bucket *open = &b->open[i];
        if (open->depth == like.depth && open->reduce == like.reduce && open->group == like.group &&
            open->dtype == like.dtype)
            return open;
    }
    if (b->n_open == OPEN_BUCKETS) return NULL;
    b->open[b->n_open] = like;
    return &b->open[b->n_open++];
}

/* Only what the tail alone reads may wait for its bucket to fill. */
static bool may_join(const bucketer *b, int32_t k) {
    const wefti_item *item = &b->ir->items[b->ir->order[k]];
    if (item->op != WEFT_OP_ALL_REDUCE) return false;
    for (int32_t e = b->flow.edges.start[k]; e < b->flow.edges.start[k + 1]; e++)
        if (!b->flow.tail[b->flow.edges.to[e]]) return false;
    return true;
}

static weft_status fill_buckets(bucketer *b, const rank *ready, int32_t n) {
    const weft_plan_options *options = &b->ir->options.base;
    int64_t size = options->bucket_bytes > 0 ? options->bucket_bytes : BUCKET_BYTES;
    int64_t first = options->first_bucket_bytes > 0 ? options->first_bucket_bytes : FIRST_BUCKET_BYTES;
    for (int32_t i = 0; i < n; i++) {
        int32_t           k = ready[i].position;
        const wefti_item *item = &b->ir->items[b->ir->order[k]];
        bucket           *open = may_join(b, k) ? bucket_for(b, k) : NULL;
        if (!open) continue;
        if (open->last_member >= 0) b->next[open->last_member] = k;
        else open->first_member = k;
        open->last_member = k;
        open->n_members++;
        for (int32_t j = 0; j < item->n_inputs; j++) open->bytes += wefti_value_bytes(&b->ir->values[item->inputs[j]]);
        if (open->bytes >= (open->first && first < size ? first : size)) WEFTI_TRY(close_bucket(b, open));
    }
    for (int32_t i = 0; i < b->n_open; i++) WEFTI_TRY(close_bucket(b, &b->open[i]));
    return WEFT_OK;
}

weft_status wefti_pass_bucket(wefti_ir *ir) {
    weft_status status;
    bucketer    b = {.ir = ir};
    rank       *ready = NULL;
    int32_t     n = 0;
    size_t      next_bytes = (size_t)ir->n_order * sizeof *b.next, ready_bytes = (size_t)ir->n_order * sizeof *ready;
    if (ir->options.base.bucket_bytes < 0) return WEFT_OK;
    WEFTI_TRY_GOTO(flow_of(ir, &b.flow), done);
    WEFTI_TRY_GOTO(wefti_alloc(next_bytes, "a plan", &b.next), done);
    WEFTI_TRY_GOTO(wefti_alloc(ready_bytes, "a plan", &ready), done);
    memset(b.next, 0xff, next_bytes);
    WEFTI_TRY_GOTO(move_keys(ir), done);
    for (int32_t k = 0; k < ir->n_order; k++)
        if (leads_on(&ir->items[ir->order[k]])) ready[n++] = (rank){0, 0, ir->items[ir->order[k]].key, k};
    qsort(ready, (size_t)n, sizeof *ready, compare_rank_pointers);
    WEFTI_TRY_GOTO(fill_buckets(&b, ready, n), done);
    /* A joined message may stand behind readers of its first members: all readers are of the tail, which goes to the end. */
    int64_t end = 0;
    for (int32_t k = 0; k < (int32_t)b.flow.n; k++) end = wefti_max_i64(end, ir->items[ir->order[k]].key + WEFTI_KEY_STEP);
    for (int32_t k = 0; k < (int32_t)b.flow.n; k++)
        if (b.flow.tail[k]) ir->items[ir->order[k]].key += end;
    status = wefti_ir_settle(ir);
done:
    flow_release(&b.flow);
    wefti_free(b.next, next_bytes);
    wefti_free(ready, ready_bytes);
    return status;
}

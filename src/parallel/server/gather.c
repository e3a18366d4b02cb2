/* The sum over the units of one evaluation, into a table: a binary tree over units, so its bits do not depend on who computed a unit or when it
 * came. What has come is added up as soon as its neighbour is there.
 *
 * A unit that is missing keeps apart at most one part for each level of the tree: memory is that of the table's rows here for each, at most units that
 * are under way x log2(units), and a bit a unit. Adding two numbers is commutative, so whichever of two neighbours came first may take the other. */
#include <string.h>

#include "parallel/server/work.h"

/* The sum of the units from index*2^level on. */
typedef struct gather_part {
    struct gather_part *next;
    uint64_t            level, index;
    double             *values; /* [elements] */
} gather_part;

struct server_gather {
    uint64_t     evaluation, units;
    int64_t      elements;
    uint8_t     *have;  /* [units] bits */
    size_t       have_bytes;
    gather_part *parts, *spare;
};

static void free_parts(gather_part *part, int64_t elements) {
    while (part) {
        gather_part *next = part->next;
        wefti_free(part->values, (size_t)elements * sizeof *part->values);
        wefti_free(part, sizeof *part);
        part = next;
    }
}

void wefti_gather_free(weft_server *server, served_table *table) {
    struct server_gather *gather = table->gather;
    (void)server;
    if (!gather) return;
    free_parts(gather->parts, gather->elements);
    free_parts(gather->spare, gather->elements);
    wefti_free(gather->have, gather->have_bytes);
    wefti_free(gather, sizeof *gather);
    table->gather = NULL;
}

weft_status wefti_gather_begin(served_table *table, uint64_t evaluation, uint64_t units) {
    struct server_gather *gather = table->gather;
    size_t                bytes = (size_t)(units / 8 + 1);
    if (units > UINT64_C(1) << 40) return wefti_fail(WEFT_E_OVERFLOW, "table '%s': a sum over %llu units", table->spec.name, (unsigned long long)units);
    if (!gather) {
        WEFTI_TRY(wefti_alloc(sizeof *gather, "a sum over units", &gather));
        table->gather = gather;
        (void)wefti_store_vector(table->store, &gather->elements);
    }
    if (gather->have_bytes != bytes) {
        uint8_t *have = NULL;
        WEFTI_TRY(wefti_alloc(bytes, "units of a sum", &have));
        wefti_free(gather->have, gather->have_bytes);
        gather->have = have;
        gather->have_bytes = bytes;
    }
    memset(gather->have, 0, bytes);
    for (gather_part *part; (part = gather->parts);) {
        gather->parts = part->next;
        part->next = gather->spare;
        gather->spare = part;
    }
    gather->evaluation = evaluation;
    gather->units = units;
    return WEFT_OK;
}

static weft_status take_part(struct server_gather *gather, gather_part **part_out) {
    gather_part *part = gather->spare;
    if (part) {
        gather->spare = part->next;
        *part_out = part;
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_alloc(sizeof *part, "a part of a sum", &part));
    weft_status status = wefti_alloc_raw((size_t)gather->elements * sizeof *part->values, WEFTI_CACHE_LINE, "a part of a sum", &part->values);
    if (status != WEFT_OK) wefti_free(part, sizeof *part);
    else *part_out = part;
    return status;
}

static gather_part *remove_part(struct server_gather *gather, uint64_t level, uint64_t index) {
    for (gather_part **at = &gather->parts; *at; at = &(*at)->next)
        if ((*at)->level == level && (*at)->index == index) {
            gather_part *part = *at;
            *at = part->next;
            return part;
        }
    return NULL;
}

/* Goes up in the tree while neighbours are there; the last of a level that has none goes up alone. */
static void climb(served_table *table, struct server_gather *gather, gather_part *part) {
    uint64_t nodes = gather->units;
    for (uint64_t level = 0; level < part->level; level++) nodes = nodes / 2 + nodes % 2;
    for (; nodes > 1; nodes = nodes / 2 + nodes % 2) {
        uint64_t     beside = part->index ^ 1;
        gather_part *other = beside < nodes ? remove_part(gather, part->level, beside) : NULL;
        if (beside < nodes && !other) {
            part->next = gather->parts;
            gather->parts = part;
            return;
        }
        if (other) {
            for (int64_t i = 0; i < gather->elements; i++) part->values[i] += other->values[i];
            other->next = gather->spare;
            gather->spare = other;
        }
        part->level++;
        part->index /= 2;
    }
    int64_t elements;
    memcpy(wefti_store_vector(table->store, &elements), part->values, (size_t)gather->elements * sizeof *part->values);
    part->next = gather->spare;
    gather->spare = part;
}

weft_status wefti_gather_add(served_table *table, const server_job *job) {
    struct server_gather *gather = table->gather;
    const double         *values = (const double *)(const void *)job->values;
    uint64_t              unit = job->frame.keys - 1, evaluation = job->frame.clock;
    gather_part          *part = NULL;
    if (!gather || evaluation > gather->evaluation)
        return wefti_fail(WEFT_E_STATE, "table '%s': rank %d gives a unit of evaluation %llu, which has not begun here", table->spec.name, (int)job->worker,
                          (unsigned long long)evaluation);
    if (evaluation < gather->evaluation) return WEFT_OK;
    if (unit >= gather->units || job->frame.first != table->begin || (int64_t)job->frame.count * table->options.width != gather->elements)
        return wefti_fail(WEFT_E_INVALID, "table '%s': rank %d gives %llu rows of unit %llu; there are %llu units", table->spec.name, (int)job->worker,
                          (unsigned long long)job->frame.count, (unsigned long long)unit, (unsigned long long)gather->units);
    uint8_t bit = (uint8_t)(1u << unit % 8);
    if (gather->have[unit / 8] & bit || gather->elements == 0) return WEFT_OK;
    gather_part *beside = (unit ^ 1) < gather->units ? remove_part(gather, 0, unit ^ 1) : NULL;
    if (beside) { /* from the worker's memory, without a copy of its own */
        for (int64_t i = 0; i < gather->elements; i++) beside->values[i] += values[i];
        part = beside;
        part->level = 1;
    } else {
        WEFTI_TRY(take_part(gather, &part));
        memcpy(part->values, values, (size_t)gather->elements * sizeof *values);
        part->level = 0;
    }
    part->index = part->level ? unit / 2 : unit;
    gather->have[unit / 8] |= bit;
    climb(table, gather, part);
    return WEFT_OK;
}

/* Sums over units on the servers: the bits of a tree over units in whatever order they come; units that come twice, late, or before their time. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "parallel/server/work.h"
#include "serving.h"

enum { ELEMENTS = 37, UNITS_MOST = 21 };

static double value(uint64_t evaluation, uint64_t unit, int element) {
    uint64_t number = (evaluation * 1009 + unit) * 64 + (uint64_t)element;
    number = (number ^ number >> 31) * UINT64_C(0x7fb5d329728ea185);
    return (double)(int64_t)number * 0x1p-40;
}
static void fill(uint64_t evaluation, uint64_t unit, double *values) {
    for (int i = 0; i < ELEMENTS; i++) values[i] = value(evaluation, unit, i);
}

/* Pairs of neighbours, level by level; the last goes up alone where it has none. */
static double tree(uint64_t evaluation, uint64_t units, int element) {
    double sums[UNITS_MOST];
    for (uint64_t unit = 0; unit < units; unit++) sums[unit] = value(evaluation, unit, element);
    for (uint64_t nodes = units; nodes > 1; nodes = (nodes + 1) / 2)
        for (uint64_t node = 0; node < (nodes + 1) / 2; node++)
            sums[node] = 2 * node + 1 < nodes ? sums[2 * node] + sums[2 * node + 1] : sums[2 * node];
    return sums[0];
}

static weft_status begin(serving *self, weft_table *table, uint64_t evaluation, uint64_t units) {
    wefti_vector_frame command = {.op = WEFTI_VECTOR_GATHER, .x = evaluation, .y = table->id, .number = units};
    return wefti_vectors_ask(self->server, &command, 1, NULL);
}

static weft_status gather(serving *self, weft_table *table, uint64_t evaluation, uint64_t units, uint64_t step) {
    double values[ELEMENTS], got[ELEMENTS];
    WEFTI_TRY(begin(self, table, evaluation, units));
    for (uint64_t i = 0; i < units; i++) {
        uint64_t unit = i * step % units;
        fill(evaluation - 1, unit, values);
        if (evaluation > 1) WEFTI_TRY(wefti_gather_give(table, evaluation - 1, unit, values)); /* late */
        fill(evaluation, unit, values);
        WEFTI_TRY(wefti_gather_give(table, evaluation, unit, values));
        if (unit % 3 == 0) WEFTI_TRY(wefti_gather_give(table, evaluation, unit, values)); /* twice, when it is apart and when it is in a sum */
        if (i == 0 && units > 1) {
            WEFTI_TRY(weft_table_pull(table, NULL, got));
            EXPECT(evaluation > 1 || got[0] == 0, "a part is no sum: %g", got[0]);
        }
    }
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < ELEMENTS; i++)
        EXPECT(got[i] == tree(evaluation, units, i), "%d units by %d, element %d: %.17g, not %.17g", (int)units, (int)step, i, got[i], tree(evaluation, units, i));
    return WEFT_OK;
}

static weft_status at_rank_0(serving *self) {
    static const uint64_t steps[] = {1, 7}; /* orders: prime to the numbers of units but for their multiples */
    double                values[ELEMENTS] = {0};
    weft_table           *table = NULL;
    uint64_t              evaluation = 0;
    weft_table_options    options = {.name = "sum", .rows = ELEMENTS, .dtype = WEFT_F64, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) {
        WEFTI_TRY(weft_table_create(self->server, &options, &table));
        REFUSED(wefti_gather_give(table, 1, 0, values), WEFT_E_STATE, "has not begun");
        for (uint64_t units = 1; units <= UNITS_MOST; units++)
            for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
                if (i == 0 || units % steps[i]) WEFTI_TRY(gather(self, table, ++evaluation, units, steps[i]));
        WEFTI_TRY(begin(self, table, ++evaluation, 4));
        REFUSED(wefti_gather_give(table, evaluation, 4, values), WEFT_E_INVALID, "there are 4 units");
        REFUSED(wefti_gather_give(table, evaluation + 1, 0, values), WEFT_E_STATE, "has not begun");
        REFUSED(begin(self, table, evaluation + 1, 0), WEFT_E_INVALID, "0 units");
    }
    return serving_meet(self);
}

Test(gather, sums_have_the_bits_of_a_tree_over_units) {
    serve_case("shm", 1, NULL, at_rank_0);
    serve_case("shm", 3, &(weft_server_options){.servers = 2}, at_rank_0);
    serve_case("tcp", 3, &(weft_server_options){.servers = 3}, at_rank_0);
}

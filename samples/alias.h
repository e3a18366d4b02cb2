/* Drawing by weights, in constant time a draw: the alias method (Walker 1977; Vose 1991). A column at random, then it or its alias. */
#ifndef SAMPLES_ALIAS_H
#define SAMPLES_ALIAS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct alias_column {
    float   keep;
    int32_t other;
} alias_column;

/* Zeroed before the first use. */
typedef struct alias {
    int64_t       count, room;
    alias_column *columns; /* [room], `count` in use */
    int32_t      *waiting; /* [room] */
} alias;

static inline void alias_release(alias *a) {
    free(a->columns);
    free(a->waiting);
    *a = (alias){0};
}

/* Room for so many weights. False without memory; what there was stays. */
static inline bool alias_reserve(alias *a, int64_t room) {
    if (room <= a->room) return true;
    alias_column *columns = realloc(a->columns, (size_t)room * sizeof *columns);
    if (columns) a->columns = columns;
    int32_t *waiting = realloc(a->waiting, (size_t)room * sizeof *waiting);
    if (waiting) a->waiting = waiting;
    if (columns && waiting) a->room = room;
    return columns && waiting;
}

/* weights [count] add up to `sum`, above 0, and are used up; there is room. */
static inline void alias_fill(alias *a, double *weights, int64_t count, double sum) {
    int64_t smalls = 0, larges = count; /* those below the mean wait at the front, the others at the back */
    double  scale = (double)count / sum;
    a->count = count;
    for (int64_t i = 0; i < count; i++) {
        weights[i] *= scale;
        a->columns[i] = (alias_column){1, (int32_t)i};
        if (weights[i] < 1) a->waiting[smalls++] = (int32_t)i;
        else a->waiting[--larges] = (int32_t)i;
    }
    while (smalls > 0 && larges < count) { /* a column that is too small is filled up by one that is too large; what rounding leaves over keeps itself */
        int32_t less = a->waiting[--smalls], more = a->waiting[larges];
        a->columns[less] = (alias_column){(float)weights[less], more};
        weights[more] -= 1 - weights[less];
        if (weights[more] < 1) {
            larges++;
            a->waiting[smalls++] = more;
        }
    }
}

static inline int32_t alias_draw(const alias *a, uint64_t random) {
    uint64_t            column = (random >> 32) * (uint64_t)a->count >> 32;
    const alias_column *at = &a->columns[column];
    return (float)(uint32_t)random * 0x1p-32F < at->keep ? (int32_t)column : at->other;
}

#endif

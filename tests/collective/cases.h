/* What the tests of collectives share: buffers, an oracle that knows every rank's input, and the check of one call. */
#ifndef WEFT_TESTS_COLLECTIVE_CASES_H
#define WEFT_TESTS_COLLECTIVE_CASES_H

#include "core/iface/collective.h"
#include "transport/conformance.h"

/* Where a rank's buffers are. */
typedef enum placement { EXPORTED, FOREIGN, MIXED, PLACEMENTS } placement; /* MIXED: it differs from rank to rank */

typedef struct call_case {
    wefti_collective_kind kind;
    weft_dtype dtype;
    wefti_reduce_op op;
    size_t count;
    int32_t root;
    bool in_place;
    placement where;
    uint32_t seed;
} call_case;
/* Elements of the part that goes from one rank to another, of the kinds whose parts differ: `count` is of about their mean,
 * and some are empty. Of the kinds where a part has an owner only, that is `to`. */
size_t case_part(const call_case *what, int32_t from, int32_t to);

/* A rank's memory for calls: two arenas of the same size. */
typedef struct arenas {
    wefti_wire_region *region;
    uint8_t *exported, *foreign;
    size_t bytes, used;
} arenas;
void arenas_open(rank_world *world, arenas *memory, size_t bytes);
void arenas_close(rank_world *world, arenas *memory);

/* A call that was made ready: buffers are filled, and what is around them too. */
typedef struct ready_call {
    call_case what;
    wefti_collective_call call;
    uint8_t *block; /* guard, send, guard, receive, guard */
    size_t send_bytes, receive_bytes;
    size_t counts[2][MOST_RANKS]; /* of the _V kinds: sent, received */
} ready_call;
/* Takes memory from the arenas and fills it. */
void call_prepare(rank_world *world, arenas *memory, call_case what, ready_call *ready);
/* Checks every element against the oracle, and that nothing around was touched. */
void call_check(rank_world *world, const ready_call *ready);
/* Prepares, runs and checks one call, with all of the arenas. */
void call_run(rank_world *world, wefti_group *group, arenas *memory, call_case what);

/* All kinds that every member of a group calls, BARRIER included. */
extern const wefti_collective_kind every_kind[];
extern const size_t every_kind_count;
bool kind_reduces(wefti_collective_kind kind);

/* Element i of rank's input: small whole numbers, so that sums and products are exact in every dtype. */
double input_value(weft_dtype dtype, wefti_reduce_op op, int32_t rank, size_t i, uint32_t seed);

wefti_group *group_of_all(rank_world *world, const wefti_group_options *options);
#define CLOSE(group) wefti_collective_engine_weft()->close(group)
/* All ranks give a number; fails unless they are equal. */
void check_equal_everywhere(rank_world *world, int64_t mine, const char *what);
int64_t hash_floats(const float *x, size_t count);

#endif

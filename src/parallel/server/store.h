/* Rows of one table on one server: where they lie, what they begin with, and the rule that changes them.
 *
 * A row has a place, a number that stays the same as long as the store lives, so that key sets are looked up once. Dense stores hold
 * a range of rows, and a row's place is its number less the first; sparse ones give places as keys come, by an open hash over keys. Values
 * lie in slabs of many rows, those of each state beside them; nothing is moved when rows come.
 *
 * F16 and BF16 tables are held as F32 ("held dtype"): updates are widened, and what is read is rounded to nearest, ties to even.
 * Reading and giving to the rule allocate nothing, but where rows lie on disk: there they fail with what the file system says (WEFT_E_NO_SPACE, WEFT_E_IO). Buffers of values are aligned to their dtype. One thread at a time. */
#ifndef WEFTI_SERVER_STORE_H
#define WEFTI_SERVER_STORE_H

#include "core/base/base.h"
#include "core/iface/rule.h"
#include "parallel/server/spill.h"
#include "weft/server.h"

typedef struct wefti_store wefti_store;

#define WEFTI_PLACE_NONE UINT64_MAX

typedef struct wefti_store_options {
    bool       sparse;
    uint64_t   first;  /* dense: the first row here … */
    uint64_t   rows;   /* … and how many. Sparse: not looked at */
    int64_t    width;
    weft_dtype dtype;
    weft_table_rule            rule;     /* checked already (wefti_store_check) */
    const weft_table_function *function; /* of USER; lives as long as the store */
    weft_table_start           start;
    double                     low, high;
    uint64_t                   seed;
    bool                       hybrid;     /* rows are hashes while that is smaller (hybrid.h): ADD from zero */
    size_t                     most_bytes; /* 0: none */
    size_t                     memory_bytes; /* of rows and states; the others lie on disk (store_spill.c). 0: all are in memory */
    const char                *spill_folder; /* lives as long as the store */
    const char                *name;       /* of the table, for messages; lives as long as the store */
} wefti_store_options;

/* What is wrong with a table's dtype, rule and start, named; any rank can tell. WEFT_E_INVALID or WEFT_E_DTYPE. A USER rule must be named;
 * whether the name is known is not looked at. */
WEFT_MUST_CHECK weft_status wefti_store_check(const weft_table_options *options);

/* WEFT_E_NO_MEMORY with the bytes that the rows and states of a dense store need, or that most_bytes allows. Beside those it takes some KiB
 * and a few rows to work in, which wefti_store_bytes does not count. */
WEFT_MUST_CHECK weft_status wefti_store_create(const wefti_store_options *options, wefti_store **store_out);
void wefti_store_release(wefti_store *store); /* NULL is fine */

/* Places of rows by key; with `create`, rows that are not there come into being, else they are WEFTI_PLACE_NONE. All or nothing:
 * WEFT_E_NO_MEMORY (with what is held, what is needed and the bound) leaves the store as it was. Keys are of this store's range, and no key is
 * there twice in a call. New rows get places in the order of their keys in the call, so what came together lies together. */
WEFT_MUST_CHECK weft_status wefti_store_find(wefti_store *store, const uint64_t *keys, int64_t count, bool create, uint64_t *places_out);

/* values_out [count, width] of the table's dtype: rows by place; of those that are not there (keys[i]) what they would begin with.
 * `places` NULL (dense): the `count` rows from place `begin` on; keys is not looked at then. */
WEFT_MUST_CHECK weft_status wefti_store_read(wefti_store *store, const uint64_t *keys, const uint64_t *places, uint64_t begin, int64_t count,
                                             void *values_out);

/* Gives updates [count, width] of the table's dtype to the rule, row by row; `scale` multiplies them first, in the held dtype (1: as they
 * are; integers are divided by 1/scale, rounded to an integer, toward zero). AVERAGE takes it for the mean. Places exist; NULL (dense): from
 * `begin` on. USER fails: rows before the one that failed stay changed, and the message names its key. Hybrid stores fail where rows that grow
 * would pass most_bytes or find no memory: no row has changed then. */
WEFT_MUST_CHECK weft_status wefti_store_apply(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates,
                                              double scale);

/* Multiplies the rate of a SOLVER rule in what is given to the rule from now on. */
void wefti_store_set_rate(wefti_store *store, double multiple);
/* Replaces rows by values [count, width] of the table's dtype; states and numbers of updates stay. Places as in apply. Only hybrid stores
 * fail (WEFT_E_NO_MEMORY): all rows are as they were. */
WEFT_MUST_CHECK weft_status wefti_store_write(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *values);

/* All elements of a dense store of F32 or F64 as one array; NULL for another store. Valid as long as the store, or until wefti_store_move. */
void *wefti_store_vector(wefti_store *store, int64_t *elements_out);

/* Of such a store with an ADD rule: adds updates [count, width] to rows from place `begin` on, to the bit as apply does, and leaves in their stead what the rows
 * were. `streams`: the rows go past the caches, where another core reads them next. */
void wefti_store_trade(wefti_store *store, uint64_t begin, int64_t count, void *updates, bool streams);
/* Of such a store: how many bytes all that it keeps of its rows has, and its going on in other memory of so many, aligned to a cache line, which stays the
 * caller's; what it was in before stays as it is, unless it was its own. */
size_t wefti_store_vector_bytes(const wefti_store *store);
void wefti_store_move(wefti_store *store, void *memory);

/* --- sums of a clock (staleness 0) ---
 *
 * A sum is held as wide as the store holds values (I32 in I64, so that a mean does not wrap before it is divided), in pages of some rows each
 * where a row was pushed, and how many pushed each. Its memory is counted by wefti_sum_bytes, not by the store, and has no bound but memory. */
typedef struct wefti_sum wefti_sum;
WEFT_MUST_CHECK weft_status wefti_sum_create(wefti_store *store, wefti_sum **sum_out); /* the store outlives it */
void wefti_sum_release(wefti_sum *sum);
/* Adds updates as apply takes them. Floats are added in F32 (F64 tables in F64), in the order of the calls; the first is taken as it is.
 * Integers wrap. WEFT_E_NO_MEMORY: nothing was. */
WEFT_MUST_CHECK weft_status wefti_sum_add(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count, const void *updates);
/* Gives it to the rule, rows in ascending order of place, times `scale` (AVERAGE divides each row by who pushed it instead), and empties it
 * for the next clock, keeping its memory. A failing USER rule skips its row, and the first failure is returned once all rows are through. A hybrid
 * store that has no room for all of it takes none (WEFT_E_NO_MEMORY), and the sum is empty. */
WEFT_MUST_CHECK weft_status wefti_sum_apply(wefti_sum *sum, double scale);
int64_t wefti_sum_rows(const wefti_sum *sum);  /* that were pushed in this clock */
size_t  wefti_sum_bytes(const wefti_sum *sum); /* that it holds */

/* --- rows as they are kept (store_rows.c), for snapshots --- */

/* What a row consists of: its values in the held dtype are part 0, states parts 1 .. states. */
enum { WEFTI_PART_VALUES = 0, WEFTI_PART_UPDATES = -1, WEFTI_PART_KEYS = -2 }; /* I64 the number of its updates, U64 its key, where they are kept */
int32_t    wefti_store_states(const wefti_store *store);
bool       wefti_store_counts(const wefti_store *store); /* it keeps numbers of updates */
weft_dtype wefti_store_held(const wefti_store *store);
size_t     wefti_store_part_bytes(const wefti_store *store, int32_t part); /* of one row */
/* A part of `count` rows from place `begin` on, and back; `places` as in apply. Only hybrid stores fail, as wefti_store_write, and those on disk; copying
 * out does not count as use of a row. */
WEFT_MUST_CHECK weft_status wefti_store_copy_out(wefti_store *store, int32_t part, uint64_t begin, uint64_t count, void *out);
WEFT_MUST_CHECK weft_status wefti_store_copy_in(wefti_store *store, int32_t part, const uint64_t *places, uint64_t begin, uint64_t count, const void *in);

/* --- looking --- */
int64_t  wefti_store_rows(const wefti_store *store);
size_t   wefti_store_bytes(const wefti_store *store); /* that it holds in memory: values, states, hash */
void     wefti_store_count_spill(const wefti_store *store, wefti_spill_counts *counts_out);
const char *wefti_store_folder(const wefti_store *store); /* where rows lie on disk; NULL: nowhere */
/* Before rows are changed: goes back below memory_bytes where a disk has kept it from that, or says why it cannot. */
WEFT_MUST_CHECK weft_status wefti_store_settle(wefti_store *store);
uint64_t wefti_store_key(const wefti_store *store, uint64_t place);

#endif

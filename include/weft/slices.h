/* Model scheduling: working through tables that are larger than memory, slice by slice.
 *
 *     weft_sliced_table   tables[] = {{.table = counts}};
 *     weft_slices_options how = {.tables = tables, .table_count = 1, .budget_bytes = 64 << 20, .pipeline = true};
 *     weft_block          blocks[] = {{.rows = words_of_first, .row_count = 9000}, {.rows = words_of_second, .row_count = 7000}};
 *     if ((s = weft_slices_run(&how, blocks, 2, sample_slice, &state, &report)) != WEFT_OK) goto done;
 *
 * A block of data names the rows that it needs. These are cut, in their order, into slices that fit into a budget of bytes. A slice's rows
 * are pulled, a function of the program's computes with them and says what to push, that is pushed, and the memory is used again; so a
 * table may be many times the budget, and each row is pulled once a block. After its last slice a block ends the worker's clock of each table.
 *
 * With staleness 0 a block sees exactly the clocks before it, however it is cut: the same bits with any budget, where what a slice
 * computes depends on its rows alone.
 *
 * Pipelining. With .pipeline the next slice is pulled and the last one's updates travel while this one is computed, so a run takes what the longer
 * of computing and communicating does. Slices of one block are different rows, so they miss nothing by that. The first slice of the
 * next block is pulled before this block's clock ends: its rows are one clock older than they would be, and the report says so. A slice is half as large.
 *
 * After Yuan et al., "LightLDA: big topic models on modest compute clusters", 2015. */
#ifndef WEFT_SLICES_H
#define WEFT_SLICES_H

#include "weft/server.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WEFT_SLICES_TABLES = 8 };

/* A table whose rows of a block's keys are pulled. */
typedef struct weft_sliced_table {
    weft_table *table;
    bool        read_only; /* nothing is pushed to it */
} weft_sliced_table;

/* Zero means the default. */
typedef struct weft_slices_options {
    const weft_sliced_table *tables; /* [table_count] different tables of one server, in all of which a key names a row */
    int32_t table_count;   /* 1 .. 8 */
    size_t  budget_bytes;  /* of this rank's memory for values, updates, lists of rows, and copies of them in the order of servers, beside
                              which requests take some 6 KB a server; 0: no bound, a block is one slice */
    bool    pipeline;
    bool    no_clock;      /* blocks end no clocks: that is the caller's */
} weft_slices_options;

/* What a piece of data needs. */
typedef struct weft_block {
    const uint64_t *rows; /* [row_count] strictly ascending */
    int64_t         row_count; /* 0: the block only ends its clocks */
    double          rate; /* of its pushes to SOLVER tables; 0: 1 */
} weft_block;

/* What is in hand. */
typedef struct weft_block_slice {
    int64_t         block;      /* of the blocks of the run */
    int64_t         slice;      /* of the block */
    int64_t         first;      /* rows[0] is the block's row `first` */
    const uint64_t *rows;       /* [row_count], the block's */
    int64_t         row_count;
    void *const    *values;     /* [table_count] of [row_count, width] in the table's dtype; may be written to */
    void *const    *updates;    /* [table_count] as values, all zero: what is pushed afterwards; NULL for a read-only table */
} weft_block_slice;

/* Computes with one slice. Called by the thread that runs, for one slice after the other. It may use the server. Another status than WEFT_OK ends the
 * run with it. */
typedef weft_status (*weft_slice_function)(void *context, const weft_block_slice *slice);

/* What a run did on this rank. */
typedef struct weft_slices_report {
    int64_t  blocks, slices, slice_rows; /* slice_rows: the most in one */
    uint64_t pulls, pushes;              /* requests */
    uint64_t pulled_rows, pulled_bytes, pushed_bytes; /* of values; rows of each table */
    uint64_t compute_ns;                 /* in the function */
    uint64_t wait_ns;                    /* for the server: what is not hidden behind computing */
    uint64_t total_ns;
    int32_t  staleness_added;            /* clocks that pulled rows may be older than without pipelining: 0 or 1 */
    size_t   peak_bytes;                 /* at most held at once, as the budget counts */
} weft_slices_report;

/* Works through `count` blocks. Not collective, but with clocks workers wait for each other as their tables say: each gives as many
 * blocks then. Blocks until all that was pushed has come to the servers. Up to two requests a table are in flight. `report_out` may be NULL; on error it
 * says what was done until then, and a block may be pushed in part. WEFT_E_INVALID (options, rows that do not ascend, a budget in which one row does not
 * fit: the bytes that are needed), WEFT_E_NO_MEMORY, what the function returned, and what requests end with. From
 * src/parallel/server/slices.c. */
WEFT_MUST_CHECK weft_status weft_slices_run(const weft_slices_options *options, const weft_block *blocks, int64_t count,
                                            weft_slice_function function, void *context, weft_slices_report *report_out);

#ifdef __cplusplus
}
#endif
#endif

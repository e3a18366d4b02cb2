/* The parameter server: tables of numbers that the ranks of a world hold in parts and change together.
 *
 *     weft_server *server = NULL;
 *     weft_table  *weights = NULL;
 *     weft_server_options who = {.servers = 2, .dedicated = true};
 *     weft_table_options what = {.name = "weights", .rows = 1000000, .width = 64, .staleness = 4,
 *                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adagrad(0.1)}};
 *     if ((s = weft_server_create(world, &who, &server)) != WEFT_OK) goto done;
 *     if (!weft_server_is_worker(server)) { s = weft_server_serve(server); goto done; }
 *     if ((s = weft_table_create(server, &what, &weights)) != WEFT_OK) goto done;
 *     for (...) {
 *         if ((s = weft_table_pull(weights, keys, values)) != WEFT_OK) break;
 *         ... the gradient of those rows ...
 *         if ((s = weft_table_push(weights, keys, gradient)) != WEFT_OK) break;
 *         if ((s = weft_table_clock(weights)) != WEFT_OK) break;
 *     }
 *
 * Roles. Servers hold rows, workers push and pull them. A rank is either, or both ("beside a worker"). Which ranks serve is an
 * option; every rank that does not, and every serving rank unless they are dedicated, is a worker.
 *
 * Rows. A dense table has rows 0 .. rows-1, and all of them from the start. A sparse one has a row for each 64-bit key that was ever
 * pushed; the others are pulled as what they would begin with. The first row of a key is the same on any number of servers. A table's rows
 * are dealt out to servers by ranges or by a hash of the key.
 *
 * Consistency, one number a table. Each worker counts its own clock, from 0, and ends it by weft_table_clock.
 *   staleness 0   bulk-synchronous: what workers push in a clock is summed in the order of their ranks and given to the rule once, when
 *                 the last of them has ended the clock. A pull in clock c waits for that of c-1 and sees exactly the clocks before c. The same
 *                 bits in every run, whatever comes first.
 *   staleness s   pushes are given to the rule one by one, as they come. A pull in clock c waits until every worker has ended clock c-s-1:
 *                 it sees all of their pushes before clock c-s, and those of later ones that have come (Ho et al., "More effective distributed
 *                 ML via a stale synchronous parallel parameter server", 2013). The worker that is ahead waits.
 *   WEFT_TABLE_ASYNCHRONOUS  as that, and nobody waits.
 * Where pushes are given to the rule as they come, a worker reads its own writes: its pull sees all that it has pushed before.
 *
 * Faults. The server has links of its own, so a rank that dies is no fault of it (although it is one of the world's collectives). A worker
 * that dies is waited for by nobody: what it has pushed whole counts. Rows of a server that dies are lost, and every request that needs them
 * ends with WEFT_E_PEER, which names it. With .replicas they are not: pushes, sets and ends of clocks go to both who hold a row, and end once
 * both have them, so nothing that was acknowledged is lost when one dies; requests go on with the other, those in flight too, and no worker
 * sees a status. With staleness 0 it has the same bits; where pushes are given to the rule as they come, floats may differ in rounding.
 * WEFT_E_PEER comes when both holders of a row have died. Snapshots are taken of who is left, too; one that is under way when a server dies may fail. Not with .spares
 * (WEFT_E_UNSUPPORTED). A worker that dies in the middle of a push may leave it with one holder alone: it was not acknowledged.
 * A rank that the others have given up hears of it: its requests end with WEFT_E_PEER, which says so. A server that has lost the world's rank 0, as one
 * that is cut off has, waits before it leaves for workers that ask nothing no longer than its timeout.
 * A request that is wrong ends with a status for who made it, and changes nothing.
 *
 * Fewer bytes. Keys travel as the gaps between them, in as few bytes as these take, wherever that is less; a key set's only once. Values of pushes and
 * pulls travel as the table's options say (.push, .pull): the codecs of weft/compression.h, of which pushes may leave rows out: those are then as if
 * they had not been named, and what they would have brought is kept here, by row, and added to their next push, by whatever keys that names
 * them. A push that fails loses what it carried. A snapshot that is loaded drops it: here with the first answer of a server since then. What weft_server_counts says is exact.
 *
 * Exactly once. Requests of a worker to a server are numbered; one that comes again is answered and not applied again.
 *
 * Threads. Each rank has a thread that answers requests and moves its own on while it computes, unless told not to. Functions of one server
 * and its tables may be called by several threads at once, where nothing else is said. */
#ifndef WEFT_SERVER_H
#define WEFT_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/compression.h"
#include "weft/dtype.h"
#include "weft/solver.h"
#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_server  weft_server;  /* this rank's part in it */
typedef struct weft_table   weft_table;   /* one table, as a worker sees it */
typedef struct weft_keys    weft_keys;    /* rows of a table that are often asked for together */
typedef struct weft_request weft_request; /* a call that was started and has not been waited for */
typedef struct weft_entries weft_entries; /* elements of rows by column (weft/entries.h) */

/* --- rules: what a push does to rows --- */

/* One row's update, for a rule of one's own. */
typedef struct weft_row {
    uint64_t    key;
    int64_t     width;
    weft_dtype  dtype;  /* of the arrays: the table's, but F32 in tables of F16 and BF16 */
    void       *values; /* [width] to be changed */
    const void *update; /* [width] what was pushed */
    void *const *states; /* [.states of the function] arrays of [width], zero at first */
    int64_t     updates; /* of this row before this one */
} weft_row;

/* A rule of one's own, known by its name on every rank that serves. It is called by the thread that serves, with one row at a time, and
 * must not call Weft. What it returns beside WEFT_OK goes to who pushed (WEFT_E_AGAIN and WEFT_END, which mean something else to a caller, as
 * WEFT_E_INVALID), and the row stays as it was. */
typedef struct weft_table_function {
    const char *name;
    int32_t     states; /* 0 .. 8 */
    weft_status (*apply)(void *context, const weft_row *row);
    void       *context;
} weft_table_function;

typedef enum weft_table_rule_kind {
    WEFT_TABLE_ADD,     /* row += update */
    WEFT_TABLE_AVERAGE, /* row = the mean of what the workers pushed in a clock, over those that pushed it; staleness 0 only. Integers round
                           toward zero */
    WEFT_TABLE_SOLVER,  /* the update is a gradient: a step of .solver and .regulariser, each row counting its own updates; floats only. The
                           schedule is the caller's (.rate of a call) */
    WEFT_TABLE_FTRL,    /* the update is a gradient: FTRL-proximal, each coordinate with a rate of its own (McMahan et al., "Ad click
                           prediction", 2013); floats only. Rows begin with zero */
    WEFT_TABLE_USER     /* .function, by name */
} weft_table_rule_kind;

typedef struct weft_table_rule {
    weft_table_rule_kind kind;
    weft_solver          solver;      /* SOLVER: SGD, Adagrad, RMSprop, Adam; of the clipping, .clip_value only */
    weft_regulariser     regulariser; /* SOLVER: .group takes a row of the table for its row */
    double               alpha, beta, l1, l2; /* FTRL: 0: 0.1, 1; none; none */
    const char          *function;    /* USER: the name of one of weft_server_options.functions */
    bool                 mean;        /* staleness 0: the sum of a clock's pushes is divided by the number of workers before the rule sees it */
} weft_table_rule;

/* --- the server --- */

/* How ranks take their roles; the same on all. Zero means the default. */
typedef struct weft_server_options {
    int32_t servers;    /* so many ranks serve, the last ones of the world; 0: all */
    bool    dedicated;  /* those that serve do not work */
    int32_t replicas;   /* 1: another server holds each one's rows too, the next one after it; with two servers at least. See Faults */
    bool    renews;     /* weft_server_serve ends with the world's verdict once there is one, so that this rank goes on in the next world with the others
                           (weft_server_resize). Its thread goes on serving meanwhile */
    bool    no_thread;  /* requests get on inside of calls only: a serving worker answers while it waits, or by weft_server_poll */
    int32_t in_flight;  /* requests of this rank at once, 1 .. 4096; 0: 64 */
    int64_t timeout_ns; /* of each request; 0: the world's */
    const char *spill;  /* a folder for rows that are not in memory (weft_table_options.memory_bytes), on a disk and none that is memory; each rank's own.
                           NULL: none */
    const weft_table_function *functions; /* [function_count] rules of the program's own; they live as long as the server */
    int32_t function_count;
} weft_server_options;

/* Opens the server's links and takes this rank's role. Collective over the world, in one order with other calls that are; blocks until all
 * have. `options` may be NULL. The world must outlive it. *server_out is NULL on error: WEFT_E_INVALID, WEFT_E_MISMATCH (ranks differ
 * in their options), WEFT_E_NO_MEMORY, a fault of the world. From src/parallel/server/service.c. */
WEFT_MUST_CHECK weft_status weft_server_create(weft_world *world, const weft_server_options *options, weft_server **server_out);

/* Leaves: sends what is still to be sent, tells the others, and frees everything, tables and key sets that were not released too. What it
 * holds as a server goes with it, so servers wait here until the last worker has left, or died. NULL is fine. Not beside another call. */
void weft_server_release(weft_server *server);

bool    weft_server_is_worker(const weft_server *server);
bool    weft_server_is_serving(const weft_server *server);
int32_t weft_server_workers(const weft_server *server); /* that there were at the beginning */

/* For a rank that only serves: blocks until every worker has left or died. WEFT_OK also then. WEFT_E_AGAIN: they call weft_server_resize, and wait for this
 * rank to do so. WEFT_E_STATE on a rank that does not serve; else what ended the links of this rank, or (.renews) the world. */
WEFT_MUST_CHECK weft_status weft_server_serve(weft_server *server);
/* With .no_thread: lets requests get on; never blocks. What ended the links of this rank, else WEFT_OK. */
WEFT_MUST_CHECK weft_status weft_server_poll(weft_server *server);

/* --- other ranks, and other servers, while training goes on --- */

/* What a change of the split did on this rank. */
typedef struct weft_server_moved {
    uint64_t rows, bytes;           /* that came here from other ranks: of a row its values and states as they are kept, 8 for its number of updates where
                                       the rule counts them, 8 for the key of a sparse one. Rows whose holder stays the same are not among them */
    uint64_t sent_rows, sent_bytes; /* that went from here */
    int64_t  pause_ns;              /* what the call took */
} weft_server_moved;

/* Goes on with other servers: `options` as for weft_server_create, in the same `world` or in another that followed it (weft_world_shrink). Rows go to where
 * the new split has them, with their states and numbers of updates; of ranks that are no more their replicas do. Afterwards all goes on by the old handles: the
 * server, its tables, key sets and lent memory (which servers now map no more: values in it are copied).
 *
 * Collective over `world`, in one order with other calls that are: those who have a server call this; ranks that have none, as newcomers and those that have
 * released theirs, call weft_server_create with the same options at the same time, and find the tables by weft_table_open. So workers join; who is
 * to go releases its server, as ever, and has no rows by then if the split before was one without it. Ranks that only serve come out of weft_server_serve
 * with WEFT_E_AGAIN when all workers have called this, and call it too; with .renews they come out of it with the world's verdict,
 * for weft_world_shrink.
 *
 * Where it is called no request of this rank may be unfinished. With staleness 0 all workers call it at the same clock, having pushed nothing in it; what a worker
 * that has died pushed in it is given to the rule by itself. So the split changes between two clocks, and results have the bits of a run in which it does
 * not; of the other tables each push that was acknowledged is in the rows exactly once. A newcomer begins at the clock that the slowest is in.
 * Clocks of the others stay. Options left at zero: as for create, but functions, in_flight, timeout_ns and spill stay as they were.
 *
 * Each server needs memory for its new rows (with .memory_bytes: room in its folder) while it still has the old ones. An error on any rank is one on all, which names the rank, and then all
 * is as it was: WEFT_E_INVALID, WEFT_E_MISMATCH (ranks differ in options, in clocks, or have parts of different servers), WEFT_E_STATE (requests, or pushes
 * in a clock), WEFT_E_UNSUPPORTED (.spares), WEFT_E_NO_MEMORY and WEFT_E_NO_SPACE (with the bytes), a fault of the world, WEFT_E_PEER (rows are lost: who had them). Only where
 * a rank is lost in the last moment others may not know which split stands: their requests then end with WEFT_E_PEER, until this is called in the next world,
 * which finds out. `options` may be NULL: all ranks serve. `moved_out` may be NULL. From src/parallel/server/resize.c. */
WEFT_MUST_CHECK weft_status weft_server_resize(weft_server *server, weft_world *world, const weft_server_options *options, weft_server_moved *moved_out);

/* What this rank has moved by the server's links since it was created, headers of messages and values that servers map included. */
typedef struct weft_server_counts {
    uint64_t sent_bytes, received_bytes, sent_messages, received_messages;
    uint64_t requests;   /* that were made here */
    uint64_t served;     /* requests of workers that were answered here */
    uint64_t repeated;   /* of those, that had been answered before */
    uint64_t late;       /* pushes that came after their clock, and were dropped (.spares) */
    uint64_t held_bytes; /* rows and their states, of all tables, here in memory */
    uint64_t spilled_bytes; /* … and not in memory (.memory_bytes) */
    uint64_t spill_found, spill_loaded, spill_written; /* pieces of some KiB, or rows of hybrid tables: found in memory when they were wanted; read from the
                                                          disk; written to it */
    uint64_t key_bytes, sent_key_bytes;      /* lists of keys that this worker sent, at 8 bytes a key, and as they were sent */
    uint64_t value_bytes, moved_value_bytes; /* rows that it pushed, set and asked for, uncompressed, and as they were moved */
} weft_server_counts;
void weft_server_count(weft_server *server, weft_server_counts *counts_out);

/* Memory for values, from which and to which servers on this host move them without a copy between, where the wire is one of shared memory; ordinary
 * memory elsewhere. Requests take values from any memory; large ones are worth this one. Page-aligned over shared memory, else to a cache line;
 * zeroed there, else not. Freed with the server too; until then no request may be using it. A request that ended with WEFT_E_TIMEOUT because a server was
 * silent may still write what it was to receive, until the server is released. WEFT_E_INVALID, WEFT_E_NO_MEMORY. From src/parallel/server/move.c. */
WEFT_MUST_CHECK weft_status weft_server_alloc(weft_server *server, size_t bytes, void **memory_out);
void weft_server_free(weft_server *server, void *memory); /* NULL is fine */

/* --- tables --- */

#define WEFT_TABLE_ASYNCHRONOUS (-1)
enum { WEFT_TABLE_NAME_BYTES = 48 };

typedef enum weft_table_split {
    WEFT_SPLIT_DEFAULT, /* ranges for dense tables, the hash for sparse ones */
    WEFT_SPLIT_RANGE,   /* equal ranges of rows; of a sparse table, of keys from 0 to .rows-1 */
    WEFT_SPLIT_HASH
} weft_table_split;

typedef enum weft_table_start { WEFT_START_ZERO, WEFT_START_CONSTANT, WEFT_START_UNIFORM, WEFT_START_NORMAL } weft_table_start;

/* What a table is. Zero means the default. */
typedef struct weft_table_options {
    const char      *name;      /* 1 .. 48 bytes, among the tables of the server */
    bool             sparse;
    int64_t          rows;      /* dense: how many; sparse: keys are below this, 0: any */
    int64_t          width;     /* elements of a row; 0: 1. A dense vector has rows of one element */
    weft_dtype       dtype;     /* F32, F64, BF16, F16, I32, I64. Servers keep F16 and BF16 as F32, and round what is pulled */
    weft_table_rule  rule;
    int32_t          staleness; /* 0, 1, ..., or WEFT_TABLE_ASYNCHRONOUS */
    int32_t          spares;    /* staleness 0: backup workers. Of N + spares workers a clock waits for the N that end it first (fewer where some have
                                   left or died); what the others push in it is dropped, and they go on in the clock that the server is at. Each
                                   server decides for its rows. Sums then depend on who came first (Chen et al., "Revisiting distributed synchronous
                                   SGD", 2016) */
    weft_table_split split;
    weft_table_start start;     /* what rows begin with; FTRL: zero. UNIFORM and NORMAL are for floats */
    double           low, high; /* CONSTANT: low; UNIFORM: from low to high; NORMAL: mean low, deviation high. Numbers that the dtype has */
    uint64_t         seed;      /* of UNIFORM and NORMAL, which depend on it, the key and the column alone */
    size_t           most_bytes; /* of rows and states on one server; 0: no bound but memory */
    size_t           memory_bytes; /* of rows and states in a server's memory; those that were used last stay there, the others lie in a file without a name in
                                    the folder that the server's options name (.spill), in pieces of about 4 KiB, or of one row where that is more. Results are
                                    the same to the bit. Beside it are in memory what finds rows (24 to 48 bytes a key, 72 to 132 a piece, or 40 to 64 a hybrid
                                    row), and a clock's sum. 0: all. A full disk is told (WEFT_E_NO_SPACE, with the folder and the bytes) to whoever makes
                                    rows, or lets hybrid ones grow, before anything of the request has changed, and a request that wants a row which cannot be
                                    read is told (WEFT_E_IO) before anything has changed, or, where its rows do not fit into memory together, how many had; other
                                    requests go on. A request that needs the disk holds up those behind it. No vector of
                                    weft/vectors.h */
    weft_compression push;       /* BF16, FP8, FP8_E5M2, FIXED8, FIXED16, TOP_K (of each server's part of a request), SIGNIFICANT: F32; NONZERO: any dtype.
                                    The last three not with AVERAGE; these and .error_feedback not with USER. .least: requests of fewer elements go as
                                    they are; 0: none. With it a worker keeps a row of a dense table, or of each key that it pushed, and SIGNIFICANT one
                                    element more, where something is kept */
    weft_compression pull;       /* BF16, FP8, FP8_E5M2, FIXED8, FIXED16; F32. Rows on servers stay as they are */
    bool             hybrid;    /* a row is an open hash from columns to what is not zero, until dense is smaller: for wide rows of mostly zeros, such
                                   as counts. The results of a dense row, but that no zero is negative. ADD from WEFT_START_ZERO, of I32, I64, F32 or
                                   F64. A row of width K, elements of E bytes and columns of C (2 below 65,536 columns, else 4) of which n at most were
                                   not zero at once takes between 5/4 and about 25/16 n (E + C) bytes, or K E where that is less, beside 16. The sum
                                   of a clock is held alike. Rows that would grow beyond most_bytes are refused with WEFT_E_NO_MEMORY, and the
                                   server's part of the push with them. A snapshot copies rows as dense ones */
} weft_table_options;

/* Makes a table on all servers, or takes part in one that another worker has made: all give the same options. Not collective: one worker
 * may, and others open it by name. Blocks. A worker's clock of the table counts from here on; all workers are waited for, also those that have
 * not opened it. WEFT_E_INVALID, WEFT_E_DTYPE, WEFT_E_MISMATCH (a table of that name is another: what differs), WEFT_E_NOT_FOUND
 * (a function that a server does not have: those it has are listed), WEFT_E_NO_MEMORY (with the bytes), WEFT_E_STATE on a rank
 * that is no worker, WEFT_E_PEER, WEFT_E_TIMEOUT. From src/parallel/server/table.c. */
WEFT_MUST_CHECK weft_status weft_table_create(weft_server *server, const weft_table_options *options, weft_table **table_out);
/* A table that is there. WEFT_E_NOT_FOUND where none is. Otherwise as create. */
WEFT_MUST_CHECK weft_status weft_table_open(weft_server *server, const char *name, weft_table **table_out);
/* Lets go of it here, with its key sets; servers keep the rows. Its requests must have been waited for. NULL is fine. */
void weft_table_release(weft_table *table);
/* As it is on the servers; .name and .rule.function live as long as the table. */
const weft_table_options *weft_table_describe(const weft_table *table);

/* Ends this worker's clock. Never blocks: what was pushed before counts to the clock that it ends. Not collective. WEFT_E_NO_MEMORY; WEFT_E_PEER,
 * WEFT_E_TIMEOUT and what else became of an earlier end of a clock, which nobody waited for: the clock is not ended then. */
WEFT_MUST_CHECK weft_status weft_table_clock(weft_table *table);
int64_t weft_table_time(weft_table *table); /* this worker's clock */

/* --- key sets --- */

/* Rows that are to be asked for together: sorted, freed of repetitions, and routed to servers once; servers are sent the list with the first
 * request, and its number from then on. `keys` may be in any order and repeat. WEFT_E_INVALID for a key that is out of range, with its place;
 * WEFT_E_NO_MEMORY. From src/parallel/server/keys.c. */
WEFT_MUST_CHECK weft_status weft_keys_create(weft_table *table, const uint64_t *keys, int64_t count, weft_keys **keys_out);
/* The keys, ascending: the order of rows in the values of a request. The set's, as long as it lives; `count_out` may be NULL. */
const uint64_t *weft_keys_list(const weft_keys *keys, int64_t *count_out);
/* Its requests must have been waited for. NULL is fine. */
void weft_keys_release(weft_keys *keys);

/* --- requests --- */

typedef enum weft_request_kind {
    WEFT_PUSH,     /* gives `send` to the rule; ends when every server has it */
    WEFT_PULL,     /* `receive` = the rows */
    WEFT_SET,      /* the rows = `send`, whatever the rule and at once; states stay. For a start that is not the table's own, and for going on
                      from a file: not beside pushes of the same rows. Not with FTRL */
    WEFT_PUSH_PULL /* both, in one exchange: as a push, then a pull in the clock that the push is in. With staleness 0 the push ends the
                      worker's clock, and the pull is one of the next: what comes back is what the rule made of everybody's */
} weft_request_kind;

/* A request. Values are [rows, width] in the table's dtype, rows in ascending order of keys; buffers belong to it until it has ended. */
typedef struct weft_table_call {
    weft_request_kind kind;
    const weft_keys  *keys;  /* NULL: `rows`, or every row of a dense table */
    const uint64_t   *rows;  /* [row_count] where keys is NULL: strictly ascending; sent with the request */
    int64_t           row_count;
    const void       *send;
    void             *receive;
    int64_t           timeout_ns; /* from its start; 0: the server's */
    double            rate;      /* pushes to SOLVER tables: multiplies the solver's rate, for a schedule; 0: 1. With staleness 0 all workers give the
                                    same in a clock */
    bool              plain;     /* not compressed, though the table is; what is kept stays for a push that is */
    const weft_entries *entries; /* PUSH, PUSH_PULL: these elements of the rows, instead of `send` (weft/entries.h) … */
    weft_entries       *pulled;  /* PULL, PUSH_PULL: … and those that are not zero, instead of `receive`. Of a PUSH_PULL both or neither */
} weft_table_call;

/* Starts a request; never blocks. The struct is copied. *request_out is to be tested or waited for until it has ended; NULL on error.
 * Pushes and ends of clocks of one worker take effect on a server in the order in which they were started. WEFT_E_INVALID (keys that do not
 * ascend, or are out of range, with their place), WEFT_E_AGAIN (too many in flight), WEFT_E_STATE, WEFT_E_PEER. */
WEFT_MUST_CHECK weft_status weft_table_start_call(weft_table *table, const weft_table_call *call, weft_request **request_out);
/* WEFT_E_AGAIN while it is in flight; else its outcome, and it is gone. Never blocks. What a server refused (WEFT_E_...) is told with
 * the server's message. WEFT_E_TIMEOUT names the servers that have not answered, what they waited for, and who is behind at which clock. */
WEFT_MUST_CHECK weft_status weft_request_test(weft_request *request);
/* As test, until it ends; after `timeout_ns` (0: none but its own deadline) WEFT_E_AGAIN, and it lives on. */
WEFT_MUST_CHECK weft_status weft_request_wait(weft_request *request, int64_t timeout_ns);

/* Start and wait, also for one of the requests in flight to end. `keys` NULL: every row of a dense table. send, receive: [rows, width] in the table's
 * dtype. Errors: those of weft_table_start_call and weft_request_test. */
WEFT_MUST_CHECK weft_status weft_table_push(weft_table *table, const weft_keys *keys, const void *send);
WEFT_MUST_CHECK weft_status weft_table_pull(weft_table *table, const weft_keys *keys, void *receive);
WEFT_MUST_CHECK weft_status weft_table_push_pull(weft_table *table, const weft_keys *keys, const void *send, void *receive);
/* The same with a list of rows that is sent along: strictly ascending. */
WEFT_MUST_CHECK weft_status weft_table_call_rows(weft_table *table, weft_request_kind kind, const uint64_t *rows, int64_t row_count, const void *send,
                                                 void *receive);

/* --- snapshots --- */

/* Writes all tables, rows with the states of their rules, to files that weft_server_load reads, while training goes on. Collective over the workers:
 * each calls it with the same path at the same place among its requests and clocks; ones that have died or left are not waited for. Never
 * blocks; *request_out as of weft_table_start_call, and one at a time (WEFT_E_STATE).
 *
 * What is saved is of one moment on all servers: of a table of staleness 0 the rows as all clocks before the caller's have made them; of the others
 * what all workers had pushed before they called this, and nothing after: a server keeps requests back from there on until all workers that are there
 * have called it, or the server's timeout has passed (WEFT_E_TIMEOUT names who has not). With .spares each server saves what it has at the clock.
 * Then rows are copied, which takes their memory (of tables with .memory_bytes: their room in the folder) once more and holds up requests as long as a copy takes, and written by a thread of the server's own.
 *
 * `path` is in a folder that all servers see by that name. A file for each server lies beside it, path.<digits>.K-of-N, in the safetensors format (weft/snapshot.h); the
 * one at `path` names them. It appears last, by a rename, once all are on the disk, so that `path` is the snapshot before, or this one, whole; files
 * of snapshots before it are removed then. `timeout_ns` of all of it; 0: 10 minutes. The request's errors: WEFT_E_MISMATCH (workers differ in path or
 * clock), WEFT_E_TIMEOUT, WEFT_E_NO_MEMORY, WEFT_E_PEER, what the file system says (WEFT_E_IO, a full disk with the file's name and size): then
 * `path` is as it was, and training may go on. From src/parallel/server/saves.c. */
WEFT_MUST_CHECK weft_status weft_server_start_save(weft_server *server, const char *path, int64_t timeout_ns, weft_request **request_out);
/* Start and wait. */
WEFT_MUST_CHECK weft_status weft_server_save(weft_server *server, const char *path);

/* Fills the tables that there are with the rows and states of a snapshot, on any number of servers, whoever saved it; clocks and key sets stay. One worker
 * calls it, with no pushes under way; blocks. Each server has a second copy of its rows meanwhile. All tables must be in the snapshot, and be of the
 * same kind: WEFT_E_NOT_FOUND, WEFT_E_MISMATCH (what differs: dtype, width, rows, split, rule, solver; rates and the like may), WEFT_E_STATE (pushes are
 * under way, or another load is), WEFT_E_CORRUPT, WEFT_E_NO_MEMORY, WEFT_E_IO, WEFT_E_PEER; no row changes then on any server (but for a server
 * that dies in the last moment). */
WEFT_MUST_CHECK weft_status weft_server_load(weft_server *server, const char *path);

#ifdef __cplusplus
}
#endif
#endif

/* What the parameter server does beside rows: arithmetic on whole vectors (vectors.c), sums over units of work (gather.c), and giving units
 * out (ledger.c); and how workers ask for that (ask.c). */
#ifndef WEFTI_SERVER_WORK_H
#define WEFTI_SERVER_WORK_H

#include "parallel/server/inside.h"
#include "weft/lbfgs.h"
#include "weft/vectors.h"

/* --- vectors --- */

enum { VECTORS_MOST = 96 }; /* commands of a message: they and their results fit into one each */

/* Beside those of programs: begins a sum over `number` units into y, of the evaluation x. */
#define WEFTI_VECTOR_GATHER ((uint32_t)WEFT_VECTOR_DOT + 1)

/* A command as it is sent. */
typedef struct wefti_vector_frame {
    uint64_t x, y; /* tables */
    uint64_t number;
    double   scale;
    uint32_t op, unused;
} wefti_vector_frame;
_Static_assert(VECTORS_MOST * sizeof(wefti_vector_frame) <= WEFTI_FRAME_BYTES - sizeof(wefti_server_frame), "commands fit into a frame");
_Static_assert(VECTORS_MOST * sizeof(double) <= WEFTI_REPLY_BYTES - sizeof(wefti_server_frame), "results fit into a reply");

WEFT_MUST_CHECK weft_status wefti_vectors_carry_out(weft_server *server, server_job *job, bool repeated);

/* --- sums over units --- */

WEFT_MUST_CHECK weft_status wefti_gather_begin(served_table *table, uint64_t evaluation, uint64_t units);
/* Takes job->values as the unit's; what comes twice, or late, is dropped. */
WEFT_MUST_CHECK weft_status wefti_gather_add(served_table *table, const server_job *job);
void wefti_gather_free(weft_server *server, served_table *table);

/* --- giving out work --- */

typedef enum wefti_work_kind {
    WORK_READY, /* the start is on the servers */
    WORK_BEGIN, /* the coordinator: an evaluation, if it has not begun here, and as ASK */
    WORK_ASK,   /* for a unit, or for the end of the evaluation; of evaluation 0: for the start and all workers being there */
    WORK_END,   /* the coordinator: the run is over */
    /* Answers. */
    WORK_NOTHING, WORK_UNIT, WORK_COMPLETE, WORK_OVER
} wefti_work_kind;

enum { WORK_TEXT_BYTES = 560 };

/* A message about work, either way. */
typedef struct wefti_work {
    uint64_t run, evaluation, unit, units, timeout_ns;
    double   loss;     /* of the unit; COMPLETE: of all */
    uint64_t given, repeated; /* COMPLETE: so far, in the run */
    uint32_t kind;
    int32_t  status;   /* of the unit, or of the run */
    uint8_t  computes; /* takes units */
    uint8_t  brings;   /* ASK: the result of `unit` of `evaluation` */
    uint8_t  once;     /* BEGIN: no unit is given twice */
    uint8_t  point;    /* BEGIN, UNIT: which of two tables has the point, and gets the gradient */
    uint8_t  open;     /* NOTHING: others compute */
    uint8_t  ready;    /* as if READY had been said before */
    uint8_t  unused[2];
    struct {
        int64_t iteration, evaluations, given, repeated, end;
        double  loss, gradient_norm, point_norm, step;
    } report;          /* END, OVER */
    char     text[WORK_TEXT_BYTES];
} wefti_work;
_Static_assert(sizeof(wefti_work) <= WEFTI_REPLY_BYTES - sizeof(wefti_server_frame), "a message about work fits into a reply");

void wefti_ledger_carry_out(weft_server *server, server_job *job);
void wefti_ledger_look(weft_server *server, uint64_t now_ns); /* deadlines, workers that are gone, and what waits */
void wefti_ledger_close(weft_server *server);

/* --- the worker's side --- */

/* As weft_vectors_run, with commands as they are sent. */
WEFT_MUST_CHECK weft_status wefti_vectors_ask(weft_server *server, const wefti_vector_frame *commands, int32_t count, double *results_out);
/* Sends a message to the ledger and waits for the answer, which replaces it. */
WEFT_MUST_CHECK weft_status wefti_work_ask(weft_server *server, wefti_work *work);
/* Gives a unit's values [rows of the table] to all servers. */
WEFT_MUST_CHECK weft_status wefti_gather_give(weft_table *table, uint64_t evaluation, uint64_t unit, const double *values);

#endif

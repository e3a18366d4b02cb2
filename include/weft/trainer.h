/* The trainer: a program (loss, regulariser, solver, strategy) trained step by step.
 *
 *     weft_program program = {.loss = loss, .regulariser = weft_l2(1e-4), .solver = weft_adamw(1e-3)};
 *     if ((s = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
 *     while ((s = weft_loader_next(loader, &batch)) == WEFT_OK)
 *         if ((s = weft_trainer_step(trainer, &batch, &report)) != WEFT_OK) break;
 *
 * Everything here is collective: all ranks make the same calls in the same order, each with its own rows of the batch. A trainer
 * is used by one thread at a time. Calls block until their work is done or the world's deadline has passed. */
#ifndef WEFT_TRAINER_H
#define WEFT_TRAINER_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/batch.h"
#include "weft/graph.h"
#include "weft/plan.h"
#include "weft/solver.h"
#include "weft/strategy.h"
#include "weft/variables.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_trainer   weft_trainer;
typedef struct weft_evaluator weft_evaluator;

typedef struct weft_program {
    weft_tensor     *loss; /* one floating element */
    weft_regulariser regulariser;
    weft_solver      solver;
    weft_strategy    strategy;
    weft_tensor *const *wanted; /* [n_wanted] floating inputs of the graph whose gradients of L are wanted after each step (weft_trainer_gradient): for
                                   what is trained elsewhere, as rows of a parameter server's tables. Copied */
    int32_t          n_wanted;
    bool             ignore_nan; /* go on where the loss is not finite: that step changes nothing and is counted as skipped */
    bool             trace;      /* keep what weft_plan_trace needs */
    bool             profile;    /* measure each operation (weft_plan_profile) */
} weft_program;

/* What a step did. */
typedef struct weft_report {
    int64_t  step;            /* number of this step, from 1 */
    double   loss;            /* L over the global batch, before the update and without the regulariser */
    double   rate;            /* learning rate of this step; L-BFGS: the length that the line search found */
    double   gradient_norm;   /* global 2-norm of the gradient of L before clipping, with clip_norm or f16; L-BFGS: of L + Omega; else 0 */
    bool     skipped;         /* the loss was not finite and the program ignores that, or a gradient in f16 overflowed: nothing changed */
    int64_t  rows;            /* of the global batch */
    uint64_t step_ns;         /* wall time of the step on this rank */
    uint64_t wait_ns;         /* of it, waiting for other ranks with nothing to compute */
    int32_t  straggler;       /* the rank that all others wait for of late (weft_world_straggler); -1: nobody in particular, or WEFT_SERVER */
    double   straggler_share; /* by which share of the time they wait longer than it */
    int32_t  staleness;       /* WEFT_SERVER: steps of the other ranks that this one's parameters may lack, that of overlap included; -1: any number */
    int32_t  lost;            /* WEFT_SERVER without staleness: ranks that took no part in it, the same number on all; else 1 where some rank is known to be gone.
                                 Then weft_world_shrink and weft_trainer_renew go on in a world without them, in which all rows have replicas again */
    int32_t  evaluations;     /* of loss and gradient: 1, or more for L-BFGS, which assigns states at the first of them only */
} weft_report;

/* Differentiates the loss, adds the solver's updates to the loss's graph (which the trainer retains; a graph takes one trainer),
 * splits it by the strategy and plans it. Parameters that the loss does not depend on, and frozen ones, stay as they are. Compares the
 * program with the other ranks'. Errors: the graph's own; WEFT_E_INVALID naming a setting; WEFT_E_SHAPE for a loss of more than one
 * element; WEFT_E_DTYPE for a parameter that is neither f32 nor f64; a wanted tensor that is no floating input, or that the loss does not depend on; WEFT_E_UNSUPPORTED; WEFT_E_MISMATCH where ranks differ. */
WEFT_MUST_CHECK weft_status weft_trainer_create(weft_world *world, const weft_program *program, weft_trainer **trainer_out);
/* NULL is allowed. */
void weft_trainer_release(weft_trainer *trainer);

/* One update from one batch: fields are matched with inputs by name, each with this rank's rows of global_rows (see
 * weft_batch_share). A smaller batch than the graph was built for is planned when it first comes. `report_out` may be NULL.
 * WEFT_E_NAN: the loss is not finite; the message names step and rank, and nothing was changed. WEFT_E_PEER: a rank is lost, by
 * number (with WEFT_SERVER: and parameters with it); the variables of this step are undefined, those saved are not. */
WEFT_MUST_CHECK weft_status weft_trainer_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report_out);

/* The gradient of L by program.wanted[index] in the latest step: this rank's rows where the input counts samples, and then exact, as the loss is that of
 * the global batch; else whole. After a skipped step it need not be finite. `value_out` as of weft_plan_output, valid until the next
 * step. WEFT_E_INVALID for an index that is none. */
WEFT_MUST_CHECK weft_status weft_trainer_gradient(const weft_trainer *trainer, int32_t index, weft_plan_value *value_out);
/* Copies it to `values_out`, which has room for exactly its `bytes` (WEFT_E_MISMATCH otherwise). Waits for the device. WEFT_E_STATE before the
 * first step. */
WEFT_MUST_CHECK weft_status weft_trainer_gradient_fetch(const weft_trainer *trainer, int32_t index, void *values_out, size_t bytes);

/* The strategy in words, one that was chosen with why and with what stood next to it. Owned by the trainer. WEFT_E_NO_MEMORY. */
WEFT_MUST_CHECK weft_status weft_trainer_describe(weft_trainer *trainer, const char **text_out);
/* The strategy that it trains by, with what was chosen. Borrowed. */
const weft_strategy *weft_trainer_strategy(const weft_trainer *trainer);

/* Steps done so far, those before a resume included. */
int64_t weft_trainer_steps(const weft_trainer *trainer);
/* The world that it was created in. Borrowed. */
weft_world *weft_trainer_world(const weft_trainer *trainer);
/* This rank's place among those that share each batch, and how many these are: .rank and .ranks of weft_loader_options, by the trainer's strategy in its
 * world. weft_fit deals its loaders out by it; for loops and batches of one's own. Does not block. */
void weft_trainer_share(const weft_trainer *trainer, int32_t *rank_out, int32_t *ranks_out);
/* Parameters, states and solver states. Borrowed. */
weft_variables *weft_trainer_variables(weft_trainer *trainer);
/* With WEFT_SERVER: this rank's part in the server (weft_server_count says what it moved); else NULL. Borrowed. */
struct weft_server *weft_trainer_server(weft_trainer *trainer);
/* The plan of a full batch. Borrowed. */
weft_plan *weft_trainer_plan(weft_trainer *trainer);

/* --- saving --- */

struct weft_loader; /* weft/loader.h */

/* Writes parameters, states, solver state, the step count and, where `loader` is not NULL, where it stands, to one safetensors file:
 * rank 0 writes, atomically (the last good file stays until the new one is on disk), and every rank returns its status. What other ranks alone have
 * comes to rank 0 while it writes, one variable at a time, so under every strategy the file is that of one process, and no rank holds all.
 *
 * A path that ends in .safetensors.index.json is for large runs: every rank writes whole variables of its stage, about as many bytes each, to a file of its own
 * beside it, at the same time; then rank 0 writes the index, as is usual for large models, which loads under any mesh. Until the index is there the former one and
 * its files are as they were; then these go. WEFT_E_UNSUPPORTED with WEFT_SERVER, whose servers may outlive ranks. */
WEFT_MUST_CHECK weft_status weft_trainer_save(weft_trainer *trainer, const char *path, const struct weft_loader *loader);
/* Goes on where a saved run stood, to the bit: rank 0 reads and sends. Where ranks have parts of the run and all find the same file at the path (by its checksums), as on a
 * shared file system, they read it together, each about as much, and each byte once. Any number of ranks may load what any other number saved, under any mesh.
 * Nothing is changed on an error: a file that is missing or corrupt, an array that the file lacks or has in another shape, arrays
 * that this program does not know (all named), a graph with random nodes that has another seed (WEFT_E_MISMATCH).
 *
 * With WEFT_SERVER ranks may die meanwhile, or have died: the lowest that is there reads, as it writes in weft_trainer_save, and those who are left go on. Where the
 * one that reads dies, or a rank while what compression kept is dealt out, all get WEFT_E_PEER; so they do where a server dies without replicas. After WEFT_E_PEER
 * parameters may be of either run: load again. */
WEFT_MUST_CHECK weft_status weft_trainer_load(weft_trainer *trainer, const char *path, struct weft_loader *loader);

/* --- going on without a lost rank, or with another one in its place (weft_world_shrink) ---
 *
 *     if (weft_trainer_step(trainer, &batch, &report) == WEFT_OK) s = weft_trainer_keep(trainer, loader);
 *     else if ((s = weft_world_shrink(world, NULL, &next)) == WEFT_OK) s = weft_trainer_renew(trainer, next, loader);
 *
 * weft_fit does this by itself where it is asked to (.elastic). */

/* Copies the run's state as it is after a step to this rank's own memory: parameters, states and solver states, all of them whole, those that
 * other ranks update in parts too; step count, scale of the loss, and where the loader stands (random numbers are drawn by the step's number).
 * Variables are updated in place, so those of a step that a fault ended may be torn; this copy is never: it is replaced when the next
 * one is whole. Waits for no other rank, and ranks need not keep the same steps. Redundancy: every rank has all, so any one that is left is
 * enough; two copies of the trainer's variables a rank, and the time to copy them at each call. Not kept: what compression left out of
 * gradients, and its bases. `loader` may be NULL. WEFT_E_INVALID, WEFT_E_NO_MEMORY, WEFT_E_DEVICE; WEFT_E_UNSUPPORTED with strategy.zero, and with WEFT_SERVER, where
 * nothing is to be kept.
 *
 * With strategy.tensor or pipeline a rank keeps its parts of the run, and those it kept the time before: enough while of the ranks that differ along data alone
 * one is left, and all keep the same steps. */
WEFT_MUST_CHECK weft_status weft_trainer_keep(weft_trainer *trainer, const struct weft_loader *loader);
/* The step after which the latest copy was made; -1: there is none. */
int64_t weft_trainer_kept(const weft_trainer *trainer);

/* Goes on in `world`, which follows the trainer's own after a fault: plans and variables are made there, and of all ranks' copies the one of the
 * highest step (of which all parts are there) is sent to all, whose trainers and loaders then stand where it does: at most what was not kept is done again. A rank
 * that came into `world` in place of a lost one creates its trainer there, and makes this call with the same world. What follows is, to the bit,
 * what a run of that world's ranks does which loaded a checkpoint that was saved after that step (without compression).
 *
 * With WEFT_SERVER nothing is kept or done again: rows, solver states and what compression left out come along with the servers, those of lost ranks from their replicas
 * (WEFT_E_PEER where there are none: load a checkpoint), and afterwards all have replicas again, so that the next fault loses nothing either. Steps go on meanwhile without
 * a lost rank, so there is no hurry: report.lost says when to, without staleness in the same step on all ranks; others all go on from where rank 0 stands. With a bounded staleness
 * a rank that has heard of it ends no more clocks, so after a fault a step that waits for others' clocks ends without its pull (.lost says so), and the next one begins with that: a bound is
 * never passed. Not in replicas that are split (WEFT_E_UNSUPPORTED). If fewer ranks are left than strategy.servers, all of them serve.
 *
 * The trainer's evaluators come along; the loader goes on with the new rank's share (other loaders: weft_loader_share). What was borrowed of the
 * trainer, its variables and its plan, is gone. `world` must live as long as the trainer; the one before may be released.
 * Collective; blocks. On an error the trainer is where it was, the loader may stand elsewhere, and the call may be made again, also with a
 * later world; by a server that may have come to `world` already, which then has to stay until a later call succeeds or the trainer is released:
 * WEFT_E_NOT_FOUND where no rank has a copy, or nobody some part of it (load a checkpoint), WEFT_E_MISMATCH where it is of another program or
 * loader, or its parts are dealt out otherwise on so many ranks; WEFT_E_INVALID where the strategy demands another number of ranks; WEFT_E_UNSUPPORTED with
 * strategy.zero; those of weft_trainer_create. */
WEFT_MUST_CHECK weft_status weft_trainer_renew(weft_trainer *trainer, weft_world *world, struct weft_loader *loader);

/* --- evaluation --- */

/* Computes tensors of the trainer's graph with its variables, as they are at the time of each run; dropout is off and batch norm uses
 * running statistics. `outputs` [n_outputs] must not depend on gradients. The trainer must outlive it. *evaluator_out is NULL on error:
 * WEFT_E_INVALID (NULL, a tensor of another graph), WEFT_E_NO_MEMORY, the graph's own first error. Does not block. */
WEFT_MUST_CHECK weft_status weft_evaluator_create(weft_trainer *trainer, weft_tensor *const *outputs, int32_t n_outputs,
                                                  weft_evaluator **evaluator_out);
void weft_evaluator_release(weft_evaluator *evaluator);
/* Runs on one batch of any size, as weft_trainer_step takes it; collective like that, and changes nothing. It blocks until the outputs
 * are there. The first batch of a size is planned and allocates. Errors are those of weft_plan_run. */
WEFT_MUST_CHECK weft_status weft_evaluator_run(weft_evaluator *evaluator, const weft_batch *batch);
/* An output of the latest run: whole, or this rank's rows where it has an axis that counts samples. Valid until the next
 * run. WEFT_E_STATE before the first, WEFT_E_INVALID for an index that is none. On a device whose memory the host cannot read, data is
 * NULL: fetch it. */
WEFT_MUST_CHECK weft_status weft_evaluator_output(const weft_evaluator *evaluator, int32_t index, weft_plan_value *value_out);
/* Copies an output of the latest run to `values_out`, which has room for exactly its `bytes` (WEFT_E_MISMATCH otherwise). Waits for
 * the device. Errors as weft_evaluator_output, WEFT_E_DEVICE. */
WEFT_MUST_CHECK weft_status weft_evaluator_fetch(const weft_evaluator *evaluator, int32_t index, void *values_out, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif

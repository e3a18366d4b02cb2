/* The trainer's insides, for the files of this room. */
#ifndef WEFTI_TRAINER_H
#define WEFTI_TRAINER_H

#include "core/graph/graph.h"
#include "core/iface/rule.h"
#include "core/iface/world.h"
#include "core/plan/plan.h"
#include "parallel/automatic.h"
#include "parallel/mesh.h"
#include "parallel/partition.h"
#include "parallel/stages.h"
#include "parallel/tensor.h"
#include "parallel/zero.h"
#include "weft/checkpoint.h"
#include "weft/loader.h"
#include "weft/server.h"
#include "weft/trainer.h"

/* A plan for one number of rows, with compression or without. The partition is the rewrite's context, so it stays where it is. */
typedef struct wefti_sized_plan {
    wefti_partition          partition;
    const wefti_splits      *splits;    /* of the set */
    const wefti_zero        *zero;      /* of the set */
    wefti_pipeline           pipeline;
    int32_t                  place;     /* this rank's along the pipeline */
    weft_variables          *variables; /* that get the states of compression; of the set */
    weft_plan               *plan;
    int32_t                  n_partial; /* of the set */
    bool                    *whole;     /* [n_outputs] where the set is partial: the gradient is the same on all ranks; else NULL */
    struct wefti_sized_plan *next;
} wefti_sized_plan;

/* Plans of one set of outputs for every batch size that came, all in one arena. */
typedef struct wefti_plan_set {
    weft_world        *world;
    const wefti_mesh  *mesh;     /* NULL: all of the world shares the batch */
    const wefti_splits *splits;  /* NULL: ranks have rows of the batch, and whatever is computed of these */
    const wefti_zero  *zero;     /* NULL: ranks along data have all alike */
    const char        *zero_notes; /* for descriptions; NULL: nothing to say */
    weft_graph        *graph;    /* retained by its plans */
    weft_variables    *variables;
    weft_tensor      **outputs;  /* [n_outputs] owned */
    int32_t            n_outputs;
    bool               training;
    weft_plan_options  options;  /* bucket sizes, trace, profile */
    int32_t            micro;
    int32_t            chunks;   /* stages of each of a pipeline's ranks */
    weft_pipeline_order schedule;
    const weft_compression *compress; /* of the plans that are asked for next; NULL: none */
    bool               scaled;   /* see wefti_partition */
    bool               partial;  /* gradients among the outputs are what this rank contributes to them … */
    int32_t            n_partial; /* … and so many these are, from WEFTI_OUT_FIRST_GRADIENT on */
    const bool        *whole;    /* [n_outputs] partial: which are not, but the same on all ranks; of the plan that was asked for last */
    int64_t            rows;     /* of the largest batch seen */
    weft_plan         *latest;   /* that was asked for last; NULL: none */
    wefti_sized_plan  *plans;
} wefti_plan_set;

/* Fills a set (nothing is planned yet). `outputs` is copied; the mesh stays the caller's. */
weft_status wefti_plan_set_open(wefti_plan_set *set, weft_world *world, const wefti_mesh *mesh, weft_graph *graph, weft_variables *variables,
                                weft_tensor *const *outputs, int32_t n_outputs, bool training);
void        wefti_plan_set_close(wefti_plan_set *set);
/* The plan for a batch of `rows` rows, made where there is none yet. Borrowed. */
weft_status wefti_plan_set_get(wefti_plan_set *set, int64_t rows, weft_plan **plan_out);
/* Goes to another world, with variables there; plans are made anew when they are asked for. */
void wefti_plan_set_move(wefti_plan_set *set, weft_world *world, weft_variables *variables);
/* Feeds a batch and `extra` feeds, and runs. */
weft_status wefti_plan_set_run(weft_plan *plan, const weft_batch *batch, const weft_feed *extra, int32_t n_extra);

/* Outputs of a training plan, by index. */
enum { WEFTI_OUT_LOSS, WEFTI_OUT_OWN_LOSS, WEFTI_OUT_NORM, WEFTI_OUT_FIRST_GRADIENT };

/* The training graph: parameters that train, their gradients, and the outputs to fetch. */
typedef struct wefti_training {
    weft_tensor **parameters; /* [n] in the order of the graph */
    weft_tensor **gradients;  /* [n], and behind them [n_wanted] of inputs */
    int32_t       n, n_wanted;
    weft_tensor  *hyper;      /* INPUT "weft.hyper", f64[WEFTI_HYPER_COUNT]; L-BFGS: only SKIP is read */
    weft_tensor  *norm;       /* global norm of the gradient, a scalar; NULL where not asked for */
} wefti_training;

/* Whether the strategy is one that a program can have in that world. */
WEFT_MUST_CHECK weft_status wefti_trainer_check(const weft_world *world, const weft_program *program);
/* Chooses an automatic strategy; nothing where it is not. The program was lowered and has no gradients yet. Collective (automatic.c). */
WEFT_MUST_CHECK weft_status wefti_automatic_choose(weft_trainer *trainer);
/* The next best instead, where what was chosen turned out to be WEFT_E_UNSUPPORTED by its plan; false: there is none. */
bool wefti_automatic_next(weft_trainer *trainer);
/* What it chooses by: the program's costs, and what the ranks of a world can. The second is collective; memory_bytes 0: what there is. */
WEFT_MUST_CHECK weft_status wefti_automatic_costs(const weft_trainer *trainer, wefti_auto_costs *costs_out);
WEFT_MUST_CHECK weft_status wefti_automatic_measure(weft_world *world, double memory_bytes, wefti_auto_machine *machine_out);

/* Scopes that could be computed again, 0: nothing; and makes them segments, before gradients are added (recompute.c). */
int32_t wefti_recompute_scopes(weft_graph *graph);
void    wefti_recompute_mark(weft_graph *graph);

/* Whether a program is one that can be trained. */
weft_status wefti_training_check(const weft_program *program);
/* Differentiates and adds updates; the program was checked. The arrays live in graph memory. */
weft_status wefti_training_build(const weft_program *program, wefti_training *training_out);

/* The parameters that the loss depends on and that are not frozen; room for their gradients. */
weft_status wefti_training_find(const weft_program *program, wefti_training *training_out);

/* Puts the strategy's precision into the program: program->loss and the graph's effects become those of a copy of the forward graph with
 * its heavy ops in bf16 or f16. Nothing where the precision is f32. */
weft_status wefti_precision_lower(weft_program *program);

/* The scale of the loss, for f16: halved when a step overflows, doubled after so many steps that did not. Exponents of two. */
enum { WEFTI_LOSS_SCALE_START = 16, WEFTI_LOSS_SCALE_LEAST = -14, WEFTI_LOSS_SCALE_MOST = 30, WEFTI_LOSS_SCALE_PATIENCE = 2000 };
typedef struct wefti_loss_scale {
    int64_t exponent; /* the scale is 2^exponent */
    int64_t good;     /* steps since it last changed */
} wefti_loss_scale;

/* What weft_fit adds up and finds on its way, kept with the run that it belongs to. */
typedef struct wefti_fit_sums {
    double epoch_loss, epoch_rows;             /* sums over the epoch */
    double train_loss, test_loss, test_accuracy; /* as in weft_fit_result */
} wefti_fit_sums;

struct weft_trainer {
    weft_world     *world;
    wefti_mesh      mesh;      /* of the world, by the strategy */
    wefti_splits    splits;    /* where the mesh has such axes */
    wefti_zero      zero;      /* where the strategy asks for it, and there are ranks along data */
    weft_program    program;
    weft_graph     *graph;     /* retained */
    uint64_t        hash;      /* of the program, the same on all ranks */
    weft_variables *variables;
    wefti_training  training;
    weft_tensor   **outputs;   /* [n_outputs] of the training plans; graph memory */
    int32_t         n_outputs;
    wefti_plan_set  plans;
    int64_t         steps;
    wefti_loss_scale scale;    /* f16 only */
    struct wefti_lbfgs *lbfgs; /* NULL for other solvers */
    struct wefti_served *served; /* with WEFT_SERVER; else NULL */
    wefti_mesh      replica;   /* with WEFT_SERVER and staleness, of replicas that are split: the mesh without the other replicas; its groups are the mesh's */
    weft_world      lone;      /* the world as a world of this rank alone, for plans that have nothing to do with the others */
    weft_world      met;       /* with WEFT_SERVER: the world with a group whose reductions go by way of the server, so that they outlive ranks */
    wefti_fit_sums  sums;
    struct wefti_kept *kept;   /* renew.c; NULL: nothing yet */
    wefti_text      words;     /* why the strategy was chosen */
    wefti_auto_choice choice;  /* while it is being created by an automatic strategy */
    weft_world     *own_world; /* that weft_fit made after a fault, and that goes with the trainer; NULL: none */
    struct wefti_left_world *left_worlds; /* that it made, too, but could not go over to: a server may be in them, or on its way to them */
    struct weft_evaluator *evaluators; /* a list */
};

typedef struct wefti_left_world {
    weft_world              *world; /* NULL: none yet */
    struct wefti_left_world *next;
} wefti_left_world;
/* Once no server can be there. */
void wefti_trainer_release_left(weft_trainer *trainer);

/* The world as ranks meet in it: see `met`. */
static inline weft_world *wefti_trainer_meets(weft_trainer *trainer) { return trainer->met.group ? &trainer->met : trainer->world; }

/* Whether a parameter server has replicas that are split beyond rows of the batch. */
static inline bool wefti_served_in_parts(const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    return s->sync == WEFT_SERVER && (s->tensor > 1 || s->pipeline > 1 || s->sequence > 1);
}
/* Training by a parameter server. The links, by which plans may reduce from then on, and then the tables. Both collective. */
weft_status wefti_served_open(weft_trainer *trainer, struct wefti_served **served_out);
weft_status wefti_served_create(weft_trainer *trainer);
/* Instead of open where the trainer has come to another world: its rows come along. On an error they are where they were, or in the split of a later call. Collective,
 * with ranks that open. */
WEFT_MUST_CHECK weft_status wefti_served_move(weft_trainer *trainer);
WEFT_MUST_CHECK weft_status wefti_served_find(weft_trainer *trainer); /* after its variables have been replaced */
WEFT_MUST_CHECK weft_status wefti_served_pull(weft_trainer *trainer); /* parameters from the servers */
/* Ranks that took no part in the latest step; with staleness, whether anybody is known to be gone. */
int32_t wefti_served_lost(const weft_trainer *trainer);
void        wefti_served_release(struct wefti_served *served);
weft_status wefti_served_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report);
bool wefti_served_all_are_there(const struct wefti_served *served); /* nobody of the world is known to have died */
struct weft_server *wefti_served_server(struct wefti_served *served); /* NULL gives NULL */
/* Makes the variables what the servers have, with all that anybody has pushed: where ranks go each at its pace. NULL trainer->served: nothing.
 * Collective. */
weft_status wefti_served_refresh(weft_trainer *trainer);
typedef struct wefti_served_states wefti_served_states;
/* Gives the lead's variables to the servers, and its states where it has some; the others get them. Collective. */
weft_status wefti_served_restore(weft_trainer *trainer, const wefti_served_states *states, int32_t lead);
bool        wefti_served_has(const weft_trainer *trainer, const char *variable); /* it is a parameter, and on servers */
struct weft_table *wefti_served_table(const struct wefti_served *served, int32_t parameter); /* NULL where it has no elements */

/* Solver states of the servers, at the lead (served_states.c). */
struct wefti_served_states {
    uint8_t *memory; /* NULL: there are none */
    size_t   size_bytes;
    int64_t *updates; /* [n] that each parameter's rows have had */
    int32_t  n;
};
/* One rank alone talks to the servers; nobody may be in a step. */
weft_status wefti_served_states_gather(weft_trainer *trainer, wefti_served_states *states);
weft_status wefti_served_states_set(const weft_trainer *trainer, const wefti_served_states *states);
weft_status wefti_served_states_add(const weft_trainer *trainer, const wefti_served_states *states, weft_checkpoint_writer *writer);
weft_status wefti_served_states_read(const weft_trainer *trainer, weft_checkpoint *file, wefti_served_states *states);
void        wefti_served_states_release(wefti_served_states *states);

/* What a trainer has in its world, and leaves there when it goes to another one. */
typedef struct wefti_station {
    weft_world         *world;
    wefti_mesh          mesh;
    wefti_splits        splits;
    wefti_zero          zero;
    weft_variables     *variables;
    wefti_plan_set      plans;
    struct wefti_lbfgs *lbfgs;
} wefti_station;

/* Plans and variables in `world`, with their first values; what it had before goes to *left_out. Collective over `world`, in the same
 * order as in weft_trainer_create: a rank that has just come creates while the others move. On an error nothing has changed. */
WEFT_MUST_CHECK weft_status wefti_trainer_move(weft_trainer *trainer, weft_world *world, wefti_station *left_out);
/* Back to where it was. */
void wefti_trainer_return(weft_trainer *trainer, const wefti_station *left);
/* Rewrites a batch rank's graph by the first `n` splits, one after another: the graph is replaced, and outputs are (split.c). */
WEFT_MUST_CHECK weft_status wefti_splits_rewrite(const wefti_splits *splits, int32_t n, const wefti_partition *batch, weft_graph **graph, weft_tensor **outputs,
                                                 int32_t n_outputs, bool training);
/* Chooses what of the program's parameters each rank has, along sequence, expert and tensor, and along data. */
WEFT_MUST_CHECK weft_status wefti_trainer_split(weft_trainer *trainer);
/* The windows that follow from it, and that of a variable. */
wefti_windows wefti_trainer_windows(const weft_trainer *trainer);
wefti_window_of wefti_trainer_window(const weft_trainer *trainer, const char *variable);
/* Whether this rank's variables, and with a plan all of it, fit into the strategy's memory_bytes. */
WEFT_MUST_CHECK weft_status wefti_trainer_room(const weft_trainer *trainer, const weft_plan *plan);
/* What a split of more than the batch does not go with, and why, in words; NULL: it goes with all that the program says. `whole`: who has a gradient has all of it. */
const char *wefti_split_refuses(const weft_program *program, bool whole);
/* Refuses what zero is not for. */
WEFT_MUST_CHECK weft_status wefti_zero_check(const weft_world *world, const weft_program *program);
/* For good: the evaluators come along. */
void wefti_trainer_leave(weft_trainer *trainer, wefti_station *left);
/* This rank's place among those that share batches, and how many these are. */
static inline int32_t wefti_trainer_data_rank(const weft_trainer *trainer) { return wefti_mesh_batch_rank(&trainer->mesh); }
static inline int32_t wefti_trainer_data_ranks(const weft_trainer *trainer) { return wefti_mesh_batch_ranks(&trainer->mesh); }

/* A run's contents: variables, or this rank's parts of them, one after another, then the numbers. What each rank keeps by itself (compress_state.c) is not in it. */
typedef struct wefti_snapshot {
    unsigned char *bytes; /* each variable from a multiple of 64 on */
    size_t         size_bytes;
    bool           bases; /* of compression too */
    uint64_t       layout; /* of its parts, where ranks have some: what each is, and who has which */
    int32_t        place;  /* whose parts these are: see wefti_parts_place */
    struct {
        int64_t           step, lbfgs_used, lbfgs_next;
        wefti_loss_scale  scale;
        wefti_fit_sums    sums;
        bool              has_loader;
        weft_loader_state loader;
    } numbers;
} wefti_snapshot;

size_t      wefti_snapshot_size(const weft_trainer *trainer, bool bases);
weft_status wefti_snapshot_open(const weft_trainer *trainer, bool bases, wefti_snapshot *snapshot_out);
void        wefti_snapshot_close(wefti_snapshot *snapshot);
/* The offset of what comes behind `bytes` at `at`. */
static inline size_t wefti_snapshot_next(size_t at, int64_t bytes) { return wefti_align_up(at + (size_t)bytes, WEFTI_CACHE_LINE); }
/* Variable `i` as a snapshot sees it, with the bytes of this rank's part; false: it is not in it. */
bool wefti_snapshot_holds(const weft_trainer *trainer, bool bases, int32_t i, weft_variable_info *info_out);
/* From rank `from` to all. Collective. */
weft_status wefti_snapshot_send(weft_world *world, int32_t from, wefti_snapshot *snapshot);
/* Its numbers alone. */
void wefti_snapshot_take_numbers(weft_trainer *trainer, const wefti_snapshot *snapshot);

/* --- where ranks have parts of the run (save_split.c) --- */

/* Whether no rank has all of the run. */
bool wefti_in_parts(const weft_trainer *trainer);
/* How many different parts of a run there are, and which one a rank of the trainer's world has: ranks along data have the same. */
int32_t wefti_parts_count(const weft_trainer *trainer);
int32_t wefti_parts_place(const weft_trainer *trainer, int32_t rank);
/* Equal where parts are dealt out alike. */
WEFT_MUST_CHECK weft_status wefti_parts_layout(const weft_trainer *trainer, uint64_t *layout_out);

/* A variable of the run, wherever it is. */
typedef struct wefti_listed {
    weft_variable_info info;
    int32_t         here;    /* its index among this rank's variables; -1: others have it */
    wefti_window_of window;  /* how it is dealt out */
    int32_t         holder[WEFTI_MESH_AXES]; /* who has its first part, by place on the mesh, from where on others lie along tensor and data */
} wefti_listed;
/* All variables in the order of files, which is that of one process: the same on all ranks but for `here`. */
typedef struct wefti_listing {
    wefti_listed *list; /* [n] names belong to the trainer */
    int32_t       n;
} wefti_listing;
WEFT_MUST_CHECK weft_status wefti_listing_open(const weft_trainer *trainer, wefti_listing *listing_out);
void wefti_listing_close(wefti_listing *listing);
/* Whether all of the variable is here, and this rank is to say what it is. */
bool wefti_listed_is_here(const weft_trainer *trainer, const wefti_listed *it);

/* Whole variables, one at a time, at rank 0. */
typedef struct wefti_gatherer {
    weft_trainer *trainer;
    wefti_listing listing;
    int32_t       latest; /* the variable that is here; -1: none */
    void         *whole;  /* [bytes] who gathers */
    void         *part;   /* [part_bytes] */
    size_t        bytes, part_bytes;
} wefti_gatherer;
typedef struct wefti_gathered {
    wefti_gatherer *gatherer;
    int32_t         index; /* in the listing */
} wefti_gathered;
/* On every rank; what is open then has to be closed, whatever it gave. `everywhere`: any rank may gather, else rank 0. */
WEFT_MUST_CHECK weft_status wefti_parts_open(weft_trainer *trainer, bool everywhere, wefti_gatherer *gatherer_out);
/* Variable `index` of the listing at rank `to`, in its gatherer. All ranks call it, for the same variables in the same order. */
WEFT_MUST_CHECK weft_status wefti_parts_gather(wefti_gatherer *gatherer, int64_t index, int32_t to);
void wefti_parts_close(wefti_gatherer *gatherer);
/* Rank 0 fetches (a weft_checkpoint_fetch, of a wefti_gathered) and ends, whatever happened, deals ended the same; the others serve until then. */
weft_status wefti_parts_fetch(void *context, uint64_t offset, uint64_t bytes, void *out);
WEFT_MUST_CHECK weft_status wefti_parts_end(const weft_trainer *trainer);
WEFT_MUST_CHECK weft_status wefti_parts_serve(wefti_gatherer *gatherer);

/* Who moves a variable between the ranks and its file: of its stage's ranks, which all have it or a part, whoever has fewest bytes so far. `mover` [n] ranks, -1: nobody;
 * `load` [ranks], zero before. */
void wefti_parts_movers(const weft_trainer *trainer, const wefti_listing *listing, int32_t *mover, int64_t *load);

/* A run that is read, on its way to all: what is this rank's of it. */
typedef struct wefti_dealer {
    weft_trainer    *trainer;
    wefti_listing    listing;
    weft_checkpoint *file;  /* that all ranks have open; NULL: rank 0 alone reads */
    void            *whole; /* [whole_bytes] one variable */
    void            *part;  /* [part_bytes] somebody's part of one */
    unsigned char   *own;   /* [own_bytes] this rank's parts, each from a multiple of 64 on */
    size_t          *at;    /* [n] where in them */
    size_t           whole_bytes, part_bytes, own_bytes;
} wefti_dealer;
WEFT_MUST_CHECK weft_status wefti_deal_open(weft_trainer *trainer, wefti_dealer *dealer_out);
void wefti_deal_close(wefti_dealer *dealer);
/* Whether all ranks find the same at a path; sets `file`. Collective. */
WEFT_MUST_CHECK weft_status wefti_deal_meet(wefti_dealer *dealer, const char *path);
/* Rank 0 reads all variables, or only looks for them where there is a `file`, and then ends, whatever happened; the others follow until then. */
WEFT_MUST_CHECK weft_status wefti_deal_read(wefti_dealer *dealer, weft_checkpoint *file);
WEFT_MUST_CHECK weft_status wefti_deal_end(const wefti_dealer *dealer);
WEFT_MUST_CHECK weft_status wefti_deal_follow(wefti_dealer *dealer);
/* All read `file`. Collective; a rank's status is its own. */
WEFT_MUST_CHECK weft_status wefti_deal_share(wefti_dealer *dealer);
/* The variables become what came. */
WEFT_MUST_CHECK weft_status wefti_deal_take_over(const wefti_dealer *dealer);

/* The trainer, and the loader where there is one, go on from it. The loader may refuse, so it comes first. */
weft_status wefti_snapshot_take_over(weft_trainer *trainer, weft_loader *loader, const wefti_snapshot *snapshot);
/* Sends the lead's numbers and what no server has, and takes them over on all ranks; parameters are the servers'. Collective. */
WEFT_MUST_CHECK weft_status wefti_snapshot_share_rest(weft_trainer *trainer, weft_loader *loader, wefti_snapshot *snapshot, int32_t lead);
/* What the trainer has now, and where `loader` (NULL: none) stands. */
WEFT_MUST_CHECK weft_status wefti_snapshot_take(weft_trainer *trainer, const weft_loader *loader, wefti_snapshot *snapshot);
/* weft_trainer_renew with a server (served_renew.c), and whether that goes at all. */
WEFT_MUST_CHECK weft_status wefti_served_renews(const weft_trainer *trainer);
WEFT_MUST_CHECK weft_status wefti_served_renew(weft_trainer *trainer, weft_world *world, weft_loader *loader);

/* --- pipelines (pipeline.c) --- */

/* What a pipeline is not for yet. */
WEFT_MUST_CHECK weft_status wefti_pipeline_check(const weft_program *program);
/* How many stages a rank of the strategy's pipeline has. */
int32_t wefti_pipeline_chunks(const weft_strategy *strategy);
/* Chooses the stages of the trainer's variables, and makes those of this rank's. */
WEFT_MUST_CHECK weft_status wefti_pipeline_variables(weft_trainer *trainer);
/* The rewrite behind the partition: one stage's part of a rank's graph, which is released. Outputs are replaced. */
WEFT_MUST_CHECK weft_status wefti_pipeline_cut(const wefti_sized_plan *sized, weft_graph **graph, weft_tensor **outputs, int32_t n_outputs, bool training);

/* Frees what the trainer has kept. */
void wefti_kept_release(struct wefti_kept *kept);

/* L-BFGS with a strong Wolfe line search, driven by the host over the trainer's plan. */
weft_status wefti_lbfgs_create(weft_trainer *trainer, struct wefti_lbfgs **lbfgs_out);
void        wefti_lbfgs_release(struct wefti_lbfgs *lbfgs);
weft_status wefti_lbfgs_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report);
/* What must be saved to go on exactly: one f64 array, and how many pairs are in use and which comes next. Borrowed. */
typedef struct wefti_lbfgs_state {
    double  *values; /* [n_values] */
    int64_t  n_values;
    int32_t *used, *next, history;
} wefti_lbfgs_state;
wefti_lbfgs_state wefti_lbfgs_state_of(struct wefti_lbfgs *lbfgs);

/* What one rank does while the others wait for its word may take longer than an operation between ranks is given: a checkpoint on a
 * slow disk. That a rank is dead is known by its heartbeats; this is the end of what they cannot tell. */
#define WEFTI_AGREE_LIMIT_NS (UINT64_C(24) * 3600 * 1000000000)

/* The same status on all ranks: WEFT_OK where all have it; otherwise a rank without an error of its own gets the first
 * failing rank's status and says which rank it was and what it was `doing`. Collective. */
weft_status wefti_agree(weft_world *world, weft_status own, const char *doing);

/* Who reads and writes files for all ranks: rank 0; with a server, the lowest rank that is there. Collective. (lead.c) */
WEFT_MUST_CHECK weft_status wefti_lead(weft_trainer *trainer, int32_t *lead_out);
/* Whether any rank says so, the same on all. Collective. */
WEFT_MUST_CHECK weft_status wefti_any(weft_trainer *trainer, bool *any);
/* As wefti_agree; WEFT_E_PEER on all where the lead took no part. Collective. */
WEFT_MUST_CHECK weft_status wefti_agree_with(weft_trainer *trainer, int32_t lead, weft_status own, const char *doing);
/* The lead's bytes become all ranks'. Collective. */
WEFT_MUST_CHECK weft_status wefti_lead_sends(weft_trainer *trainer, int32_t lead, void *bytes, size_t size_bytes);

/* --- what compression keeps on each rank (compress_state.c) --- */

/* Whether a variable is one rank's own: what it left out of gradients. */
bool wefti_is_compress_error(const char *name);
/* Or the basis that all ranks share; read, or left as it is where the file has none of that shape. */
bool        wefti_is_compress_basis(const char *name);
weft_status wefti_compress_basis_read(const weft_trainer *trainer, weft_checkpoint *file, const weft_variable_info *info, void *values_out);
/* Gathers all ranks' at rank 0, in memory that lives until it is released, and adds them to the file that is being written (NULL on the
 * other ranks): "weft.compress.error/<parameter>" [ranks, shape...], and of training by a server how many pushes of each parameter were coded,
 * "weft.compress.pushes" [ranks, parameters]. Collective. */
typedef struct wefti_compress_states {
    void *memory; /* [ranks] of each variable, one behind the other; NULL: there are none */
    size_t size_bytes;
} wefti_compress_states;
weft_status wefti_compress_states_gather(weft_trainer *trainer, wefti_compress_states *states_out);
weft_status wefti_compress_states_add(weft_trainer *trainer, const wefti_compress_states *states, weft_checkpoint_writer *writer);
void        wefti_compress_states_release(wefti_compress_states *states);
/* Reads what each rank of this world takes over, at rank 0, to memory as gather leaves it; and hands it out, collectively. */
weft_status wefti_compress_states_read(weft_trainer *trainer, weft_checkpoint *file, wefti_compress_states *states_out);
weft_status wefti_compress_states_deal(weft_trainer *trainer, const wefti_compress_states *states);

/* What else than variables a file of the run has. */
typedef struct wefti_saved {
    const weft_loader           *loader; /* NULL: none */
    const wefti_compress_states *states;
    const wefti_served_states   *served;
} wefti_saved;
WEFT_MUST_CHECK weft_status wefti_save_numbers(weft_trainer *trainer, const wefti_saved *saved, weft_checkpoint_writer *writer);
/* Each rank writes its part of the run to a file of its own, then rank 0 the index, `path` (save_shards.c). Collective. */
WEFT_MUST_CHECK weft_status wefti_save_shards(weft_trainer *trainer, const char *path, const wefti_saved *saved);

/* Names, over all ranks, whose data or share of the loss is not finite, or the gradient's norm where the loss is. Collective. */
weft_status wefti_trainer_nan(weft_trainer *trainer, const weft_batch *batch, double loss, double norm, double own_loss);

#endif

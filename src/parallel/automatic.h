/* Automatic strategies: of all meshes, schedules, micro-batches, kinds of sharing and recomputation that fit, the one that a model of the step takes least
 * time for. A function of three descriptions (what the program costs, what the machines can, what the user has fixed) and of nothing else, so that all
 * ranks choose alike, and clusters that do not exist can be asked about.
 *
 * The model, of a step of B rows on D x E x S x T x P ranks (data, experts, time, tensors, stages) in M micro-batches, with a all-reduce of V bytes on n ranks costing
 * a(n, V) = 2 log2(n) alpha + 2 (n-1)/n V beta:
 *   micro      = (flops / F + traffic / W) / (D E M) + 3 parameters / W + operations x launch + messages x a(T, bytes)
 *                of the slowest stage, and of the rank whose stretch of time has most to do; with more than one, adding up gradients, 3 parameters / W; recomputing: the
 *                forward pass again
 *   ring       = messages alpha + bytes beta, of the blocks of keys, values and their gradients that a rank sends on: taken as if nothing hid them    (Liu et al. 2023)
 *   choices    = (E - 1) messages alpha + (E - 1)/E bytes beta, of rows that travel to their experts and back                                   (Lepikhin et al. 2020)
 *                both of each micro-batch, as what tensors wait for
 *   pipeline   = (M + (P - 1) / v) micro + 2 (P - 1) passes, v being the runs of layers of a rank: 1 but for interleaving, with v times the messages; by zero
 *                bubble (P - 1) (micro - the gradients of weights, half of the backward pass)             (Narayanan et al. 2019, 2021; Qi et al. 2023)
 *   gradients  = a(D E S, gradients), of experts' a(D S, gradients), of which hides what the last backward pass is long, but never the last bucket; ZeRO 1 and 2: the half that brings parameters
 *                back hides behind nothing; 3: half as much again, behind both passes; from 2 on for each micro-batch (Rajbhandari et al. 2020)
 *   update     = traffic of parameters, gradients and states / W; by parts where ranks share it
 * Memory of a rank: parameters, gradients and states, each in parts by ZeRO, and what is kept of the micro-batches in flight: P at most by 1F1B and zero bubble, some
 * more by interleaving, all by GPipe, one without a pipeline. It is an estimate, and 10 % of what a rank has is left free for it. */
#ifndef WEFTI_AUTOMATIC_H
#define WEFTI_AUTOMATIC_H

#include "core/base/base.h"
#include "weft/strategy.h"

enum { WEFTI_AUTO_SPLITS = 24 };

typedef struct wefti_auto_work {
    double flops, bytes, ops; /* arithmetic; traffic with memory; operations to launch */
} wefti_auto_work;

/* What the rank with most to do has of a program that is split over so many. Batches are whole: all rows, in one piece. */
typedef struct wefti_auto_split {
    int32_t         ranks;
    wefti_auto_work work;             /* forward and backward; traffic without that of parameters, which are read twice, and their gradients */
    double          update_bytes;     /* traffic of the updates */
    double          messages, message_bytes; /* tensors: all-reduces, their operands; pipeline: tensors that pass between two stages, both ways; time: blocks that go
                                                round; experts: exchanges, rows that travel */
    double          parameter_bytes, state_bytes;
    double          expert_bytes;     /* of experts: what of the parameters is of experts that are dealt out */
    double          kept_bytes;       /* between forward and backward pass */
    double          recompute_bytes;  /* the same where scopes are computed again; negative: there is nothing to compute again */
} wefti_auto_split;

/* [0] of tensors is the program by itself; of the other axes there are only splits of two ranks and more. */
typedef struct wefti_auto_costs {
    int64_t          rows;
    double           forward_share; /* of the work */
    wefti_auto_split tensor[WEFTI_AUTO_SPLITS], pipeline[WEFTI_AUTO_SPLITS], sequence[WEFTI_AUTO_SPLITS], expert[WEFTI_AUTO_SPLITS];
    int32_t          n_tensor, n_pipeline, n_sequence, n_expert;
} wefti_auto_costs;

typedef struct wefti_auto_link {
    double alpha, beta; /* seconds of a message, and of a byte */
} wefti_auto_link;

typedef struct wefti_auto_machine {
    int32_t         ranks, per_host; /* per_host ranks next to each other run on one host; 0: all */
    double          flops, bytes, op_seconds; /* of a rank: arithmetic and traffic a second, seconds to launch an operation */
    wefti_auto_link near, far;       /* within a host, between hosts */
    double          memory_bytes;    /* that a rank has; 0: any */
    bool            shares_updates;  /* ranks of a host update in parts by themselves (strategy.divide_bytes) */
} wefti_auto_machine;

typedef struct wefti_auto_candidate {
    weft_strategy strategy; /* .automatic is off, all extents are set; sequence and expert may be 0 for 1 */
    bool          fits;
    double        seconds, computing, tensors, ring, choices, idle, gradients, updating; /* of a step; the first is the sum of the others */
    double        memory_bytes;
} wefti_auto_candidate;

typedef struct wefti_auto_choice {
    wefti_auto_candidate *candidates; /* [n] those that fit first, quickest first; of the others, the smallest first. Owned */
    int32_t               n, n_fitting, room;
    int32_t               at; /* that is being tried, for whoever plans them */
} wefti_auto_choice;

/* Whether a strategy may be taken at all, by what its parts can do together. */
typedef bool (*wefti_auto_allows)(void *context, const weft_strategy *strategy);

/* Tries all. What `asked` has set (not zero) stays. `allows` may be NULL. WEFT_E_INVALID where no mesh makes the ranks, WEFT_E_NO_MEMORY where none fits: which comes
 * nearest, its bytes, and how many ranks would do. The choice is to be released also then. */
WEFT_MUST_CHECK weft_status wefti_auto_search(const wefti_auto_costs *costs, const wefti_auto_machine *machine, const weft_strategy *asked, wefti_auto_allows allows,
                                              void *context, wefti_auto_choice *choice_out);
void wefti_auto_release(wefti_auto_choice *choice);
/* What the model says of one strategy, all of whose extents are set. */
wefti_auto_candidate wefti_auto_judge(const wefti_auto_costs *costs, const wefti_auto_machine *machine, const weft_strategy *strategy);
/* Why the first was taken, in words, and the next ones. */
void wefti_auto_explain(const wefti_auto_choice *choice, const wefti_auto_machine *machine, wefti_text *text);

#endif

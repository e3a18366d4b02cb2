/* Strategies: how a program is split over ranks. A plain value; zero is data parallelism over all ranks of the world.
 *
 * A strategy never changes the program: losses, counts, batch statistics, dropout, clipping and regularisers mean the global
 * batch under every strategy, so one rank and N ranks agree to rounding (to that of its precision). */
#ifndef WEFT_STRATEGY_H
#define WEFT_STRATEGY_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/compression.h"
#include "weft/dtype.h"
#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_sync {
    WEFT_ALLREDUCE, /* gradients are summed over all ranks at every step */
    WEFT_SERVER     /* a parameter server (weft/server.h) keeps parameters and solver states in parts; ranks push gradients to it and pull what it
                       made of them. It lives beside the training, on ranks of the same world. Not with L-BFGS (weft/lbfgs.h has that), clip_norm, f16
                       or compression (WEFT_E_UNSUPPORTED). Checkpoints are those of WEFT_ALLREDUCE, solver states and all, and may be loaded under either; rank 0 holds the
                       states while it saves or loads */
} weft_sync;

/* In which order a pipeline's P ranks work on M micro-batches. Idle is, of a step in which all passes take equally long everywhere (f forward, b backward
 * to the inputs, w to the weights): */
typedef enum weft_pipeline_order {
    WEFT_1F1B,        /* (P-1)/(M+P-1). As soon as they can, one backward pass after each forward pass: stages keep at most P micro-batches (Narayanan et al. 2019) */
    WEFT_GPIPE,       /* (P-1)/(M+P-1). All forward passes, then all backward (Huang et al. 2019) */
    WEFT_INTERLEAVED, /* (P-1)/(vM+P-1), M a multiple of P. Each rank has v runs of layers, `chunks`, and micro-batches go round v times (Narayanan et al. 2021): v times the messages */
    WEFT_ZERO_BUBBLE  /* (P-1)(f+b-w)/(M(f+b+w)+(P-1)(f+b-w)), M at least P. 1F1B in which gradients of weights, which nobody waits for, fill idle time
                         (Qi et al. 2023, ZB-H1); every stage keeps what 1F1B's first one does */
} weft_pipeline_order;

/* Ranks are a mesh of named axes, whose extents multiply to the world's size (else WEFT_E_INVALID, which names all). An axis that is left
 * zero has one rank; data takes what the others leave. Ranks next to each other are along `tensor`, then along `sequence`, `expert`, `data`, and along
 * `pipeline` last: those that talk most are nearest. */
typedef struct weft_strategy {
    int32_t   data;       /* ranks that share the batch, each with its rows (weft_strategy_share) */
    int32_t   tensor;     /* ranks that share each row's work, with parts of parameters and of what they compute (Shoeybi et al. 2019). Which
                             parameters, and along which axis, is found by what it costs; weft_plan_describe says it. What no axis divides
                             evenly is whole on each. Same losses to rounding; checkpoints load under any mesh. WEFT_E_UNSUPPORTED with
                             compress and L-BFGS */
    int32_t   tensor_rows; /* whether what lies between tensor's products (norms, dropout, residuals) is computed on a share of the rows by each (Korthikanti et al. 2022):
                             sums over ranks come scattered and are gathered before the next product, in as many bytes, and ranks keep less. 0: where the
                             same model that splits parameters finds it quicker; 1: wherever rows divide; -1: never. Same losses to rounding */
    int32_t   pipeline;   /* ranks that have some layers each, its stages: a run of the forward pass, about equally long, with its gradients, parameters and
                             solver states, which other stages do not have (weft_variables_find gives -1 there). Micro-batches (accumulate) go through them one
                             behind the other. Same bits as one rank that accumulates as often. WEFT_E_INVALID where a stage would have no work; WEFT_E_UNSUPPORTED with
                             L-BFGS, and compression that keeps what it leaves out. Checkpoints load under any mesh */
    weft_pipeline_order schedule; /* of the pipeline's stages; none changes a bit */
    int32_t   chunks;     /* WEFT_INTERLEAVED: runs of layers that a rank has; stage s is rank s % pipeline's. 0: 2 */
    int32_t   sequence;   /* ranks that share each sample's time, the axis of attention's queries: each has a part of all that is computed along it, so that memory for
                             activations falls with their number, and keys and values go round (Liu et al. 2023). Under a causal mask the part is a stretch from either end,
                             so that all have as much to do, where twice the ranks divide time; else it is one. Parameters are whole on each; so is what is
                             fed, which ranks cut. Same losses to rounding; same checkpoints. Goes with all other axes. WEFT_E_INVALID where the program has no attention, ranks do not
                             divide its queries, or an op needs all of time at once (as few places as a rank has may be sliced or gathered out of it: who has them gives them to
                             all); WEFT_E_UNSUPPORTED with compress, L-BFGS, and weft_trainer_keep */
    int32_t   expert;     /* ranks that share the batch, as those along data do, and have the experts of every mixture in equal parts (weft_mixture_of_experts;
                             Lepikhin et al. 2020). A choice travels to the rank that has its expert and its result back, in as many bytes as there are
                             choices. Same losses to rounding, same tokens dropped; checkpoints load under any mesh. Goes with all other axes: tensor splits each expert's
                             matrices, and a long pipeline wants WEFT_GPIPE or one micro-batch, as balance and capacity are those of the whole batch.
                             WEFT_E_INVALID where the program has no mixture, or ranks do not divide a mixture's experts; WEFT_E_UNSUPPORTED with
                             WEFT_SERVER (tables of embeddings go on a server beside it: weft_program.wanted), compress, L-BFGS, and weft_trainer_keep */
    int32_t   zero;       /* what ranks along data, sequence and expert, who have the same parameters, keep in parts (ZeRO: Rajbhandari et al. 2020): 1 solver states, 2 gradients too, 3 parameters too, which are
                             gathered shortly before they are read, forth and back (weft_variables_get gives WEFT_E_STATE). Parts are runs of elements, padded to
                             cache lines; parameters of less than divide_bytes (0: 16 KiB) stay whole. A step sends as much as without up to 2, half as much again
                             with 3; from 2 on micro-batches are summed over ranks one by one. Same results as without, bit for bit where sums are taken in the
                             same order, else to rounding (clip_norm, micro-batches from 2 on); checkpoints load under any stage and mesh. Beside all axes;
                             parameters of experts are dealt out over those who have the same experts. By WEFT_SERVER 1 is what servers do as it is, nothing is dealt out beside,
                             and weft_plan_describe says so; 2 and 3 are WEFT_E_UNSUPPORTED, as whole gradients and parameters are with ranks that compute. So are compress by WEFT_ALLREDUCE,
                             L-BFGS, weft_trainer_keep, and 1 and 2 on a device with memory of its own */
    weft_sync sync;       /* what ranks along data do with their gradients. By WEFT_SERVER tensor, pipeline and sequence may split each replica of the model, as DistBelief's
                             (Dean et al. 2012): each rank pushes and pulls its part of the parameters. Such a replica dies with any of its
                             ranks, and ends all, so WEFT_E_UNSUPPORTED with .replicas, weft_trainer_keep and _renew; and with compress and a group regulariser,
                             which look at whole parameters */
    int32_t   staleness;  /* WEFT_SERVER. 0: bulk-synchronous, the same parameters as by allreduce, to rounding. s > 0: each rank, or replica that several make, trains on its own
                             rows, whose loss it reports, and its gradient is a step by itself; before its step c it has seen all of the others' before
                             c - s, and who is ahead waits. WEFT_TABLE_ASYNCHRONOUS: as that, and nobody waits (Downpour: Dean et al. 2012). Batch
                             statistics are then each rank's own. Evaluators and saving see all that was pushed. In a replica that is split what several ranks have alike stays so,
                             to the bit: one of them pulls it for all; parts of different ranks may have seen different pushes, within the bound.
                             A rank that dies is waited for by nobody, whatever the staleness, if its share of the parameters is not lost (.replicas, or .servers that
                             leave it out): losses, counts and batch statistics are then those of the others, as if its rows were like theirs, and so are sums
                             of evaluators. The run goes on with all calls; files are read and written by the lowest rank that is there */
    int32_t   push, fetch; /* WEFT_SERVER with staleness: gradients are added up over so many steps and then pushed, and parameters pulled every so
                             many steps; between pulls a rank goes on from its own by plain steps along its gradients. 0: 1. Downpour's n_push and
                             n_fetch: a worker moves M*(1/push + 1/fetch) bytes a step, M being those of the parameters */
    int64_t   warm_start; /* WEFT_SERVER with staleness: so many steps at the beginning rank 0, or its replica, takes alone, so that the others begin near enough for old parameters
                             to do no harm (Downpour's warm start). Their steps meanwhile do nothing, and the last of them waits for rank 0's */
    bool      overlap;    /* WEFT_SERVER with staleness: a step computes while its predecessor's gradient is pushed and its successor's parameters are
                             pulled, which are then one step older. Not with push or fetch beyond 1. Costs a copy of gradients and parameters */
    int32_t   servers;    /* WEFT_SERVER: so many ranks keep the parameters, the last ones, beside their work; 0: all */
    int32_t   replicas;   /* WEFT_SERVER: 1: each of them keeps another one's share too, so that training goes on when any one rank dies
                             (weft_server_options.replicas). Pushes are sent twice */
    int32_t   accumulate; /* micro-batches that a rank computes one after another before an update; 0: 1. Exact: the result is that
                             of the whole batch. Batch statistics need all micro-batches up to them at once */
    weft_dtype precision; /* what matrix products, convolutions, attention and what lies between them are computed in. WEFT_F32 (0): as the
                             program is written. WEFT_BF16, WEFT_F16: parameters are cast where they are used, and f32 ones stay so where they are
                             updated, as do gradients, norms and reductions over ranks; long sums, exponentials and losses stay f32
                             (Micikevicius et al. 2018). F16 scales the loss by itself: a step whose gradient overflows is skipped and the
                             scale halved. Evaluators compute as the program is written. Not with L-BFGS */
    bool      fp8;        /* with WEFT_BF16: products of an activation with a parameter, and those of their gradients, are of 8-bit floats (Micikevicius et al.
                             2022): E4M3 for what goes forward, E5M2 for gradients, each tensor under a scale of its own, a power of two that follows from its
                             largest magnitude then, so there is no state; sums f32 (of which Hopper's tensor cores keep about 14 bits), results bf16. Not the first product, into which no parameter has gone yet,
                             nor the last before the loss (all that no further such product follows), nor attention, convolutions and experts: these stay bf16. A
                             device or shape that has no such product falls back to bf16, and weft_plan_describe says why. GPUs from sm_89 on, sizes that divide by 16;
                             the CPU computes the same roundings, more slowly than bf16 */
    int64_t   bucket_bytes; /* gradients travel in messages of about this size; 0: 4 MiB. With zero: as much is on the way at once of what is gathered
                             or scattered, at least two parameters: less holds less memory, more hides more of a slow wire */
    int64_t   divide_bytes; /* parameters of at least this size are updated by all ranks together, each its part, where ranks reach each
                               other's memory (shared memory, threads); 0: where that is quicker; -1: never. Same bits either way.
                               With zero: parameters of at least this size are dealt out; 0: 16 KiB */
    int64_t   loss_chunk_rows; /* a cross-entropy over 4096 classes or more whose logits are a product (weft_linear) is computed by about so many rows at a
                               time, with its gradient, and the logits are never there as a whole (Hsu et al. 2024). 0: 8192 on a GPU, else 1024; -1:
                               all at once. Same result to rounding: sums over rows are added up by chunk. weft_plan_describe says why where it can't be */
    weft_compression compress; /* what gradients are sent as; zero: as they are. Not with L-BFGS */
    bool      recompute;  /* keep less for the backward pass: what scopes of the program ("block3.…") compute inside is computed again, as between
                             weft_recompute_begin and _end. Same bits. Where there are two such scopes at least and the program has no segments of its own */
    bool      automatic;  /* choose what is left zero of data, tensor, pipeline, sequence, expert, schedule, accumulate, zero and recompute: by what the program costs, what ranks
                             and links are measured to do, and what memory they have. weft_trainer_describe says why. WEFT_E_NO_MEMORY where nothing fits: what
                             would. The model is that of src/parallel/automatic.h; takes some planning and some tens of milliseconds */
    int64_t   memory_bytes; /* that a rank may hold. automatic: what is chosen by; 0: a host's memory by its ranks, and of GPUs any. Else: WEFT_E_NO_MEMORY
                               where the variables, before there are any, or the plan of a full batch take more; 0: any */
} weft_strategy;

/* A strategy that is chosen: .strategy = WEFT_AUTO. */
#ifndef __cplusplus
#define WEFT_AUTO ((weft_strategy){.automatic = true})
#endif

/* Which share of every batch is this rank's, for its loaders: .rank and .ranks of weft_loader_options. Ranks that differ only along other
 * axes than data and expert have the same rows. Errors: WEFT_E_INVALID (NULL, a mesh that does not multiply to the world's ranks). Does not block. */
WEFT_MUST_CHECK weft_status weft_strategy_share(const weft_strategy *strategy, const weft_world *world, int32_t *rank_out, int32_t *ranks_out);

/* ---- as text ---- */

/* Reads settings, "data=2,tensor=2 schedule=gpipe": NAME=VALUE, with commas or blanks between, into a strategy of which what the text does not name stays as it
 * is. Names are those of the fields: data, tensor, pipeline, sequence, expert (numbers of ranks); tensor-rows (-1, 0, 1); schedule (1f1b, gpipe, interleaved, zero-bubble), chunks; zero (0 to 3); sync (allreduce, server,
 * server:STALENESS, server:async); servers, replicas, push, fetch, warm-start, overlap (0, 1), accumulate; precision (f32, bf16, f16, fp8: bf16 with .fp8); compress (as
 * weft_compression_parse reads it), compress-warmup; bucket-bytes, divide-bytes, loss-chunk-rows; recompute, automatic (0, 1; "auto" alone is the
 * latter), memory-bytes. WEFT_E_INVALID names what is wrong and lists what there is: no such name, a
 * value out of range, a name that stands twice; the strategy is then unchanged. Whether it fits a world is for weft_trainer_create to say. Any
 * thread; does not block. Source: src/parallel/strategy_text.c. */
WEFT_MUST_CHECK weft_status weft_strategy_parse(const char *text, weft_strategy *strategy);

/* The same text, by value, of what is not the default; "data=0" where all is. Of compress it has codec, number and warm-up, as the text form has
 * no more. */
typedef struct weft_strategy_string { char text[512]; } weft_strategy_string;
weft_strategy_string weft_strategy_text(const weft_strategy *strategy);

#ifdef __cplusplus
}
#endif
#endif

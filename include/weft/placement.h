/* Placement: where parts of a graph are computed, where it is for the program to say. Everything that is not said is chosen.
 *
 * A place is a text of words, each of which leaves the rest open:
 *   "rank 3"     that rank of the world
 *   "stage 1"    that stage of a pipeline (weft_strategy.pipeline), or, with chunks, that run of layers: of trainers, whose strategy then
 *                cuts there. Says nothing where there is no pipeline. A scope's stage is that of the operations in it, and of the parameters
 *   "cpu"        any rank whose device is the CPU
 *   "cuda"       any rank whose device is a GPU; "cuda:2": the rank of the world's GPU number 2, counted by rank
 *   "with NAME"  where the parameter or state of that name lives
 * Several words may stand in one text, with spaces or commas between: "rank 1 cuda".
 *
 * A tensor's place is that of the operation that computes it; of a parameter, a state or an input, where it lives. Others get what they
 * read from there, in one message for each tensor and rank. What has to be together is: a variable with its updates and assignments, a view with what it
 * looks at, and a gradient with the operation that it comes back through, unless it is placed itself. Inputs that are not placed are fed on every rank
 * that reads them; outputs of a plan are there on every rank, wherever they come from. Nothing of this changes a bit of any result (on ranks
 * with like devices).
 *
 * What is not placed is dealt out as it comes, each operation to where it would be done first, by its operations and bytes and by what it would
 * cost to bring its inputs (src/parallel/place.c).
 *
 * Plans of a graph with places (weft_plan_create) are collective over the world: every rank makes and runs the same ones. Refused when the plan is
 * made, on all ranks alike and before any memory is taken: WEFT_E_INVALID for a word that is none, for words that contradict each other
 * or what must be together (both named), for a rank beyond the world or a stage beyond the pipeline; WEFT_E_NOT_FOUND for a NAME that is none yet;
 * WEFT_E_UNSUPPORTED where no rank has the device, or a place is not for this kind of plan. Trainers and evaluators split by their strategy, take stages
 * and refuse all other places (WEFT_E_UNSUPPORTED, naming tensor and place); stages that go backwards in the forward pass are WEFT_E_INVALID. Source: src/core/graph/placement.c, src/parallel/cut.c. */
#ifndef WEFT_PLACEMENT_H
#define WEFT_PLACEMENT_H

#include "weft/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Places the operation that computes the tensor, or the leaf that it is; gives the tensor. What is said here counts before what the scopes around it said;
 * saying two different things of one tensor is WEFT_E_INVALID. */
weft_tensor *weft_place(weft_tensor *tensor, const char *place);

/* What is built until the matching end is placed so. Inner scopes count before outer ones, word by word. They nest up to 16 deep. */
void weft_place_begin(weft_graph *graph, const char *place);
void weft_place_end(weft_graph *graph);

#ifdef __cplusplus
}
#endif
#endif

/* Pictures of plans, as SVG: what each rank computes, in which order, and what goes from rank to rank.
 *
 * A rank is a column, read from top to bottom. A box is a run of operations that follow one another, with how many there are and their floating-point
 * operations, by which it is the taller; its shade tells forward passes, backward passes and updates apart, and its number the micro-batch. An arrow
 * is a message, from where it is started to where it is waited for; a bar across ranks is a collective, with a thread beside the column down to where
 * its result is needed: what stands beside the thread is computed meanwhile. Both bear the bytes of the tensors. Plans of many operations are
 * drawn by their scopes ("block3"), and larger ones by passes. Source: src/train/draw*.c. */
#ifndef WEFT_DRAW_H
#define WEFT_DRAW_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zero means the default. */
typedef struct weft_draw_options {
    const char *title;
    int32_t     most_boxes; /* of a rank, at least where its plan can be drawn by passes in as many; 0: 40 */
    bool        alone;      /* this rank only, with messages as ends of arrows: every rank may draw its own, or none */
} weft_draw_options;

/* Draws a plan to `path`, whole or not at all. Collective over the plan's world, each rank with its own plan, of which rank 0 draws all; not so with .alone,
 * or where the world has one rank. Needs neither commit nor run. At most 64 ranks are drawn together (WEFT_E_UNSUPPORTED). WEFT_E_INVALID (NULL), those
 * of writing a file. `options` may be NULL. Blocks; by the thread that uses the plan. */
WEFT_MUST_CHECK weft_status weft_plan_draw(const weft_plan *plan, const char *path, const weft_draw_options *options);

#ifdef __cplusplus
}
#endif
#endif

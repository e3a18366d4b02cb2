/* Line plots as SVG: of losses and the like, to be looked at in any browser.
 *
 * Source for the ticks: P. Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990. */
#ifndef WEFT_PLOT_H
#define WEFT_PLOT_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_plot_series {
    const char   *name;  /* in the legend; NULL leaves it out there */
    const double *x, *y; /* [count]; x may be NULL: 0, 1, 2, … A value that is not finite leaves a gap */
    int64_t       count;
    bool          dots;   /* a mark at each point, for few points */
    double        smooth; /* 0 to below 1: also draws the moving average y' = smooth * y' + (1 - smooth) * y, and the
                             values themselves faintly */
} weft_plot_series;

typedef struct weft_plot {
    const char             *title, *x_label, *y_label; /* NULL leaves them out */
    const weft_plot_series *series;
    int32_t                 series_count;
    bool                    log_y;         /* values that are not positive leave gaps */
    int32_t                 width, height; /* in pixels, 200 to 10000; 0 means 800 and 480 */
} weft_plot;

/* Writes the plot to `path`, whole or not at all. However many points there are, the file stays small: a column of pixels
 * keeps its first, lowest, highest and last. WEFT_E_INVALID for sizes out of range. Thread-safe for different paths; blocks on the file system only. */
WEFT_MUST_CHECK weft_status weft_plot_save(const weft_plot *plot, const char *path);

#ifdef __cplusplus
}
#endif
#endif

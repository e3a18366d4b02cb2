/* Plots: what is in the file, that it stays small, and that no input breaks it. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "weft/memory.h"
#include "weft/plot.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static char *save(const weft_plot *plot) {
    const char *path = scratch("p.svg");
    OK(weft_plot_save(plot, path));
    return (char *)read_file(path, NULL);
}

static int occurrences(const char *text, const char *part) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) count++;
    return count;
}

/* Every opened element is closed, quotes are paired, and no number went astray. */
static void check_form(const char *svg) {
    cr_assert_eq(strncmp(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\"", 39), 0);
    cr_assert_str_eq(svg + strlen(svg) - 7, "</svg>\n");
    cr_assert_eq(occurrences(svg, "<text"), occurrences(svg, "</text>"));
    cr_assert_eq(occurrences(svg, "\"") % 2, 0);
    cr_assert_eq(occurrences(svg, "nan"), 0);
    cr_assert_eq(occurrences(svg, "inf"), 0);
}

/* All coordinates of the paths lie in the frame of 800 x 480. */
static void check_inside(const char *svg) {
    for (const char *at = svg; (at = strstr(at, "\" d=\"M"));) {
        at += 5;
        while (*at == 'M' || *at == 'L') {
            char  *end;
            double x = strtod(at + 1, &end), y = strtod(end, &end);
            cr_assert(x >= 69.9 && x <= 776.1 && y >= 45.9 && y <= 424.1, "(%g, %g)", x, y);
            at = end;
        }
    }
}

Test(plot, draws_axes_labels_legend_and_series) {
    double           x[] = {0, 1, 2, 3}, y[] = {2, 1, 0.5, 0.25}, z[] = {1, NAN, 0.5, 0.4};
    weft_plot_series series[] = {{.name = "train", .x = x, .y = y, .count = 4, .smooth = 0.5},
                                 {.name = "test <a> & \"b\"", .x = x, .y = z, .count = 4, .dots = true}};
    weft_plot        plot = {.title = "T\xff", .x_label = "step", .y_label = "loss", .series = series, .series_count = 2};
    for (int log_y = 0; log_y < 2; log_y++) {
        plot.log_y = log_y;
        char *svg = save(&plot);
        check_form(svg);
        check_inside(svg);
        cr_assert_eq(occurrences(svg, "<path"), 4, "frame, faint, smooth and the second series");
        cr_assert_eq(occurrences(svg, "<circle"), 3);
        cr_assert(strstr(svg, ">train<") && strstr(svg, ">step<") && strstr(svg, ">loss<") && strstr(svg, ">T\xef\xbf\xbd<"));
        cr_assert(strstr(svg, ">test &lt;a&gt; &amp; &quot;b&quot;<"));
        cr_assert(strstr(svg, ">0.5</text>") && strstr(svg, ">1</text>") && strstr(svg, ">2</text>"));
        free(svg);
    }
}

Test(plot, stays_small_with_a_million_points) {
    enum { count = 1000000 };
    double *y = malloc(count * sizeof *y);
    for (int i = 0; i < count; i++) y[i] = 5 + sin(i * 12.9898) + (i == 654321 ? 90 : 0);
    weft_plot_series series = {.y = y, .count = count};
    weft_plot        plot = {.series = &series, .series_count = 1};
    char            *svg = save(&plot);
    check_form(svg);
    check_inside(svg);
    cr_assert_lt(strlen(svg), 100000u);
    cr_assert(strstr(svg, ">800k</text>"));
    cr_assert(strstr(svg, ">100</text>"), "the peak of one point must be seen");
    free(svg);
    free(y);
}

Test(plot, survives_every_kind_of_data) {
    const double sets[][4] = {{0, 0, 0, 0},       {1, 1, 1, 1},          {1e300, -1e300, 1, 0}, {1e308, -1e308, 1, 2},
                              {1e-300, 2e-300, 0, 0}, {NAN, NAN, NAN, NAN}, {INFINITY, -INFINITY, 0, 1},
                              {1, 1 + 1e-15, 1, 1},   {-5, -4, -3, -2},      {1e15, 1e15 + 1, 1e15 + 2, 1e15 + 3},
                              {5e-324, 5e-324, 5e-324, 5e-324}, {1e-10, 1e10, 1, 1e3}, {1, 1.01, 1.02, 1.03}};
    for (size_t a = 0; a < sizeof sets / sizeof *sets; a++)
        for (size_t b = 0; b < sizeof sets / sizeof *sets; b++)
            for (int log_y = 0; log_y < 2; log_y++) {
                weft_plot_series series = {.x = sets[a], .y = sets[b], .count = 4, .smooth = 0.9, .dots = true};
                weft_plot        plot = {.series = &series, .series_count = 1, .log_y = log_y};
                char            *svg = save(&plot);
                check_form(svg);
                check_inside(svg);
                free(svg);
            }
    weft_plot nothing = {.title = "nothing"};
    char     *svg = save(&nothing);
    cr_assert(strstr(svg, "no data"));
    free(svg);
}

Test(plot, refuses_what_cannot_be_drawn) {
    double           y[1] = {1};
    weft_plot_series series = {.y = y, .count = 1};
    const weft_plot  bad[] = {{.width = 10}, {.height = 20000}, {.series_count = 1}, {.series_count = -1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert_eq(weft_plot_save(&bad[i], scratch("p.svg")), WEFT_E_INVALID);
    weft_plot plot = {.series = &series, .series_count = 1};
    series.smooth = 1;
    cr_assert_eq(weft_plot_save(&plot, scratch("p.svg")), WEFT_E_INVALID);
    series = (weft_plot_series){.count = 1};
    cr_assert_eq(weft_plot_save(&plot, scratch("p.svg")), WEFT_E_INVALID);
    cr_assert_eq(weft_plot_save(NULL, scratch("p.svg")), WEFT_E_INVALID);
    series = (weft_plot_series){.y = y, .count = 1};
    cr_assert_eq(weft_plot_save(&plot, "/nonexistent/p.svg"), WEFT_E_NOT_FOUND);
    cr_assert_eq(scratch_files(), 0);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0u);
}

/* SVG line plots.
 *
 * Idea: find the ranges, choose round ticks, then draw: grid and labels, one path a series, the legend over it all. Many
 * points of one column of pixels are reduced to the first, lowest, highest and last, which looks the same.
 * Invariants: every coordinate written is finite and inside the frame (values are clipped to it by the ranges).
 * Cost: the text of the file, at most about 40 bytes for each of 4 points a column and series. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/number.h"
#include "io/sink.h"
#include "io/svg.h"
#include "weft/plot.h"

enum { left = 70, right = 24, top = 46, bottom = 56, legend_row = 20, most_ticks = 64 };

static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};

typedef struct axis {
    double low, high; /* of the data; of its logarithm on a logarithmic axis */
    double from, to;  /* pixels */
    bool   logarithmic;
    double tick[most_ticks]; /* values */
    int    tick_count;
} axis;

typedef struct canvas {
    const weft_plot *plot;
    wefti_text       text;
    axis             x, y;
    int32_t          width, height;
    bool             empty;
} canvas;

static double place(const axis *on, double value) {
    double at = on->logarithmic ? log10(value) : value;
    /* An average of the smallest values may have become 0; nothing leaves the frame for that. */
    double share = fmin(fmax((at - on->low) / (on->high - on->low), 0), 1);
    return on->from + share * (on->to - on->from);
}

static double x_of(const weft_plot_series *series, int64_t i) { return series->x ? series->x[i] : (double)i; }

/* Beyond 1e300 a difference of two values may not be finite. */
static bool drawable(const canvas *on, double x, double y) {
    return fabs(x) <= 1e300 && fabs(y) <= 1e300 && (!on->plot->log_y || y > 0);
}

/* ---- ranges and ticks ---- */

static void find_ranges(canvas *on) {
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (int32_t s = 0; s < on->plot->series_count; s++) {
        const weft_plot_series *series = &on->plot->series[s];
        for (int64_t i = 0; i < series->count; i++) {
            double x = x_of(series, i), y = series->y[i];
            if (!drawable(on, x, y)) continue;
            x_low = fmin(x_low, x);
            x_high = fmax(x_high, x);
            y_low = fmin(y_low, y);
            y_high = fmax(y_high, y);
        }
    }
    on->empty = !(x_low <= x_high);
    if (on->empty) x_low = 0, x_high = 1, y_low = on->plot->log_y ? 0.1 : 0, y_high = 1;
    on->x.low = x_low;
    on->x.high = x_high;
    on->y.low = on->plot->log_y ? log10(y_low) : y_low;
    on->y.high = on->plot->log_y ? log10(y_high) : y_high;
}

/* Widens a range that is a point, or so narrow that its ticks would be the same double. */
static void widen(axis *on) {
    const double least = 1e-290; /* whose thousandth is still a normal number */
    double       size = fmax(fabs(on->low), fabs(on->high));
    if (on->high - on->low > fmax(size * 1e-9, least)) return;
    double by = fmax(size * 0.1, on->logarithmic ? 0.3 : 0);
    if (by < least) by = 1;
    on->low -= by;
    on->high += by;
}

/* 1, 2 or 5 times a power of ten, so that there are about `wanted` steps. */
static double nice_step(double range, int wanted) {
    double rough = range / wanted, power = pow(10, floor(log10(rough))), scaled = rough / power;
    return power * (scaled < 1.5 ? 1 : scaled < 3.5 ? 2 : scaled < 7.5 ? 5 : 10);
}

static void add_tick(axis *on, double value) {
    if (on->tick_count < most_ticks) on->tick[on->tick_count++] = value;
}

/* The range is widened to whole steps where `whole` asks for it. */
static void linear_ticks(axis *on, int wanted, bool whole) {
    double step = nice_step(on->high - on->low, wanted);
    if (whole) {
        on->low = floor(on->low / step + 1e-9) * step;
        on->high = ceil(on->high / step - 1e-9) * step;
    }
    double first = ceil(on->low / step - 1e-9), last = floor(on->high / step + 1e-9);
    for (double k = first; k <= last && on->tick_count < most_ticks; k++) add_tick(on, k * step);
}

/* Powers of ten; between them 2 and 5 when there are few, and only every n-th when there are many. */
static void logarithmic_ticks(axis *on) {
    double decades = on->high - on->low;
    if (decades < 0.7) { /* too narrow for round factors: as on a linear axis, in values */
        axis linear = {.low = pow(10, on->low), .high = pow(10, on->high)};
        linear_ticks(&linear, 5, false);
        for (int i = 0; i < linear.tick_count; i++) add_tick(on, linear.tick[i]);
        return;
    }
    int every = (int)ceil(decades / 8);
    for (double power = floor(on->low); power <= ceil(on->high); power++) {
        static const double factors[] = {1, 2, 5};
        if (fmod(power, every) != 0) continue;
        for (int i = 0; i < (decades <= 3 ? 3 : 1); i++) {
            double at = power + log10(factors[i]);
            if (at >= on->low - 1e-9 && at <= on->high + 1e-9) add_tick(on, factors[i] * pow(10, power));
        }
    }
}

/* "60k", "1.5M", "0.001", "1e-06". */
static void add_label(wefti_text *text, double value) {
    char        digits[wefti_number_text_bytes];
    double      size = fabs(value);
    const char *suffix = size >= 1e6 && size < 1e9 ? "M" : size >= 1e4 && size < 1e6 ? "k" : "";
    double      scaled = *suffix == 'M' ? value / 1e6 : *suffix == 'k' ? value / 1e3 : value;
    double      power = size > 0 ? pow(10, 5 - floor(log10(fabs(scaled)))) : 1;
    /* Six digits: ticks are sums of steps and carry rounding. */
    double rounded = isfinite(power) && power > 0 ? round(scaled * power) / power : scaled;
    wefti_number_to_text(fabs(rounded) < 1e-300 ? 0 : rounded, digits);
    wefti_text_add(text, "%s%s", digits, suffix);
}

/* ---- drawing ---- */

static void draw_frame(canvas *on) {
    wefti_text *text = &on->text;
    for (int i = 0; i < on->y.tick_count; i++) {
        double y = place(&on->y, on->y.tick[i]);
        wefti_svg_pair(text, "<line class=\"g\" x1=\"", on->x.from, "\" x2=\"", on->x.to);
        wefti_svg_pair(text, "\" y1=\"", y, "\" y2=\"", y);
        wefti_svg_pair(text, "\"/>\n<text x=\"", on->x.from - 8, "\" y=\"", y + 4);
        wefti_text_add(text, "\" text-anchor=\"end\">");
        add_label(text, on->y.tick[i]);
        wefti_text_add(text, "</text>\n");
    }
    for (int i = 0; i < on->x.tick_count; i++) {
        double x = place(&on->x, on->x.tick[i]);
        wefti_svg_pair(text, "<line class=\"t\" x1=\"", x, "\" x2=\"", x);
        wefti_svg_pair(text, "\" y1=\"", on->y.from, "\" y2=\"", on->y.from + 5);
        wefti_svg_pair(text, "\"/>\n<text x=\"", x, "\" y=\"", on->y.from + 20);
        wefti_text_add(text, "\" text-anchor=\"middle\">");
        add_label(text, on->x.tick[i]);
        wefti_text_add(text, "</text>\n");
    }
    wefti_svg_pair(text, "<path class=\"t\" d=\"M", on->x.from, " ", on->y.to);
    wefti_svg_pair(text, "V", on->y.from, "H", on->x.to);
    wefti_text_add(text, "\"/>\n");
}

static void draw_words(canvas *on) {
    wefti_text      *text = &on->text;
    const weft_plot *plot = on->plot;
    double           x = (on->x.from + on->x.to) / 2, y = (on->y.from + on->y.to) / 2;
    if (plot->title) {
        wefti_svg_pair(text, "<text class=\"h\" x=\"", x, "\" y=\"", 26);
        wefti_text_add(text, "\" text-anchor=\"middle\">");
        wefti_svg_words(text, plot->title);
        wefti_text_add(text, "</text>\n");
    }
    if (plot->x_label) {
        wefti_svg_pair(text, "<text x=\"", x, "\" y=\"", on->height - 14);
        wefti_text_add(text, "\" text-anchor=\"middle\">");
        wefti_svg_words(text, plot->x_label);
        wefti_text_add(text, "</text>\n");
    }
    if (plot->y_label) {
        wefti_svg_pair(text, "<text transform=\"translate(18 ", y, ") rotate(-90)\" x=\"", 0);
        wefti_text_add(text, "\" text-anchor=\"middle\">");
        wefti_svg_words(text, plot->y_label);
        wefti_text_add(text, "</text>\n");
    }
    if (on->empty) {
        wefti_svg_pair(text, "<text x=\"", x, "\" y=\"", y);
        wefti_text_add(text, "\" text-anchor=\"middle\">no data</text>\n");
    }
}

/* Points of one column of pixels. */
typedef struct column {
    double x, first, last, low, high, low_x, high_x, first_x;
    bool   used;
} column;

static void flush_column(canvas *on, column *at, bool *pen_down) {
    if (!at->used) return;
    wefti_svg_pair(&on->text, *pen_down ? "L" : "M", at->first_x, " ", at->first);
    *pen_down = true;
    bool low_first = at->low_x <= at->high_x;
    if (at->low != at->first || at->high != at->first) {
        wefti_svg_pair(&on->text, "L", low_first ? at->low_x : at->high_x, " ", low_first ? at->low : at->high);
        if (at->low != at->high)
            wefti_svg_pair(&on->text, "L", low_first ? at->high_x : at->low_x, " ", low_first ? at->high : at->low);
    }
    if (at->x != at->first_x) wefti_svg_pair(&on->text, "L", at->x, " ", at->last);
    at->used = false;
}

static void add_point(canvas *on, column *at, double x, double y, bool *pen_down) {
    if (at->used && floor(at->first_x) != floor(x)) flush_column(on, at, pen_down);
    if (!at->used) *at = (column){.first = y, .low = y, .high = y, .first_x = x, .low_x = x, .high_x = x, .used = true};
    if (y < at->low) at->low = y, at->low_x = x;
    if (y > at->high) at->high = y, at->high_x = x;
    at->x = x;
    at->last = y;
}

static void draw_path(canvas *on, const weft_plot_series *series, const char *style, const char *colour, double smooth) {
    column at = {0};
    bool   pen_down = false;
    double average = 0, weight = 0; /* the average so far, corrected for having begun at 0 */
    wefti_text_add(&on->text, "<path class=\"%s\" stroke=\"%s\" d=\"", style, colour);
    for (int64_t i = 0; i < series->count; i++) {
        double x = x_of(series, i), y = series->y[i];
        if (!drawable(on, x, y)) {
            flush_column(on, &at, &pen_down);
            pen_down = false;
            continue;
        }
        average = smooth * average + (1 - smooth) * y;
        weight = smooth * weight + (1 - smooth);
        add_point(on, &at, place(&on->x, x), place(&on->y, average / weight), &pen_down);
    }
    flush_column(on, &at, &pen_down);
    wefti_text_add(&on->text, "\"/>\n");
}

static void draw_dots(canvas *on, const weft_plot_series *series, const char *colour) {
    for (int64_t i = 0; i < series->count; i++) {
        if (!drawable(on, x_of(series, i), series->y[i])) continue;
        wefti_svg_pair(&on->text, "<circle r=\"3\" cx=\"", place(&on->x, x_of(series, i)), "\" cy=\"", place(&on->y, series->y[i]));
        wefti_text_add(&on->text, "\" fill=\"%s\"/>\n", colour);
    }
}

static void draw_series(canvas *on) {
    for (int32_t s = 0; s < on->plot->series_count; s++) {
        const weft_plot_series *series = &on->plot->series[s];
        const char             *colour = colours[(size_t)s % WEFTI_COUNT(colours)];
        draw_path(on, series, series->smooth > 0 ? "f" : "s", colour, 0);
        if (series->smooth > 0) draw_path(on, series, "s", colour, series->smooth);
        if (series->dots) draw_dots(on, series, colour);
    }
}

/* In the upper right corner, where a falling loss leaves room. */
static void draw_legend(canvas *on) {
    size_t longest = 0;
    int    rows = 0;
    for (int32_t s = 0; s < on->plot->series_count; s++) {
        const char *name = on->plot->series[s].name;
        if (!name) continue;
        rows++;
        longest = strlen(name) > longest ? strlen(name) : longest;
    }
    if (rows == 0) return;
    double width = 46 + 7.2 * (double)longest, x = on->x.to - width - 6, y = on->y.to + 6;
    wefti_svg_pair(&on->text, "<rect class=\"l\" x=\"", x, "\" y=\"", y);
    wefti_svg_pair(&on->text, "\" width=\"", width, "\" height=\"", rows * legend_row + 6);
    wefti_text_add(&on->text, "\"/>\n");
    for (int32_t s = 0; s < on->plot->series_count; s++) {
        const char *name = on->plot->series[s].name;
        if (!name) continue;
        wefti_svg_pair(&on->text, "<line class=\"s\" x1=\"", x + 8, "\" x2=\"", x + 32);
        wefti_svg_pair(&on->text, "\" y1=\"", y + 13, "\" y2=\"", y + 13);
        wefti_text_add(&on->text, "\" stroke=\"%s\"/>\n", colours[(size_t)s % WEFTI_COUNT(colours)]);
        wefti_svg_pair(&on->text, "<text x=\"", x + 38, "\" y=\"", y + 17);
        wefti_text_add(&on->text, "\">");
        wefti_svg_words(&on->text, name);
        wefti_text_add(&on->text, "</text>\n");
        y += legend_row;
    }
}

static void draw(canvas *on) {
    wefti_text_add(&on->text,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n<style>"
                   "text{font:13px sans-serif;fill:#333}.h{font:bold 16px sans-serif;fill:#111}"
                   ".g{stroke:#ddd;stroke-width:1}.t{stroke:#333;stroke-width:1;fill:none}"
                   ".s{fill:none;stroke-width:2;stroke-linejoin:round}.f{fill:none;stroke-width:1;stroke-opacity:.35;stroke-linejoin:round}"
                   ".l{fill:#fff;fill-opacity:.85;stroke:#ccc}</style>\n"
                   "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
                   on->width, on->height, on->width, on->height, on->width, on->height);
    draw_frame(on);
    draw_series(on);
    draw_words(on);
    draw_legend(on);
    wefti_text_add(&on->text, "</svg>\n");
}

static weft_status check(const weft_plot *plot, const canvas *on) {
    if (on->width < 200 || on->width > 10000 || on->height < 200 || on->height > 10000)
        return wefti_fail(WEFT_E_INVALID, "a plot of %d x %d pixels; expected 200 to 10000 each way", on->width, on->height);
    if (plot->series_count < 0 || (plot->series_count > 0 && !plot->series))
        return wefti_fail(WEFT_E_INVALID, "a plot of %d series that are not there", plot->series_count);
    for (int32_t s = 0; s < plot->series_count; s++) {
        const weft_plot_series *series = &plot->series[s];
        if (series->count < 0 || (series->count > 0 && !series->y) || !(series->smooth >= 0 && series->smooth < 1))
            return wefti_fail(WEFT_E_INVALID, "series '%s' of a plot has %lld points and smooth %g; expected values, and 0 to "
                              "below 1", series->name ? series->name : "", (long long)series->count, series->smooth);
    }
    return WEFT_OK;
}

weft_status weft_plot_save(const weft_plot *plot, const char *path) {
    if (!plot) return wefti_fail(WEFT_E_INVALID, "weft_plot_save: the plot is NULL");
    canvas on = {.plot = plot, .width = plot->width ? plot->width : 800, .height = plot->height ? plot->height : 480};
    WEFTI_TRY(check(plot, &on));
    on.x.from = left;
    on.x.to = on.width - right;
    on.y.from = on.height - bottom;
    on.y.to = top;
    on.y.logarithmic = plot->log_y;
    find_ranges(&on);
    widen(&on.x);
    widen(&on.y);
    linear_ticks(&on.x, on.width / 100, false);
    if (plot->log_y) logarithmic_ticks(&on.y);
    else linear_ticks(&on.y, on.height / 70, true);
    wefti_sink *sink = NULL;
    weft_status status;
    WEFTI_TRY(wefti_sink_create(path, &sink));
    draw(&on);
    status = on.text.failed ? wefti_fail(WEFT_E_NO_MEMORY, "out of memory for the plot '%s'", path)
                            : wefti_sink_append(sink, on.text.bytes, on.text.length);
    if (status == WEFT_OK) status = wefti_sink_commit(sink);
    wefti_text_release(&on.text);
    wefti_sink_release(sink);
    return status;
}

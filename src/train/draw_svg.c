/* How a drawing looks: columns with heads, boxes in a rank's colour, bars and arrows with bytes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph/graph.h"
#include "io/svg.h"
#include "parallel/mesh.h"
#include "train/draw.h"

#define LEFT 34.0
#define LANE 176.0  /* wide */
#define APART 74.0  /* between lanes: room for arrows and their words */
#define HEAD 74.0   /* of a lane */
#define TITLE 46.0
#define FOOT 40.0
#define BAR 20.0

/* Of ranks, in turn (Okabe and Ito's, which the colour-blind tell apart), lighter for a forward pass and darker for an update. */
static const char *const hues[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3d7f9e", "#7a5195", "#6b6b2f"};
static const double      shades[] = {[WEFTI_DRAW_FORWARD] = 0.18, [WEFTI_DRAW_BACKWARD] = 0.42, [WEFTI_DRAW_UPDATE] = 0.70};
static const char *const passes[] = {[WEFTI_DRAW_FORWARD] = "forward", [WEFTI_DRAW_BACKWARD] = "backward", [WEFTI_DRAW_UPDATE] = "update"};

/* Of collectives along an axis of the mesh: its number plus one, 0 for those of all ranks. */
typedef struct tone {
    const char *fill, *line;
} tone;
static const tone tones[] = {{"#eeeeee", "#666666"}, {"#fdf3d8", "#a67c00"}, {"#e3f4e8", "#2e7d4f"}, {"#fde4ef", "#a0446f"}, {"#e9e6fb", "#5a4fb0"}, {"#e0f0fa", "#27708f"}};

static const tone *tone_of(const wefti_draw_bar *bar) { return &tones[(size_t)bar->axis % WEFTI_COUNT(tones)]; }
static const char *hue_of(int32_t lane) { return hues[(size_t)lane % WEFTI_COUNT(hues)]; }
static double      x_of(int32_t lane) { return LEFT + (LANE + APART) * lane; }

static double y_of(double y) { return TITLE + HEAD + y; }

/* "12.3 M" and a unit. */
static void amount(char *text, size_t size, double value, const char *unit, double thousand) {
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P"};
    int                      p = 0;
    while (value >= thousand && p < 5) value /= thousand, p++;
    snprintf(text, size, value < 10 && p > 0 ? "%.1f %s%s" : "%.0f %s%s", value, prefixes[p], unit);
}
static void bytes_text(char *text, size_t size, int64_t bytes) { amount(text, size, (double)bytes, "B", 1000); }

static void add_words(wefti_text *t, const char *style, const char *anchor, double x, double y, const char *words) {
    wefti_text_add(t, "<text class=\"%s\" text-anchor=\"%s\"", style, anchor);
    wefti_svg_pair(t, " x=\"", x, "\" y=\"", y);
    wefti_text_add(t, "\">");
    wefti_svg_words(t, words);
    wefti_text_add(t, "</text>\n");
}

static void add_rectangle(wefti_text *t, const char *attributes, double x, double y, double width, double height) {
    wefti_text_add(t, "<rect %s", attributes);
    wefti_svg_pair(t, " x=\"", x, "\" y=\"", y);
    wefti_svg_pair(t, "\" width=\"", width, "\" height=\"", height);
    wefti_text_add(t, "\"/>\n");
}

/* Cut so that it fits so many letters. */
static void shorten(char *to, size_t size, const char *from, size_t letters) {
    if (strlen(from) <= letters) snprintf(to, size, "%s", from);
    else snprintf(to, size, "%.*s\xe2\x80\xa6", (int)letters - 1, from);
}

/* --- parts --- */

static void add_head(wefti_text *t, const wefti_draw_scene *s, int32_t l) {
    const wefti_draw_head *head = &s->lanes[l].head;
    char                   words[160], flops[32], held[32];
    double                 x = x_of(l);
    wefti_text_add(t, "<line class=\"lane\" stroke=\"%s\"", hue_of(l));
    wefti_svg_pair(t, " x1=\"", x + LANE / 2, "\" x2=\"", x + LANE / 2);
    wefti_svg_pair(t, "\" y1=\"", y_of(-8), "\" y2=\"", y_of(s->bottom - 8));
    wefti_text_add(t, "\"/>\n");
    snprintf(words, sizeof words, "rx=\"6\" fill=\"%s\"", hue_of(l));
    add_rectangle(t, words, x, TITLE, LANE, HEAD - 12);
    snprintf(words, sizeof words, "rank %d on %s", (int)head->rank, head->device);
    add_words(t, "rank", "middle", x + LANE / 2, TITLE + 18, words);
    add_words(t, "under", "middle", x + LANE / 2, TITLE + 34, head->place);
    amount(flops, sizeof flops, head->flops, "FLOP", 1000);
    bytes_text(held, sizeof held, head->held_bytes);
    snprintf(words, sizeof words, "%s, holds %s", flops, held);
    add_words(t, "under", "middle", x + LANE / 2, TITLE + 50, words);
}

static void add_box(wefti_text *t, const wefti_draw_box *box, bool numbered) {
    char   words[96], under[96], flops[32], cut[64];
    double x = x_of(box->lane), middle = box->y + box->height / 2;
    bool   dark = box->pass == WEFTI_DRAW_UPDATE;
    snprintf(words, sizeof words, "rx=\"4\" fill=\"%s\" fill-opacity=\"%.2f\" stroke=\"%s\"", hue_of(box->lane), shades[box->pass], hue_of(box->lane));
    add_rectangle(t, "rx=\"4\" fill=\"#fff\"", x, y_of(box->y), LANE, box->height);
    add_rectangle(t, words, x, y_of(box->y), LANE, box->height);
    if (box->name[0]) snprintf(words, sizeof words, "%s", box->name);
    else snprintf(words, sizeof words, "%s", passes[box->pass]);
    numbered = numbered && box->micro > 0;
    shorten(cut, sizeof cut, words, numbered ? 18 : 22);
    add_words(t, dark ? "box w" : "box", "start", x + 8, y_of(middle - 2), cut);
    if (numbered) {
        snprintf(words, sizeof words, "#%d", (int)box->micro);
        add_words(t, dark ? "micro w" : "micro", "end", x + LANE - 8, y_of(middle - 2), words);
    }
    amount(flops, sizeof flops, box->flops, "FLOP", 1000);
    snprintf(under, sizeof under, "%s%s%d op%s, %s", box->name[0] ? passes[box->pass] : "", box->name[0] ? ", " : "", (int)box->count, box->count == 1 ? "" : "s", flops);
    add_words(t, dark ? "small w" : "small", "start", x + 8, y_of(middle + 12), under);
}

static const char *bar_name(int32_t op) {
    switch (op) {
    case WEFT_OP_ALL_REDUCE: return "all-reduce";
    case WEFT_OP_ALL_GATHER: return "all-gather";
    case WEFT_OP_REDUCE_SCATTER: return "reduce-scatter";
    default: return wefti_ops[op].name;
    }
}

/* Between members that stand beside one another in the picture, behind the boxes of whoever is between them. */
static void add_bar_links(wefti_text *t, const wefti_draw_scene *s, const wefti_draw_bar *bar) {
    int32_t before = -1;
    for (int32_t l = 0; l < s->n_lanes; l++) {
        if (!bar->begun[l]) continue;
        if (before >= 0) {
            wefti_text_add(t, "<line class=\"link\" stroke=\"%s\"", tone_of(bar)->line);
            wefti_svg_pair(t, " x1=\"", x_of(before) + LANE, "\" y1=\"", y_of(bar->y[before] + BAR / 2));
            wefti_svg_pair(t, "\" x2=\"", x_of(l), "\" y2=\"", y_of(bar->y[l] + BAR / 2));
            wefti_text_add(t, "\"/>\n");
        }
        before = l;
    }
}

static void add_bar(wefti_text *t, const wefti_draw_scene *s, const wefti_draw_bar *bar, int32_t number) {
    char words[96], bytes[32];
    for (int32_t l = 0; l < s->n_lanes; l++) {
        if (!bar->begun[l]) continue;
        double x = x_of(l), thread = x - 7 - 5 * (number % 3);
        bytes_text(bytes, sizeof bytes, bar->bytes);
        snprintf(words, sizeof words, "rx=\"10\" fill=\"%s\" stroke=\"%s\"", tone_of(bar)->fill, tone_of(bar)->line);
        add_rectangle(t, words, x, y_of(bar->y[l]), LANE, BAR);
        if (bar->count > 1) snprintf(words, sizeof words, "%d \xc3\x97 %s, %s", (int)bar->count, bar_name(bar->op), bytes);
        else snprintf(words, sizeof words, "%s, %s", bar_name(bar->op), bytes);
        add_words(t, "barword", "middle", x + LANE / 2, y_of(bar->y[l] + 14), words);
        if (bar->until[l] < bar->y[l] + BAR + 20) continue;
        wefti_text_add(t, "<path class=\"thread\" stroke=\"%s\" marker-end=\"url(#end)\" d=\"", tone_of(bar)->line);
        wefti_svg_pair(t, "M", x, " ", y_of(bar->y[l] + BAR / 2));
        wefti_svg_pair(t, "L", thread, " ", y_of(bar->y[l] + BAR / 2));
        wefti_svg_pair(t, "L", thread, " ", y_of(bar->until[l]));
        wefti_svg_pair(t, "L", x - 1, " ", y_of(bar->until[l]));
        wefti_text_add(t, "\"/>\n");
    }
}

static void arrow_ends(const wefti_draw_arrow *arrow, double *from, double *to) {
    if (arrow->from < 0) *to = x_of(arrow->to), *from = *to - 26;
    else if (arrow->to < 0) *from = x_of(arrow->from) + LANE, *to = *from + 26;
    else if (arrow->from < arrow->to) *from = x_of(arrow->from) + LANE, *to = x_of(arrow->to);
    else *from = x_of(arrow->from), *to = x_of(arrow->to) + LANE;
}

static bool passes_by(const wefti_draw_arrow *arrow) { return arrow->from >= 0 && arrow->to >= 0 && abs(arrow->from - arrow->to) > 1; }

static void add_arrow(wefti_text *t, const wefti_draw_arrow *arrow) {
    double  from, to, width = 1.2 + 0.35 * log10(1 + (double)arrow->bytes / 1000);
    int32_t lane = arrow->from >= 0 ? arrow->from : arrow->to;
    arrow_ends(arrow, &from, &to);
    double bend = (to - from) / 2;
    wefti_text_add(t, "<path class=\"arrow%s\" marker-end=\"url(#a%d)\" stroke=\"%s\" stroke-width=\"", passes_by(arrow) ? " far" : "", (int)((size_t)lane % WEFTI_COUNT(hues)), hue_of(lane));
    wefti_svg_number(t, width);
    wefti_svg_pair(t, "\" d=\"M", from, " ", y_of(arrow->from_y));
    wefti_svg_pair(t, "C", from + bend, " ", y_of(arrow->from_y));
    wefti_svg_pair(t, " ", to - bend, " ", y_of(arrow->to_y));
    wefti_svg_pair(t, " ", to, " ", y_of(arrow->to_y));
    wefti_text_add(t, "\"/>\n");
}

/* Above the middle of an arrow; of one that passes by other ranks, where it arrives. */
static void add_arrow_words(wefti_text *t, const wefti_draw_arrow *arrow) {
    char   words[64], bytes[32], other[96];
    double from, to;
    arrow_ends(arrow, &from, &to);
    bytes_text(bytes, sizeof bytes, arrow->bytes);
    if (arrow->count > 1) snprintf(words, sizeof words, "%s (%d)", bytes, (int)arrow->count);
    else snprintf(words, sizeof words, "%s", bytes);
    if (arrow->from < 0 || arrow->to < 0) {
        snprintf(other, sizeof other, "%s rank %d, %s", arrow->to < 0 ? "to" : "from", (int)arrow->rank, words);
        add_words(t, "bytes", arrow->to < 0 ? "start" : "end", arrow->to < 0 ? to + 3 : from - 3, y_of(arrow->to_y) + 4, other);
    } else if (passes_by(arrow)) {
        add_words(t, "bytes far", "middle", to < from ? to + APART / 2 : to - APART / 2, y_of(arrow->to_y) - 4, words);
    } else {
        add_words(t, "bytes", "middle", (from + to) / 2, y_of((arrow->from_y + arrow->to_y) / 2) - 4, words);
    }
}

/* Which axes collectives go along, in their colours. */
static double add_axes(wefti_text *t, const wefti_draw_scene *s, double x, double y) {
    bool seen[WEFTI_MESH_GROUPS] = {false};
    for (int32_t i = 0; i < s->n_bars; i++) {
        int32_t axis = s->bars[i].axis;
        char    words[64];
        if (axis < 0 || axis >= WEFTI_MESH_GROUPS || seen[axis]) continue;
        seen[axis] = true;
        snprintf(words, sizeof words, "rx=\"6\" fill=\"%s\" stroke=\"%s\"", tone_of(&s->bars[i])->fill, tone_of(&s->bars[i])->line);
        add_rectangle(t, words, x, y - 10, 24, 12);
        int n = snprintf(words, sizeof words, "along %s", axis == 0 ? "all" : "");
        for (int32_t a = WEFTI_MESH_AXES - 1, first = 1; a >= 0; a--)
            if (axis & wefti_mesh_group((wefti_mesh_axis)a)) {
                n += snprintf(words + n, sizeof words - (size_t)n, "%s%s", first ? "" : ", ", wefti_mesh_name((wefti_mesh_axis)a));
                first = 0;
            }
        add_words(t, "small", "start", x + 29, y, words);
        x += 60 + 6.4 * n;
    }
    return x;
}

static void add_legend(wefti_text *t, const wefti_draw_scene *s, double x, double y) {
    static const char *const what[] = {"forward", "backward", "update"};
    for (int p = 0; p < 3; p++) {
        char attributes[96];
        snprintf(attributes, sizeof attributes, "rx=\"3\" fill=\"#555\" fill-opacity=\"%.2f\" stroke=\"#555\"", shades[p]);
        add_rectangle(t, attributes, x, y - 10, 16, 12);
        add_words(t, "small", "start", x + 21, y, what[p]);
        x += 86;
    }
    x = add_axes(t, s, x, y);
    add_words(t, "small", "start", x, y, s->n_bars ? "thread: until it is needed" : "#n: micro-batch");
}

static void begin(wefti_text *t, double width, double height) {
    wefti_text_add(t,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\">\n<style>"
                   "text{font:12px 'DejaVu Sans',Verdana,sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}.rank{font-weight:bold;fill:#fff}"
                   ".under{font-size:10px;fill:#fff}.box{font-weight:bold}.small,.micro{font-size:10px;fill:#444}.w{fill:#fff}"
                   ".lane{stroke-width:2;stroke-opacity:.25}.barword{font-size:10px;fill:#333}"
                   ".link{stroke-width:3}.thread{fill:none;stroke-width:1.3;stroke-opacity:.75}"
                   ".arrow{fill:none}.far{opacity:.55}.bytes{font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:3.5px;stroke-linejoin:round}</style>\n<defs>",
                   width, height, width, height);
    for (size_t h = 0; h < WEFTI_COUNT(hues); h++)
        wefti_text_add(t, "<marker id=\"a%zu\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" markerUnits=\"userSpaceOnUse\" "
                          "orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"%s\"/></marker>", h, hues[h]);
    wefti_text_add(t, "<marker id=\"end\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"6\" markerHeight=\"6\" markerUnits=\"userSpaceOnUse\" orient=\"auto\">"
                      "<path d=\"M0 0L8 4L0 8z\" fill=\"#666\"/></marker></defs>\n<rect width=\"%.0f\" height=\"%.0f\" fill=\"#fff\"/>\n", width, height);
}

void wefti_draw_write(const wefti_draw_scene *s, const char *title, wefti_text *t) {
    bool   open = false, several = false; /* arrows to and from who is not drawn; more than one micro-batch */
    for (int32_t i = 0; i < s->n_arrows; i++) open = open || s->arrows[i].from < 0 || s->arrows[i].to < 0;
    for (int32_t i = 0; i < s->n_boxes; i++) several = several || s->boxes[i].micro > 1;
    double side = open ? 140 : 0, width = fmax(2 * LEFT + (LANE + APART) * s->n_lanes - APART + 2 * side, 640), height = TITLE + HEAD + s->bottom + FOOT;
    begin(t, width, height);
    add_words(t, "title", "start", LEFT, 28, title ? title : "A plan");
    wefti_text_add(t, "<g transform=\"translate(");
    wefti_svg_number(t, side);
    wefti_text_add(t, ",0)\">\n");
    for (int32_t l = 0; l < s->n_lanes; l++) add_head(t, s, l);
    for (int32_t i = 0; i < s->n_bars; i++) add_bar_links(t, s, &s->bars[i]);
    for (int32_t i = 0; i < s->n_boxes; i++) add_box(t, &s->boxes[i], several);
    for (int32_t i = 0; i < s->n_bars; i++) add_bar(t, s, &s->bars[i], i);
    for (int32_t i = 0; i < s->n_arrows; i++) add_arrow(t, &s->arrows[i]);
    for (int32_t i = 0; i < s->n_arrows; i++) add_arrow_words(t, &s->arrows[i]);
    wefti_text_add(t, "</g>\n");
    add_legend(t, s, LEFT, height - 16);
    wefti_text_add(t, "</svg>\n");
}

/* What is drawn as one box: events of a lane merged by scope until a lane has few enough.
 *
 * Level 3 leaves operations as they are; 2 and 1 merge what follows one another in the first two parts of a scope, or the first; 0 in a pass. Messages
 * between them stay where they are, but at level -1, where those of a pass are put before and behind it. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "core/graph/graph.h"
#include "train/draw.h"

/* A name that nobody gave: "add_17", "matmul_3", or none. */
static bool is_automatic(const char *name) {
    const char *last = strrchr(name, '_');
    if (!last || !last[1]) return !*name;
    for (const char *at = last + 1; *at; at++)
        if (!isdigit((unsigned char)*at)) return false;
    return true;
}

/* The first `parts` of the scope that an event stands in, "block1.attention"; "" where it has none. Gradients are named behind a slash. */
static void scope_of(const wefti_draw_event *event, int32_t parts, char *scope) {
    char   name[WEFTI_DRAW_NAME];
    size_t length = strcspn(event->name, "/"), end = 0;
    memcpy(name, event->name, length);
    name[length] = '\0';
    scope[0] = '\0';
    for (const char *at = name; parts > 0; parts--) {
        const char *dot = strchr(at, '.');
        if (!dot && is_automatic(at)) break;
        end = dot ? (size_t)(dot - name) : length;
        if (!dot) break;
        at = dot + 1;
    }
    memcpy(scope, name, end);
    scope[end] = '\0';
}

/* Whether `event` goes into the box of `box`, which then bears the scope of both: those without one go with any. */
static bool joins(wefti_draw_event *box, const wefti_draw_event *event, int32_t level) {
    char scope[WEFTI_DRAW_NAME];
    if (level >= 3 || box->pass != event->pass || box->micro != event->micro) return false;
    if (level <= 0 || event->pass == WEFTI_DRAW_UPDATE) return true;
    scope_of(event, level, scope);
    if (box->name[0] && scope[0] && strcmp(box->name, scope) != 0) return false;
    if (!box->name[0]) memcpy(box->name, scope, sizeof scope);
    return true;
}

static void name_box(wefti_draw_event *box, int32_t level) {
    char scope[WEFTI_DRAW_NAME] = "";
    if (level >= 3) {
        scope_of(box, 8, scope);
        if (!scope[0]) snprintf(scope, sizeof scope, "%s", wefti_ops[box->op].name);
    } else if (level > 0 && box->pass != WEFTI_DRAW_UPDATE) {
        scope_of(box, level, scope);
    }
    memcpy(box->name, scope, sizeof scope);
}

static bool same_message(const wefti_draw_event *a, const wefti_draw_event *b) {
    return a->kind == WEFTI_DRAW_START && b->kind == WEFTI_DRAW_START && a->peer < 0 && b->peer < 0 && a->op == b->op && a->members == b->members;
}

/* Adds an event behind `n` that were merged; gives how many these are then. Waits for collectives that began together are one. */
static int32_t append(wefti_draw_event *to, int32_t n, const wefti_draw_event *event, int32_t level) {
    wefti_draw_event *last = n > 0 ? &to[n - 1] : NULL;
    if (event->kind == WEFTI_DRAW_OPS && last && last->kind == WEFTI_DRAW_OPS && joins(last, event, level)) {
        last->count += event->count;
        last->flops += event->flops;
        return n;
    }
    if (last && same_message(last, event)) {
        last->count += event->count;
        last->bytes += event->bytes;
        return n;
    }
    to[n] = *event;
    if (event->kind == WEFTI_DRAW_OPS) name_box(&to[n], level);
    return n + 1;
}

static bool is_arrival(const wefti_draw_event *event) { return event->kind == WEFTI_DRAW_WAIT && event->peer >= 0; }

static bool follows(const wefti_draw_event *a, const wefti_draw_event *b) { return a->pass == b->pass && a->micro == b->micro; }

/* The end of the pass that begins at `begin`: operations of one pass and micro-batch, what is between them, and what is started behind them. */
static int32_t pass_end(const wefti_draw_event *events, int32_t begin, int32_t n) {
    const wefti_draw_event *last = NULL;
    int32_t                 end = begin;
    for (int32_t i = begin; i < n; i++) {
        if (events[i].kind != WEFTI_DRAW_OPS) continue;
        if (last && !follows(last, &events[i])) break;
        last = &events[i];
        end = i + 1;
    }
    if (!last) return n;
    while (end < n && events[end].kind == WEFTI_DRAW_START) end++;
    return end;
}

/* A pass as what arrives, its operations, what is started: collectives of a kind and members together, waits for them left away. */
static int32_t append_pass(wefti_draw_event *to, int32_t n, const wefti_draw_event *events, int32_t begin, int32_t end) {
    for (int32_t i = begin; i < end; i++)
        if (is_arrival(&events[i])) n = append(to, n, &events[i], 0);
    for (int32_t i = begin; i < end; i++)
        if (events[i].kind == WEFTI_DRAW_OPS) n = append(to, n, &events[i], 0);
    int32_t bars = n;
    for (int32_t i = begin; i < end; i++) {
        if (events[i].kind != WEFTI_DRAW_START) continue;
        int32_t known = bars;
        while (known < n && !same_message(&to[known], &events[i])) known++;
        if (known == n) to[n++] = events[i];
        else to[known].count += events[i].count, to[known].bytes += events[i].bytes;
    }
    return n;
}

static int32_t merge(const wefti_draw_event *events, int32_t n_events, int32_t level, wefti_draw_event *to) {
    int32_t n = 0;
    if (level >= 0) {
        for (int32_t i = 0; i < n_events; i++) n = append(to, n, &events[i], level);
        return n;
    }
    for (int32_t begin = 0; begin < n_events;) {
        int32_t end = pass_end(events, begin, n_events);
        n = append_pass(to, n, events, begin, end);
        begin = end;
    }
    return n;
}

static int32_t boxes_in(const wefti_draw_event *events, int32_t n) {
    int32_t boxes = 0;
    for (int32_t i = 0; i < n; i++) boxes += events[i].kind == WEFTI_DRAW_OPS || (events[i].kind == WEFTI_DRAW_START && events[i].peer < 0);
    return boxes;
}

weft_status wefti_draw_merge(wefti_draw_scene *scene, int32_t most) {
    int32_t           longest = 0, level = 4, boxes = most + 1;
    wefti_draw_event *to = NULL;
    for (int32_t l = 0; l < scene->n_lanes; l++) longest = wefti_max_i64(longest, scene->lanes[l].head.n_events);
    size_t bytes = sizeof *to * (size_t)(longest + 1);
    WEFTI_TRY(wefti_alloc(bytes, "a drawing", &to));
    while (boxes > most && level > -1) {
        level--;
        boxes = 0;
        for (int32_t l = 0; l < scene->n_lanes; l++)
            boxes = wefti_max_i64(boxes, boxes_in(to, merge(scene->lanes[l].events, scene->lanes[l].head.n_events, level, to)));
    }
    for (int32_t l = 0; l < scene->n_lanes; l++) {
        wefti_draw_lane *lane = &scene->lanes[l];
        lane->head.n_events = merge(lane->events, lane->head.n_events, level, to);
        if (lane->head.n_events) memcpy(lane->events, to, sizeof *to * (size_t)lane->head.n_events);
    }
    wefti_free(to, bytes);
    return WEFT_OK;
}

/* Pictures of plans: what stands where, what they say, that large plans stay small, and on ranks that are processes, that everybody is in them. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/draw.h"
#include "weft.h"
#include "transport/ranks.h"

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 22);
    if (!file || !text) return text;
    (void)!fread(text, 1, (1 << 22) - 1, file);
    fclose(file);
    return text;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (const char *at = strstr(text, what); at; at = strstr(at + 1, what)) n++;
    return n;
}

/* Elements are closed in order, and attributes and text have no bare "<". */
static bool is_well_formed(const char *text) {
    char open[16][16];
    int  depth = 0;
    bool any = false;
    for (const char *at = strchr(text, '<'); at; at = strchr(at + 1, '<')) {
        const char *end = strchr(at, '>'), *next = strchr(at + 1, '<');
        if (!end || (next && next < end)) return false;
        char   name[16];
        size_t length = strcspn(at + 1 + (at[1] == '/'), " />\n");
        if (length >= sizeof name) return false;
        memcpy(name, at + 1 + (at[1] == '/'), length);
        name[length] = '\0';
        any = true;
        if (at[1] == '/') {
            if (depth == 0 || strcmp(open[--depth], name) != 0) return false;
        } else if (end[-1] != '/') {
            if (depth == 16) return false;
            strcpy(open[depth++], name);
        }
    }
    return any && depth == 0;
}

/* --- where things stand --- */

static wefti_draw_event ops(int32_t pass, int32_t micro, const char *name, double flops) {
    wefti_draw_event event = {.kind = WEFTI_DRAW_OPS, .pass = pass, .micro = micro, .count = 1, .flops = flops, .peer = -1};
    snprintf(event.name, sizeof event.name, "%s", name);
    return event;
}
static wefti_draw_event message(int32_t kind, weft_op op, int32_t number, int32_t peer, int32_t sequence, int64_t bytes) {
    return (wefti_draw_event){.kind = kind, .op = (int32_t)op, .count = 1, .message = number, .peer = peer, .sequence = sequence, .members = 3, .bytes = bytes};
}

static void fill(wefti_draw_lane *lane, int32_t rank, const wefti_draw_event *events, int32_t n) {
    *lane = (wefti_draw_lane){.head = {.rank = rank, .n_events = n}, .room = (size_t)n * sizeof *events};
    cr_assert_eq(wefti_alloc(lane->room, "a test", &lane->events), WEFT_OK);
    memcpy(lane->events, events, lane->room);
}

Test(draw, what_is_received_stands_below_what_was_sent) {
    const wefti_draw_event first[] = {ops(0, 1, "a", 10), message(WEFTI_DRAW_START, WEFT_OP_SEND, 0, 1, 0, 4000), ops(0, 2, "b", 5)};
    const wefti_draw_event second[] = {message(WEFTI_DRAW_START, WEFT_OP_RECEIVE, 0, 0, 0, 4000), ops(0, 1, "x", 2),
                                       message(WEFTI_DRAW_WAIT, WEFT_OP_RECEIVE, 0, 0, 0, 4000), ops(0, 1, "y", 2)};
    wefti_draw_lane  lanes[2];
    wefti_draw_scene scene = {.lanes = lanes, .n_lanes = 2};
    fill(&lanes[0], 0, first, 3);
    fill(&lanes[1], 1, second, 4);
    cr_assert_eq(wefti_draw_lay_out(&scene, 40), WEFT_OK);
    cr_assert(scene.n_boxes == 4 && scene.n_arrows == 1);
    const wefti_draw_arrow *arrow = &scene.arrows[0];
    cr_expect(arrow->from == 0 && arrow->to == 1 && arrow->bytes == 4000 && arrow->to_y > arrow->from_y);
    for (int i = 0; i < 4; i++) {
        const wefti_draw_box *box = &scene.boxes[i];
        if (strcmp(box->name, "a") == 0) cr_expect(box->y + box->height < arrow->from_y && box->height > 70, "the box with most to do is %g high", box->height);
        if (strcmp(box->name, "y") == 0) cr_expect(box->y > arrow->to_y);
        if (strcmp(box->name, "x") == 0) cr_expect(box->y < arrow->to_y);
    }
    wefti_draw_scene_release(&scene);
    for (int l = 0; l < 2; l++) wefti_draw_lane_release(&lanes[l]);
}

Test(draw, ranks_meet_at_bars_and_wait_beside_them) {
    const wefti_draw_event slow[] = {ops(1, 0, "a", 10), ops(1, 0, "b", 10), message(WEFTI_DRAW_START, WEFT_OP_ALL_REDUCE, 0, -1, 0, 64),
                                     ops(1, 0, "c", 1), message(WEFTI_DRAW_WAIT, WEFT_OP_ALL_REDUCE, 0, -1, 0, 64), ops(2, 0, "d", 1)};
    wefti_draw_lane  lanes[2];
    wefti_draw_scene scene = {.lanes = lanes, .n_lanes = 2};
    fill(&lanes[0], 0, slow, 6);
    fill(&lanes[1], 1, slow + 2, 4);
    cr_assert_eq(wefti_draw_lay_out(&scene, 40), WEFT_OK);
    cr_assert_eq(scene.n_bars, 1);
    const wefti_draw_bar *bar = &scene.bars[0];
    cr_expect(bar->begun[0] && bar->begun[1] && bar->y[0] == bar->y[1] && bar->y[0] > 100);
    cr_expect(bar->until[0] > bar->y[0] + 40 && bar->until[1] == bar->until[0]);
    wefti_draw_scene_release(&scene);
    for (int l = 0; l < 2; l++) wefti_draw_lane_release(&lanes[l]);
}

/* Ranks 0 and 2, and 1 and 3: links pass behind who is no member. At any height, whatever its fraction of a pixel. */
Test(draw, bars_of_interleaved_members_stand_apart) {
    for (int t = 1; t < 400; t++) {
        wefti_draw_lane  lanes[4];
        wefti_draw_scene scene = {.lanes = lanes, .n_lanes = 4};
        for (int32_t l = 0; l < 4; l++) {
            wefti_draw_event bar = message(WEFTI_DRAW_START, WEFT_OP_ALL_REDUCE, 0, -1, 0, 64);
            bar.members = l % 2 ? 10 : 5;
            const wefti_draw_event events[] = {ops(0, 0, "a", 1000), ops(1, 0, "b", 1.7 * t + l / 2), bar, ops(1, 0, "c", 0.37 * t), bar};
            fill(&lanes[l], l, events, 5);
            lanes[l].events[4].sequence = 1;
        }
        cr_assert_eq(wefti_draw_lay_out(&scene, 40), WEFT_OK);
        cr_assert_eq(scene.n_bars, 4);
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < i; k++)
                cr_assert(fabs(scene.bars[i].y[scene.bars[i].begun[0] ? 0 : 1] - scene.bars[k].y[scene.bars[k].begun[0] ? 0 : 1]) > 24);
        wefti_draw_scene_release(&scene);
        for (int l = 0; l < 4; l++) wefti_draw_lane_release(&lanes[l]);
    }
}

/* Each waits for the other before it sends: that cannot run, but must not hang a drawing. */
Test(draw, circles_are_drawn_all_the_same) {
    wefti_draw_lane  lanes[2];
    wefti_draw_scene scene = {.lanes = lanes, .n_lanes = 2};
    for (int32_t l = 0; l < 2; l++) {
        const wefti_draw_event events[] = {message(WEFTI_DRAW_START, WEFT_OP_RECEIVE, 0, 1 - l, 0, 8), message(WEFTI_DRAW_WAIT, WEFT_OP_RECEIVE, 0, 1 - l, 0, 8),
                                           ops(0, 0, "a", 1), message(WEFTI_DRAW_START, WEFT_OP_SEND, 1, 1 - l, 0, 8),
                                           message(WEFTI_DRAW_START, WEFT_OP_ALL_REDUCE, 2, -1, l, 8)};
        fill(&lanes[l], l, events, 5);
    }
    cr_assert_eq(wefti_draw_lay_out(&scene, 40), WEFT_OK);
    cr_expect(scene.n_boxes == 2 && scene.n_arrows == 2 && scene.n_bars == 2, "%d boxes, %d arrows, %d bars", scene.n_boxes, scene.n_arrows, scene.n_bars);
    wefti_draw_scene_release(&scene);
    for (int l = 0; l < 2; l++) wefti_draw_lane_release(&lanes[l]);
}

Test(draw, scopes_are_one_box_where_there_are_many_operations) {
    wefti_draw_event events[300];
    for (int i = 0; i < 300; i++) {
        char name[48];
        snprintf(name, sizeof name, i % 3 == 0 ? "add_%d" : "block%d.part%d", i % 3 == 0 ? i : i / 30, i / 10);
        events[i] = ops(0, 1, name, 1);
    }
    const struct { int32_t most, boxes; } tries[] = {{300, 300}, {40, 30}, {29, 10}, {9, 1}};
    for (int t = 0; t < 4; t++) {
        wefti_draw_lane  lane;
        wefti_draw_scene scene = {.lanes = &lane, .n_lanes = 1};
        fill(&lane, 0, events, 300);
        cr_assert_eq(wefti_draw_lay_out(&scene, tries[t].most), WEFT_OK);
        cr_expect_eq(scene.n_boxes, tries[t].boxes, "at most %d: %d boxes", tries[t].most, scene.n_boxes);
        int32_t all = 0;
        for (int32_t i = 0; i < scene.n_boxes; i++) all += scene.boxes[i].count;
        cr_expect_eq(all, 300);
        if (t == 2) cr_expect_str_eq(scene.boxes[4].name, "block4");
        wefti_draw_scene_release(&scene);
        wefti_draw_lane_release(&lane);
    }
}

/* --- files --- */

enum { WIDTH = 128 };

static weft_tensor *tower(weft_graph *g, int layers) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(8, WIDTH));
    for (int i = 0; i < layers; i++) {
        char name[32];
        snprintf(name, sizeof name, "layer%d", i);
        weft_scope_push(g, name);
        x = weft_relu(weft_linear(x, "a<b", .out = WIDTH));
        weft_scope_pop(g);
    }
    return weft_mean(weft_square(x));
}

static weft_world *lone_world(void) {
    weft_world *world = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    return world;
}

Test(draw, large_plans_stay_small) {
    weft_world   *world = lone_world();
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    cr_assert_eq(weft_trainer_create(world, &(weft_program){.loss = tower(graph, 60), .solver = weft_sgd(0.1)}, &trainer), WEFT_OK, "%s", weft_error_message());
    char path[64];
    snprintf(path, sizeof path, "/tmp/weft-draw-%d.svg", (int)getpid());
    cr_assert_eq(weft_plan_draw(weft_trainer_plan(trainer), path, &(weft_draw_options){.title = "a & b"}), WEFT_OK, "%s", weft_error_message());
    char *few = read_file(path);
    cr_expect(is_well_formed(few) && strlen(few) < 20000, "%zu bytes", strlen(few));
    cr_expect(strstr(few, "a &amp; b") && strstr(few, "forward") && strstr(few, "backward") && strstr(few, "update"));
    cr_assert_eq(weft_plan_draw(weft_trainer_plan(trainer), path, &(weft_draw_options){.most_boxes = 1000}), WEFT_OK, "%s", weft_error_message());
    char *many = read_file(path);
    cr_expect(is_well_formed(many) && strstr(many, "layer59.a&lt;b") && count(many, "<rect") > count(few, "<rect") + 60);
    cr_expect_eq(weft_plan_draw(weft_trainer_plan(trainer), "/nowhere/at/all.svg", NULL), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "/nowhere/at/all.svg"), "%s", weft_error_message());
    cr_expect_eq(weft_plan_draw(NULL, path, NULL), WEFT_E_INVALID);
    cr_expect_eq(weft_plan_draw(weft_trainer_plan(trainer), NULL, NULL), WEFT_E_INVALID);
    remove(path);
    free(few);
    free(many);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
}

/* --- ranks --- */

static weft_strategy strategy;
static char          file[64];

/* Everybody draws; then each alone, to a file of its own; then where nobody can write. */
static weft_status draw(ranks *all, int32_t rank) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    char          own[96];
    (void)all;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status status = weft_graph_create(NULL, &graph);
    if (status == WEFT_OK) status = weft_trainer_create(world, &(weft_program){.loss = tower(graph, 4), .solver = weft_sgd(0.1), .strategy = strategy}, &trainer);
    if (status == WEFT_OK) status = weft_plan_draw(weft_trainer_plan(trainer), file, NULL);
    snprintf(own, sizeof own, "%s.%d", file, (int)rank);
    if (status == WEFT_OK) status = weft_plan_draw(weft_trainer_plan(trainer), own, &(weft_draw_options){.alone = true});
    if (status == WEFT_OK && weft_plan_draw(weft_trainer_plan(trainer), "/nowhere/at/all.svg", NULL) == WEFT_OK)
        status = wefti_fail(WEFT_E_INTERNAL, "drawn to a folder that is not there");
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

/* The picture of all, which the caller frees; of rank 1 alone in *alone_out. */
static char *drawn(int32_t n, weft_strategy how, char **alone_out) {
    strategy = how;
    snprintf(file, sizeof file, "/tmp/weft-draw-%d.svg", (int)getpid());
    ranks *all = ranks_start(n, draw);
    ranks_join(all);
    for (int32_t r = 0; r < n; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
    char *text = read_file(file), own[96];
    remove(file);
    for (int32_t r = 0; r < n; r++) {
        snprintf(own, sizeof own, "%s.%d", file, (int)r);
        if (r == 1) *alone_out = read_file(own);
        remove(own);
    }
    cr_assert(is_well_formed(text) && is_well_formed(*alone_out));
    for (int32_t r = 0; r < n; r++) {
        snprintf(own, sizeof own, ">rank %d on cpu<", (int)r);
        cr_expect_eq(count(text, own), 1, "%s stands there %d times", own, count(text, own));
        cr_expect_eq(count(*alone_out, own), r == 1);
    }
    return text;
}

Test(draw, stages_send_to_one_another) {
    char *alone = NULL, *text = drawn(2, (weft_strategy){.pipeline = 2, .accumulate = 2}, &alone);
    cr_expect(count(text, "class=\"arrow\"") >= 4 && strstr(text, ">2.0 kB<") && strstr(text, ">pipeline 1<"), "%s", text);
    cr_expect(strstr(text, ">#1<") && strstr(text, ">#2<"));
    cr_expect(strstr(alone, "from rank 0, ") && strstr(alone, "to rank 0, "));
    free(text);
    free(alone);
}

Test(draw, collectives_say_along_what) {
    char *alone = NULL, *text = drawn(4, (weft_strategy){.data = 2, .tensor = 2}, &alone);
    cr_expect(strstr(text, ">along tensor<") && strstr(text, ">along data<") && strstr(text, "all-reduce, "));
    cr_expect(strstr(text, ">data 1, tensor 0<") && count(text, "class=\"link\"") >= 4);
    free(text);
    free(alone);
}

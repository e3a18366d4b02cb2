/* Variables: initial values, access by name, extension, sharing, errors. */
#include "core/tensor/philox.h"
#include "plan/support.h"

typedef struct scene {
    weft_world     *world;
    weft_graph     *g;
    weft_variables *v;
} scene;

static scene open_scene(void) {
    scene s = {world_open(WEFTI_CPU_REFERENCE), graph_new(11), NULL};
    weft_parameter(s.g, "w", weft_shape(7, 5), .init = weft_init_normal(2, 0.5));
    weft_parameter(s.g, "u", weft_shape(1000), .init = weft_init_uniform(-3, 5), .dtype = WEFT_F64, .frozen = true);
    weft_parameter(s.g, "b", weft_shape(5), .init = weft_init_ones(), .unregularised = true);
    weft_state(s.g, "n", weft_shape_scalar(), .dtype = WEFT_I64, .init = weft_init_value(7));
    weft_state(s.g, "none", weft_shape(0, 3));
    OK(weft_graph_check(s.g));
    OK(weft_variables_create(s.world, s.g, &s.v));
    return s;
}
static void close_scene(scene *s) {
    weft_variables_release(s->v);
    weft_graph_release(s->g);
    world_close(s->world);
}

Test(variables, start_as_the_graph_says) {
    scene              s = open_scene();
    weft_variable_info info;
    float              w[35], b[5];
    double             u[1000], sum = 0, low = 9, high = -9;
    int64_t            n;
    cr_assert_eq(weft_variables_count(s.v), 5);
    OK(weft_variables_info(s.v, 1, &info));
    cr_assert(strcmp(info.name, "u") == 0 && info.kind == WEFT_VARIABLE_PARAMETER && info.dtype == WEFT_F64 && info.bytes == 8000 && info.frozen && !info.unregularised);
    OK(weft_variables_info(s.v, 3, &info));
    cr_assert(info.kind == WEFT_VARIABLE_STATE && info.shape.rank == 0 && info.bytes == 8);
    cr_assert_eq(weft_variables_bytes(s.v), 192 + 8000 + 64 + 64);
    OK(weft_variables_get(s.v, "w", w, sizeof w));
    uint64_t key = weft_graph_find(s.g, "w")->node->leaf->key;
    for (int i = 0; i < 35; i++) cr_assert_eq(w[i], (float)(2 + 0.5 * wefti_random_normal(key, 0, i, WEFT_F32)));
    OK(weft_variables_get(s.v, "u", u, sizeof u));
    for (int i = 0; i < 1000; i++) {
        sum += u[i];
        low = fmin(low, u[i]);
        high = fmax(high, u[i]);
    }
    cr_assert(low >= -3 && low < -2.9 && high < 5 && high > 4.9 && fabs(sum / 1000 - 1) < 0.3);
    OK(weft_variables_get(s.v, "b", b, sizeof b));
    OK(weft_variables_get(s.v, "n", &n, sizeof n));
    OK(weft_variables_get(s.v, "none", NULL, 0));
    cr_assert(b[0] == 1 && b[4] == 1 && n == 7);
    close_scene(&s);
}

/* Of more elements than a thread draws at a time, and a few. */
Test(variables, large_ones_start_as_small_ones_do) {
    enum { N = 3 * (1 << 18) + 3 };
    static float    values[N];
    weft_world     *world = world_open(WEFTI_CPU_REFERENCE);
    weft_variables *v = NULL;
    weft_graph     *g = graph_new(5);
    weft_parameter(g, "large", weft_shape(N), .init = weft_init_normal(1, 2));
    OK(weft_variables_create(world, g, &v));
    OK(weft_variables_get(v, "large", values, sizeof values));
    uint64_t key = weft_graph_find(g, "large")->node->leaf->key;
    for (int64_t i = 0; i < N; i++) cr_assert_eq(values[i], (float)(1 + 2 * wefti_random_normal(key, 0, i, WEFT_F32)), "element %lld", (long long)i);
    weft_variables_release(v);
    weft_graph_release(g);
    world_close(world);
}

Test(variables, are_the_same_whatever_else_the_graph_holds) {
    scene       s = open_scene();
    weft_graph *other = graph_new(11);
    float       a[35], b[35];
    weft_parameter(other, "before", weft_shape(3));
    weft_parameter(other, "w", weft_shape(7, 5), .init = weft_init_normal(2, 0.5));
    weft_variables *v;
    OK(weft_variables_create(s.world, other, &v));
    OK(weft_variables_get(s.v, "w", a, sizeof a));
    OK(weft_variables_get(v, "w", b, sizeof b));
    cr_assert_eq(memcmp(a, b, sizeof a), 0);
    weft_variables_release(v);
    weft_graph_release(other);
    close_scene(&s);
}

Test(variables, are_set_and_reset) {
    scene s = open_scene();
    float before[35], b[35] = {9, 8, 7, 6, 5};
    OK(weft_variables_get(s.v, "w", before, sizeof before));
    OK(weft_variables_set(s.v, "w", WEFT_F32, weft_shape(7, 5), b));
    float after[35];
    OK(weft_variables_get(s.v, "w", after, sizeof after));
    cr_assert_eq(memcmp(after, b, sizeof b), 0);
    OK(weft_variables_reset(s.v));
    OK(weft_variables_get(s.v, "w", after, sizeof after));
    cr_assert_eq(memcmp(after, before, sizeof before), 0);
    close_scene(&s);
}

Test(variables, extend_by_what_is_new_and_stay_where_they_are) {
    scene s = open_scene();
    void *at = wefti_variables_memory(s.v, 0);
    float changed[35] = {1}, after[35], m[2];
    OK(weft_variables_set(s.v, "w", WEFT_F32, weft_shape(7, 5), changed));
    weft_state(s.g, "m", weft_shape(2), .init = weft_init_value(4));
    for (int i = 0; i < 200; i++) {
        char name[16];
        snprintf(name, sizeof name, "many%d", i);
        weft_state(s.g, name, weft_shape(3));
    }
    OK(weft_variables_extend(s.v, s.g));
    OK(weft_variables_extend(s.v, s.g)); /* nothing is new */
    cr_assert_eq(weft_variables_count(s.v), 206);
    cr_assert_eq(weft_variables_find(s.v, "many199"), 205);
    cr_assert_eq(wefti_variables_memory(s.v, 0), at);
    OK(weft_variables_get(s.v, "w", after, sizeof after));
    OK(weft_variables_get(s.v, "m", m, sizeof m));
    cr_assert(memcmp(after, changed, sizeof after) == 0 && m[1] == 4);
    weft_graph *other = graph_new(1);
    weft_state(other, "fresh", weft_shape(2));
    weft_state(other, "w", weft_shape(7, 5));
    FAILS(WEFT_E_MISMATCH, weft_variables_extend(s.v, other), "'w' is a parameter f32 [7, 5]");
    cr_assert_eq(weft_variables_find(s.v, "fresh"), -1, "half an extension");
    weft_graph_release(other);
    close_scene(&s);
}

Test(variables, say_what_is_wrong) {
    scene              s = open_scene();
    weft_variable_info info;
    float              w[35];
    weft_variables    *none = (weft_variables *)&s;
    FAILS(WEFT_E_NOT_FOUND, weft_variables_get(s.v, "layer.w", w, sizeof w), "(there is 'w')");
    FAILS(WEFT_E_MISMATCH, weft_variables_get(s.v, "w", w, 4), "140 bytes; there is room for 4");
    FAILS(WEFT_E_INVALID, weft_variables_get(s.v, "w", NULL, 140), "NULL");
    FAILS(WEFT_E_DTYPE, weft_variables_set(s.v, "w", WEFT_F64, weft_shape(7, 5), w), "is f32, not f64");
    FAILS(WEFT_E_SHAPE, weft_variables_set(s.v, "w", WEFT_F32, weft_shape(5, 7), w), "shape [7, 5], not [5, 7]");
    FAILS(WEFT_E_INVALID, weft_variables_set(s.v, "w", WEFT_F32, weft_shape(7, 5), NULL), "NULL");
    FAILS(WEFT_E_INVALID, weft_variables_info(s.v, 5, &info), "there is no variable 5");
    FAILS(WEFT_E_INVALID, weft_variables_info(s.v, -1, &info), "no variable -1");
    FAILS(WEFT_E_INVALID, weft_variables_create(NULL, s.g, &none), "world is NULL");
    cr_assert_null(none);
    FAILS(WEFT_E_INVALID, weft_variables_create(s.world, NULL, &none), "graph is NULL");
    FAILS(WEFT_E_INVALID, weft_variables_extend(NULL, s.g), "NULL");
    FAILS(WEFT_E_INVALID, weft_variables_reset(NULL), "NULL");
    weft_add(weft_graph_find(s.g, "w"), weft_graph_find(s.g, "u"));
    FAILS(WEFT_E_DTYPE, weft_variables_create(s.world, s.g, &none), "add");
    cr_assert_eq(weft_variables_find(s.v, "nothing"), -1);
    weft_variables_release(NULL);
    cr_assert_null(weft_variables_retain(NULL));
    close_scene(&s);
}

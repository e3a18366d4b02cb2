/* Graphs cut by devices: random graphs under random placements on ranks that are processes give a single process's bits, with one message
 * for each tensor and rank; what cannot be placed is refused; a rank that dies ends all. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "weft.h"
#include "common/effort.h"
#include "core/graph/graph.h"
#include "core/iface/world.h"
#include "core/plan/plan.h"
#include "parallel/cut.h"
#include "parallel/place.h"
#include "transport/ranks.h"

enum { POOL = 44, OUTPUTS = 5, STATES = 3, RANKS = 4 };

typedef struct maker {
    weft_graph  *g;
    uint64_t     seed;
    weft_tensor *pool[POOL];
    int32_t      n;
    weft_tensor *state[STATES];
    bool         placed;
} maker;

static uint32_t draw(maker *m, uint32_t below) {
    m->seed = m->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(m->seed >> 33) % below;
}
static weft_tensor *any(maker *m) { return m->pool[draw(m, (uint32_t)m->n)]; }

/* Placed or not, the same numbers are drawn. */
static weft_tensor *place(maker *m, weft_tensor *x) {
    char     text[32];
    uint32_t how = draw(m, 10), rank = draw(m, RANKS);
    if (!m->placed || how >= 7 || !weft_tensor_ok(x) || x->node->wish || x->node->op == WEFT_OP_ASSIGN) return x;
    snprintf(text, sizeof text, how == 6 ? "with s%u" : how == 5 ? "cpu" : "rank %u", (unsigned)(how == 6 ? rank % STATES : rank));
    if (how == 6 && (!m->state[STATES - 1] || x->node->op == WEFT_OP_STATE)) return x;
    return weft_place(x, text);
}

static weft_tensor *clamped(maker *m, weft_tensor *x) { return draw(m, 2) ? weft_clamp(x, -0.5, 0.75) : weft_add_scalar(x, 0.125); }

typedef weft_tensor *(*unary_op)(weft_tensor *x);
static const unary_op unaries[] = {weft_neg, weft_abs, weft_sign, weft_square, weft_exp, weft_expm1, weft_sqrt, weft_log1p, weft_sin, weft_cos, weft_tanh,
                                   weft_sigmoid, weft_erf, weft_softplus, weft_relu, weft_gelu, weft_gelu_tanh, weft_silu, weft_floor, weft_ceil,
                                   weft_round, weft_log, weft_rsqrt, weft_reciprocal, weft_detach};
typedef weft_tensor *(*binary_op)(weft_tensor *x, weft_tensor *y);
static const binary_op binaries[] = {weft_add, weft_sub, weft_mul, weft_div, weft_pow, weft_maximum, weft_minimum};
static const binary_op comparisons[] = {weft_eq, weft_ne, weft_lt, weft_le, weft_gt, weft_ge};

/* What may be anything comes back to between -1 and 1. */
static weft_tensor *tame(weft_tensor *x) { return weft_where(weft_isfinite(x), weft_tanh(x), weft_mul_scalar(weft_cast(weft_isfinite(x), WEFT_F32), 0.5)); }

static weft_tensor *fitting(maker *m, weft_tensor *x) {
    weft_shape a = weft_tensor_shape(x);
    for (int32_t tries = 0; tries < 12; tries++) {
        weft_tensor *y = any(m);
        weft_shape   b = weft_tensor_shape(y);
        bool         fits = true;
        for (int32_t i = 1; i <= a.rank && i <= b.rank; i++) {
            int64_t p = a.dim[a.rank - i], q = b.dim[b.rank - i];
            fits &= p == q || p == 1 || q == 1;
        }
        if (fits && weft_shape_elements(a) * weft_shape_elements(b) < 20000) return y;
    }
    return x;
}

static weft_tensor *reduced(maker *m, weft_tensor *x) {
    weft_shape s = weft_tensor_shape(x);
    if (s.rank == 0) return x;
    int32_t axis = (int32_t)draw(m, (uint32_t)s.rank);
    bool    keep = draw(m, 2);
    switch (draw(m, 8)) {
    case 0: return weft_sum(x, .axes = weft_axes(axis), .keep = keep);
    case 1: return weft_mean(x, .axes = weft_axes(axis), .keep = keep);
    case 2: return weft_max(x, .axes = weft_axes(axis), .keep = keep);
    case 3: return weft_min(x, .axes = weft_axes(axis), .keep = keep);
    case 4: return weft_variance(x, .axes = weft_axes(axis), .keep = keep);
    case 5: return weft_norm(x, .axes = weft_axes(axis), .keep = keep);
    case 6: return weft_cast(weft_argmax(x, axis), WEFT_F32);
    default: return weft_softmax(x, axis);
    }
}

static weft_tensor *shaped(maker *m, weft_tensor *x) {
    weft_shape s = weft_tensor_shape(x);
    if (s.rank == 0) return weft_unsqueeze(x, 0);
    int32_t      axis = (int32_t)draw(m, (uint32_t)s.rank);
    weft_tensor *index = weft_arange(m->g, WEFT_I32, 3, (double)draw(m, 2), 1), *parts[2];
    switch (draw(m, 9)) {
    case 0: return weft_transpose(x, axis, (int32_t)draw(m, (uint32_t)s.rank));
    case 1: return weft_reshape(x, weft_shape(weft_shape_elements(s)));
    case 2: return s.dim[axis] > 1 ? weft_slice_step(x, axis, (int64_t)draw(m, 2), s.dim[axis], 1 + (int64_t)draw(m, 2)) : x;
    case 3: return s.rank < 4 ? weft_unsqueeze(x, axis) : x;
    case 4: return s.rank < 3 && weft_shape_elements(s) < 300 ? weft_expand(weft_unsqueeze(x, 0), s.rank == 1 ? weft_shape(3, s.dim[0]) : weft_shape(2, s.dim[0], s.dim[1])) : x;
    case 5: return weft_shape_elements(s) < 300 ? weft_concat((weft_tensor *[]){x, weft_neg(x)}, 2, axis) : x;
    case 6: return s.rank == 1 ? weft_pad(x, .low = {1}, .high = {2}, .value = 0.25) : x;
    case 7: return weft_gather(x, index, axis);
    default:
        if (s.dim[axis] % 2 || s.dim[axis] == 0) return weft_scatter_add(x, index, weft_gather(x, index, axis), axis);
        weft_split(x, axis, 2, parts);
        return weft_sub(parts[0], parts[1]);
    }
}

static weft_tensor *next(maker *m) {
    weft_tensor *x = any(m), *y = fitting(m, x);
    weft_shape   s = weft_tensor_shape(x);
    switch (draw(m, 11)) {
    case 0:
    case 1: return tame(unaries[draw(m, WEFTI_COUNT(unaries))](x));
    case 2:
    case 3: return tame(binaries[draw(m, WEFTI_COUNT(binaries))](x, y));
    case 4: return weft_where(weft_and(comparisons[draw(m, WEFTI_COUNT(comparisons))](x, y), weft_not(weft_lt(x, y))), weft_sub(x, y), y);
    case 5: return tame(reduced(m, x));
    case 6:
    case 7: return shaped(m, x);
    case 8: return s.rank >= 2 ? weft_tanh(weft_matmul(x, x, .transpose_b = true)) : clamped(m, x);
    case 9: return weft_dropout(weft_cast(weft_cast(x, draw(m, 2) ? WEFT_F64 : WEFT_BF16), WEFT_F32), 0.25);
    default: return draw(m, 2) ? clamped(m, x) : weft_add(x, weft_mul_scalar(weft_random_uniform(m->g, WEFT_F32, s), 0.5));
    }
}

static void add_state(maker *m, const char *name, weft_shape shape, double value, weft_tensor **state_out) {
    m->pool[m->n++] = *state_out = place(m, weft_state(m->g, name, shape, .init = weft_init_value(value)));
}

/* A step of gradient descent on two parameters, whose ends are assignments. */
static void descend(maker *m, weft_tensor *const *parameters) {
    weft_tensor *loss = weft_scalar(m->g, WEFT_F32, 0), *gradients[2];
    for (int32_t i = 0; i < 4; i++) loss = weft_add(loss, weft_mean(weft_tanh(any(m))));
    if (weft_gradients(loss, parameters, 2, gradients) != WEFT_OK) return;
    for (int32_t i = 0; i < 2; i++) {
        weft_tensor *inputs[2] = {parameters[i], weft_sub(parameters[i], weft_mul_scalar(tame(gradients[i]), 0.1))};
        wefti_graph_effect(wefti_apply(WEFT_OP_ASSIGN, NULL, inputs, 2, NULL));
    }
    m->pool[m->n - 1] = loss;
}

static weft_graph *make(uint64_t seed, bool placed, weft_tensor **outputs) {
    maker        m = {.seed = seed, .placed = placed};
    weft_tensor *parameters[2], *state;
    if (weft_graph_create(&(weft_graph_options){.seed = seed}, &m.g) != WEFT_OK) return NULL;
    m.pool[m.n++] = place(&m, weft_input(m.g, "x", WEFT_F32, weft_shape(3, 6)));
    m.pool[m.n++] = parameters[0] = place(&m, weft_parameter(m.g, "w", weft_shape(4, 6)));
    m.pool[m.n++] = parameters[1] = place(&m, weft_parameter(m.g, "b", weft_shape(6)));
    m.pool[m.n++] = weft_scalar(m.g, WEFT_F32, 0.5);
    for (int32_t i = 0; i < STATES; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        add_state(&m, name, weft_shape(4, 6), 0.1 * i, &m.state[i]);
    }
    while (m.n < POOL) {
        weft_tensor *x = next(&m);
        if (!weft_tensor_ok(x)) break;
        x = place(&m, weft_shape_elements(weft_tensor_shape(x)) > 1000 ? weft_mean(x) : x);
        m.pool[m.n++] = x;
        if (draw(&m, 8) > 0 || m.n == POOL) continue;
        state = m.state[draw(&m, STATES)];
        m.pool[m.n++] = weft_assign(state, weft_tanh(weft_add(draw(&m, 2) ? state : weft_transpose(weft_reshape(state, weft_shape(6, 4)), 0, 1), weft_mean(x))));
    }
    descend(&m, parameters);
    for (int32_t i = 0; i < OUTPUTS; i++) outputs[i] = any(&m);
    return m.g;
}

/* --- one seed --- */

enum { MOST_VALUES = 3 * OUTPUTS * 1100 };

static weft_status run(weft_world *world, uint64_t seed, bool placed, float *values, int32_t *n_out, weft_plan_totals *totals) {
    weft_tensor *outputs[OUTPUTS];
    weft_plan   *plan = NULL;
    weft_graph  *g = make(seed, placed, outputs);
    int32_t      n = 0;
    weft_status  status = weft_plan_create(world, g, &(weft_plan_options){.outputs = outputs, .n_outputs = OUTPUTS, .training = true}, &plan);
    float        x[18];
    for (int i = 0; i < 18; i++) x[i] = (float)((int)(seed * 7 + (uint64_t)i * 13) % 17 - 8) / 9;
    for (int step = 0; step < 3 && status == WEFT_OK; step++) {
        weft_plan_set_step(plan, step);
        status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(3, 6), x}, 1);
        for (int32_t o = 0; o < OUTPUTS && status == WEFT_OK; o++) {
            weft_plan_value value;
            status = weft_plan_output(plan, o, &value);
            if (status == WEFT_OK) status = weft_plan_fetch(plan, o, values + n, (size_t)value.bytes);
            n += (int32_t)(value.bytes / 4);
        }
    }
    weft_plan_totals_read(plan, totals);
    weft_plan_release(plan);
    weft_graph_release(g);
    *n_out = n;
    return status;
}

/* Of all ranks' graphs: each tensor goes to a rank once, and as many are sent as are received. */
static weft_status count_messages(uint64_t seed) {
    enum { MOST = 4096 };
    static const wefti_node *seen[MOST][2];
    weft_tensor *outputs[OUTPUTS], *between[OUTPUTS], *cut_outputs[OUTPUTS];
    weft_graph  *g = make(seed, true, outputs), *pruned = NULL;
    int32_t      sent[RANKS][RANKS] = {{0}}, received[RANKS][RANKS] = {{0}};
    weft_status  status = wefti_plan_copy(g, outputs, OUTPUTS, true, &pruned, between);
    if (status == WEFT_OK) status = wefti_place_graph(pruned, RANKS, NULL);
    for (int32_t rank = 0; rank < RANKS && status == WEFT_OK; rank++) {
        weft_graph *own = NULL;
        int32_t     n = 0;
        status = wefti_cut_graph(&(wefti_cut){.rank = rank, .ranks = RANKS}, pruned, between, OUTPUTS, true, &own, cut_outputs);
        for (int32_t id = 0; status == WEFT_OK && id < own->n_nodes; id++) {
            const wefti_node *node = own->nodes[id];
            if (node->op == WEFT_OP_RECEIVE) received[rank][node->attrs.comm.peer]++;
            if (node->op != WEFT_OP_SEND) continue;
            sent[rank][node->attrs.comm.peer]++;
            for (int32_t i = 0; i < n; i++)
                if (seen[i][0]->attrs.comm.peer == node->attrs.comm.peer && seen[i][0]->inputs[0] == node->inputs[0])
                    status = wefti_fail(WEFT_E_INTERNAL, "seed %llu: '%s' is sent twice", (unsigned long long)seed, node->name);
            if (n < MOST) seen[n++][0] = node;
        }
        weft_graph_release(own);
    }
    for (int32_t a = 0; a < RANKS && status == WEFT_OK; a++)
        for (int32_t b = 0; b < RANKS; b++)
            if (sent[a][b] != received[b][a]) status = wefti_fail(WEFT_E_INTERNAL, "seed %llu: %d messages from %d to %d, and %d are received",
                                                                  (unsigned long long)seed, sent[a][b], a, b, received[b][a]);
    weft_graph_release(pruned);
    weft_graph_release(g);
    return status;
}

static const char *wire_name;
static uint64_t    first_seed, last_seed;

static weft_status compare(weft_world *world, weft_world *lone, uint64_t seed, int64_t *sent) {
    static float     got[MOST_VALUES], want[MOST_VALUES];
    int32_t          n_got = 0, n_want = 0;
    weft_plan_totals totals, alone;
    weft_status      status = run(lone, seed, false, want, &n_want, &alone);
    if (status == WEFT_OK) status = run(world, seed, true, got, &n_got, &totals);
    if (status != WEFT_OK) return wefti_while(status, "seed %llu", (unsigned long long)seed);
    *sent += totals.sent_bytes;
    for (int32_t i = 0; i < n_want; i++)
        if (n_got != n_want || memcmp(&got[i], &want[i], 4) != 0)
            return wefti_fail(WEFT_E_INTERNAL, "seed %llu: value %d of %d is %.9g, not %.9g", (unsigned long long)seed, i, n_want, (double)got[i], (double)want[i]);
    return WEFT_OK;
}

static weft_status open_worlds(weft_world **world_out, weft_world *lone) {
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = wire_name, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, world_out));
    *lone = **world_out;
    lone->rank = 0;
    lone->size = 1;
    lone->group = NULL;
    lone->groups = NULL;
    lone->placer = NULL;
    return WEFT_OK;
}

static weft_status compare_seeds(ranks *all, int32_t rank) {
    weft_world *world = NULL, lone;
    int64_t     sent = 0;
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_status status = WEFT_OK;
    for (uint64_t seed = first_seed; seed <= last_seed && status == WEFT_OK; seed++) {
        if (rank == 0) status = count_messages(seed);
        if (status == WEFT_OK) status = compare(world, &lone, seed, &sent);
    }
    if (status == WEFT_OK && sent == 0) status = wefti_fail(WEFT_E_INTERNAL, "nothing was ever sent");
    weft_world_release(world);
    return status;
}

static void run_ranks(rank_function function) {
    ranks *all = ranks_start(RANKS, function);
    ranks_join(all);
    for (int32_t rank = 0; rank < RANKS; rank++) {
        const rank_result *result = &all->results[rank];
        cr_expect(atomic_load(&result->finished) && result->status == WEFT_OK, "%s, rank %d: %s", wire_name, (int)rank, result->message);
    }
    ranks_free(all);
}

/* --- a layer of primitive operations, cut through its middle --- */

static weft_graph *layer(weft_tensor **loss_out) {
    weft_graph *g = NULL;
    if (weft_graph_create(&(weft_graph_options){.seed = 5}, &g) != WEFT_OK) return NULL;
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(16, 8)), *parameters[4], *gradients[4];
    weft_place_begin(g, "rank 0");
    parameters[0] = weft_parameter(g, "w", weft_shape(8, 12));
    parameters[1] = weft_parameter(g, "b", weft_shape(12));
    weft_tensor *h = weft_add(weft_matmul(x, parameters[0]), parameters[1]);
    weft_tensor *centred = weft_sub(h, weft_mean(h, .axes = weft_axes(1), .keep = true)); /* a layer norm, half of it here … */
    weft_place_end(g);
    weft_place_begin(g, "rank 3");                                                       /* … and half of it there */
    weft_tensor *norm = weft_mul(centred, weft_rsqrt(weft_add_scalar(weft_mean(weft_square(centred), .axes = weft_axes(1), .keep = true), 1e-5)));
    parameters[2] = weft_parameter(g, "gain", weft_shape(12), .init = weft_init_ones());
    parameters[3] = weft_parameter(g, "v", weft_shape(12, 1));
    weft_tensor *y = weft_matmul(weft_tanh(weft_mul(norm, parameters[2])), parameters[3]);
    weft_tensor *due = weft_sin(weft_sum(x, .axes = weft_axes(1), .keep = true));
    weft_tensor *loss = weft_mean(weft_square(weft_sub(y, due)));
    weft_place_end(g);
    if (weft_gradients(loss, parameters, 4, gradients) == WEFT_OK)
        for (int i = 0; i < 4; i++) {
            weft_tensor *inputs[2] = {parameters[i], weft_sub(parameters[i], weft_mul_scalar(gradients[i], 0.3))};
            wefti_graph_effect(wefti_apply(WEFT_OP_ASSIGN, NULL, inputs, 2, NULL));
        }
    *loss_out = loss;
    return g;
}

enum { LAYER_STEPS = 60 };

static weft_status train_layer(weft_world *world, float *losses, int32_t *variables_out) {
    weft_tensor *loss;
    weft_plan   *plan = NULL;
    weft_graph  *g = layer(&loss);
    float        x[16 * 8];
    weft_status  status = weft_plan_create(world, g, &(weft_plan_options){.outputs = &loss, .n_outputs = 1, .training = true}, &plan);
    for (int i = 0; i < 128; i++) x[i] = (float)(i * 37 % 101 - 50) / 60;
    for (int step = 0; step < LAYER_STEPS && status == WEFT_OK; step++) {
        status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(16, 8), x}, 1);
        if (status == WEFT_OK) status = weft_plan_fetch(plan, 0, &losses[step], sizeof(float));
    }
    *variables_out = weft_variables_count(weft_plan_variables(plan));
    weft_plan_release(plan);
    weft_graph_release(g);
    return status;
}

static weft_status train_layer_cut(ranks *all, int32_t rank) {
    static const int32_t owns[RANKS] = {2, 0, 0, 2};
    weft_world *world, lone;
    float       got[LAYER_STEPS], want[LAYER_STEPS];
    int32_t     here = 0, everywhere = 0;
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_status status = train_layer(&lone, want, &everywhere);
    if (status == WEFT_OK) status = train_layer(world, got, &here);
    if (status == WEFT_OK && memcmp(got, want, sizeof got) != 0) status = wefti_fail(WEFT_E_INTERNAL, "the losses differ from those of one process");
    if (status == WEFT_OK && !(got[LAYER_STEPS - 1] < 0.25f * got[0]))
        status = wefti_fail(WEFT_E_INTERNAL, "the loss went from %g to %g", (double)got[0], (double)got[LAYER_STEPS - 1]);
    if (status == WEFT_OK && (everywhere != 4 || here != owns[rank]))
        status = wefti_fail(WEFT_E_INTERNAL, "%d of %d variables are here, not %d", (int)here, (int)everywhere, (int)owns[rank]);
    weft_world_release(world);
    return status;
}

Test(cut, trains_a_layer_through_its_middle) {
    wire_name = "shm";
    run_ranks(train_layer_cut);
}

/* --- a rank that dies --- */

static weft_status lose_a_rank(ranks *all, int32_t rank) {
    weft_world *world, lone;
    weft_tensor *loss;
    weft_plan   *plan = NULL;
    float        x[16 * 8] = {0};
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_graph *g = layer(&loss);
    weft_status status = weft_plan_create(world, g, &(weft_plan_options){.outputs = &loss, .n_outputs = 1, .training = true}, &plan);
    for (int step = 0; step < 100000 && status == WEFT_OK; step++) {
        if (rank == 3 && step == 20) raise(SIGKILL);
        status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(16, 8), x}, 1);
    }
    bool named = status == WEFT_E_PEER && strstr(weft_error_message(), "rank 3");
    if (!named) status = wefti_fail(WEFT_E_INTERNAL, "rank 3 died, and %s came: %.200s", weft_status_name(status), weft_error_message());
    weft_plan_release(plan);
    weft_graph_release(g);
    weft_world_release(world);
    return named ? WEFT_OK : status;
}

Test(cut, ends_everywhere_where_a_rank_dies) {
    wire_name = "tcp";
    ranks *all = ranks_start(RANKS, lose_a_rank);
    ranks_join(all);
    for (int32_t rank = 0; rank < RANKS - 1; rank++)
        cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "rank %d: %s", (int)rank, all->results[rank].message);
    ranks_free(all);
}

/* --- what is refused --- */

#define REFUSES(wanted, part, ...)                                                                                                     \
    do {                                                                                                                               \
        weft_graph *g = NULL;                                                                                                          \
        cr_assert_eq(weft_graph_create(NULL, &g), WEFT_OK);                                                                            \
        weft_tensor *w = weft_parameter(g, "w", weft_shape(4)), *s = weft_state(g, "s", weft_shape(4)), *y = weft_square(w);           \
        weft_tensor *assigned = weft_assign(s, y);                                                                                     \
        __VA_ARGS__;                                                                                                                   \
        bool        is_cuda[3] = {false, true, false};                                                                                 \
        weft_status status = weft_graph_check(g);                                                                                      \
        if (status == WEFT_OK) status = wefti_place_graph(g, 3, is_cuda);                                                              \
        cr_expect(status == (wanted), "%s: %s, %s", #__VA_ARGS__, weft_status_name(status), weft_error_message());                     \
        cr_expect(strstr(weft_error_message(), part), "%s: '%s' does not say '%s'", #__VA_ARGS__, weft_error_message(), part);         \
        (void)assigned;                                                                                                                \
        weft_graph_release(g);                                                                                                         \
    } while (0)

Test(cut, refuses_places_that_cannot_be) {
    REFUSES(WEFT_E_INVALID, "no device 'gpu'", weft_place(y, "gpu"));
    REFUSES(WEFT_E_INVALID, "rank wants a number", weft_place(y, "rank x"));
    REFUSES(WEFT_E_INVALID, "rank 2 contradicts rank 1", weft_place(y, "rank 1, rank 2"));
    REFUSES(WEFT_E_INVALID, "'square_2' is placed at 'rank 2', which contradicts 'rank 1'", weft_place(weft_place(y, "rank 1"), "rank 2"));
    REFUSES(WEFT_E_INVALID, "the world has 3 ranks", weft_place(y, "rank 3"));
    REFUSES(WEFT_E_INVALID, "'s' at 'rank 0' and 'assign_3' at 'rank 1' contradict", weft_place(s, "rank 0"), weft_place(assigned, "rank 1"));
    REFUSES(WEFT_E_INVALID, "'w' at 'rank 0' and 'square_2' at 'rank 1 with w' contradict", weft_place(w, "rank 0"), weft_place(y, "rank 1 with w"));
    REFUSES(WEFT_E_NOT_FOUND, "no parameter or state 'u'", weft_place(y, "with u"));
    REFUSES(WEFT_E_UNSUPPORTED, "no rank is that", weft_place(y, "cuda:1"));
    REFUSES(WEFT_E_UNSUPPORTED, "no rank is that", weft_place(y, "rank 0 cuda"));
    REFUSES(WEFT_E_UNSUPPORTED, "strategy.pipeline", weft_place(y, "stage 1"));
    REFUSES(WEFT_E_STATE, "without a begin", weft_place_end(g));
    REFUSES(WEFT_E_INVALID, "two devices", weft_place(y, "cpu cuda"));
    weft_graph *g = NULL;
    cr_assert_eq(weft_graph_create(NULL, &g), WEFT_OK);
    weft_place_begin(g, "rank 2 cpu");
    weft_tensor *outer = weft_parameter(g, "w", weft_shape(4));
    weft_place_begin(g, "rank 1 cuda");
    weft_tensor *inner = weft_square(outer), *beside = weft_place(weft_neg(inner), "rank 0, cpu");
    weft_place_end(g);
    weft_place_end(g);
    weft_tensor *follows = weft_place(weft_square(beside), "with w");
    cr_assert_eq(wefti_place_graph(g, 3, (bool[]){false, true, false}), WEFT_OK, "%s", weft_error_message());
    cr_assert(outer->node->place == 3 && inner->node->place == 2 && beside->node->place == 1 && follows->node->place == 3);
    weft_graph_release(g);
}

/* Work that nobody placed goes to where it is done first: two long chains that have nothing in common are dealt out, a short one stays. */
Test(cut, deals_out_what_is_long) {
    weft_graph *g = NULL;
    cr_assert_eq(weft_graph_create(NULL, &g), WEFT_OK);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(300, 300)), *chains[2], *small;
    for (int c = 0; c < 2; c++) {
        chains[c] = weft_tanh(x);
        for (int k = 0; k < 4; k++) chains[c] = weft_matmul(chains[c], x);
    }
    small = weft_square(weft_sum(chains[1]));
    cr_assert_eq(wefti_place_graph(g, 2, NULL), WEFT_OK);
    cr_assert_neq(chains[0]->node->place, chains[1]->node->place);
    cr_assert_eq(small->node->place, chains[1]->node->place);
    cr_assert_eq(x->node->place, 0, "what is fed is everywhere");
    weft_graph_release(g);
}

static void compare_over(const char *wire, uint64_t first, uint64_t last) {
    wire_name = wire;
    first_seed = first;
    last_seed = UNDER_THREAD_SANITIZER || UNDER_ADDRESS_SANITIZER ? first + (last - first) / 8 : last;
    run_ranks(compare_seeds);
}

Test(cut, gives_one_processs_bits_over_shm) { compare_over("shm", 1, 120); }
Test(cut, gives_one_processs_bits_over_tcp) { compare_over("tcp", 121, 200); }

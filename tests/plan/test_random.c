/* Random graphs: however they are fused, laid out and cut, the results are the same bits, and live memory never overlaps. */
#include "plan/fake_group.h"
#include "plan/support.h"

enum { POOL = 40, OUTPUTS = 6, STATES = 3 };

typedef struct maker {
    weft_graph  *g;
    uint64_t     seed;
    weft_tensor *pool[POOL];
    int32_t      n;
    weft_tensor *state[STATES];
    bool         comm;
} maker;

static uint32_t draw(maker *m, uint32_t below) {
    m->seed = m->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(m->seed >> 33) % below;
}
static weft_tensor *any(maker *m) { return m->pool[m->n - 1 - (int32_t)draw(m, (uint32_t)(m->n < 12 || draw(m, 4) == 0 ? m->n : 12))]; }

/* A tensor of the pool that can be added to x; x itself where there is none. */
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
        if (fits && weft_shape_elements(a) * weft_shape_elements(b) < 100000) return y;
    }
    return x;
}

static weft_tensor *unary(maker *m, weft_tensor *x) {
    switch (draw(m, 12)) {
    case 0: return weft_tanh(x);
    case 1: return weft_relu(x);
    case 2: return weft_mul_scalar(x, 0.75);
    case 3: return weft_add_scalar(x, -0.25);
    case 4: return weft_square(weft_tanh(x));
    case 5: return weft_sigmoid(x);
    case 6: return weft_cast(weft_cast(x, draw(m, 2) ? WEFT_F64 : WEFT_BF16), WEFT_F32);
    case 7: return weft_dropout(x, 0.25);
    case 8: return weft_where(weft_gt_scalar(x, 0.1), x, weft_neg(x));
    case 9: return weft_clamp(x, -0.5, 0.5);
    case 10: return weft_mul_scalar(weft_gelu(x), 1);
    default: return weft_detach(weft_abs(x));
    }
}

static weft_tensor *view(maker *m, weft_tensor *x) {
    weft_shape s = weft_tensor_shape(x);
    if (s.rank == 0) return weft_unsqueeze(x, 0);
    int32_t axis = (int32_t)draw(m, (uint32_t)s.rank);
    switch (draw(m, 7)) {
    case 0: return weft_transpose(x, axis, (int32_t)draw(m, (uint32_t)s.rank));
    case 1: return weft_reshape(x, weft_shape(weft_shape_elements(s)));
    case 2: return s.rank >= 2 ? weft_reshape(x, weft_shape(weft_shape_elements(s) / (s.dim[s.rank - 1] ? s.dim[s.rank - 1] : 1), s.dim[s.rank - 1])) : x;
    case 3: return s.dim[axis] > 1 ? weft_slice_step(x, axis, (int64_t)draw(m, 2), s.dim[axis], 1 + (int64_t)draw(m, 2)) : x;
    case 4: return s.rank < 4 ? weft_unsqueeze(x, axis) : x;
    case 5: return s.rank < 4 && weft_shape_elements(s) < 300 ? weft_expand(weft_unsqueeze(x, 0), s.rank == 1 ? weft_shape(3, s.dim[0]) : s.rank == 2 ? weft_shape(2, s.dim[0], s.dim[1]) : weft_shape(2, s.dim[0], s.dim[1], s.dim[2])) : x;
    default: return weft_concat((weft_tensor *[]){x, weft_neg(x)}, weft_shape_elements(s) < 300 ? 2 : 1, axis);
    }
}

static weft_tensor *larger(maker *m, weft_tensor *x) {
    weft_shape s = weft_tensor_shape(x);
    int32_t    axis = s.rank ? (int32_t)draw(m, (uint32_t)s.rank) : 0;
    bool       keep = draw(m, 2);
    switch (draw(m, 6)) {
    case 0: return s.rank ? weft_sum(x, .axes = weft_axes(axis), .keep = keep) : x;
    case 1: return s.rank && s.dim[axis] ? weft_mean(x, .axes = weft_axes(axis), .keep = keep) : x;
    case 2: return s.rank && s.dim[axis] ? weft_max(x, .axes = weft_axes(axis), .keep = keep) : x;
    case 3: return s.rank >= 2 ? weft_tanh(weft_matmul(x, x, .transpose_b = true)) : x;
    case 4: return s.rank >= 1 && s.dim[s.rank - 1] ? weft_softmax(x, -1) : x;
    default: return weft_mean(weft_square(x));
    }
}

static weft_tensor *next(maker *m) {
    weft_tensor *x = any(m);
    if (m->comm && draw(m, 6) == 0) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.comm.reduce = WEFTI_REDUCE_AVG;
        return wefti_apply(WEFT_OP_ALL_REDUCE, &attrs, &x, 1, NULL);
    }
    switch (draw(m, 8)) {
    case 0:
    case 1: return unary(m, x);
    case 2: return weft_add(x, fitting(m, x));
    case 3: return weft_mul(x, weft_tanh(fitting(m, x)));
    case 4: return weft_sub(fitting(m, x), x);
    case 5: return view(m, x);
    case 6: return larger(m, x);
    default: return weft_maximum(unary(m, x), fitting(m, x));
    }
}

/* Values stay below about one so that no NaN hides a difference. */
static void make(maker *m, weft_tensor **outputs) {
    int64_t rows = (int64_t)draw(m, 5); /* none, too */
    m->pool[m->n++] = weft_input(m->g, "x", WEFT_F32, weft_shape(rows, 6));
    m->pool[m->n++] = weft_parameter(m->g, "w", weft_shape(4, 6));
    m->pool[m->n++] = weft_parameter(m->g, "b", weft_shape(6));
    m->pool[m->n++] = weft_scalar(m->g, WEFT_F32, 0.5);
    for (int32_t i = 0; i < STATES; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        m->pool[m->n++] = m->state[i] = weft_state(m->g, name, weft_shape(4, 6), .init = weft_init_value(0.1 * i));
    }
    while (m->n < POOL) {
        m->g->flags = draw(m, 5) == 0 ? WEFTI_NODE_RECOMPUTED : 0;
        weft_tensor *x = next(m);
        if (!weft_tensor_ok(x)) break;
        m->pool[m->n++] = weft_shape_elements(weft_tensor_shape(x)) > 3000 ? weft_mean(x) : x;
        if (draw(m, 8) == 0) { /* a state takes something of its shape; later reads see the old value, reads of the result the new one */
            weft_tensor *state = m->state[draw(m, STATES)];
            weft_tensor *value = weft_tanh(weft_add(draw(m, 2) ? state : weft_transpose(weft_reshape(state, weft_shape(6, 4)), 0, 1), weft_mean(m->pool[m->n - 1])));
            if (m->n < POOL) m->pool[m->n++] = weft_assign(state, value);
        }
    }
    m->g->flags = 0;
    for (int32_t i = 0; i < OUTPUTS; i++) outputs[i] = any(m);
}

typedef struct results {
    float  *values;
    int64_t n;
} results;

static void append(results *r, const void *values, int64_t n) {
    r->values = realloc(r->values, (size_t)(r->n + n) * sizeof(float) + 1);
    if (n) memcpy(r->values + r->n, values, (size_t)n * sizeof(float));
    r->n += n;
}

/* Builds the graph of `seed`, plans it with `options`, runs three steps and gives all outputs and states. */
static results run(uint64_t seed, weft_plan_options options, wefti_cpu_isa isa, bool comm, weft_plan_totals *totals) {
    maker        m = {.seed = seed, .comm = comm};
    weft_tensor *outputs[OUTPUTS + 1] = {0};
    weft_world  *world = world_open(isa);
    fake_group   group;
    fake_group_open(&group, 2, 0);
    group.delay = (int32_t)(seed % 4);
    if (comm) world->group = &group.base;
    m.g = graph_new(seed);
    make(&m, outputs);
    cr_assert_eq(weft_graph_check(m.g), WEFT_OK, "seed %llu: %s", (unsigned long long)seed, weft_error_message());
    weft_plan *plan = plan_of(world, m.g, true, options, outputs);
    weft_plan_totals_read(plan, totals);
    results    r = {0};
    _Alignas(64) float x[64];
    fill(x, 64, (uint32_t)seed);
    for (int32_t step = 0; step < 3; step++) {
        weft_plan_set_step(plan, step);
        OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_tensor_shape(m.pool[0]), x}, 1));
        for (int32_t o = 0; o < OUTPUTS; o++) {
            weft_plan_value value;
            OK(weft_plan_output(plan, o, &value));
            append(&r, value.data, value.bytes / 4);
        }
    }
    for (int32_t i = 0; i < weft_variables_count(weft_plan_variables(plan)); i++) {
        weft_variable_info info;
        float              values[64];
        OK(weft_variables_info(weft_plan_variables(plan), i, &info));
        OK(weft_variables_get(weft_plan_variables(plan), info.name, values, (size_t)info.bytes));
        append(&r, values, info.bytes / 4);
    }
    weft_plan_release(plan);
    weft_graph_release(m.g);
    fake_group_close(&group);
    world_close(world);
    return r;
}

static void compare(uint64_t seed, wefti_cpu_isa isa, bool comm) {
    static const weft_plan_options variants[] = {
        {0}, {.no_fusion = true}, {.no_in_place = true}, {.no_reuse = true}, {.no_simplify = true}, {.bucket_bytes = -1}, {.bucket_bytes = 64, .first_bucket_bytes = 1}};
    weft_plan_totals plain, other;
    results want = run(seed, (weft_plan_options){.no_fusion = true, .no_in_place = true, .no_reuse = true, .no_simplify = true, .bucket_bytes = -1}, isa, comm, &plain);
    for (size_t v = 0; v < WEFTI_COUNT(variants); v++) {
        results got = run(seed, variants[v], isa, comm, &other);
        cr_assert_eq(got.n, want.n);
        for (int64_t i = 0; i < got.n; i++)
            cr_assert_eq(memcmp(&got.values[i], &want.values[i], 4), 0, "seed %llu, variant %zu: value %lld is %.9g, not %.9g",
                         (unsigned long long)seed, v, (long long)i, got.values[i], want.values[i]);
        if (v == 0) {
            cr_assert_leq(other.read_bytes + other.written_bytes, plain.read_bytes + plain.written_bytes, "seed %llu: optimising moves more",
                          (unsigned long long)seed);
            cr_assert_leq(other.arena_bytes, other.value_bytes);
        }
        free(got.values);
    }
    free(want.values);
}

Test(plan_random, reference_kernels) {
    for (uint64_t seed = 1; seed <= 60; seed++) compare(seed, WEFTI_CPU_REFERENCE, false);
}
Test(plan_random, fast_kernels) {
    for (uint64_t seed = 1; seed <= 60; seed++) compare(seed, WEFTI_CPU_AUTO, false);
}
Test(plan_random, with_communication) {
    for (uint64_t seed = 100; seed <= 160; seed++) compare(seed, WEFTI_CPU_REFERENCE, true);
}

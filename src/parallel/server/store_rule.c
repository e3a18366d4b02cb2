/* Giving updates to a table's rule. Updates are cut into runs: rows whose places follow each other in one slab and, where the rule counts, that have
 * been updated equally often; a run is one call. Runs that must be converted or scaled first go through a piece of memory that stays in the
 * cache. Rows that come are asked for some places ahead. Nothing is allocated. */
#include <math.h>
#include <string.h>

#include "core/rules/rules.h"
#include "parallel/server/store_internal.h"

/* --- which rule --- */

/* Rules whose steps depend on how many there were: Adam's do by its bias correction, momentum's by how long the proximal steps are. */
static bool depends_on_count(const wefti_store *store) {
    switch (store->rule->id) {
    case WEFTI_RULE_ADAM: return true;
    case WEFTI_RULE_MOMENTUM: case WEFTI_RULE_NESTEROV: return store->l1 > 0 || store->group > 0;
    default: return false;
    }
}

weft_status wefti_store_choose_rule(wefti_store *store) {
    const weft_table_rule *rule = &store->options.rule;
    switch (rule->kind) {
    case WEFT_TABLE_ADD: case WEFT_TABLE_AVERAGE: break;
    case WEFT_TABLE_SOLVER:
        store->rule = wefti_rule_for(&rule->solver);
        if (!store->rule) return wefti_fail(WEFT_E_INVALID, "table '%s': its solver is no rule of rows", store->options.name);
        WEFTI_TRY(wefti_hyper_fill(&rule->solver, 1, store->hyper));
        store->decay = rule->solver.weight_decay;
        store->l1 = rule->regulariser.l1;
        store->l2 = rule->regulariser.l2;
        store->group = rule->regulariser.group;
        break;
    case WEFT_TABLE_FTRL:
        store->rule = wefti_rule_of(WEFTI_RULE_FTRL);
        wefti_hyper_ftrl(rule->alpha, rule->beta, store->hyper);
        store->l1 = rule->l1;
        store->l2 = rule->l2;
        break;
    case WEFT_TABLE_USER:
        if (!store->options.function) return wefti_fail(WEFT_E_INVALID, "table '%s': no function for its rule", store->options.name);
        store->states = store->options.function->states;
        store->counts = true;
        if (store->states < 0 || store->states > WEFTI_RULE_STATES)
            return wefti_fail(WEFT_E_INVALID, "table '%s': the function '%s' has %d states; 0 to %d are possible", store->options.name,
                              store->options.function->name, (int)store->states, (int)WEFTI_RULE_STATES);
        break;
    }
    if (store->rule) {
        store->states = store->rule->n_states;
        store->counts = depends_on_count(store);
    }
    return WEFT_OK;
}

/* --- one run --- */

/* Rows from a spot on, of one slab, and their updates in the held dtype. */
typedef struct run {
    wefti_slab *slab;
    uint64_t    at, place;
    int64_t     rows;
    const void *updates;
    double      scale; /* of floats, for ADD and the solvers' rules */
} run;

/* Rows that lie apart have mostly been updated equally often, as far as they are updated at all. */
static void take_powers(wefti_store *store, int64_t step, wefti_rule_args *args) {
    if (store->powers_of != step) {
        store->powers_of = step;
        store->a_power = pow(store->hyper[WEFTI_HYPER_A], (double)step);
        store->b_power = pow(store->hyper[WEFTI_HYPER_B], (double)step);
    }
    args->a_power = store->a_power;
    args->b_power = store->b_power;
}

static void solve(wefti_store *store, const run *r) {
    double          hyper[WEFTI_HYPER_COUNT];
    void           *states[WEFTI_RULE_STATES];
    uint8_t        *values = r->slab->memory + r->at * store->row_bytes;
    const bool      wide = store->held == WEFT_F64;
    wefti_rule_args args = {.count = r->rows * store->options.width, .parameter = values, .gradient = r->updates, .states = states, .hyper = hyper,
                            .l2 = store->l2, .decay = store->decay, .l1 = store->l1, .group = store->group, .row = store->options.width};
    memcpy(hyper, store->hyper, sizeof hyper);
    hyper[WEFTI_HYPER_SCALE] = r->scale;
    if (store->counts) {
        int64_t step = r->slab->updates[r->at] + 1;
        hyper[WEFTI_HYPER_STEP] = (double)step;
        take_powers(store, step, &args);
    }
    for (int32_t k = 0; k < store->states; k++) states[k] = values + r->slab->array_bytes * (size_t)(k + 1);
    (wide ? store->rule->apply_f64 : store->rule->apply_f32)(&args);
    if (store->group > 0) (wide ? store->rule->shrink_f64 : store->rule->shrink_f32)(&args);
    if (store->counts)
        for (int64_t i = 0; i < r->rows; i++) r->slab->updates[r->at + (uint64_t)i]++;
}

/* Works on a copy, so that a function that fails leaves the row as it was. */
static weft_status ask_user(const wefti_store *store, const run *r, int64_t row) {
    const weft_table_function *function = store->options.function;
    const size_t               copied = wefti_align_up(store->row_bytes, WEFTI_CACHE_LINE);
    const uint64_t             at = r->at + (uint64_t)row;
    uint8_t                   *values = r->slab->memory + at * store->row_bytes, *copy = store->copy;
    void                      *states[WEFTI_RULE_STATES];
    for (int32_t k = 0; k <= store->states; k++) memcpy(copy + copied * (size_t)k, values + r->slab->array_bytes * (size_t)k, store->row_bytes);
    for (int32_t k = 0; k < store->states; k++) states[k] = copy + copied * (size_t)(k + 1);
    weft_row one = {.key = wefti_store_key(store, r->place + (uint64_t)row), .width = store->options.width, .dtype = store->held, .values = copy,
                    .update = (const uint8_t *)r->updates + (size_t)row * store->row_bytes, .states = states, .updates = r->slab->updates[at]};
    weft_status status = function->apply(function->context, &one);
    if (status == WEFT_E_AGAIN || status == WEFT_END) return WEFT_E_INVALID; /* callers of requests would take them for their own */
    if (status != WEFT_OK) return status;
    for (int32_t k = 0; k <= store->states; k++) memcpy(values + r->slab->array_bytes * (size_t)k, copy + copied * (size_t)k, store->row_bytes);
    r->slab->updates[at]++;
    return WEFT_OK;
}

static weft_status ask_user_for_all(const wefti_store *store, const run *r, weft_status *failures) {
    for (int64_t row = 0; row < r->rows; row++) {
        weft_status status = ask_user(store, r, row);
        if (status == WEFT_OK || (failures && *failures != WEFT_OK)) continue;
        wefti_fail(status, "table '%s': its rule '%s' gave %s for the row of key %llu, which stays as it was", store->options.name,
                   store->options.function->name, weft_status_name(status), (unsigned long long)wefti_store_key(store, r->place + (uint64_t)row));
        if (!failures) return status;
        *failures = status;
    }
    return WEFT_OK;
}

static weft_status give_run(wefti_store *store, const run *r, weft_status *failures) {
    uint8_t *values = r->slab->memory + r->at * store->row_bytes;
    switch (store->options.rule.kind) {
    case WEFT_TABLE_ADD: store->loops->add[store->held](values, r->updates, r->rows * store->options.width, r->scale); break;
    case WEFT_TABLE_AVERAGE: memcpy(values, r->updates, (size_t)r->rows * store->row_bytes); break;
    case WEFT_TABLE_SOLVER: case WEFT_TABLE_FTRL: solve(store, r); break;
    case WEFT_TABLE_USER: return ask_user_for_all(store, r, failures);
    }
    return WEFT_OK;
}

/* --- runs --- */

/* How many of `most` rows are one run. */
static int64_t run_length(const wefti_store *store, const wefti_slab *slab, uint64_t at, const uint64_t *places, int64_t most) {
    const int64_t *updates = store->rule && store->counts ? slab->updates + at : NULL;
    int64_t        rows = 1;
    if (most > (int64_t)(slab->rows - at)) most = (int64_t)(slab->rows - at);
    if (!places && !updates) return most;
    while (rows < most && (!places || places[rows] == places[0] + (uint64_t)rows) && (!updates || updates[rows] == updates[0])) rows++;
    return rows;
}

/* Of a store that lies in part on disk: all rows come into memory before one changes, where they fit there, so a disk that cannot be read then leaves them all
 * as they were. */
static weft_status bring_all(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count) {
    size_t bytes = 0;
    for (int turn = 0; turn < 2; turn++) {
        uint64_t last = UINT64_MAX;
        for (int64_t i = 0; i < count; i++) {
            uint64_t block = wefti_blocks_find(store->blocks, places ? places[i] : begin + (uint64_t)i).block;
            if (block == last) continue;
            last = block;
            if (turn == 1) WEFTI_TRY(wefti_store_bring(store, block, false));
            bytes += store->slabs[block].bytes;
        }
        if (bytes > store->options.memory_bytes) return WEFT_OK;
    }
    return WEFT_OK;
}

weft_status wefti_store_give(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates, weft_dtype dtype,
                             wefti_scaling scaling, weft_status *failures) {
    if (store->options.hybrid) return wefti_hybrid_store_give(store, places, begin, count, updates, dtype, scaling);
    const bool   scales = store->rule || store->options.rule.kind == WEFT_TABLE_ADD; /* floats */
    const bool   direct = dtype == store->held && scaling.divisor == 1 && (scaling.scale == 1 || scales || !weft_dtype_is_float(dtype));
    const size_t update_bytes = (size_t)store->options.width * weft_dtype_bytes(dtype);
    const bool   narrows = dtype == WEFT_I64 && store->held == WEFT_I32;
    if (store->spill) WEFTI_TRY(bring_all(store, places, begin, count));
    for (int64_t i = 0, asked = 0; i < count;) {
        for (asked = wefti_max_i64(asked, i + 1); places && asked < count && asked <= i + WEFTI_STORE_AHEAD; asked++)
            wefti_store_prefetch(store, places[asked], 1 + store->states, true);
        run        r = {.place = places ? places[i] : begin + (uint64_t)i, .scale = direct ? scaling.scale : 1};
        wefti_spot spot = wefti_blocks_find(store->blocks, r.place);
        weft_status brought = wefti_store_need(store, spot.block, true);
        if (brought != WEFT_OK) return wefti_while(brought, "table '%s': %lld of %lld rows, which do not fit into memory together, were changed before", store->options.name, (long long)i, (long long)count);
        r.slab = &store->slabs[spot.block];
        r.at = spot.at;
        r.rows = run_length(store, r.slab, r.at, places ? places + i : NULL, direct ? count - i : wefti_min_i64(count - i, store->chunk_rows));
        r.updates = (const uint8_t *)updates + (size_t)i * update_bytes;
        if (!direct) {
            (narrows ? store->loops->take_i32_of_i64 : store->loops->take[dtype])(store->scratch, r.updates, r.rows * store->options.width,
                                                                                  scaling.scale, scaling.divisor);
            r.updates = store->scratch;
        }
        WEFTI_TRY(give_run(store, &r, failures));
        i += r.rows;
    }
    return WEFT_OK;
}

weft_status wefti_store_apply(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates, double scale) {
    return wefti_store_give(store, places, begin, count, updates, store->options.dtype, wefti_scaling_of(store, scale), NULL);
}

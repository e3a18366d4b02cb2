/* A program's loss as work for L-BFGS on a parameter server (weft/lbfgs.h): a unit is a run of rows, computed by a plan of one rank, and the
 * vector is all parameters one after the other. The regulariser goes with unit 0, so that it counts once.
 *
 * Memory of a worker: the parameters as variables, and three vectors of F64 (here, and two in weft_lbfgs_minimise). */
#include <string.h>

#include "parallel/server/states.h"
#include "train/trainer.h"
#include "weft/lbfgs.h"

typedef struct units {
    const weft_lbfgs_data *data;
    weft_variables        *variables;
    wefti_training         training;
    wefti_plan_set         plans;
    weft_world             lone;  /* the world as one of this rank alone */
    double                 l2;
    int64_t                n, rows, unit_rows;
    double                *point; /* [n] that the variables have */
    void                  *copy;  /* room for the largest parameter */
    size_t                 copy_bytes;
    bool                   set;   /* point is */
} units;

/* --- between the vector and variables --- */

static weft_status move_parameters(units *u, double *point, bool write) {
    int64_t at = 0;
    for (int32_t i = 0; i < u->training.n; i++) {
        const weft_tensor *p = u->training.parameters[i];
        int64_t            count = weft_shape_elements(p->shape);
        double            *part = point + at;
        float             *narrow = u->copy;
        bool               wide = p->dtype == WEFT_F64;
        if (write) {
            for (int64_t k = 0; k < count && !wide; k++) narrow[k] = (float)part[k];
            WEFTI_TRY(weft_variables_set(u->variables, p->node->name, p->dtype, p->shape, wide ? (void *)part : u->copy));
        } else {
            WEFTI_TRY(weft_variables_get(u->variables, p->node->name, wide ? (void *)part : u->copy, (size_t)count * weft_dtype_bytes(p->dtype)));
            for (int64_t k = 0; k < count && !wide; k++) part[k] = (double)narrow[k];
        }
        at += count;
    }
    return WEFT_OK;
}

/* Units of one evaluation have one point, which is given to the variables once. */
static weft_status set_point(units *u, const double *point) {
    size_t bytes = (size_t)u->n * sizeof *point;
    if (u->set && memcmp(u->point, point, bytes) == 0) return WEFT_OK;
    u->set = false;
    memcpy(u->point, point, bytes);
    WEFTI_TRY(move_parameters(u, u->point, true));
    u->set = true;
    return WEFT_OK;
}

/* --- a unit --- */

static weft_status add_gradient(const units *u, weft_plan *plan, int32_t index, double weight, double *gradient) {
    weft_plan_value value;
    WEFTI_TRY(weft_plan_output(plan, WEFTI_OUT_FIRST_GRADIENT + index, &value));
    int64_t     count = weft_shape_elements(value.shape);
    const void *data = value.data;
    if (!data && count) {
        WEFTI_TRY(weft_plan_fetch(plan, WEFTI_OUT_FIRST_GRADIENT + index, u->copy, (size_t)value.bytes));
        data = u->copy;
    }
    for (int64_t k = 0; k < count; k++) gradient[k] += weight * (value.dtype == WEFT_F64 ? ((const double *)data)[k] : (double)((const float *)data)[k]);
    return WEFT_OK;
}

static double add_regulariser(const units *u, double *gradient) {
    double  sum = 0;
    int64_t at = 0;
    for (int32_t i = 0; i < u->training.n; i++) {
        const weft_tensor *p = u->training.parameters[i];
        int64_t            end = at + weft_shape_elements(p->shape);
        for (; at < end && !p->node->leaf->unregularised; at++) {
            sum += 0.5 * u->l2 * u->point[at] * u->point[at];
            gradient[at] += u->l2 * u->point[at];
        }
        at = end;
    }
    return sum;
}

static weft_status run_unit(void *context, int64_t unit, const double *point, double *loss_out, double *gradient) {
    units     *u = context;
    int64_t    first = unit * u->unit_rows, rows = wefti_min_i64(u->unit_rows, u->rows - first), at = 0;
    double     weight = u->data->sums ? 1 : (double)rows / (double)u->rows, loss;
    weft_plan *plan = NULL;
    weft_batch batch = {.field_count = u->data->field_count, .global_rows = rows, .local_rows = rows};
    WEFTI_TRY(set_point(u, point));
    for (int32_t i = 0; i < batch.field_count; i++) {
        weft_batch_field *field = &batch.field[i];
        *field = u->data->field[i];
        field->shape.dim[0] = 1;
        size_t row = (size_t)weft_shape_elements(field->shape) * weft_dtype_bytes(field->dtype);
        field->shape.dim[0] = rows;
        field->data = (const uint8_t *)field->data + (size_t)first * row;
    }
    WEFTI_TRY(wefti_plan_set_get(&u->plans, rows, &plan));
    WEFTI_TRY(wefti_plan_set_run(plan, &batch, NULL, 0));
    WEFTI_TRY(wefti_plan_scalars(plan, &(int32_t){WEFTI_OUT_LOSS}, 1, &loss));
    *loss_out = weight * loss;
    for (int32_t i = 0; i < u->training.n; i++) {
        WEFTI_TRY(add_gradient(u, plan, i, weight, gradient + at));
        at += weft_shape_elements(u->training.parameters[i]->shape);
    }
    if (unit == 0 && u->l2 > 0) *loss_out += add_regulariser(u, gradient);
    return WEFT_OK;
}

/* --- opening --- */

static weft_status check_data(const weft_lbfgs_data *data, int64_t *rows_out) {
    if (data->field_count < 1 || data->field_count > WEFT_BATCH_MAX_FIELDS || data->unit_rows < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_train: %d fields (1 to %d), %lld rows a unit", (int)data->field_count, WEFT_BATCH_MAX_FIELDS,
                          (long long)data->unit_rows);
    for (int32_t i = 0; i < data->field_count; i++) {
        const weft_batch_field *field = &data->field[i], *first = &data->field[0];
        if (!field->name || !field->data || field->shape.rank < 1 || field->shape.dim[0] < 1)
            return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_train: field %d, '%s', has no data, or no rows", (int)i, field->name ? field->name : "");
        if (field->shape.dim[0] != first->shape.dim[0])
            return wefti_fail(WEFT_E_SHAPE, "weft_lbfgs_train: field '%s' has %lld rows and '%s' %lld", field->name, (long long)field->shape.dim[0],
                              first->name, (long long)first->shape.dim[0]);
    }
    *rows_out = data->field[0].shape.dim[0];
    return WEFT_OK;
}

static weft_status open_plans(units *u, weft_world *world, weft_tensor *loss) {
    weft_graph   *graph = loss->graph;
    weft_tensor **outputs = NULL;
    WEFTI_TRY(wefti_training_find(&(weft_program){.loss = loss, .solver = {.kind = WEFT_LBFGS, .stochastic_rounding = true}}, &u->training));
    if (graph->n_effects > 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "weft_lbfgs_train: '%s' is changed by each step, but units are computed anywhere and twice", graph->effects[0]->name);
    WEFTI_TRY(weft_gradients(weft_reshape(loss, weft_shape_scalar()), u->training.parameters, u->training.n, u->training.gradients));
    int32_t n = WEFTI_OUT_FIRST_GRADIENT + u->training.n;
    outputs = wefti_graph_memory(graph, (size_t)n * sizeof *outputs);
    if (!outputs) return wefti_graph_status(graph);
    for (int32_t i = 0; i < n; i++) outputs[i] = i < WEFTI_OUT_FIRST_GRADIENT ? loss : u->training.gradients[i - WEFTI_OUT_FIRST_GRADIENT];
    u->lone = *world;
    u->lone.rank = 0;
    u->lone.size = 1;
    u->lone.group = u->lone.device_group = NULL;
    u->lone.groups = NULL;
    for (int32_t i = 0; i < u->training.n; i++) {
        const weft_tensor *p = u->training.parameters[i];
        int64_t            count = weft_shape_elements(p->shape);
        u->n += count;
        u->copy_bytes = (size_t)wefti_max_i64((int64_t)u->copy_bytes, count * (int64_t)weft_dtype_bytes(p->dtype));
    }
    WEFTI_TRY(wefti_alloc(u->copy_bytes, "a parameter's copy", &u->copy));
    WEFTI_TRY(wefti_alloc((size_t)u->n * sizeof *u->point, "the parameters as a vector", &u->point));
    return wefti_plan_set_open(&u->plans, &u->lone, NULL, graph, u->variables, outputs, n, true);
}

static void close_units(units *u) {
    wefti_plan_set_close(&u->plans);
    wefti_free(u->copy, u->copy_bytes);
    wefti_free(u->point, (size_t)u->n * sizeof *u->point);
}

static weft_status minimise(units *u, weft_server *server, const weft_lbfgs_options *options, weft_lbfgs_report *report_out) {
    weft_lbfgs_problem problem = {.parameters = u->n, .units = (u->rows + u->unit_rows - 1) / u->unit_rows, .evaluate = run_unit, .context = u};
    double            *vector = NULL;
    WEFTI_TRY(wefti_alloc((size_t)u->n * sizeof *vector, "the parameters as a vector", &vector));
    weft_status status = move_parameters(u, vector, false);
    if (status == WEFT_OK) status = weft_lbfgs_minimise(server, &problem, options, vector, report_out);
    bool holds = !(options && options->dedicated && weft_world_rank(wefti_server_world(server)) == 0);
    if (status == WEFT_OK && holds) status = move_parameters(u, vector, true);
    wefti_free(vector, (size_t)u->n * sizeof *vector);
    return status;
}

weft_status weft_lbfgs_train(weft_server *server, weft_tensor *loss, weft_regulariser regulariser, const weft_lbfgs_data *data,
                             const weft_lbfgs_options *options, weft_variables *variables, weft_lbfgs_report *report_out) {
    units u = {.data = data, .variables = variables, .l2 = regulariser.l2};
    if (!server || !loss || !data || !variables)
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_train: the %s is NULL", !server ? "server" : !loss ? "loss" : !data ? "data" : "variables");
    weft_program program = {.loss = loss, .regulariser = regulariser, .solver = {.kind = WEFT_LBFGS}};
    WEFTI_TRY(wefti_training_check(&program));
    WEFTI_TRY(check_data(data, &u.rows));
    weft_status status = open_plans(&u, wefti_server_world(server), loss);
    u.unit_rows = data->unit_rows;
    if (status == WEFT_OK && u.unit_rows == 0) status = wefti_graph_rows(loss->graph, &u.unit_rows);
    if (status == WEFT_OK && u.unit_rows == 0) u.unit_rows = u.rows;
    if (status == WEFT_OK) status = minimise(&u, server, options, report_out);
    close_units(&u);
    return status;
}

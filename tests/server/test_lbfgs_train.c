/* A program's loss minimised by L-BFGS on a parameter server, in units of rows, against the trainer's L-BFGS on one rank with all rows in a batch: the
 * same parameters, in f64 and in f32, whatever the units and the ranks. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "serving.h"

enum { ROWS = 190, COLUMNS = 12, STEPS = 12, ELEMENTS = COLUMNS + 1 };

typedef struct setting {
    weft_dtype dtype;
    int64_t    unit_rows;
    bool       dedicated, sums, state, l1, uneven;
} setting;
static setting how;
static double *results; /* [RANKS_MOST][ELEMENTS]; shared */

static void setup(void) {
    how = (setting){.dtype = WEFT_F64, .unit_rows = 25};
    results = mmap(NULL, sizeof(double) * RANKS_MOST * ELEMENTS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}
static void teardown(void) { munmap(results, sizeof(double) * RANKS_MOST * ELEMENTS); }
TestSuite(lbfgs_train, .init = setup, .fini = teardown);

static double noise(uint64_t number) {
    number = (number ^ number >> 31) * UINT64_C(0x7fb5d329728ea185);
    number = (number ^ number >> 27) * UINT64_C(0x81dadef4bc2dd44d);
    return (double)(int32_t)(number >> 32) * 0x1p-31;
}

/* --- the program --- */

static char x[ROWS * COLUMNS * sizeof(double)], y[ROWS * sizeof(double)];

static void put(void *values, int i, double value) {
    if (how.dtype == WEFT_F64) ((double *)values)[i] = value;
    else ((float *)values)[i] = (float)value;
}
static void make_data(void) {
    for (int row = 0; row < ROWS; row++) {
        double margin = 0.5 + 0.8 * noise((uint64_t)row + 5000);
        for (int i = 0; i < COLUMNS; i++) {
            double value = noise((uint64_t)(row * COLUMNS + i) + 77) * pow(10, -2.0 * i / COLUMNS);
            put(x, row * COLUMNS + i, value);
            margin += value * 3 * noise((uint64_t)i + 31);
        }
        put(y, row, margin > 0);
    }
}

static weft_tensor *make_loss(weft_graph *graph, int64_t rows, bool sums) {
    weft_tensor *in = weft_input(graph, "x", how.dtype, weft_shape(rows, COLUMNS));
    weft_tensor *label = weft_input(graph, "y", how.dtype, weft_shape(rows, 1));
    weft_tensor *slope = weft_parameter(graph, "slope", weft_shape(COLUMNS, 1), .dtype = how.dtype, .init = weft_init_normal(0, 0.1));
    weft_tensor *bias = weft_parameter(graph, "bias", weft_shape(1), .dtype = how.dtype, .unregularised = true);
    weft_tensor *out = weft_add(weft_matmul(in, slope), bias);
    if (how.state) weft_assign(weft_state(graph, "state", weft_shape(1), .dtype = how.dtype), bias);
    return weft_bce_with_logits(out, label, .reduction = sums ? WEFT_SUM : WEFT_MEAN);
}

static weft_status take_results(weft_variables *variables, double *out) {
    char   values[COLUMNS * sizeof(double)];
    size_t bytes = weft_dtype_bytes(how.dtype);
    WEFTI_TRY(weft_variables_get(variables, "slope", values, COLUMNS * bytes));
    for (int i = 0; i < COLUMNS; i++) out[i] = how.dtype == WEFT_F64 ? ((double *)(void *)values)[i] : (double)((float *)(void *)values)[i];
    WEFTI_TRY(weft_variables_get(variables, "bias", values, bytes));
    out[COLUMNS] = how.dtype == WEFT_F64 ? *(double *)(void *)values : (double)*(float *)(void *)values;
    return WEFT_OK;
}

/* --- the two ways --- */

static weft_status train_alone(serving *self) {
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    make_data();
    WEFTI_TRY(weft_graph_create(NULL, &graph));
    weft_program program = {.loss = make_loss(graph, ROWS, how.sums), .regulariser = weft_l2(1e-3), .solver = weft_lbfgs(1)};
    weft_status  status = weft_trainer_create(self->world, &program, &trainer);
    weft_batch   batch = {.field_count = 2, .global_rows = ROWS, .local_rows = ROWS,
                          .field = {{"x", how.dtype, weft_shape(ROWS, COLUMNS), x}, {"y", how.dtype, weft_shape(ROWS, 1), y}}};
    for (int step = 0; step < STEPS && status == WEFT_OK; step++) status = weft_trainer_step(trainer, &batch, NULL);
    if (status == WEFT_OK) status = take_results(weft_trainer_variables(trainer), results);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    return status;
}

static weft_status train_by_units(serving *self) {
    weft_graph       *graph = NULL;
    weft_variables   *variables = NULL;
    weft_lbfgs_report report = {.end = WEFT_LBFGS_RUNNING};
    make_data();
    WEFTI_TRY(weft_graph_create(NULL, &graph));
    weft_tensor       *loss = make_loss(graph, how.unit_rows ? how.unit_rows : 40, how.sums);
    weft_lbfgs_data    data = {.field_count = 2, .unit_rows = how.unit_rows, .sums = how.sums,
                               .field = {{"x", how.dtype, weft_shape(ROWS, COLUMNS), x}, {"y", how.dtype, weft_shape(how.uneven ? ROWS - 1 : ROWS, 1), y}}};
    weft_lbfgs_options options = {.iterations = STEPS, .gradient = -1, .dedicated = how.dedicated};
    weft_regulariser   regulariser = how.l1 ? weft_l1(1) : weft_l2(1e-3);
    weft_status        status = weft_variables_create(self->world, graph, &variables);
    if (status == WEFT_OK) status = weft_lbfgs_train(self->server, loss, regulariser, &data, &options, variables, &report);
    if (status == WEFT_OK) status = take_results(variables, results + self->rank * ELEMENTS);
    weft_variables_release(variables);
    weft_graph_release(graph);
    if (status == WEFT_OK) EXPECT(report.iteration == STEPS, "%d iterations", (int)report.iteration);
    return status;
}

static void expect_same(int32_t size, int32_t servers, double room) {
    double wanted[ELEMENTS];
    serve_case("shm", 1, NULL, train_alone);
    memcpy(wanted, results, sizeof wanted);
    cr_assert_gt(fabs(wanted[0]), 0.3, "it has learnt nothing");
    memset(results, 0, sizeof wanted);
    serve_case(size % 2 ? "tcp" : "shm", size, &(weft_server_options){.servers = servers}, train_by_units);
    for (int32_t rank = how.dedicated ? 1 : 0; rank < size; rank++)
        for (int i = 0; i < ELEMENTS; i++)
            cr_expect(fabs(results[rank * ELEMENTS + i] - wanted[i]) <= room * fmax(1, fabs(wanted[i])), "rank %d, element %d: %.12g, not %.12g", (int)rank,
                      i, results[rank * ELEMENTS + i], wanted[i]);
}

Test(lbfgs_train, mean_loss_is_minimised_as_by_a_trainer) { expect_same(3, 2, 1e-6); }
Test(lbfgs_train, one_rank_does_it_too) { expect_same(1, 1, 1e-6); }
Test(lbfgs_train, units_of_the_graphs_size_and_a_coordinator_of_its_own) {
    how.unit_rows = 0;
    how.dedicated = true;
    expect_same(4, 1, 1e-6);
}
Test(lbfgs_train, loss_that_is_a_sum) {
    how.sums = true;
    expect_same(2, 2, 1e-6);
}
Test(lbfgs_train, parameters_of_f32) {
    how.dtype = WEFT_F32;
    expect_same(2, 0, 2e-3);
}

static weft_status refusals(serving *self) {
    how.state = true;
    REFUSED(train_by_units(self), WEFT_E_UNSUPPORTED, "changed by each step");
    how.state = false;
    how.l1 = true;
    REFUSED(train_by_units(self), WEFT_E_UNSUPPORTED, "smooth");
    how.l1 = false;
    how.uneven = true;
    REFUSED(train_by_units(self), WEFT_E_SHAPE, "'y' has 189 rows and 'x' 190");
    how.uneven = false;
    how.unit_rows = -1;
    REFUSED(weft_lbfgs_train(self->server, NULL, weft_l2(0), NULL, NULL, NULL, NULL), WEFT_E_INVALID, "loss is NULL");
    return WEFT_OK;
}
Test(lbfgs_train, refuses_what_it_cannot_minimise) { serve_case("shm", 1, NULL, refusals); }

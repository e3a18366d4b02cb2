/* Arithmetic on a parameter server's tables against plain loops, in f32 and f64, on one to three servers; sums that need more than plain addition;
 * and commands that are no commands. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "serving.h"

enum { ROWS = 1237, WIDTH = 3, ELEMENTS = ROWS * WIDTH, MANY = 250 };

static double value(int64_t i, int which) { return (double)((i * 7919 + which * 104729) % 2003) / 1001.5 - 1; }

static weft_status open_vector(serving *self, const char *name, weft_dtype dtype, weft_table **table_out) {
    weft_table_options options = {.name = name, .rows = ROWS, .width = WIDTH, .dtype = dtype, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    return weft_table_create(self->server, &options, table_out);
}

static weft_status set(weft_table *table, const void *values) {
    weft_table_call call = {.kind = WEFT_SET, .send = values};
    weft_request   *request = NULL;
    WEFTI_TRY(weft_table_start_call(table, &call, &request));
    return weft_request_wait(request, 0);
}

static double get(weft_dtype dtype, const void *values, int i) { return dtype == WEFT_F64 ? ((const double *)values)[i] : (double)((const float *)values)[i]; }
static void put(weft_dtype dtype, void *values, int i, double to) {
    if (dtype == WEFT_F64) ((double *)values)[i] = to;
    else ((float *)values)[i] = (float)to;
}

/* y after the command, rounded as the dtype does. */
static double after(weft_dtype dtype, weft_vector_op op, double x, double y, double scale) {
    if (dtype == WEFT_F32) {
        float xf = (float)x, yf = (float)y, s = (float)scale, product = s * xf;
        return op == WEFT_VECTOR_FILL ? s : op == WEFT_VECTOR_COPY ? xf : op == WEFT_VECTOR_SCALE ? yf * s : op == WEFT_VECTOR_AXPY ? yf + product : yf * xf;
    }
    return op == WEFT_VECTOR_FILL ? scale : op == WEFT_VECTOR_COPY ? x : op == WEFT_VECTOR_SCALE ? y * scale : op == WEFT_VECTOR_AXPY ? y + scale * x : y * x;
}

static weft_status try_dtype(serving *self, weft_dtype dtype) {
    static double x[ELEMENTS], y[ELEMENTS], got[ELEMENTS]; /* of either dtype */
    weft_table   *a = NULL, *b = NULL;
    double        results[2];
    WEFTI_TRY(open_vector(self, dtype == WEFT_F64 ? "a64" : "a32", dtype, &a));
    WEFTI_TRY(open_vector(self, dtype == WEFT_F64 ? "b64" : "b32", dtype, &b));
    for (int i = 0; i < ELEMENTS; i++) put(dtype, x, i, value(i, 1));
    for (weft_vector_op op = WEFT_VECTOR_FILL; op <= WEFT_VECTOR_MULTIPLY; op++) {
        for (int i = 0; i < ELEMENTS; i++) put(dtype, y, i, value(i, 2));
        WEFTI_TRY(set(a, x));
        WEFTI_TRY(set(b, y));
        weft_vector_command commands[] = {{.op = op, .x = a, .y = b, .scale = 0.7}, {.op = WEFT_VECTOR_DOT, .x = b, .y = a}};
        WEFTI_TRY(weft_vectors_run(self->server, commands, 2, results));
        WEFTI_TRY(weft_table_pull(b, NULL, got));
        double sum = 0, size = 0;
        for (int i = 0; i < ELEMENTS; i++) {
            double wanted = after(dtype, op, get(dtype, x, i), get(dtype, y, i), 0.7);
            EXPECT(get(dtype, got, i) == wanted, "op %d, element %d: %.17g, not %.17g", (int)op, i, get(dtype, got, i), wanted);
            sum += wanted * get(dtype, x, i);
            size += fabs(wanted * get(dtype, x, i));
        }
        EXPECT(results[0] == 0, "op %d gives %g", (int)op, results[0]);
        EXPECT(fabs(results[1] - sum) <= 1e-13 * size, "op %d, dot: %.17g, not %.17g", (int)op, results[1], sum);
        WEFTI_TRY(weft_table_pull(a, NULL, got));
        EXPECT(memcmp(got, x, ELEMENTS * weft_dtype_bytes(dtype)) == 0, "op %d changed x", (int)op);
    }
    weft_table_release(a);
    weft_table_release(b);
    return WEFT_OK;
}

static weft_status arithmetic(serving *self) {
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) { /* the others serve */
        WEFTI_TRY(try_dtype(self, WEFT_F32));
        WEFTI_TRY(try_dtype(self, WEFT_F64));
    }
    return serving_meet(self);
}

Test(vectors, arithmetic_is_that_of_plain_loops) {
    for (int32_t servers = 1; servers <= 3; servers++) serve_case("shm", 3, &(weft_server_options){.servers = servers}, arithmetic);
    serve_case("tcp", 3, &(weft_server_options){.servers = 2, .dedicated = true}, arithmetic);
    serve_case("shm", 1, NULL, arithmetic);
}

/* More commands than a message takes, each seeing what those before have done; and a vector with itself. */
static weft_status order(serving *self) {
    weft_vector_command commands[MANY];
    static double       got[ELEMENTS], results[MANY];
    weft_table         *a = NULL, *b = NULL;
    WEFTI_TRY(open_vector(self, "a", WEFT_F64, &a));
    WEFTI_TRY(open_vector(self, "b", WEFT_F64, &b));
    commands[0] = (weft_vector_command){.op = WEFT_VECTOR_FILL, .y = a, .scale = 1};
    commands[1] = (weft_vector_command){.op = WEFT_VECTOR_FILL, .y = b};
    for (int i = 2; i < MANY; i++)
        commands[i] = i % 2 ? (weft_vector_command){.op = WEFT_VECTOR_DOT, .x = b, .y = b} : (weft_vector_command){.op = WEFT_VECTOR_AXPY, .x = a, .y = b, .scale = 1};
    WEFTI_TRY(weft_vectors_run(self->server, commands, MANY, results));
    for (int i = 3; i < MANY; i += 2) EXPECT(results[i] == (double)(i / 2) * (i / 2) * ELEMENTS, "command %d: %g", i, results[i]);
    WEFTI_TRY(weft_table_pull(b, NULL, got));
    EXPECT(got[ELEMENTS - 1] == MANY / 2 - 1, "%g", got[ELEMENTS - 1]);
    weft_vector_command doubled = {.op = WEFT_VECTOR_AXPY, .x = b, .y = b, .scale = 1};
    WEFTI_TRY(weft_vectors_run(self->server, &doubled, 1, NULL));
    WEFTI_TRY(weft_table_pull(b, NULL, got));
    EXPECT(got[7] == MANY - 2, "%g", got[7]);
    WEFTI_TRY(weft_vectors_run(self->server, NULL, 0, NULL));
    weft_table_release(a);
    weft_table_release(b);
    return WEFT_OK;
}
static weft_status order_at_one(serving *self) {
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(order(self));
    return serving_meet(self);
}
Test(vectors, commands_take_effect_in_their_order) { serve_case("shm", 3, &(weft_server_options){.servers = 2}, order_at_one); }

/* 1e16, a million ones, -1e16: plain addition loses the ones. */
static weft_status long_sum(serving *self) {
    enum { ONES = 1000000 };
    weft_table *a = NULL, *ones = NULL;
    double      result = 0, end[1];
    weft_table_options options = {.name = "a", .rows = ONES + 2, .dtype = WEFT_F64, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(weft_table_create(self->server, &options, &a));
    options.name = "ones";
    WEFTI_TRY(weft_table_create(self->server, &options, &ones));
    weft_vector_command commands[] = {{.op = WEFT_VECTOR_FILL, .y = a, .scale = 1}, {.op = WEFT_VECTOR_FILL, .y = ones, .scale = 1}};
    WEFTI_TRY(weft_vectors_run(self->server, commands, 2, NULL));
    for (int i = 0; i < 2; i++) {
        uint64_t row = i ? ONES + 1 : 0;
        end[0] = i ? -1e16 : 1e16;
        WEFTI_TRY(weft_table_call_rows(a, WEFT_SET, &row, 1, end, NULL));
    }
    weft_vector_command sum = {.op = WEFT_VECTOR_DOT, .x = a, .y = ones};
    WEFTI_TRY(weft_vectors_run(self->server, &sum, 1, &result));
    /* within the two blocks that have the large ones, up to 1023 ones are lost */
    EXPECT(fabs(result - ONES) <= 2 * 1024, "%.17g", result);
    weft_table_release(a);
    weft_table_release(ones);
    return WEFT_OK;
}
Test(vectors, long_sums_keep_what_is_small) { serve_case("shm", 1, NULL, long_sum); }

static weft_status refusals(serving *self) {
    weft_table *good = NULL, *other = NULL, *wide = NULL, *sparse = NULL, *whole = NULL, *ftrl = NULL;
    double      result[2] = {0};
    WEFTI_TRY(open_vector(self, "good", WEFT_F32, &good));
    WEFTI_TRY(open_vector(self, "other", WEFT_F64, &other));
    weft_table_options o = {.name = "wide", .rows = ROWS * WIDTH, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(weft_table_create(self->server, &o, &wide));
    o = (weft_table_options){.name = "sparse", .sparse = true, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(weft_table_create(self->server, &o, &sparse));
    o = (weft_table_options){.name = "whole", .rows = 5, .dtype = WEFT_I64};
    WEFTI_TRY(weft_table_create(self->server, &o, &whole));
    o = (weft_table_options){.name = "ftrl", .rows = ROWS, .width = WIDTH, .rule = {.kind = WEFT_TABLE_FTRL}};
    WEFTI_TRY(weft_table_create(self->server, &o, &ftrl));
    weft_vector_command two[2] = {{.op = WEFT_VECTOR_FILL, .y = good, .scale = 3}, {.op = WEFT_VECTOR_DOT, .x = good, .y = other}};
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_DTYPE, "'other'");
    float values[ELEMENTS];
    WEFTI_TRY(weft_table_pull(good, NULL, values));
    EXPECT(values[0] == 0, "a message with a wrong command in it changed something: %g", (double)values[0]);
    two[1].y = wide;
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_SHAPE, "'wide'");
    two[1].y = sparse;
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_INVALID, "'sparse' is no vector");
    two[1].y = whole;
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_INVALID, "'whole' is no vector");
    two[1].y = ftrl;
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_UNSUPPORTED, "FTRL");
    two[1].y = NULL;
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_INVALID, "no table y");
    two[1] = (weft_vector_command){.op = WEFT_VECTOR_COPY, .y = good};
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_INVALID, "no table x");
    two[1] = (weft_vector_command){.op = (weft_vector_op)6, .x = good, .y = good};
    REFUSED(weft_vectors_run(self->server, two, 2, result), WEFT_E_INVALID, "op 6");
    two[1].op = WEFT_VECTOR_DOT;
    REFUSED(weft_vectors_run(self->server, two, 2, NULL), WEFT_E_INVALID, "results_out is NULL");
    REFUSED(weft_vectors_run(NULL, two, 2, result), WEFT_E_INVALID, "is NULL");
    WEFTI_TRY(weft_vectors_run(self->server, two, 2, result));
    EXPECT(result[1] == 9.0 * ELEMENTS, "%g", result[1]);
    return WEFT_OK;
}
Test(vectors, refuses_what_is_no_command) { serve_case("shm", 1, NULL, refusals); }

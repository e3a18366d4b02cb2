/* What pipelining hides. The time is that of sleeping, in the program and in the rule of a server, so it depends little on the machine: one slice
 * after the other takes the sum, and pipelined slices take the longer of the two. */
#include <criterion/criterion.h>
#include <time.h>

#include "serving.h"

enum { SLICES = 30, SLICE_ROWS = 16, WIDTH = 64, ROWS = SLICES * SLICE_ROWS, TRIES = 8 };

static double compute_ms, serve_ms;

static void sleep_ms(double ms) {
    struct timespec pause = {0, (long)(ms * 1e6)};
    nanosleep(&pause, NULL);
}

/* Once a slice. */
static weft_status slow(void *context, const weft_row *row) {
    (void)context;
    if (row->key % SLICE_ROWS == 0) sleep_ms(serve_ms);
    ((float *)row->values)[0] += ((const float *)row->update)[0];
    return WEFT_OK;
}

static weft_status compute(void *context, const weft_block_slice *slice) {
    double ms = *(const double *)context;
    if (ms > 0) sleep_ms(ms);
    for (int64_t i = 0; i < slice->row_count; i++) ((float *)slice->updates[0])[i * WIDTH] = 1;
    return WEFT_OK;
}

static weft_status measure(weft_table *table, bool pipeline, double ms, weft_slices_report *report_out) {
    static uint64_t     rows[ROWS];
    weft_sliced_table   sliced = {.table = table};
    weft_block          blocks[SLICES];
    weft_slices_options how = {.tables = &sliced, .table_count = 1, .pipeline = pipeline};
    for (int i = 0; i < SLICES; i++) blocks[i] = (weft_block){.rows = rows + i * SLICE_ROWS, .row_count = SLICE_ROWS};
    for (uint64_t i = 0; i < ROWS; i++) rows[i] = i;
    WEFTI_TRY(weft_slices_run(&how, blocks, SLICES, compute, &ms, report_out));
    EXPECT(report_out->slices == SLICES, "%d slices", (int)report_out->slices);
    return WEFT_OK;
}

static weft_status hides(serving *self) {
    weft_table        *table = NULL;
    weft_table_options options = {.name = "slow", .rows = ROWS, .width = WIDTH, .rule = {.kind = WEFT_TABLE_USER, .function = "slow"}, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    double             best = 1e9, sum = 0, waited = 1;
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    for (int i = 0; i < TRIES && best > 1.1; i++) {
        weft_slices_report moving, serial, piped;
        WEFTI_TRY(measure(table, false, 0, &moving));
        WEFTI_TRY(measure(table, false, compute_ms, &serial));
        WEFTI_TRY(measure(table, true, compute_ms, &piped));
        double longer = moving.total_ns > piped.compute_ns ? (double)moving.total_ns : (double)piped.compute_ns;
        EXPECT(piped.staleness_added == 1 && serial.staleness_added == 0, "staleness");
        EXPECT(serial.total_ns >= SLICES * (compute_ms + serve_ms) * 1e6, "one by one took %.1f ms", 1e-6 * (double)serial.total_ns);
        if ((double)piped.total_ns / longer >= best) continue;
        best = (double)piped.total_ns / longer;
        sum = (double)serial.total_ns / longer;
        waited = (double)piped.wait_ns / (double)serial.wait_ns;
    }
    EXPECT(best <= 1.1, "pipelined slices took %.2f times the longer of computing and communicating, one by one %.2f", best, sum);
    if (compute_ms > serve_ms) EXPECT(waited < 0.25, "%.2f of the waiting is left", waited);
    weft_table_release(table);
    return WEFT_OK;
}

static void try_with(double compute_each, double serve_each, const char *wire) {
    static const weft_table_function function = {.name = "slow", .apply = slow};
    compute_ms = compute_each;
    serve_ms = serve_each;
    serve_case(wire, 2, &(weft_server_options){.servers = 1, .dedicated = true, .functions = &function, .function_count = 1}, hides);
}

Test(slices_time, hides_communication_behind_computing) { try_with(8, 4, "tcp"); }
Test(slices_time, hides_computing_behind_communication) { try_with(4, 8, "shm"); }

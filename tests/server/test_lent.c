/* Answers that are sent from the rows: whatever changes these meanwhile, a pull sees one moment, and nobody waits for who is slow to take it. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "serving.h"

static const weft_server_options apart = {.servers = 1, .dedicated = true, .no_thread = true};

enum { ROWS = 6 << 20 }; /* more bytes than two sockets hold */

static void wait_ms(int64_t ms) { nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL); }

/* The world of a case: one who pulls and then looks away, and one who changes the rows meanwhile. They meet without polling. */
static void meet(serving *self, int32_t stage) {
    atomic_fetch_add(&self->all->ready, 1);
    while (atomic_load(&self->all->ready) < stage * self->workers) wait_ms(1);
}

static weft_status make(serving *self, weft_table_options options, weft_table **table_out, float **values_out) {
    options.name = "rows";
    options.rows = ROWS;
    options.dtype = WEFT_F32;
    *values_out = malloc(ROWS * sizeof **values_out);
    WEFTI_TRY(weft_table_create(self->server, &options, table_out));
    for (int64_t i = 0; i < ROWS; i++) (*values_out)[i] = (float)(i % 1000 + 1);
    return WEFT_OK;
}

/* times: of values that were pushed. */
static weft_status compare(const float *got, float times, const char *when) {
    for (int64_t i = 0; i < ROWS; i++)
        EXPECT(got[i] == times * (float)(i % 1000 + 1), "%s: row %lld is %g, not %g", when, (long long)i, got[i], times * (float)(i % 1000 + 1));
    return WEFT_OK;
}

typedef weft_status (*change)(serving *self, weft_table *table, const float *values);

static weft_status push(serving *self, weft_table *table, const float *values) {
    (void)self;
    return weft_table_push(table, NULL, values);
}
static weft_status push_some(serving *self, weft_table *table, const float *values) {
    const uint64_t last = ROWS - 1;
    (void)self;
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &last, 1, values + last, NULL));
    return weft_table_push(table, NULL, values);
}
static weft_status set(serving *self, weft_table *table, const float *values) {
    weft_request *request = NULL;
    float        *twice = malloc(ROWS * sizeof *twice);
    (void)self;
    for (int64_t i = 0; i < ROWS; i++) twice[i] = 2 * values[i];
    WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_SET, .send = twice}, &request));
    weft_status status = weft_request_wait(request, 0);
    free(twice);
    return status;
}

/* Rank 0 asks for the rows and then takes nothing; rank 1's changes are done while the answer is half sent, and rank 0 sees the rows before them. */
static weft_status changes_under_way(serving *self, change what, bool clocks) {
    weft_table   *table = NULL;
    weft_request *request = NULL;
    float        *values = NULL, *got = malloc(ROWS * sizeof *got);
    WEFTI_TRY(make(self, (weft_table_options){.staleness = clocks ? 0 : WEFT_TABLE_ASYNCHRONOUS}, &table, &values));
    if (self->rank == 0) {
        WEFTI_TRY(weft_table_push(table, NULL, values));
        if (clocks) WEFTI_TRY(weft_table_clock(table));
    } else if (clocks) {
        WEFTI_TRY(weft_table_clock(table));
    }
    if (self->rank == 0) {
        WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PULL, .receive = got}, &request));
        if (clocks) WEFTI_TRY(weft_table_clock(table)); /* the next one, which is closed while the answer is half sent */
        for (int i = 0; i < 20; i++) WEFTI_TRY(weft_server_poll(self->server));
    }
    meet(self, 1);
    wait_ms(100); /* the server sends what the sockets take */
    if (self->rank == 1) {
        WEFTI_TRY(what(self, table, values));
        if (clocks) {
            WEFTI_TRY(weft_table_clock(table));
            WEFTI_TRY(weft_table_pull(table, NULL, got));
            WEFTI_TRY(compare(got, 2, "who changed them"));
        }
    }
    meet(self, 2);
    if (self->rank == 0) {
        WEFTI_TRY(weft_request_wait(request, 0));
        WEFTI_TRY(compare(got, 1, "who asked before"));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(what == push_some ? WEFT_OK : compare(got, 2, "who asks again"));
    }
    weft_table_release(table);
    free(values);
    free(got);
    return WEFT_OK;
}

static weft_status pushed(serving *self) { return changes_under_way(self, push, false); }
static weft_status pushed_in_part(serving *self) { return changes_under_way(self, push_some, false); }
static weft_status replaced(serving *self) { return changes_under_way(self, set, false); }
static weft_status clock_closed(serving *self) { return changes_under_way(self, push, true); }
Test(lent, rows_that_are_pushed) { serve_case("tcp", 3, &apart, pushed); }
Test(lent, rows_that_are_pushed_in_part) { serve_case("tcp", 3, &apart, pushed_in_part); }
Test(lent, rows_that_are_replaced) { serve_case("tcp", 3, &apart, replaced); }
Test(lent, rows_of_a_clock) { serve_case("tcp", 3, &apart, clock_closed); }

/* Who was sent rows dies: the next change finds nothing lent. */
static weft_status dies_receiving(serving *self) {
    weft_table   *table = NULL;
    weft_request *request = NULL;
    float        *values = NULL, *got = malloc(ROWS * sizeof *got);
    WEFTI_TRY(make(self, (weft_table_options){.staleness = WEFT_TABLE_ASYNCHRONOUS}, &table, &values));
    if (self->rank == 0) {
        WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PULL, .receive = got}, &request));
        for (int i = 0; i < 20; i++) WEFTI_TRY(weft_server_poll(self->server));
        meet(self, 1);
        raise(SIGKILL);
    }
    meet(self, 1);
    for (int i = 0; i < 5; i++) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    WEFTI_TRY(compare(got, 5, "the other"));
    weft_table_release(table);
    free(values);
    free(got);
    return WEFT_OK;
}
Test(lent, to_one_that_dies) { ranks_free(serve_case_with("tcp", 3, &apart, dies_receiving, 1u << 0)); }

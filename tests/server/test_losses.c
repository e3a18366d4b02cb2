/* Ranks that die: nobody waits for a worker, and a server's rows are told to be lost. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true}, two_apart = {.servers = 2, .dedicated = true};

/* --- a worker dies --- */

enum { DIES_AT = 5, ROUNDS = 12 };

/* Clocks go on within a second, and what it pushed in clocks that it ended is there. */
static weft_status worker_dies(serving *self, int32_t staleness) {
    weft_table *table = NULL;
    float       mine[100], got[100];
    int32_t     victim = self->workers - 1;
    uint64_t    longest_ns = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sums", .rows = 100, .dtype = WEFT_F32, .staleness = staleness}, &table));
    for (int clock = 0; clock < ROUNDS; clock++) {
        if (clock == DIES_AT && self->rank == victim) raise(SIGKILL);
        for (int i = 0; i < 100; i++) mine[i] = (float)(1 << self->rank);
        WEFTI_TRY(weft_table_push(table, NULL, mine));
        WEFTI_TRY(weft_table_clock(table));
        uint64_t begin_ns = ranks_now();
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        uint64_t took_ns = ranks_now() - begin_ns;
        if (took_ns > longest_ns) longest_ns = took_ns;
        float wanted = 0;
        for (int32_t rank = 0; rank < self->workers; rank++)
            wanted += (float)(1 << rank) * (float)(rank == victim && clock >= DIES_AT ? DIES_AT : clock + 1);
        if (staleness == 0) EXPECT(got[7] == wanted, "clock %d: %g, not %g", clock, got[7], wanted);
    }
    EXPECT(longest_ns < WEFTI_SECOND_NS, "a pull took %g s", (double)longest_ns / 1e9);
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status sums_go_on(serving *self) { return worker_dies(self, 0); }
static weft_status bounded_goes_on(serving *self) { return worker_dies(self, 1); }

Test(losses, worker_of_sums_shm) { ranks_free(serve_case_with("shm", 4, &one_apart, sums_go_on, 1u << 2)); }
Test(losses, worker_of_sums_tcp) { ranks_free(serve_case_with("tcp", 4, &two_apart, sums_go_on, 1u << 1)); }
Test(losses, worker_of_bounded_shm) { ranks_free(serve_case_with("shm", 3, &one_apart, bounded_goes_on, 1u << 1)); }
Test(losses, worker_of_bounded_tcp) { ranks_free(serve_case_with("tcp", 4, &one_apart, bounded_goes_on, 1u << 2)); }

/* It dies in the middle of a large push: nothing of that counts. */
static weft_status half_a_push(serving *self) {
    enum { ROWS = 8 << 20 };
    weft_table   *table = NULL;
    weft_request *request = NULL;
    float        *mine = malloc(ROWS * sizeof *mine);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "large", .rows = ROWS, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    for (int64_t i = 0; i < ROWS; i++) mine[i] = 1;
    if (self->rank == 1) {
        weft_table_call call = {.kind = WEFT_PUSH, .send = mine};
        WEFTI_TRY(weft_table_start_call(table, &call, &request));
        raise(SIGKILL);
    }
    struct timespec pause = {0, 300 * 1000 * 1000};
    nanosleep(&pause, NULL);
    WEFTI_TRY(weft_table_push(table, NULL, mine));
    WEFTI_TRY(weft_table_pull(table, NULL, mine));
    for (int64_t i = 1; i < ROWS; i++) EXPECT(mine[i] == mine[0], "row %lld is %g, row 0 %g", (long long)i, mine[i], mine[0]);
    EXPECT(mine[0] == 1 || mine[0] == 2, "%g", mine[0]);
    weft_table_release(table);
    free(mine);
    return WEFT_OK;
}
Test(losses, worker_in_a_push_shm) { ranks_free(serve_case_with("shm", 3, &one_apart, half_a_push, 1u << 1)); }
Test(losses, worker_in_a_push_tcp) { ranks_free(serve_case_with("tcp", 3, &one_apart, half_a_push, 1u << 1)); }

/* --- a server dies --- */

static weft_status kill_self(void *context, const weft_row *row) {
    (void)context;
    if (row->key == 999) raise(SIGKILL);
    ((float *)row->values)[0] += ((const float *)row->update)[0];
    return WEFT_OK;
}
static const weft_table_function deadly[] = {{.name = "deadly", .apply = kill_self}};
static const weft_server_options with_deadly = {.servers = 2, .dedicated = true, .functions = deadly, .function_count = 1};

/* Its rows are lost, and that is said within 5 s to every worker, by its name; the rows of the other are there. */
static weft_status server_dies(serving *self) {
    weft_table *table = NULL;
    float       one = 1, got = 0;
    uint64_t    first = 1, last = 999;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "two halves", .rows = 1000, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS,
                                                                    .rule = {.kind = WEFT_TABLE_USER, .function = "deadly"}}, &table));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &first, 1, &one, NULL));
    WEFTI_TRY(serving_meet(self));
    uint64_t begin_ns = ranks_now();
    if (self->rank == 0) REFUSED(weft_table_call_rows(table, WEFT_PUSH, &last, 1, &one, NULL), WEFT_E_PEER, "rank 3, which serves rows of table 'two halves', is gone");
    else REFUSED(weft_table_call_rows(table, WEFT_PULL, &last, 1, NULL, &got) == WEFT_OK ? weft_table_call_rows(table, WEFT_PUSH, &last, 1, &one, NULL)
                                                                                         : WEFT_E_PEER, WEFT_E_PEER, "rank 3, which serves");
    EXPECT(ranks_now() - begin_ns < 5 * WEFTI_SECOND_NS, "it took %g s", (double)(ranks_now() - begin_ns) / 1e9);
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, &first, 1, NULL, &got));
    EXPECT(got == (float)self->workers, "%g", got);
    weft_table_release(table);
    return WEFT_OK;
}
Test(losses, server_shm) { ranks_free(serve_case_with("shm", 4, &with_deadly, server_dies, 1u << 3)); }
Test(losses, server_tcp) { ranks_free(serve_case_with("tcp", 4, &with_deadly, server_dies, 1u << 3)); }

/* A server that is stopped: the request ends at its deadline and a little, and says who is silent. */
static weft_status server_stops(serving *self) {
    weft_table *table = NULL;
    float       got[10];
    weft_request   *request = NULL;
    weft_table_call call = {.kind = WEFT_PULL, .receive = got, .timeout_ns = 200 * (int64_t)WEFTI_MILLISECOND_NS};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 10, .dtype = WEFT_F32}, &table));
    WEFTI_TRY(serving_meet(self));
    kill(self->all->children[2], SIGSTOP);
    uint64_t begin_ns = ranks_now();
    WEFTI_TRY(weft_table_start_call(table, &call, &request));
    weft_status status = weft_request_wait(request, 0);
    EXPECT(status == WEFT_E_TIMEOUT || status == WEFT_E_PEER, "%s", weft_status_name(status));
    EXPECT(strstr(weft_error_message(), "rank 2") || strstr(weft_error_message(), "rank"), "%s", weft_error_message());
    EXPECT(ranks_now() - begin_ns < 6 * WEFTI_SECOND_NS, "it took %g s", (double)(ranks_now() - begin_ns) / 1e9);
    weft_table_release(table);
    kill(self->all->children[2], SIGKILL);
    return WEFT_OK;
}
Test(losses, server_that_is_silent) { ranks_free(serve_case_with("tcp", 3, &one_apart, server_stops, 1u << 2)); }

/* Rank 0, by which the world notices who is silent, leaves in good order; then a worker is stopped. Who serves does not wait for it for ever. */
static weft_status stopped_after_rank_0_left(serving *self) {
    weft_table *table = NULL;
    float       value = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 1, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_push(table, NULL, &value));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) {
        struct timespec pause = {0, 300 * 1000 * 1000}, longer = {8, 0};
        nanosleep(&pause, NULL); /* rank 0 is gone */
        pid_t self_id = getpid();
        if (fork() == 0) {
            nanosleep(&longer, NULL);
            kill(self_id, SIGKILL);
            _exit(0);
        }
        self->all->wrecked_ns = ranks_now();
        kill(self_id, SIGSTOP);
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(losses, a_worker_that_is_silent_when_rank_0_has_left) {
    weft_server_options brief = one_apart;
    brief.timeout_ns = (int64_t)WEFTI_SECOND_NS;
    ranks *all = serve_case_with("tcp", 3, &brief, stopped_after_rank_0_left, 1u << 1);
    double after = ((double)all->results[2].at_ns - (double)all->wrecked_ns) / 1e9;
    cr_expect(after < 5, "the server waited for %.2f s", after);
    ranks_free(all);
}

/* Everybody beside everybody: whoever dies takes its rows along, and the rest ends well. */
static weft_status one_of_all_dies(serving *self) {
    weft_table *table = NULL;
    float       mine[90] = {0};
    weft_status status = weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 90, .dtype = WEFT_F32}, &table);
    for (int clock = 0; clock < 10 && status == WEFT_OK; clock++) {
        if (clock == 4 && self->rank == 1) raise(SIGKILL);
        status = weft_table_push_pull(table, NULL, mine, mine);
    }
    EXPECT(status == WEFT_E_PEER && strstr(weft_error_message(), "rank 1"), "%s: %s", weft_status_name(status), weft_error_message());
    weft_table_release(table);
    return WEFT_OK;
}
Test(losses, one_of_all_shm) { ranks_free(serve_case_with("shm", 3, &beside, one_of_all_dies, 1u << 1)); }
Test(losses, one_of_all_tcp) { ranks_free(serve_case_with("tcp", 3, &beside, one_of_all_dies, 1u << 1)); }

/* What is wrong is told to who did it, by name, and changes nothing for the others. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "common/effort.h"
#include "parallel/server/inside.h"
#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true};

/* Another worker counts on while one does everything wrong. */
static weft_status counts_on(serving *self, weft_table *table, int rounds) {
    float one[4] = {1, 1, 1, 1}, got[4];
    for (int i = 0; i < rounds; i++) WEFTI_TRY(weft_table_push(table, NULL, one));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    EXPECT(got[0] == (float)rounds && got[3] == (float)rounds, "%g, %g of %d on rank %d", got[0], got[3], rounds, (int)self->rank);
    return WEFT_OK;
}

static weft_status wrong_options(serving *self) {
    weft_table        *table = NULL;
    weft_table_options good = {.name = "t", .rows = 10, .dtype = WEFT_F32}, bad;
#define BAD(change, status, part)                                              \
    do {                                                                       \
        bad = good;                                                            \
        change;                                                                \
        REFUSED(weft_table_create(self->server, &bad, &table), status, part);  \
        EXPECT(!table, "a table came out");                                    \
    } while (0)
    BAD(bad.name = NULL, WEFT_E_INVALID, "no name");
    BAD(bad.name = "0123456789012345678901234567890123456789012345678", WEFT_E_INVALID, "more than 48");
    BAD(bad.rows = -1, WEFT_E_SHAPE, "-1 rows");
    BAD(bad.rows = 0, WEFT_E_SHAPE, "0 rows");
    BAD(bad.rows = INT64_MAX / 2; bad.width = 8, WEFT_E_OVERFLOW, "rows of 8");
    BAD(bad.staleness = -2, WEFT_E_INVALID, "staleness -2");
    BAD(bad.staleness = 1; bad.rule.mean = true, WEFT_E_INVALID, "wants staleness 0");
    BAD(bad.staleness = 1; bad.rule.kind = WEFT_TABLE_AVERAGE, WEFT_E_INVALID, "wants staleness 0");
    BAD(bad.spares = -1, WEFT_E_INVALID, "-1 spares");
    BAD(bad.spares = 1; bad.staleness = 1, WEFT_E_INVALID, "1 spares with staleness 1");
    BAD(bad.spares = 2, WEFT_E_INVALID, "2 spares among 2 workers");
    BAD(bad.split = WEFT_SPLIT_HASH, WEFT_E_INVALID, "split by ranges");
    BAD(bad.split = WEFT_SPLIT_RANGE; bad.sparse = true; bad.rows = 0, WEFT_E_INVALID, "want .rows");
    BAD(bad.dtype = WEFT_BOOL, WEFT_E_DTYPE, "bool");
    BAD(bad.dtype = WEFT_I32; bad.rule = ((weft_table_rule){.kind = WEFT_TABLE_SOLVER, .solver = weft_sgd(0.1)}), WEFT_E_DTYPE, "i32");
    BAD(bad.rule.kind = WEFT_TABLE_SOLVER, WEFT_E_INVALID, "rate");
    BAD(bad.rule = ((weft_table_rule){.kind = WEFT_TABLE_SOLVER, .solver = weft_lbfgs(1)}), WEFT_E_INVALID, "L-BFGS");
    BAD(bad.most_bytes = 4, WEFT_E_NO_MEMORY, "bytes");
    REFUSED(weft_table_open(self->server, "nobody's", &table), WEFT_E_NOT_FOUND, "no table 'nobody's'");
    return WEFT_OK;
}
Test(refusals, options) { serve_case("shm", 2, &beside, wrong_options); }

static weft_status differing(serving *self) {
    weft_table        *table = NULL, *other = NULL;
    weft_table_options options = {.name = "t", .rows = 4, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    if (self->rank == 0) WEFTI_TRY(weft_table_create(self->server, &options, &table));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) {
        options.width = 2;
        REFUSED(weft_table_create(self->server, &options, &other), WEFT_E_MISMATCH, "there is a table 't' already, and it differs in width");
        options.width = 1;
        options.rule = (weft_table_rule){.kind = WEFT_TABLE_SOLVER, .solver = weft_sgd(0.5)};
        REFUSED(weft_table_create(self->server, &options, &other), WEFT_E_MISMATCH, "rule.kind");
        WEFTI_TRY(weft_table_open(self->server, "t", &table));
        const weft_table_options *seen = weft_table_describe(table);
        EXPECT(seen->rows == 4 && seen->width == 1 && seen->staleness == WEFT_TABLE_ASYNCHRONOUS && strcmp(seen->name, "t") == 0, "%s", seen->name);
        WEFTI_TRY(counts_on(self, table, 10));
    }
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    return WEFT_OK;
}
Test(refusals, tables_of_one_name) { serve_case("tcp", 2, &beside, differing); }

static weft_status wrong_requests(serving *self) {
    weft_table   *table = NULL, *sparse = NULL;
    weft_keys    *keys = NULL;
    weft_request *request = NULL;
    float         values[8] = {0};
    char          name[2] = {(char)('a' + self->rank), 0};
    uint64_t      beyond[3] = {1, 2, 4}, back[3] = {1, 3, 2}, twice[2] = {1, 1};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .rows = 4, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sparse", .sparse = true, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &sparse));
    if (self->rank == 0) {
        REFUSED(weft_table_call_rows(table, WEFT_PUSH, beyond, 3, values, NULL), WEFT_E_INVALID, "key 2 of 3 is 4; the table has keys below 4");
        REFUSED(weft_table_call_rows(table, WEFT_PULL, back, 3, NULL, values), WEFT_E_INVALID, "key 2 of 3 is 2 and follows 3");
        REFUSED(weft_table_call_rows(table, WEFT_PULL, twice, 2, NULL, values), WEFT_E_INVALID, "follows 1");
        REFUSED(weft_table_call_rows(table, WEFT_PULL, twice, -1, NULL, values), WEFT_E_INVALID, "row_count -1");
        REFUSED(weft_table_push(table, NULL, NULL), WEFT_E_INVALID, "send is NULL");
        REFUSED(weft_table_pull(table, NULL, NULL), WEFT_E_INVALID, "receive is NULL");
        REFUSED(weft_table_pull(sparse, NULL, values), WEFT_E_INVALID, "names its keys");
        REFUSED(weft_keys_create(table, beyond, 3, &keys), WEFT_E_INVALID, "keys below 4");
        WEFTI_TRY(weft_keys_create(table, back, 3, &keys));
        REFUSED(weft_table_pull(sparse, keys, values), WEFT_E_INVALID, "key set was made for table 'a'");
        REFUSED(weft_table_start_call(table, &(weft_table_call){.kind = (weft_request_kind)7}, &request), WEFT_E_INVALID, "kind 7");
        REFUSED(weft_server_serve(self->server), WEFT_E_STATE, "is no server");
    }
    WEFTI_TRY(counts_on(self, table, 20));
    weft_table_release(table);
    return WEFT_OK;
}
Test(refusals, requests) { serve_case("shm", 3, &one_apart, wrong_requests); }

/* What a worker that has gone wrong could ask, past what its own side checks: each server looks at it again, tells that worker alone, and keeps its rows. */
static weft_status wrong_frames(serving *self) {
    enum { FEW = 3 };
    weft_table *table = NULL, *ints = NULL;
    weft_keys  *keys = NULL;
    float       values[4 * FEW] = {1, 2, 3, 4, 5, 6};
    int64_t     whole[4] = {0};
    char        name[2] = {(char)('a' + self->rank), 0};
    uint64_t    list[FEW] = {0, 2, 3};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .rows = 4, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "ints", .rows = 4, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &ints));
    if (self->rank == 0) {
        const uint64_t id = table->id;
        table->id = 12345;
        REFUSED(weft_table_push(table, NULL, values), WEFT_E_NOT_FOUND, "has no table of number 0000000000003039");
        REFUSED(weft_table_pull(table, NULL, values), WEFT_E_NOT_FOUND, "has no table of number");
        table->id = ints->id; /* another's */
        REFUSED(weft_table_push(table, NULL, values), WEFT_E_DTYPE, "table 'ints' is of i64; the request of rank 0 of f32");
        table->id = id;
        table->options.dtype = WEFT_I32;
        REFUSED(weft_table_push(table, NULL, values), WEFT_E_DTYPE, "is of f32; the request of rank 0 of i32");
        table->options.dtype = WEFT_F32;
        table->options.width = 3;
        REFUSED(weft_table_push(table, NULL, values), WEFT_E_SHAPE, "has rows of 1 elements; the request of rank 0 of 3");
        table->options.width = 1;
        table->row_bytes = 8; /* more values than rows */
        REFUSED(weft_table_push(table, NULL, values), WEFT_E_SHAPE, "4 rows comes with 32 bytes");
        table->row_bytes = 4;
        WEFTI_TRY(weft_keys_create(table, list, FEW, &keys));
        const size_t packed = keys->packed_begin[1];
        keys->packed_begin[1] = 0; /* they are sent as they are */
        keys->routed[1] = 4;
        REFUSED(weft_table_push(table, keys, values), WEFT_E_INVALID, "key 4 at place 1 of 3");
        keys->known[0] = 0;
        keys->routed[1] = 0;
        REFUSED(weft_table_push(table, keys, values), WEFT_E_INVALID, "key 0 at place 1 of 3");
        keys->known[0] = 1; /* which it is not */
        keys->routed[1] = 2;
        REFUSED(weft_table_push(table, keys, values), WEFT_E_NOT_FOUND, "rank 0 has sent no key set");
        keys->known[0] = 0;
        WEFTI_TRY(weft_table_pull(table, keys, values));
        for (int i = 0; i < FEW; i++) EXPECT(values[i] == 0, "row %d is %g: something was changed", i, (double)values[i]);
        keys->count = keys->begin[1] = 2; /* another number of keys than it had */
        REFUSED(weft_table_pull(table, keys, values), WEFT_E_INVALID, "has 3 keys here, and 2 in a request");
        keys->count = keys->begin[1] = FEW;
        keys->packed_begin[1] = packed;
    }
    WEFTI_TRY(counts_on(self, table, 20));
    WEFTI_TRY(weft_table_pull(ints, NULL, whole));
    EXPECT(whole[0] == 0 && whole[3] == 0, "%lld", (long long)whole[0]);
    weft_table_release(table);
    weft_table_release(ints);
    return WEFT_OK;
}
Test(refusals, frames_shm) { serve_case("shm", 3, &one_apart, wrong_frames); }
Test(refusals, frames_tcp) { serve_case("tcp", 3, &one_apart, wrong_frames); }

static weft_status too_many(serving *self) {
    enum { MOST = 4 };
    weft_table     *table = NULL;
    weft_request   *requests[MOST], *more = NULL;
    float           got[MOST + 1][4];
    weft_table_call call = {.kind = WEFT_PULL};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "many", .rows = 4, .dtype = WEFT_F32}, &table));
    if (self->rank == 0) WEFTI_TRY(weft_table_clock(table)); /* so that pulls wait for the other worker */
    for (int i = 0; i < MOST && self->rank == 0; i++) {
        call.receive = got[i];
        WEFTI_TRY(weft_table_start_call(table, &call, &requests[i]));
        EXPECT(weft_request_test(requests[i]) == WEFT_E_AGAIN, "it has ended");
        EXPECT(weft_request_wait(requests[i], 1000000) == WEFT_E_AGAIN, "it has ended");
    }
    if (self->rank == 0) REFUSED(weft_table_start_call(table, &call, &more), WEFT_E_AGAIN, "4 requests are in flight");
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) WEFTI_TRY(weft_table_clock(table));
    for (int i = MOST - 1; i >= 0 && self->rank == 0; i--) WEFTI_TRY(weft_request_wait(requests[i], 0));
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    return WEFT_OK;
}
Test(refusals, too_many_in_flight) {
    serve_case("shm", 2, &(weft_server_options){.in_flight = 4}, too_many);
    serve_case("tcp", 3, &(weft_server_options){.in_flight = 4, .servers = 1, .dedicated = true}, too_many);
}

/* More state than memory: the bytes and what to do, and the servers go on. */
static weft_status too_large(serving *self) {
    weft_table        *table = NULL, *small = NULL;
    float              value = 1;
    uint64_t           key = 5;
    weft_table_options large = {.name = "large", .rows = INT64_C(1) << 44, .width = 4, .dtype = WEFT_F32,
                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.1)}};
    weft_table_options bounded = {.name = "bounded", .sparse = true, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS, .most_bytes = 4};
    REFUSED(weft_table_create(self->server, &large, &table), WEFT_E_NO_MEMORY, "more servers, a narrower dtype");
    EXPECT(strstr(weft_error_message(), "table 'large', whose 17592186044416 rows here need 985162418487296"), "%s", weft_error_message());
    WEFTI_TRY(weft_table_create(self->server, &bounded, &small));
    REFUSED(weft_table_call_rows(small, WEFT_PUSH, &key, 1, &value, NULL), WEFT_E_NO_MEMORY, "with .memory_bytes rows lie on disk, too");
    EXPECT(strstr(weft_error_message(), "1 rows more need"), "%s", weft_error_message());
    WEFTI_TRY(weft_table_call_rows(small, WEFT_PULL, &key, 1, NULL, &value));
    EXPECT(value == 0, "%g", value);
    weft_table_release(small);
    return WEFT_OK;
}
Test(refusals, more_than_memory) {
    if (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) cr_skip_test("their allocators end the program where there is not enough");
    serve_case("shm", 3, &one_apart, too_large);
}

/* A pull past its deadline: which server, which clock, who is behind. */
static weft_status behind(serving *self) {
    weft_table     *table = NULL;
    weft_request   *request = NULL;
    float           got[4];
    weft_table_call call = {.kind = WEFT_PULL, .receive = got, .timeout_ns = 100 * (int64_t)WEFTI_MILLISECOND_NS};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "slow", .rows = 4, .dtype = WEFT_F32, .staleness = 1}, &table));
    if (self->rank == 0) {
        for (int i = 0; i < 3; i++) WEFTI_TRY(weft_table_clock(table));
        WEFTI_TRY(weft_table_start_call(table, &call, &request));
        uint64_t begin_ns = ranks_now();
        REFUSED(weft_request_wait(request, 0), WEFT_E_TIMEOUT, "pull of table 'slow' in clock 3 waits for all workers to end clock 1, and rank 1 is at clock 0");
        EXPECT(strstr(weft_error_message(), "rank 2, which serves"), "%s", weft_error_message());
        EXPECT(ranks_now() - begin_ns < 2 * WEFTI_SECOND_NS, "it took %g s", (double)(ranks_now() - begin_ns) / 1e9);
    }
    WEFTI_TRY(serving_meet(self));
    for (int i = 0; i < 3 && self->rank == 1; i++) WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_pull(table, NULL, got)); /* and all goes on */
    weft_table_release(table);
    return WEFT_OK;
}
Test(refusals, a_deadline_names_who_is_behind) { serve_case("shm", 3, &one_apart, behind); }

/* Of two that are as far behind, the one is named that does not wait for the other. */
static weft_status behind_another(serving *self) {
    weft_table     *table = NULL, *other = NULL;
    weft_request   *waits = NULL, *request = NULL;
    float           got[4], more[4];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "slow", .rows = 4, .dtype = WEFT_F32, .staleness = 1}, &table));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "other", .rows = 4, .dtype = WEFT_F32}, &other));
    WEFTI_TRY(serving_meet(self));
    if (self->rank < 2) WEFTI_TRY(weft_table_clock(other));
    if (self->rank == 1) WEFTI_TRY(weft_table_start_call(other, &(weft_table_call){.kind = WEFT_PULL, .receive = got}, &waits)); /* for rank 2 */
    if (self->rank == 1) EXPECT(weft_request_wait(waits, 50 * (int64_t)WEFTI_MILLISECOND_NS) == WEFT_E_AGAIN, "%s", "it does not wait");
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) {
        weft_table_call call = {.kind = WEFT_PULL, .receive = more, .timeout_ns = 100 * (int64_t)WEFTI_MILLISECOND_NS};
        for (int i = 0; i < 3; i++) WEFTI_TRY(weft_table_clock(table));
        WEFTI_TRY(weft_table_start_call(table, &call, &request));
        REFUSED(weft_request_wait(request, 0), WEFT_E_TIMEOUT, "and rank 2 is at clock 0");
    }
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 2) WEFTI_TRY(weft_table_clock(other));
    if (self->rank == 1) WEFTI_TRY(weft_request_wait(waits, 0));
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    weft_table_release(other);
    return WEFT_OK;
}
Test(refusals, a_deadline_does_not_name_who_waits) { serve_case("shm", 4, &one_apart, behind_another); }

/* Before there is a server. */
static weft_status roles(ranks *all, int32_t rank) {
    weft_world  *world = NULL;
    weft_server *server = NULL;
    (void)all;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = "shm", .threads = {.count = 1}, .timeout_ns = 10 * (int64_t)WEFTI_SECOND_NS}, &world));
    REFUSED(weft_server_create(NULL, NULL, &server), WEFT_E_INVALID, "world is NULL");
    REFUSED(weft_server_create(world, &(weft_server_options){.servers = 3}, &server), WEFT_E_INVALID, "3 servers among 2 ranks");
    REFUSED(weft_server_create(world, &(weft_server_options){.servers = 2, .dedicated = true}, &server), WEFT_E_INVALID, "none work");
    REFUSED(weft_server_create(world, &(weft_server_options){.in_flight = 5000}, &server), WEFT_E_INVALID, "in_flight 5000");
    weft_table_function nameless = {0};
    REFUSED(weft_server_create(world, &(weft_server_options){.functions = &nameless, .function_count = 1}, &server), WEFT_E_INVALID, "function 0");
    REFUSED(weft_server_create(world, &(weft_server_options){.servers = 1 + rank}, &server), WEFT_E_MISMATCH, "rank 0 wants 1 servers and 0 replicas, rank 1 2 servers");
    WEFTI_TRY(weft_server_create(world, &(weft_server_options){.servers = 1, .dedicated = true}, &server));
    if (rank == 1) {
        weft_table *table = NULL;
        REFUSED(weft_table_create(server, &(weft_table_options){.name = "t", .rows = 1}, &table), WEFT_E_STATE, "rank 1 only serves");
    }
    weft_server_release(server);
    weft_world_release(world);
    return WEFT_OK;
}
Test(refusals, roles) {
    ranks *all = ranks_start(2, roles);
    ranks_join(all);
    for (int rank = 0; rank < 2; rank++) cr_expect(all->results[rank].status == WEFT_OK, "%d: %s", rank, all->results[rank].message);
    ranks_free(all);
}

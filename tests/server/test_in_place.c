/* Values in memory that servers map: the same results as from anywhere else, whichever way they take. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true}, two_apart = {.servers = 2, .dedicated = true};

/* Sizes below and above those from which values stay where they are; ends that are no whole lines. */
enum { MOST_ROWS = 70003 };
static const int64_t sizes[] = {1, 100, 127, 128, 1001, 20011, MOST_ROWS};

static float given(int32_t rank, int round, int64_t i) { return (float)((rank + 1) * (round + 1) + (int)(i % 31)); }

/* Each worker's pushes of `rounds` rounds, all together. */
static float sum_of(const serving *self, int rounds, int64_t i) {
    float sum = 0;
    for (int round = 0; round < rounds; round++)
        for (int32_t rank = 0; rank < self->workers; rank++) sum += given(rank, round, i);
    return sum;
}

static weft_status sums_at(serving *self, int64_t rows, float *mine, float *got) {
    char        name[32];
    weft_table *table = NULL;
    snprintf(name, sizeof name, "sums %lld", (long long)rows);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .rows = rows, .dtype = WEFT_F32}, &table));
    for (int round = 0; round < 4; round++) {
        for (int64_t i = 0; i < rows; i++) mine[i] = given(self->rank, round, i);
        for (int64_t i = 0; i < rows; i++) got[i] = -1;
        if (round % 2) {
            WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
        } else {
            WEFTI_TRY(weft_table_push(table, NULL, mine));
            for (int64_t i = 0; i < rows; i++) mine[i] = 1e9f; /* it is this rank's again */
            WEFTI_TRY(weft_table_clock(table));
            WEFTI_TRY(weft_table_pull(table, NULL, got));
        }
        for (int64_t i = 0; i < rows; i++)
            EXPECT(got[i] == sum_of(self, round + 1, i), "%lld rows, round %d, row %lld: %g, not %g", (long long)rows, round, (long long)i, got[i],
                   sum_of(self, round + 1, i));
    }
    weft_table_release(table);
    return WEFT_OK;
}

/* From the server's memory at odd places, and from the program's own. */
static weft_status sums(serving *self) {
    float *memory = NULL, *own = malloc(2 * (MOST_ROWS + 8) * sizeof *own);
    WEFTI_TRY(weft_server_alloc(self->server, 2 * (MOST_ROWS + 8) * sizeof *memory, (void **)&memory));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bool ours = (i + (size_t)self->rank) % 2;
        float *from = ours ? own : memory;
        WEFTI_TRY(sums_at(self, sizes[i], from + 3, from + MOST_ROWS + 8));
    }
    WEFTI_TRY(sums_at(self, MOST_ROWS - 1, memory, own));
    free(own);
    weft_server_free(self->server, memory);
    weft_server_free(self->server, NULL);
    return WEFT_OK;
}

Test(in_place, sums_shm) { serve_case("shm", 3, &one_apart, sums); }
Test(in_place, sums_of_two_servers) { serve_case("shm", 4, &two_apart, sums); }
Test(in_place, sums_beside) { serve_case("shm", 2, &beside, sums); }
Test(in_place, sums_alone) { serve_case("shm", 1, NULL, sums); }
Test(in_place, sums_tcp) { serve_case("tcp", 3, &one_apart, sums); }

/* Rows by key, over a hash: what is sent is put in the order of servers on the way. Freed with the server. */
static weft_status by_key(serving *self) {
    enum { KEYS = 5000, WIDTH = 3 };
    weft_table *table = NULL;
    weft_keys  *keys = NULL;
    uint64_t   *list = malloc(KEYS * sizeof *list);
    float      *memory = NULL;
    WEFTI_TRY(weft_server_alloc(self->server, 2 * KEYS * WIDTH * sizeof *memory, (void **)&memory));
    float *mine = memory, *got = memory + KEYS * WIDTH;
    for (int64_t i = 0; i < KEYS; i++) list[i] = (uint64_t)i * 977;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "rows", .sparse = true, .width = WIDTH, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_keys_create(table, list, KEYS, &keys));
    for (int64_t i = 0; i < KEYS * WIDTH; i++) mine[i] = (float)(i % 101);
    for (int round = 0; round < 3; round++) {
        if (round == 1) WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, list, KEYS, mine, NULL));
        else WEFTI_TRY(weft_table_push(table, keys, mine));
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, keys, got));
    for (int64_t i = 0; i < KEYS * WIDTH; i++)
        EXPECT(got[i] == (float)(3 * self->workers) * mine[i], "element %lld: %g, not %g", (long long)i, got[i], (float)(3 * self->workers) * mine[i]);
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, list + KEYS - 200, 200, NULL, got));
    EXPECT(got[0] == (float)(3 * self->workers) * mine[(KEYS - 200) * WIDTH], "%g", got[0]);
    weft_table_release(table);
    free(list);
    return WEFT_OK;
}

Test(in_place, by_key_shm) { serve_case("shm", 4, &two_apart, by_key); }
Test(in_place, by_key_of_one_server) { serve_case("shm", 3, &one_apart, by_key); }
Test(in_place, by_key_tcp) { serve_case("tcp", 3, &two_apart, by_key); }

/* A worker dies after its pushes were answered, and with a pull that waits: its memory is written by nobody, and the others go on. */
static weft_status dies_waiting(serving *self) {
    enum { ROWS = 50000 };
    weft_table   *table = NULL;
    weft_request *request = NULL;
    float        *memory = NULL;
    WEFTI_TRY(weft_server_alloc(self->server, 2 * ROWS * sizeof *memory, (void **)&memory));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sums", .rows = ROWS, .dtype = WEFT_F32}, &table));
    for (int64_t i = 0; i < ROWS; i++) memory[i] = 2;
    WEFTI_TRY(weft_table_push(table, NULL, memory));
    WEFTI_TRY(weft_table_clock(table));
    if (self->rank == 1) {
        weft_table_call call = {.kind = WEFT_PULL, .receive = memory + ROWS};
        WEFTI_TRY(weft_table_start_call(table, &call, &request));
        for (int i = 0; i < 100; i++) WEFTI_TRY(weft_server_poll(self->server));
        atomic_store(&self->all->ready, 1);
        raise(SIGKILL);
    }
    WEFTI_TRY(weft_table_pull(table, NULL, memory + ROWS));
    for (int64_t i = 0; i < ROWS; i++) EXPECT(memory[ROWS + i] == 4, "row %lld: %g", (long long)i, memory[ROWS + i]);
    for (int clock = 0; clock < 3; clock++) WEFTI_TRY(weft_table_push_pull(table, NULL, memory, memory + ROWS));
    EXPECT(memory[ROWS + 7] >= 4 + 3 * 2, "%g", memory[ROWS + 7]);
    weft_table_release(table);
    return WEFT_OK;
}

Test(in_place, worker_dies_shm) { ranks_free(serve_case_with("shm", 3, &one_apart, dies_waiting, 1u << 1)); }

static weft_status refused(serving *self) {
    void *memory = self;
    REFUSED(weft_server_alloc(NULL, 100, &memory), WEFT_E_INVALID, "weft_server_alloc");
    EXPECT(!memory, "%p", memory);
    REFUSED(weft_server_alloc(self->server, SIZE_MAX, &memory), WEFT_E_INVALID, "bytes");
    return WEFT_OK;
}
Test(in_place, refusals) { serve_case("shm", 2, &beside, refused); }

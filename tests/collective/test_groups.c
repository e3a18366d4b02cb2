/* weft/collective.h as programs use it: real processes, each with a world. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"
#include "transport/ranks.h"

static const char *wire;

#define EXPECT(condition, ...)                                                                               \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            char what[300];                                                                                  \
            snprintf(what, sizeof what, __VA_ARGS__);                                                        \
            return wefti_fail(WEFT_E_INTERNAL, "line %d: %s: %s", __LINE__, #condition, what);               \
        }                                                                                                    \
    } while (0)

static weft_status enter(weft_world **world_out, weft_group **all_out) {
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}}, world_out));
    return weft_group_create(*world_out, NULL, all_out);
}

static void try(const char *name, int32_t size, rank_function function) {
    wire = name;
    ranks *all = ranks_start(size, function);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        cr_expect(all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", name, (int)rank, (int)size, all->results[rank].message);
    ranks_free(all);
}

/* --- short forms --- */

enum { N = 5 };

static weft_status reductions(weft_group *all, int32_t size, int32_t me) {
    int32_t mine[8 * N] = {0}, got[8 * N] = {0};
    size_t counts[8];
    for (int i = 0; i < size * N; i++) mine[i] = (me + 1) * (i + 1);
    int32_t sum = size * (size + 1) / 2;
    WEFTI_TRY(weft_group_allreduce(all, mine, got, N, WEFT_I32, WEFT_COMBINE_SUM));
    for (int i = 0; i < N; i++) EXPECT(got[i] == sum * (i + 1), "%d", got[i]);
    WEFTI_TRY(weft_group_reduce(all, mine, me == size - 1 ? got : NULL, N, WEFT_I32, WEFT_COMBINE_MAX, size - 1));
    for (int i = 0; i < N && me == size - 1; i++) EXPECT(got[i] == size * (i + 1), "%d", got[i]);
    WEFTI_TRY(weft_group_reduce_scatter(all, mine, got, N, WEFT_I32, WEFT_COMBINE_SUM));
    for (int i = 0; i < N; i++) EXPECT(got[i] == sum * (me * N + i + 1), "%d", got[i]);
    size_t before = 0;
    for (int i = 0; i < size; i++) counts[i] = (size_t)(i % N);
    for (int i = 0; i < me; i++) before += counts[i];
    WEFTI_TRY(weft_group_reduce_scatterv(all, mine, got, counts, WEFT_I32, WEFT_COMBINE_MIN));
    for (size_t i = 0; i < counts[me]; i++) EXPECT(got[i] == (int32_t)(before + i + 1), "%d", got[i]);
    return WEFT_OK;
}

static weft_status movements(weft_group *all, int32_t size, int32_t me) {
    int32_t mine[8 * N] = {0}, got[8 * N] = {0};
    size_t counts[8], back[8];
    for (int i = 0; i < size * N; i++) mine[i] = me * 1000 + i;
    WEFTI_TRY(weft_group_allgather(all, mine, got, N, WEFT_I32));
    for (int i = 0; i < size * N; i++) EXPECT(got[i] == i / N * 1000 + i % N, "%d", got[i]);
    WEFTI_TRY(weft_group_gather(all, mine, me == 0 ? got : NULL, 2, WEFT_I32, 0));
    for (int i = 0; i < size * 2 && me == 0; i++) EXPECT(got[i] == i / 2 * 1000 + i % 2, "%d", got[i]);
    WEFTI_TRY(weft_group_scatter(all, me == 1 ? mine : NULL, got, N, WEFT_I32, 1));
    for (int i = 0; i < N; i++) EXPECT(got[i] == 1000 + me * N + i, "%d", got[i]);
    WEFTI_TRY(weft_group_alltoall(all, mine, got, N, WEFT_I32));
    for (int i = 0; i < size * N; i++) EXPECT(got[i] == i / N * 1000 + me * N + i % N, "%d", got[i]);
    for (int i = 0; i < size; i++) {
        counts[i] = (size_t)((me + i) % 3);
        back[i] = (size_t)((i + me) % 3);
    }
    WEFTI_TRY(weft_group_alltoallv(all, mine, counts, got, back, WEFT_I32));
    int at = 0;
    for (int from = 0; from < size; from++)
        for (int k = 0, first = 0; k < (int)back[from]; k++) {
            for (int to = 0; to < me && k == 0; to++) first += (from + to) % 3;
            if (k == 0) counts[from] = (size_t)first;
            EXPECT(got[at] == from * 1000 + (int)counts[from] + k, "%d", got[at]);
            at++;
        }
    for (int i = 0; i < size; i++) counts[i] = (size_t)(i % 2 + 1);
    WEFTI_TRY(weft_group_allgatherv(all, mine, got, counts, WEFT_I32));
    EXPECT(got[0] == 0 && got[1] == 1000 && got[2] == 1001, "%d %d %d", got[0], got[1], got[2]);
    int32_t word = me == size - 1 ? 77 : 0;
    WEFTI_TRY(weft_group_broadcast(all, &word, 1, WEFT_I32, size - 1));
    EXPECT(word == 77, "%d", word);
    if (me == 0) WEFTI_TRY(weft_group_send(all, mine, N, WEFT_I32, size - 1));
    if (me == size - 1) WEFTI_TRY(weft_group_receive(all, got, N, WEFT_I32, 0));
    if (me == size - 1) EXPECT(got[N - 1] == N - 1, "%d", got[N - 1]);
    return weft_group_barrier(all);
}

static weft_status short_forms(ranks *them, int32_t rank) {
    weft_world *world = NULL;
    weft_group *all = NULL;
    weft_status status = enter(&world, &all);
    if (status == WEFT_OK) status = reductions(all, them->size, rank);
    if (status == WEFT_OK && them->size > 1) status = movements(all, them->size, rank);
    weft_group_release(all);
    weft_world_release(world);
    return status;
}

Test(groups, short_forms_1) { try("shm", 1, short_forms); }
Test(groups, short_forms_shm) { try("shm", 3, short_forms); }
Test(groups, short_forms_tcp) {
    try("tcp", 2, short_forms);
    try("tcp", 5, short_forms);
}

/* --- groups of groups --- */

static weft_status sum_of_ranks(weft_group *group, int32_t rank, int64_t *sum_out) {
    int64_t mine = rank;
    return weft_group_allreduce(group, &mine, sum_out, 1, WEFT_I64, WEFT_COMBINE_SUM);
}

static weft_status split(ranks *them, int32_t rank) {
    weft_world *world = NULL;
    weft_group *all = NULL, *half = NULL, *column = NULL, *none = NULL, *row = NULL;
    int64_t sum = 0;
    static const int32_t mesh[] = {2, 3};
    WEFTI_TRY(enter(&world, &all));
    WEFTI_TRY(weft_group_split(all, rank % 2, -rank, &half)); /* in reverse */
    EXPECT(weft_group_size(half) == 3 && weft_group_index(half) == (5 - rank) / 2, "index %d", weft_group_index(half));
    for (int i = 0; i < 3; i++) EXPECT(weft_group_rank(half, i) == rank % 2 + 4 - 2 * i, "rank %d", weft_group_rank(half, i));
    EXPECT(weft_group_rank(half, 3) == -1, "there are three");
    WEFTI_TRY(weft_group_along(all, mesh, 2, 0, &column));
    WEFTI_TRY(weft_group_along(all, mesh, 2, 1, &row));
    WEFTI_TRY(weft_group_split(all, rank == 4 ? -1 : 0, 0, &none));
    EXPECT((none == NULL) == (rank == 4), "rank 4 has no group");
    WEFTI_TRY(sum_of_ranks(half, rank, &sum));
    EXPECT(sum == (rank % 2 ? 9 : 6), "%lld", (long long)sum);
    WEFTI_TRY(sum_of_ranks(column, rank, &sum)); /* rank and rank ± 3 */
    EXPECT(weft_group_size(column) == 2 && sum == rank % 3 * 2 + 3, "%lld", (long long)sum);
    WEFTI_TRY(sum_of_ranks(row, rank, &sum));
    EXPECT(weft_group_size(row) == 3 && sum == (rank < 3 ? 3 : 12), "%lld", (long long)sum);
    if (none) WEFTI_TRY(sum_of_ranks(none, rank, &sum));
    EXPECT(!none || sum == 11, "%lld", (long long)sum);
    static const int32_t wrong[] = {4, 2};
    EXPECT(weft_group_along(all, wrong, 2, 0, &none) == WEFT_E_SHAPE, "8 members");
    EXPECT(strstr(weft_error_message(), "8 members over a group of 6"), "%s", weft_error_message());
    weft_group_release(all); /* its children live on */
    WEFTI_TRY(sum_of_ranks(half, rank, &sum));
    weft_group *again = NULL;
    for (int i = 0; i < 20; i++) { /* ids come back */
        weft_group_release(again);
        WEFTI_TRY(weft_group_split(row, 0, rank, &again));
        WEFTI_TRY(sum_of_ranks(again, rank, &sum));
    }
    weft_group *const groups[] = {half, column, row, again};
    for (size_t i = 0; i < WEFTI_COUNT(groups); i++) weft_group_release(groups[i]);
    weft_world_release(world);
    (void)them;
    return WEFT_OK;
}

Test(groups, split_shm) { try("shm", 6, split); }
Test(groups, split_tcp) { try("tcp", 6, split); }

/* --- several in flight, waited for in another order on each rank --- */

static weft_status crossed(ranks *them, int32_t rank) {
    enum { COUNT = 300000 };
    weft_world *world = NULL;
    weft_group *all = NULL, *other = NULL;
    weft_operation *first[3], *second[3];
    weft_status status = enter(&world, &all);
    float *data = malloc(6 * COUNT * sizeof *data);
    if (status == WEFT_OK) status = weft_group_split(all, 0, 0, &other);
    for (int i = 0; i < 6 * COUNT; i++) data[i] = 1;
    for (int i = 0; i < 3 && status == WEFT_OK; i++) {
        weft_call call = {.kind = WEFT_CALL_ALLREDUCE, .send = data + (size_t)(2 * i) * COUNT, .receive = data + (size_t)(2 * i) * COUNT,
                          .count = COUNT};
        status = weft_group_start(all, &call, &first[i]);
        call.send = call.receive = data + (size_t)(2 * i + 1) * COUNT;
        if (status == WEFT_OK) status = weft_group_start(other, &call, &second[i]);
    }
    for (int i = 2; i >= 0 && status == WEFT_OK; i--) {
        status = weft_operation_wait(rank % 2 ? first[i] : second[i], 0);
        while (status == WEFT_OK && (status = weft_operation_wait(rank % 2 ? second[i] : first[i], 1000)) == WEFT_E_AGAIN) status = WEFT_OK;
    }
    for (int i = 0; i < 6 * COUNT && status == WEFT_OK; i++)
        if (data[i] != (float)them->size) status = wefti_fail(WEFT_E_INTERNAL, "element %d is %g", i, (double)data[i]);
    free(data);
    weft_group_release(other);
    weft_group_release(all);
    weft_world_release(world);
    return status;
}

Test(groups, crossed_waits_shm) { try("shm", 2, crossed); }
Test(groups, crossed_waits_tcp) { try("tcp", 3, crossed); }

/* --- a user's reduction --- */

/* Pairs of value and place: the larger value wins, and brings its place along. */
static void larger(void *context, void *into, const void *more, size_t count, weft_dtype dtype) {
    (void)dtype;
    float *a = into;
    const float *b = more;
    for (size_t i = 0; i + 1 < count; i += 2)
        if (b[i] > a[i]) memcpy(a + i, b + i, 2 * sizeof *a);
    ++*(int *)context;
}

static weft_status by_function(ranks *them, int32_t rank) {
    weft_world *world = NULL;
    weft_group *all = NULL;
    int calls = 0;
    weft_combine_function function = {"larger", larger, &calls};
    float pairs[4] = {(float)(rank * 7 % 5), (float)rank, (float)-rank, (float)rank}, best = 0;
    for (int32_t i = 1; i < them->size; i++)
        if (i * 7 % 5 > (int)best * 7 % 5) best = (float)i;
    WEFTI_TRY(enter(&world, &all));
    WEFTI_TRY(weft_group_call(all, &(weft_call){.kind = WEFT_CALL_ALLREDUCE, .combine = WEFT_COMBINE_USER, .function = &function,
                                                .send = pairs, .receive = pairs, .count = 4}));
    EXPECT(pairs[1] == best && pairs[3] == 0, "%g and %g", (double)pairs[1], (double)pairs[3]);
    EXPECT(calls > 0, "nobody asked the function");
    EXPECT(weft_group_call(all, &(weft_call){.kind = WEFT_CALL_ALLREDUCE, .combine = WEFT_COMBINE_USER, .send = pairs,
                                             .receive = pairs, .count = 4}) == WEFT_E_INVALID, "no function");
    weft_group_release(all);
    weft_world_release(world);
    return WEFT_OK;
}

Test(groups, users_reduction) {
    try("shm", 3, by_function);
    try("tcp", 4, by_function);
}

/* --- bad options --- */

static weft_status bad_options(ranks *them, int32_t rank) {
    weft_world *world = NULL;
    weft_group *all = NULL;
    (void)them, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}}, &world));
    EXPECT(weft_group_create(world, &(weft_group_options){.algorithm = "allreduce:pigeon"}, &all) == WEFT_E_NOT_FOUND, "%s", weft_error_message());
    EXPECT(strstr(weft_error_message(), "pigeon") && strstr(weft_error_message(), "halving"), "%s", weft_error_message());
    EXPECT(weft_group_create(world, &(weft_group_options){.algorithm = "alreduce:ring"}, &all) == WEFT_E_NOT_FOUND, "%s", weft_error_message());
    EXPECT(strstr(weft_error_message(), "no collective \"alreduce\""), "%s", weft_error_message());
    EXPECT(weft_group_create(world, &(weft_group_options){.in_flight = -1}, &all) == WEFT_E_INVALID && !all, "%s", weft_error_message());
    EXPECT(weft_group_create(NULL, NULL, &all) == WEFT_E_INVALID && !all, "%s", weft_error_message());
    WEFTI_TRY(weft_group_create(world, &(weft_group_options){.algorithm = "allreduce:ring,broadcast:chain", .in_flight = 2}, &all));
    weft_operation *one, *two, *three;
    weft_call barrier = {.kind = WEFT_CALL_BARRIER};
    WEFTI_TRY(weft_group_start(all, &barrier, &one));
    WEFTI_TRY(weft_group_start(all, &barrier, &two));
    EXPECT(weft_group_start(all, &barrier, &three) == WEFT_E_AGAIN && !three, "%s", weft_error_message());
    WEFTI_TRY(weft_operation_wait(two, 0));
    WEFTI_TRY(weft_operation_wait(one, 0));
    EXPECT(weft_operation_wait(NULL, 0) == WEFT_E_INVALID && weft_operation_test(NULL) == WEFT_E_INVALID, "NULL");
    weft_group_release(all);
    weft_group_release(NULL);
    weft_world_release(world);
    return WEFT_OK;
}

Test(groups, bad_options_are_refused) { try("tcp", 2, bad_options); }

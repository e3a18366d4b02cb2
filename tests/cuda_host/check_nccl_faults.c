/* What goes wrong with NCCL, on its stand-in: a library that is missing or too old, ranks that share a GPU, a rank that does not come, hangs, fails
 * or dies. Every rank ends with the same verdict, and none hangs. */
#include <signal.h>
#include <unistd.h>

#include "cuda_host/nccl_ranks.h"

enum { ELEMENTS = 20000, OTHER = 1 };

/* What the test's ranks do. */
static struct plan {
    const char *stand_in;      /* WEFT_NCCL_STAND_IN */
    const char *libraries;     /* WEFT_CUDA_LIBRARIES of rank OTHER alone */
    bool        share;         /* one GPU and host for all, as NCCL sees it */
    uint64_t    timeout_ns;    /* of the group */
    int         dies, fails;   /* call before which rank OTHER is killed, or declares a fault of its own; -1: never */
    bool        joins;         /* operations are joined, and the device is waited for */
} plan;

typedef struct rank_of_test {
    wefti_transport *transport;
    wefti_device    *device;
    wefti_group     *group;
    void            *memory;
} rank_of_test;

static weft_status rank_open(rank_of_test *self, int32_t rank) {
    char host[16];
    snprintf(host, sizeof host, "rank %d", (int)rank);
    if (!plan.share) setenv("NCCL_HOSTID", host, 1);
    if (plan.stand_in) setenv("WEFT_NCCL_STAND_IN", plan.stand_in, 1);
    if (plan.libraries && rank == OTHER) setenv("WEFT_CUDA_LIBRARIES", plan.libraries, 1);
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1, .quiet = true});
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = "shm"}, &self->transport));
    WEFTI_TRY(wefti_cuda_create(NULL, &self->device));
    WEFTI_TRY(self->device->vtable->allocate(self->device, ELEMENTS * sizeof(float), "a test's buffer", &self->memory));
    wefti_group_options how = {.device = self->device, .over = self->transport->group, .size = self->transport->size, .index = rank,
                               .fault = self->transport->fault, .timeout_ns = plan.timeout_ns};
    return wefti_collective_engine_nccl()->open(&how, &self->group);
}

static weft_status rank_call(rank_of_test *self, int32_t rank, int number) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = self->memory, .receive = self->memory, .count = ELEMENTS};
    if (rank == OTHER && number == plan.dies) raise(SIGKILL);
    if (rank == OTHER && number == plan.fails) wefti_transport_fail(self->transport, WEFT_E_NO_MEMORY, "the test's own fault");
    if (!plan.joins) return wefti_collective_run(self->group, &call);
    wefti_collective *operation = NULL;
    static float      host[ELEMENTS];
    WEFTI_TRY(wefti_collective_start(self->group, &call, &operation));
    WEFTI_TRY(self->group->engine->join(operation));
    return self->device->vtable->read(self->device, host, self->memory, sizeof host);
}

static weft_status run_rank(ranks *all, int32_t rank) {
    rank_of_test self = {0};
    weft_status  status = rank_open(&self, rank);
    for (int i = 0; i < 20 && status == WEFT_OK; i++) {
        if (i == 3) all->wrecked_ns = ranks_now();
        status = rank_call(&self, rank, i);
    }
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    if (status != WEFT_OK && !self.group) wefti_transport_fail(self.transport, status, message);
    wefti_collective_engine_nccl()->close(self.group);
    if (self.device) {
        self.device->vtable->deallocate(self.device, self.memory, ELEMENTS * sizeof(float));
        self.device->vtable->release(self.device);
    }
    wefti_transport_close(self.transport);
    return status == WEFT_OK ? status : wefti_fail(status, "%s", message);
}

/* All ranks but one that dies end with `status` and `words`, within `most_s` of the third call. */
static void expect(int size, struct plan how, weft_status status, const char *words, double most_s) {
    plan = how;
    nccl_ranks_expect(size, run_rank, how.dies >= 0 ? OTHER : -1, status, words, most_s);
}

#define NEVER .dies = -1, .fails = -1

Test(cuda_nccl_faults, no_fault_no_error) { expect(3, (struct plan){NEVER}, WEFT_OK, "", 20); }
Test(cuda_nccl_faults, a_missing_library_is_told_to_all) {
    expect(2, (struct plan){.libraries = "none", NEVER}, WEFT_E_UNSUPPORTED, "rank 1 cannot use NCCL: libnccl.so.2 cannot be loaded", 10);
}
Test(cuda_nccl_faults, an_old_library_is_named_with_both_versions) {
    expect(2, (struct plan){.stand_in = "version=21012@1,version=21012", NEVER}, WEFT_E_UNSUPPORTED, "is NCCL 2.10.12, too old: this build was made for 2.", 10);
    expect(2, (struct plan){.stand_in = "version=2708", NEVER}, WEFT_E_UNSUPPORTED, "is NCCL 2.7.8, too old", 10);
}
Test(cuda_nccl_faults, ranks_on_one_gpu_are_told_what_to_do) {
    expect(2, (struct plan){.share = true, NEVER}, WEFT_E_UNSUPPORTED, "NCCL_HOSTID", 10);
}
Test(cuda_nccl_faults, a_communicator_that_never_stands) {
    expect(2, (struct plan){.stand_in = "init=hang", .timeout_ns = WEFTI_SECOND_NS / 2, NEVER}, WEFT_E_TIMEOUT, "NCCL made no communicator of 2 ranks within 0.5 s", 10);
}
Test(cuda_nccl_faults, a_rank_that_hangs_is_a_timeout_on_all) {
    expect(3, (struct plan){.stand_in = "hang=3@1", .timeout_ns = WEFTI_SECOND_NS / 3, NEVER}, WEFT_E_TIMEOUT, "operation 3 of group 0, allreduce of 20000 f32", 4);
    expect(2, (struct plan){.stand_in = "hang=3@1", .timeout_ns = WEFTI_SECOND_NS / 3, .joins = true, NEVER}, WEFT_E_TIMEOUT, "operation 3 of group 0", 4);
}
Test(cuda_nccl_faults, an_error_of_nccl_is_told_to_all) {
    expect(3, (struct plan){.stand_in = "error=3@1", NEVER}, WEFT_E_LINK, "NCCL: remote process exited", 5);
}
Test(cuda_nccl_faults, a_rank_that_dies_is_named) {
    expect(3, (struct plan){.dies = 3, .fails = -1}, WEFT_E_PEER, "rank 1 failed", 4);
    expect(2, (struct plan){.dies = 3, .fails = -1, .joins = true}, WEFT_E_PEER, "rank 1 failed", 4);
}
Test(cuda_nccl_faults, a_fault_of_the_world_ends_operations) {
    expect(3, (struct plan){.fails = 3, .dies = -1}, WEFT_E_NO_MEMORY, "the test's own fault", 4);
}
Test(cuda_nccl_faults, an_abort_that_hangs_is_left_behind) {
    expect(2, (struct plan){.stand_in = "hang=3@1,abort=hang", .timeout_ns = WEFTI_SECOND_NS / 3, NEVER}, WEFT_E_TIMEOUT, "operation 3 of group 0", 8);
}

/* --- calls and groups that are refused --- */

static void refuses(wefti_group *group, wefti_collective_call call, weft_status status, const char *words) {
    wefti_collective *operation = NULL;
    uint64_t          sequence = group->sequence;
    weft_status       got = group->engine->start(group, &call, &operation);
    cr_expect(got == status && strstr(weft_error_message(), words), "%s: %s; due was %s with '%s'", weft_status_name(got), weft_error_message(),
              weft_status_name(status), words);
    cr_expect_eq(group->sequence, sequence, "a refused call took a number");
}

static weft_status refused_calls(ranks *all, int32_t rank) {
    (void)all;
    rank_of_test self = {0};
    WEFTI_TRY(rank_open(&self, rank));
    const wefti_reduce_function function = {.name = "mine"};
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = self.memory, .receive = self.memory, .count = 4}, bad;
    refuses(self.group, (bad = call, bad.dtype = WEFT_F16, bad), WEFT_E_UNSUPPORTED, "it rounds after every addition");
    refuses(self.group, (bad = call, bad.op = WEFTI_REDUCE_MAX, bad), WEFT_E_UNSUPPORTED, "NaN");
    refuses(self.group, (bad = call, bad.op = WEFTI_REDUCE_AVG, bad), WEFT_E_UNSUPPORTED, "average");
    refuses(self.group, (bad = call, bad.op = WEFTI_REDUCE_USER, bad.function = &function, bad), WEFT_E_UNSUPPORTED, "on the host");
    refuses(self.group, (bad = call, bad.kind = WEFTI_BROADCAST, bad.root = 3, bad), WEFT_E_INVALID, "member 3");
    refuses(self.group, (bad = call, bad.kind = WEFTI_SEND, bad.root = rank, bad), WEFT_E_INVALID, "no other member");
    refuses(self.group, (bad = call, bad.kind = WEFTI_ALLGATHER_V, bad), WEFT_E_INVALID, "counts is NULL");
    refuses(self.group, (bad = call, bad.count = SIZE_MAX / 2, bad), WEFT_E_OVERFLOW, "do not fit");
    weft_status status = wefti_collective_run(self.group, &call);
    wefti_collective_engine_nccl()->close(self.group);
    self.device->vtable->deallocate(self.device, self.memory, ELEMENTS * sizeof(float));
    self.device->vtable->release(self.device);
    wefti_transport_close(self.transport);
    return status;
}

Test(cuda_nccl_faults, bad_calls_are_refused) {
    plan = (struct plan){NEVER};
    ranks *all = ranks_start(3, refused_calls);
    ranks_join(all);
    for (int rank = 0; rank < 3; rank++) cr_expect_eq(all->results[rank].status, WEFT_OK, "rank %d: %s", rank, all->results[rank].message);
    ranks_free(all);
}

Test(cuda_nccl_faults, a_group_without_a_gpu_is_refused) {
    wefti_group *group = NULL, *over = NULL;
    cr_assert_eq(wefti_collective_engine_weft()->open(&(wefti_group_options){.size = 1}, &over), WEFT_OK);
    cr_expect_eq(wefti_collective_engine_nccl()->open(&(wefti_group_options){.size = 1, .over = over}, &group), WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), "memory of CUDA devices"), "%s", weft_error_message());
    cr_expect_null(group);
    wefti_collective_engine_weft()->close(over);
}

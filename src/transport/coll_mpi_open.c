/* Communicators for groups that may use MPI's own collectives, and measuring whether they should.
 *
 * A group gets one where it is asked for "mpi" by name (its options, WEFT_ALGORITHM), or where a tuning is to choose (WEFT_TUNING). All
 * members must agree, so they gather what each wants and can by Weft's own allgather, which has a deadline. The communicator is the
 * group's own: so the calls of several groups and worlds have no order among each other that MPI would see. */
#include <stdlib.h>
#include <string.h>

#include "transport/coll_mpi.h"
#include "transport/tune.h"

/* --- open and close --- */

static bool is_wanted(const char *algorithm) {
    const char *tuning = getenv("WEFT_TUNING");
    if (!algorithm) algorithm = getenv("WEFT_ALGORITHM");
    return (algorithm && strstr(algorithm, "mpi")) || (tuning && *tuning);
}

static weft_status make_calls(coll_group *group) {
    coll_mpi *mpi = group->mpi;
    size_t size = (size_t)coll_size(group), in_flight = (size_t)group->in_flight;
    mpi->counts_bytes = in_flight * size * (2 * sizeof(uint64_t) + 4 * sizeof(int));
    WEFTI_TRY(wefti_alloc(in_flight * sizeof *mpi->calls, "calls of MPI", &mpi->calls));
    WEFTI_TRY(wefti_alloc(mpi->counts_bytes, "counts for MPI", &mpi->counts));
    int *ints = (int *)(mpi->counts + in_flight * size * 2);
    for (size_t i = 0; i < in_flight; i++) {
        mpi->calls[i].told = mpi->counts + i * size * 2;
        mpi->calls[i].counts = ints + i * size * 4;
    }
    return WEFT_OK;
}

static void free_all(coll_group *group) {
    coll_mpi *mpi = group->mpi;
    size_t in_flight = (size_t)group->in_flight;
    bool held = false; /* what MPI did not give back has to stay */
    for (size_t i = 0; mpi->calls && i < in_flight; i++) {
        held |= mpi->calls[i].with_mpi;
        if (!mpi->calls[i].with_mpi) wefti_free(mpi->calls[i].aside, mpi->calls[i].aside_bytes);
    }
    if (!held) {
        wefti_free(mpi->counts, mpi->counts_bytes);
        wefti_free(mpi->calls, in_flight * sizeof *mpi->calls);
    }
    wefti_free(mpi, sizeof *mpi);
    group->mpi = NULL;
}

/* Whether all members want MPI's collectives and can have them. Nothing is reduced: the device that does may not be open yet. */
static weft_status agree(coll_group *group, bool mine, uint8_t *answers, bool *all_out) {
    uint8_t answer = mine;
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_U8, .send = &answer, .receive = answers, .count = 1};
    WEFTI_TRY(wefti_collective_run(&group->base, &call));
    *all_out = true;
    for (int32_t i = 0; i < coll_size(group); i++) *all_out = *all_out && answers[i];
    return WEFT_OK;
}

static weft_status stop(void *context) { return wefti_fault_status(((coll_group *)context)->base.fault); }

static weft_status make_comm(coll_group *group, const int *processes) {
    char message[WEFTI_MESSAGE_BYTES];
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(group->host), group->timeout_ns);
    weft_status status = wefti_mpi_comm_open(group->mpi->mpi, group->host, processes, coll_size(group), wefti_mpi_comm_tag(group->id), deadline_ns, stop, group,
                                             &group->mpi->comm);
    if (status == WEFT_OK) {
        group->mpi->has_comm = true;
        return WEFT_OK;
    }
    snprintf(message, sizeof message, "group %u: %s", (unsigned)group->id, weft_error_message());
    wefti_fault_raise(group->base.fault, status, -1, message); /* the others wait in it */
    return wefti_fail(status, "%s", message);
}

static weft_status open_with(coll_group *group, bool wanted, int *processes) {
    const mpiw_wire *wire = (const mpiw_wire *)group->base.wire;
    bool all = true, can = wanted && wire->mpi->facts.serialized && !wefti_mpi_poisoned();
    for (int32_t i = 0; i < coll_size(group); i++) {
        processes[i] = i == coll_index(group) ? wire->mpi->facts.rank : wire->links[group->ranks[i]].process;
        can = can && processes[i] >= 0;
    }
    WEFTI_TRY(wefti_alloc(sizeof *group->mpi, "a group on MPI", &group->mpi));
    group->mpi->mpi = wire->mpi;
    group->mpi->wire = (mpiw_wire *)group->base.wire;
    coll_mpi *mpi = group->mpi;
    if (can) can = make_calls(group) == WEFT_OK;
    group->mpi = NULL; /* not yet an algorithm of this group */
    weft_status status = agree(group, can, (uint8_t *)(processes + coll_size(group)), &all);
    group->mpi = mpi;
    if (status == WEFT_OK && all) return make_comm(group, processes);
    if (status == WEFT_OK && wanted)
        wefti_log(WEFT_LOG_INFO, "group %u does not use MPI's collectives: %s", (unsigned)group->id,
                  can ? "another rank cannot, or was not asked to" : "this rank's MPI may be called by one thread alone, or memory is short");
    free_all(group);
    return status;
}

weft_status wefti_coll_mpi_open(coll_group *group, const char *algorithm) {
    int *processes = NULL;
    size_t bytes = (size_t)coll_size(group) * (sizeof *processes + 1); /* and an answer each */
    if (!wefti_mpiw_is(group->base.wire)) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "processes of MPI", &processes));
    weft_status status = open_with(group, is_wanted(algorithm), processes);
    wefti_free(processes, bytes);
    return status;
}

void wefti_coll_mpi_close(coll_group *group) {
    coll_mpi *mpi = group->mpi;
    if (!mpi) return;
    if (mpi->has_comm && !wefti_mpi_poisoned() && wefti_mpi_lock(true)) {
        (void)mpi->mpi->api->comm_free(&mpi->comm);
        wefti_mpi_unlock();
    }
    free_all(group);
}

/* --- which is the faster --- */

enum { WINDOWS = 3 };
#define CLEARLY 0.9 /* of our time: else ours, whose order of sums is promised */

/* Seconds a call on this member, the least of a few windows. */
static weft_status time_calls(coll_group *group, const wefti_collective_call *call, int times, double *seconds_out) {
    wefti_collective_call barrier = {.kind = WEFTI_BARRIER};
    *seconds_out = 0;
    for (int window = 0; window <= WINDOWS; window++) { /* the first one only warms up */
        WEFTI_TRY(wefti_collective_run(&group->base, &barrier));
        uint64_t begin_ns = wefti_host_now(group->host);
        for (int i = 0; i < times; i++) WEFTI_TRY(wefti_collective_run(&group->base, call));
        double seconds = (double)(wefti_host_now(group->host) - begin_ns) / 1e9 / times;
        if (window == 1 || (window > 1 && seconds < *seconds_out)) *seconds_out = seconds;
    }
    return WEFT_OK;
}

static weft_status measure_size(coll_group *group, const coll_algorithm *theirs, const wefti_collective_call *call, wefti_tuning *tuning,
                                bool *faster_out) {
    size_t bytes = call->count * sizeof(float);
    const coll_algorithm *forced = group->forced[call->kind], *ours;
    int times = bytes <= 4096 ? 20 : bytes <= 65536 ? 8 : 2;
    double seconds[2];
    group->forced[call->kind] = NULL;
    ours = wefti_coll_choose(group, call, bytes);
    weft_status status = time_calls(group, call, times, &seconds[0]);
    group->forced[call->kind] = theirs;
    if (status == WEFT_OK) status = time_calls(group, call, times, &seconds[1]);
    group->forced[call->kind] = forced;
    if (status != WEFT_OK) return status;
    *faster_out = seconds[1] < CLEARLY * seconds[0];
    wefti_tuning_add_rule(tuning, call->kind, bytes, (*faster_out ? theirs : ours)->name);
    return WEFT_OK;
}

/* Where MPI is never the faster there are no rules of the kind: costs choose more finely. */
static weft_status measure_kind(coll_group *group, const coll_algorithm *theirs, wefti_collective_kind kind, uint8_t *memory, size_t half,
                                wefti_tuning *tuning) {
    static const size_t sizes[] = {8, 64, 512, 4096, 32768, 262144, 2097152};
    bool parts = kind == WEFTI_ALLGATHER || kind == WEFTI_ALLTOALL || kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_GATHER ||
                 kind == WEFTI_SCATTER;
    int32_t before = tuning->rule_count;
    bool ever = false;
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
        wefti_collective_call call = {.kind = kind, .send = memory, .receive = memory + half, .count = sizes[s] / sizeof(float)};
        bool faster = false;
        if (sizes[s] * (parts ? (size_t)coll_size(group) : 1) > half) break;
        WEFTI_TRY(measure_size(group, theirs, &call, tuning, &faster));
        ever |= faster;
    }
    if (!ever) tuning->rule_count = before;
    return WEFT_OK;
}

static const coll_algorithm *row_of_mpi(void) {
    const coll_algorithm *row = wefti_coll_algorithms;
    while (row->begin != wefti_coll_mpi_begin) row++;
    return row;
}

weft_status wefti_coll_mpi_measure(coll_group *group, wefti_tuning *tuning) {
    const size_t half = (size_t)8 << 20;
    const coll_algorithm *theirs = row_of_mpi();
    uint8_t *memory = NULL;
    weft_status status = WEFT_OK;
    if (!group->mpi) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(2 * half, "memory to measure MPI's collectives with", &memory));
    for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT && status == WEFT_OK; kind++)
        if ((theirs->kinds >> kind & 1) && kind != WEFTI_BARRIER && !coll_kind_has_counts((wefti_collective_kind)kind))
            status = measure_kind(group, theirs, (wefti_collective_kind)kind, memory, half, tuning);
    wefti_free(memory, 2 * half);
    return status;
}

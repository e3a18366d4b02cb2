/* The harness of the wire cases: making ranks, connecting them, and bringing failures back. */
#include "conformance.h"

#include "common/effort.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LIMIT_S = 30 };

static const wefti_host *simulated; /* of a rank: all have the same time */
uint64_t world_now(void) { return wefti_host_now(simulated ? simulated : wefti_host_system()); }
static void let_others(void) {
    if (simulated)
        simulated->yield(simulated->context);
    else
        sched_yield();
}

static uint8_t pattern(size_t i, uint32_t seed) { return (uint8_t)((i * 2654435761u >> 13) + i + seed * 37); }
void           fill(void *buffer, size_t bytes, uint32_t seed) {
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)buffer)[i] = pattern(i, seed);
}
bool filled(const void *buffer, size_t bytes, uint32_t seed) {
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)buffer)[i] != pattern(i, seed)) return false;
    return true;
}

static _Noreturn void stop_rank(const rank_world *world) {
    if (world->mode == AS_PROCESSES) _exit(3);
    if (world->mode == AS_FIBERS) wefti_sim_leave(world->hub);
    pthread_exit((void *)3);
}

void rank_failed(rank_world *world, const char *file, int line, const char *what, const char *format, ...) {
    int none = 0;
    if (atomic_compare_exchange_strong(&world->shared->failed, &none, 1)) {
        const char *name = strrchr(file, '/');
        int used = snprintf(world->shared->message, sizeof world->shared->message, "rank %d, %s:%d: %s: ", (int)world->rank,
                            name ? name + 1 : file, line, what);
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(world->shared->message + used, sizeof world->shared->message - (size_t)used, format, arguments);
        va_end(arguments);
        if (world->shared->launched) fprintf(stderr, "FAILED: %s\n", world->shared->message);
    }
    stop_rank(world);
}

static void check_time(rank_world *world, uint64_t since_ns) {
    if (atomic_load(&world->shared->failed)) stop_rank(world);
    if (world_now() - since_ns > LIMIT_S * WEFTI_SECOND_NS)
        rank_failed(world, __FILE__, __LINE__, "progress", "nothing has happened for %d s", LIMIT_S);
}

void world_poll(rank_world *world, uint64_t since_ns) {
    uint64_t now = world_now();
    weft_status status = wefti_wire_progress(world->wire, now);
    if (status != WEFT_OK) rank_failed(world, __FILE__, __LINE__, "poll", "%s", weft_status_name(status));
    if (now - since_ns > 50000) let_others();
    if (now - since_ns > WEFTI_SECOND_NS / 50) wefti_wire_rest(world->wire, WEFTI_MILLISECOND_NS);
    check_time(world, since_ns);
}

void world_finish(rank_world *world, wefti_wire_op *op) {
    uint64_t since = world_now();
    while (!op->done) world_poll(world, since);
}

void world_post(rank_world *world, wefti_wire_op *op) {
    uint64_t    since = world_now();
    weft_status status;
    while ((status = wefti_wire_post(world->wire, op)) == WEFT_E_AGAIN) world_poll(world, since);
    if (status != WEFT_OK)
        rank_failed(world, __FILE__, __LINE__, "post", "%s: %s", weft_status_name(status), weft_error_message());
}

static void world_run(rank_world *world, wefti_wire_op op) {
    op.flags |= WEFTI_WIRE_SILENT;
    world_post(world, &op);
    world_finish(world, &op);
    CHECK(op.status == WEFT_OK, "%s of %zu bytes, peer %d, tag %llx ended with %s, %zu bytes",
          op.kind == WEFTI_WIRE_SEND ? "send" : "receive", op.bytes, (int)op.peer, (unsigned long long)op.tag,
          weft_status_name(op.status), op.done_bytes);
    CHECK(op.done_bytes == op.bytes, "%zu bytes moved, not %zu", op.done_bytes, op.bytes);
}
void world_send(rank_world *world, int32_t peer, uint64_t tag, const void *buffer, size_t bytes) {
    world_run(world, wefti_wire_send(peer, tag, buffer, bytes));
}
void world_recv(rank_world *world, int32_t peer, uint64_t tag, void *buffer, size_t bytes) {
    world_run(world, wefti_wire_recv(peer, tag, buffer, bytes));
}

void world_barrier(rank_world *world) {
    shared_state *shared = world->shared;
    uint64_t      since = world_now();
    int           generation = atomic_load(&shared->generation);
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == world->size) {
        atomic_store(&shared->arrived, 0);
        atomic_fetch_add(&shared->generation, 1);
        return;
    }
    while (atomic_load(&shared->generation) == generation) {
        if (world->wire)
            world_poll(world, since);
        else
            check_time(world, since), let_others();
    }
}

/* --- one rank --- */

typedef struct rank_start {
    rank_world        world;
    const wire_setup *setup;
    void (*function)(rank_world *world);
} rank_start;

static void connect_all(rank_world *world) {
    wefti_wire *wire = world->wire;
    shared_state *shared = world->shared;
    CHECK_OK(wire->ops->address(wire, shared->addresses[world->rank].address, &shared->addresses[world->rank].bytes));
    world_barrier(world);
    for (int32_t peer = 0; peer < world->size; peer++)
        if (peer != world->rank)
            CHECK_OK(wire->ops->connect(wire, peer, shared->addresses[peer].address, shared->addresses[peer].bytes));
    uint64_t since = world_now();
    for (int32_t peer = 0; peer < world->size; peer++)
        while (wire->ops->link(wire, peer) != WEFTI_LINK_UP) {
            CHECK(wire->ops->link(wire, peer) == WEFTI_LINK_CONNECTING, "the link to %d did not come up", (int)peer);
            world_poll(world, since);
        }
    world_barrier(world);
}

static void run_rank(rank_start *start) {
    rank_world *world = &start->world;
    wefti_wire_options options = {.rank = world->rank, .size = world->size, .job = "conformance", .epoch = 7,
                                  .shared = world->hub, .ring_bytes = start->setup->ring_bytes,
                                  .encrypt = start->setup->encrypt};
    static const char secret[] = "what the ranks of a case know";
    if (options.encrypt) {
        options.secret = (const uint8_t *)secret;
        options.secret_bytes = sizeof secret;
    }
    if (world->mode == AS_FIBERS) options.host = wefti_sim_host(world->hub, world->rank);
    weft_memory_counts before, after;
    weft_memory_read(&before);
    CHECK_OK(start->setup->open(&options, &world->wire));
    connect_all(world);
    start->function(world);
    if (world->gone) return;
    wefti_wire *wire = world->wire;
    world_barrier(world);
    world->wire = NULL;
    wire->ops->close(wire, WEFTI_SECOND_NS);
    weft_memory_read(&after);
    if (world->mode == AS_PROCESSES)
        CHECK(before.held_bytes == after.held_bytes, "the wire left %lld bytes behind",
              (long long)(after.held_bytes - before.held_bytes));
}

static void *run_thread(void *context) {
    rank_start *start = context;
    run_rank(start);
    return NULL;
}

static void run_threads(const wire_setup *setup, int32_t ranks, shared_state *shared, void (*function)(rank_world *)) {
    rank_start        starts[MOST_RANKS];
    pthread_t         threads[MOST_RANKS];
    wefti_inproc_hub *hub = NULL;
    cr_assert_eq(wefti_inproc_hub_create(ranks, &hub), WEFT_OK);
    for (int32_t rank = 0; rank < ranks; rank++) {
        starts[rank] = (rank_start){{.rank = rank, .size = ranks, .mode = AS_THREADS, .shared = shared, .hub = hub}, setup, function};
        cr_assert_eq(pthread_create(&threads[rank], NULL, run_thread, &starts[rank]), 0);
    }
    for (int32_t rank = 0; rank < ranks; rank++) pthread_join(threads[rank], NULL);
    if (!atomic_load(&shared->failed)) wefti_inproc_hub_release(hub);
}

static void run_fiber(void *context) { run_rank(context); }

/* All in this thread; ranks that died in the simulation are buried after it. */
static void run_fibers(const wire_setup *setup, int32_t ranks, shared_state *shared, void (*function)(rank_world *)) {
    rank_start        starts[MOST_RANKS];
    wefti_sim        *sim = NULL;
    wefti_sim_options options = *setup->simulated;
    weft_memory_counts before, after;
    options.size = ranks;
    weft_memory_read(&before);
    cr_assert_eq(wefti_sim_create(&options, &sim), WEFT_OK);
    simulated = wefti_sim_host(sim, 0);
    for (int32_t rank = 0; rank < ranks; rank++) {
        starts[rank] = (rank_start){{.rank = rank, .size = ranks, .mode = AS_FIBERS, .shared = shared, .hub = sim}, setup, function};
        cr_assert_eq(wefti_sim_start(sim, rank, run_fiber, &starts[rank]), WEFT_OK);
    }
    int none = 0;
    if (wefti_sim_run(sim) != WEFT_OK && atomic_compare_exchange_strong(&shared->failed, &none, 1))
        snprintf(shared->message, sizeof shared->message, "%s", weft_error_message());
    simulated = NULL;
    if (atomic_load(&shared->failed)) return; /* what they have stays where it is */
    for (int32_t rank = 0; rank < ranks; rank++)
        if (wefti_sim_is_gone(sim, rank)) starts[rank].world.wire->ops->close(starts[rank].world.wire, 0);
    wefti_sim_release(sim);
    weft_memory_read(&after);
    cr_assert_eq(after.held_bytes, before.held_bytes, "the simulation left %lld bytes behind", (long long)(after.held_bytes - before.held_bytes));
}

static void run_processes(const wire_setup *setup, int32_t ranks, shared_state *shared, void (*function)(rank_world *)) {
    pid_t children[MOST_RANKS];
    for (int32_t rank = 0; rank < ranks; rank++) {
        children[rank] = fork();
        if (children[rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(LIMIT_S * 5); /* a last resort: a whole case on a machine that others keep busy */
            rank_start start = {{.rank = rank, .size = ranks, .mode = AS_PROCESSES, .shared = shared}, setup, function};
            run_rank(&start);
            _exit(0);
        }
        cr_assert(children[rank] > 0);
    }
    for (int32_t rank = 0; rank < ranks; rank++) {
        int status = 0;
        waitpid(children[rank], &status, 0);
        int none = 0;
        if (!(WIFEXITED(status) && WEXITSTATUS(status) == 0) && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) &&
            atomic_compare_exchange_strong(&shared->failed, &none, 1))
            snprintf(shared->message, sizeof shared->message, "rank %d ended with wait status %#x", (int)rank,
                     (unsigned)status);
    }
}

void conformance_join(const wire_setup *setup, int32_t rank, int32_t size, shared_state *shared, void (*function)(rank_world *)) {
    rank_start start = {{.rank = rank, .size = size, .mode = AS_PROCESSES, .shared = shared}, setup, function};
    world_barrier(&start.world);
    if (rank == 0) {
        atomic_store(&shared->finished, 0);
        for (int32_t i = 0; i < MOST_RANKS; i++) atomic_store(&shared->note[i], 0);
    }
    world_barrier(&start.world);
    run_rank(&start);
}

void conformance_run_one(const wire_setup *setup, int32_t ranks, const char *name, void (*function)(rank_world *world)) {
    /* It follows the threads of one process, and nothing that processes share. */
    if (UNDER_THREAD_SANITIZER && setup->mode != AS_THREADS) cr_skip_test("ranks are no threads: nothing for ThreadSanitizer");
    shared_state *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(shared, MAP_FAILED);
    if (setup->mode == AS_FIBERS)
        run_fibers(setup, ranks, shared, function);
    else if (setup->mode == AS_THREADS)
        run_threads(setup, ranks, shared, function);
    else
        run_processes(setup, ranks, shared, function);
    bool failed = atomic_load(&shared->failed);
    cr_assert(!failed, "%s, %d ranks, case %s: %s", setup->name, (int)ranks, name, shared->message);
    munmap(shared, sizeof *shared);
}

void conformance_run(const wire_setup *setup, int32_t ranks) {
    const char                 *only = getenv("WEFT_TEST_CASE"); /* to look at one case */
    const wire_case_list *const lists[] = {&message_cases, &operation_cases, &region_cases, &end_cases};
    for (size_t l = 0; l < WEFTI_COUNT(lists); l++)
        for (size_t i = 0; i < lists[l]->count; i++)
            if (!only || strcmp(only, lists[l]->cases[i].name) == 0)
                conformance_run_one(setup, ranks, lists[l]->cases[i].name, lists[l]->cases[i].run);
}

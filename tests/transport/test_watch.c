/* What ranks tell of themselves: dumps on demand, by call and by signal, the straggler, and how soon and how well the lost are named. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/control_inside.h"
#include "transport/coll.h"
#include "weft/collective.h"

static const char *wire;

static weft_status open_world(weft_world **world_out) {
    return weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS},
                             world_out);
}

/* --- tracks --- */

Test(watch, a_track_keeps_the_latest) {
    wefti_watch *watch = NULL;
    wefti_text   text = {0};
    cr_assert_eq(wefti_watch_create(wefti_host_system(), &watch), WEFT_OK);
    int32_t      members[] = {4, 7};
    wefti_track *track = wefti_watch_add(watch, 3, members, 2);
    for (uint32_t i = 0; i < 40; i++) {
        coll_header header = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .count = 100 + i, .sequence = i, .magic = COLL_MAGIC};
        uint64_t    noted = wefti_track_begin(track, &header, 0);
        if (i < 38) wefti_track_end(track, noted, i == 37 ? WEFT_E_PEER : WEFT_OK, 0);
        if (i == 38) wefti_track_wait(track, noted, 1);
        wefti_track_end(track, noted - 30, WEFT_E_NAN, 0); /* overwritten by now: changes nothing */
    }
    wefti_watch_describe(watch, &text);
    cr_expect(!strstr(text.bytes, "operation 23 of group 3") && strstr(text.bytes, "operation 24 of group 3, allreduce of 124 f32"),
              "%s", text.bytes);
    cr_expect(strstr(text.bytes, "operation 36 of group 3, allreduce of 136 f32") && strstr(text.bytes, "WEFT_E_PEER"), "%s", text.bytes);
    cr_expect(strstr(text.bytes, "in flight, waits for rank 7") && !strstr(text.bytes, "WEFT_E_NAN"), "%s", text.bytes);
    wefti_text_release(&text);
    wefti_watch_remove(watch, track);
    cr_expect_null(wefti_watch_add(NULL, 0, members, 2));
    wefti_watch_release(watch);
}

/* --- dumps --- */

/* Rank 2 does not come; the others are stuck, and rank `asker` asks. */
static int32_t asker;
static weft_status dump_while_stuck(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_group *group = NULL;
    WEFTI_TRY(open_world(&world));
    float       values[8] = {0};
    weft_status status = weft_group_create(world, &(weft_group_options){.timeout_ns = 3 * (int64_t)WEFTI_SECOND_NS / 2}, &group);
    if (status == WEFT_OK) status = weft_group_allreduce(group, values, values, 8, WEFT_F32, WEFT_COMBINE_SUM);
    if (rank == asker && status == WEFT_OK) {
        char *text = NULL;
        size_t bytes = 0;
        usleep(100000); /* the others are waiting by now */
        FILE *to = open_memstream(&text, &bytes);
        status = weft_world_dump(world, to);
        fclose(to);
        if (status == WEFT_OK) status = wefti_fail(WEFT_E_INTERNAL, "%.900s", text); /* for the parent to look at */
        free(text);
    } else if (status == WEFT_OK && rank != 2) {
        status = weft_group_broadcast(group, values, 5, WEFT_F32, 2);
    } else {
        sleep(1);
    }
    (void)all;
    weft_group_release(group);
    weft_world_release(world);
    return status;
}

static void try_dump(const char *name, int32_t who) {
    wire = name;
    asker = who;
    ranks *all = ranks_start(3, dump_while_stuck);
    ranks_join(all);
    const char *text = all->results[who].message;
    int32_t     stuck = 1 - who;
    char        line[64];
    for (int32_t rank = 0; rank < 3; rank++) {
        snprintf(line, sizeof line, "rank %d, process %ld:", (int)rank, (long)all->children[rank]);
        cr_expect(strstr(text, line), "%s: no '%s' in: %s", name, line, text);
    }
    cr_expect(strstr(text, "allreduce of 8 f32") && strstr(text, "done"), "%s: %s", name, text);
    const char *waits = strstr(text, "operation 1 of group 1, broadcast of 5 f32 from member 2");
    cr_expect(waits && strstr(waits, "in flight for") && strstr(waits, "waits for rank "), "%s, rank %d is stuck: %s", name, (int)stuck, text);
    ranks_free(all);
}
Test(watch, every_rank_tells_what_it_does) {
    try_dump("shm", 0);
    try_dump("tcp", 1);
}

static weft_status be_stopped(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    WEFTI_TRY(open_world(&world));
    weft_status status = WEFT_OK;
    atomic_fetch_add(&all->ready, 1);
    if (rank == 1) raise(SIGSTOP);
    if (rank == 0) {
        char *text = NULL;
        size_t bytes = 0;
        FILE *to = open_memstream(&text, &bytes);
        usleep(200000);
        status = weft_world_dump(world, to);
        fclose(to);
        if (status == WEFT_OK) status = wefti_fail(WEFT_E_INTERNAL, "%.900s", text);
        free(text);
        kill(all->children[1], SIGKILL);
    }
    weft_world_release(world);
    return status;
}
Test(watch, who_does_not_answer_is_named) {
    wire = "tcp";
    ranks *all = ranks_start(2, be_stopped);
    ranks_join(all);
    cr_expect(strstr(all->results[0].message, "rank 1: no answer"), "%s", all->results[0].message);
    ranks_free(all);
}

static weft_status write_on_signal(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    char        text[1024] = "";
    int         pipes[2];
    WEFTI_TRY(open_world(&world));
    weft_status status = pipe(pipes) == 0 ? WEFT_OK : wefti_fail_errno("pipe");
    dup2(pipes[1], STDERR_FILENO);
    struct sigaction before, during, after;
    sigaction(SIGUSR1, NULL, &before);
    if (weft_world_dump_on(world, SIGKILL) != WEFT_E_INVALID) status = wefti_fail(WEFT_E_INTERNAL, "SIGKILL was taken");
    if (status == WEFT_OK) status = weft_world_dump_on(world, SIGUSR1);
    if (status == WEFT_OK) status = weft_world_dump_on(world, SIGUSR1); /* twice is once */
    if (weft_world_dump_on(world, SIGUSR2) != WEFT_E_STATE) status = wefti_fail(WEFT_E_INTERNAL, "a second signal was taken");
    sigaction(SIGUSR1, NULL, &during);
    raise(SIGUSR1);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 5000 && status == WEFT_OK && read(pipes[0], text, sizeof text - 1) <= 0; i++) usleep(1000);
    weft_world_release(world);
    sigaction(SIGUSR1, NULL, &after);
    if (status == WEFT_OK && (before.sa_handler != after.sa_handler || during.sa_handler == before.sa_handler))
        status = wefti_fail(WEFT_E_INTERNAL, "the handler was not put on and taken off");
    char start[48];
    snprintf(start, sizeof start, "rank %d, process %ld:\n  ", (int)rank, (long)getpid());
    if (status == WEFT_OK && strncmp(text, start, strlen(start)) != 0) status = wefti_fail(WEFT_E_INTERNAL, "it wrote: %s", text);
    (void)all;
    return status;
}
Test(watch, a_signal_makes_a_rank_tell) {
    wire = "shm";
    ranks *all = ranks_start(2, write_on_signal);
    ranks_join(all);
    for (int32_t rank = 0; rank < 2; rank++) cr_expect_eq(all->results[rank].status, WEFT_OK, "%s", all->results[rank].message);
    ranks_free(all);
}

/* --- the straggler --- */

Test(watch, a_straggler_is_who_waits_least) {
    control_wait waits[3] = {{.waited_ns = 900, .waited_before_ns = 100}, {.waited_ns = 150, .waited_before_ns = 50}, {.waited_ns = 700}};
    double       share = 0;
    cr_expect_eq(wefti_straggler_find(waits, 3, 1000, &share), 1);
    cr_expect(fabs(share - 0.6) < 1e-12, "%g", share);
    waits[0].waited_ns = 250; /* only rank 2 waits long: nobody holds all others up */
    cr_expect_eq(wefti_straggler_find(waits, 3, 1000, &share), -1);
    cr_expect(fabs(share - 0.05) < 1e-12, "%g", share);
    cr_expect_eq(wefti_straggler_find(waits, 1, 1000, &share), -1);
}

static weft_status work_slowly(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_group *group = NULL;
    float       values[64] = {0};
    double      share = 0;
    WEFTI_TRY(open_world(&world));
    weft_status status = weft_group_create(world, NULL, &group);
    int32_t     found = -1, flag = 0;
    for (int step = 0; step < 600 && status == WEFT_OK && flag == 0; step++) { /* until rank 0 says so, 18 s at most */
        usleep(rank == 1 ? 30000 : 3000);
        found = weft_world_straggler(world, &share);
        int32_t all_found = found == 1;
        status = weft_group_allreduce(group, values, values, 64, WEFT_F32, WEFT_COMBINE_SUM);
        if (status == WEFT_OK) status = weft_group_allreduce(group, &all_found, &flag, 1, WEFT_I32, WEFT_COMBINE_MIN);
    }
    if (status == WEFT_OK) status = wefti_fail(WEFT_E_INTERNAL, "found %d %.2f", (int)found, share);
    (void)all;
    weft_group_release(group);
    weft_world_release(world);
    return status;
}
Test(watch, a_slow_rank_is_named_on_all_ranks) {
    wire = "shm";
    ranks *all = ranks_start(3, work_slowly);
    ranks_join(all);
    for (int32_t rank = 0; rank < 3; rank++) {
        double share = 0;
        cr_expect_eq(sscanf(all->results[rank].message, "found 1 %lf", &share), 1, "rank %d: %s", (int)rank, all->results[rank].message);
        cr_expect(share > 0.3 && share <= 1, "behind by %g", share); /* it has 27 of 30 ms */
    }
    ranks_free(all);
}

/* --- how soon, and how well, the lost are named --- */

typedef enum { KILLED, RESET } how;
static how     harm;
static int32_t victim;

/* As a box on the way does that forgets a connection: both ends of every data link of this process see a reset. */
static void reset_links(void) {
    struct linger hard = {1, 0};
    for (int fd = 3; fd < 256; fd++) {
        struct sockaddr_storage peer;
        socklen_t               bytes = sizeof peer;
        int                     type = 0;
        socklen_t               length = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0 || type != SOCK_STREAM) continue;
        if (getpeername(fd, (struct sockaddr *)&peer, &bytes) != 0 || peer.ss_family != AF_INET) continue;
        uint16_t store = (uint16_t)atoi(strrchr(getenv("WEFT_STORE"), ':') + 1); /* the control channel lives on */
        struct sockaddr_in mine;
        bytes = sizeof mine;
        getsockname(fd, (struct sockaddr *)&mine, &bytes);
        if (((struct sockaddr_in *)&peer)->sin_port == htons(store) || mine.sin_port == htons(store)) continue;
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, fd);
        close(nothing);
    }
}

static weft_status reduce_until_the_end(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_group *group = NULL;
    float       values[100] = {0};
    WEFTI_TRY(open_world(&world));
    weft_status status = weft_group_create(world, NULL, &group);
    for (int step = 0; status == WEFT_OK; step++) {
        if (step == 40) atomic_fetch_add(&all->ready, 1); /* all are there, however slow the machine: the others wait in it for the victim */
        if (step == 40 && rank == victim) {
            while (harm == KILLED) pause();
            while (!atomic_load(&all->step)) usleep(100);
            reset_links();
            while (!atomic_load(&all->results[(victim + 1) % all->size].finished)) usleep(1000);
            _exit(0);
        }
        status = weft_group_allreduce(group, values, values, 100, WEFT_F32, WEFT_COMBINE_SUM);
    }
    all->results[rank].at_ns = ranks_now();
    snprintf(all->results[rank].message, sizeof all->results[rank].message, "%s", weft_error_message());
    return status; /* and _exit */
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The median over rounds is within the bound; a busy machine may hold a round up. */
static void try_bound(const char *name, how what, double bound_s, int rounds) {
    double took[32];
    int    count = 0;
    wire = name;
    harm = what;
    for (int round = 0; round < rounds; round++) {
        victim = round % 3;
        ranks *all = ranks_start(3, reduce_until_the_end);
        ranks_wait_ready(all, 3);
        usleep(20000);
        uint64_t since_ns = ranks_now();
        if (what == KILLED) kill(all->children[victim], SIGKILL);
        else atomic_store(&all->step, 1);
        ranks_join(all);
        for (int32_t rank = 0; rank < 3; rank++) {
            const rank_result *result = &all->results[rank];
            char               named[32], process[48];
            if (rank == victim) continue;
            snprintf(named, sizeof named, "rank %d failed", (int)victim);
            snprintf(process, sizeof process, "process %ld", (long)all->children[victim]);
            cr_expect_eq(result->status, WEFT_E_PEER, "%s, rank %d: %s", name, (int)rank, result->message);
            /* Rank, host, operation with its number, cause. Of a link that breaks either end may be blamed. */
            if (what == KILLED)
                cr_expect(strstr(result->message, named) && strstr(result->message, process), "%s: %s", name, result->message);
            cr_expect(strstr(result->message, "host ") && strstr(result->message, "operation 40 of group 1, allreduce of 100 f32 (sum"),
                      "%s: %s", name, result->message);
            took[count++] = (double)(result->at_ns - since_ns) / 1e9;
        }
        ranks_free(all);
    }
    qsort(took, (size_t)count, sizeof *took, by_size);
    cr_expect(took[count / 2] < bound_s, "%s: known after %g s (median of %d; the last after %g s)", name, took[count / 2], count,
              took[count - 1]);
    cr_expect(took[count - 1] < bound_s + 5, "%s: known after %g s at last", name, took[count - 1]);
    printf("%s, %s: known after %.1f ms (median), %.1f ms (last)\n", name, what == KILLED ? "killed" : "reset", 1e3 * took[count / 2],
           1e3 * took[count - 1]);
}

Test(watch, a_dead_process_is_known_within_100_ms) {
    try_bound("shm", KILLED, 0.1, 6);
    try_bound("tcp", KILLED, 0.1, 6);
}
Test(watch, a_reset_connection_is_known_within_a_second) { try_bound("tcp", RESET, 1, 3); }

/* --- a rank that dies at each operation in turn, before it has started it or with its messages on the way --- */

enum { LAST_OPERATION = 12, MOST_ELEMENTS = 60000 };
static int32_t last_operation;

static weft_status die_at_operation(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_group *group = NULL;
    float      *values = calloc(2 * MOST_ELEMENTS, sizeof *values);
    WEFTI_TRY(open_world(&world));
    weft_status status = weft_group_create(world, NULL, &group);
    for (int32_t i = 0; status == WEFT_OK; i++) {
        static const size_t counts[] = {3, 20000, MOST_ELEMENTS};
        weft_operation     *operation = NULL;
        weft_call call = {.kind = i % 2 ? WEFT_CALL_BROADCAST : WEFT_CALL_ALLREDUCE, .root = i % all->size, .send = values,
                          .receive = values + MOST_ELEMENTS, .count = counts[i / 2 % 3]};
        bool      mine = rank == victim && i == last_operation / 2;
        if (mine && last_operation % 2 == 0) raise(SIGKILL);
        status = weft_group_start(group, &call, &operation);
        if (mine) raise(SIGKILL);
        if (status == WEFT_OK) status = weft_operation_wait(operation, 0);
    }
    return status; /* and _exit */
}

static void try_each_operation(const char *name) {
    wire = name;
    for (last_operation = 0; last_operation < LAST_OPERATION; last_operation++) {
        victim = last_operation % 3;
        ranks *all = ranks_start(3, die_at_operation);
        ranks_join(all);
        for (int32_t rank = 0; rank < 3; rank++) {
            char named[32];
            snprintf(named, sizeof named, "rank %d failed", (int)victim);
            if (rank != victim)
                cr_expect(all->results[rank].status == WEFT_E_PEER && strstr(all->results[rank].message, named),
                          "%s, rank %d, rank %d dies at %d: %s", name, (int)rank, (int)victim, (int)last_operation,
                          all->results[rank].message);
        }
        ranks_free(all);
    }
}
Test(watch, a_rank_that_dies_at_any_operation_is_named_shm) { try_each_operation("shm"); }
Test(watch, a_rank_that_dies_at_any_operation_is_named_tcp) { try_each_operation("tcp"); }

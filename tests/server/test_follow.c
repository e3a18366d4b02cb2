/* Copies that servers follow, and that follow servers: the same results as of others, also where one side loses its core, or dies, in the middle of one. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "parallel/server/follow.h"
#include "serving.h"

/* Two ranks, so that two cores are enough for what is tried here. */
static const weft_server_options apart = {.servers = 1, .dedicated = true}, beside = {.servers = 1}, both = {0};

static float given(int round, int64_t i) { return (float)((round + 1) * (int)(i % 31 + 1)); }

static weft_status compare(const float *got, int64_t rows, float times, const char *when) {
    for (int64_t i = 0; i < rows; i++)
        EXPECT(got[i] == times * given(0, i), "%s, %lld rows: row %lld is %g, not %g", when, (long long)rows, (long long)i, got[i], times * given(0, i));
    return WEFT_OK;
}

/* --- all ways of values that are not the server's --- */

static weft_status in_turns(serving *self, const weft_table_options *options, float *mine, float *got) {
    weft_table *table = NULL;
    float       times = 0, more = (float)self->workers;
    WEFTI_TRY(weft_table_create(self->server, options, &table));
    for (int round = 0; round < 3; round++) {
        for (int64_t i = 0; i < options->rows; i++) mine[i] = given(round, i);
        if (round == 1) {
            WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
        } else {
            WEFTI_TRY(weft_table_push(table, NULL, mine));
            for (int64_t i = 0; i < options->rows; i++) mine[i] = 1e9f; /* it is this rank's again */
            if (options->staleness == 0) WEFTI_TRY(weft_table_clock(table));
        }
        WEFTI_TRY(serving_meet(self));
        times += more * (float)(round + 1);
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(compare(got, options->rows, times, options->staleness ? "at once" : "by the clock"));
        WEFTI_TRY(serving_meet(self));
    }
    WEFTI_TRY(compare(got, options->rows, 6 * more, "in the end"));
    weft_table_release(table);
    return WEFT_OK;
}

static weft_status ways(serving *self) {
    enum { MOST = 600001 };
    static const int64_t rows[] = {32767, 32768, 100003, MOST};
    float *mine = malloc(MOST * sizeof *mine), *got = malloc(MOST * sizeof *got);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int clocked = 0; clocked < 2; clocked++) {
            char name[32];
            snprintf(name, sizeof name, "%lld %d", (long long)rows[i], clocked);
            weft_table_options options = {.name = name, .rows = rows[i], .dtype = WEFT_F32, .staleness = clocked ? 0 : WEFT_TABLE_ASYNCHRONOUS};
            WEFTI_TRY(in_turns(self, &options, mine, got));
        }
    free(mine);
    free(got);
    return WEFT_OK;
}

Test(follow, ways) { serve_case("shm", 2, &apart, ways); }
Test(follow, ways_of_servers_beside) { serve_case("shm", 2, &both, ways); }

/* --- a worker that stops in the middle of a copy --- */

enum { ROWS = 1 << 18, SHOWN = ROWS * 3 / 4 };
static float        *source;
static weft_server  *stopped;
static volatile bool dies, waits;

static bool has_given_up(void) {
    const wefti_line *lines = stopped->lines ? (const wefti_line *)(const void *)stopped->lines->data : NULL;
    for (int32_t i = 0; lines && i < stopped->in_flight * stopped->servers; i++)
        if (atomic_load(&lines[i].sent) & WEFTI_GIVEN_UP) return true;
    return false;
}

/* The copy has come to what cannot be read: it goes on once the server does not follow any more. */
static void stop(int signal) {
    (void)signal;
    for (int ms = 0; waits && ms < 10000 && !has_given_up(); ms++) nanosleep(&(struct timespec){0, 1000 * 1000}, NULL);
    if (dies) raise(SIGKILL);
    if (waits && !has_given_up()) _exit(7);
    mprotect(source + SHOWN, (ROWS - SHOWN) * sizeof *source, PROT_READ | PROT_WRITE);
}

static weft_status make_source(serving *self) {
    struct sigaction action = {.sa_handler = stop};
    source = mmap(NULL, ROWS * sizeof *source, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int64_t i = 0; i < ROWS; i++) source[i] = given(0, i);
    stopped = self->server;
    waits = wefti_server_is_hot(self->server); /* else nobody follows */
    return source != MAP_FAILED && sigaction(SIGSEGV, &action, NULL) == 0 ? WEFT_OK : wefti_fail(WEFT_E_NO_MEMORY, "no memory that cannot be read");
}
static void hide(void) {
    stopped->alone = 0; /* it follows, whatever has been given up */
    mprotect(source + SHOWN, (ROWS - SHOWN) * sizeof *source, PROT_NONE);
}

static weft_status stops(serving *self) {
    float *got = malloc(ROWS * sizeof *got);
    WEFTI_TRY(make_source(self));
    for (int clocked = 0; clocked < 2; clocked++) {
        weft_table        *table = NULL;
        weft_table_options options = {.name = clocked ? "clocked" : "free", .rows = ROWS, .dtype = WEFT_F32, .staleness = clocked ? 0 : WEFT_TABLE_ASYNCHRONOUS};
        WEFTI_TRY(weft_table_create(self->server, &options, &table));
        for (int times = 1; times <= 3; times++) {
            if (times != 2) hide();
            if (times == 3) {
                WEFTI_TRY(weft_table_push_pull(table, NULL, source, got));
            } else {
                WEFTI_TRY(weft_table_push(table, NULL, source));
                WEFTI_TRY(weft_table_clock(table));
                WEFTI_TRY(weft_table_pull(table, NULL, got));
            }
            WEFTI_TRY(compare(got, ROWS, (float)times, options.name));
        }
        weft_table_release(table);
    }
    munmap(source, ROWS * sizeof *source);
    free(got);
    return WEFT_OK;
}

Test(follow, worker_stops) { serve_case("shm", 2, &apart, stops); }

static bool lingers; /* until the server has given it up; else it dies while that waits */
/* What it had copied was added, and is taken back: the other one, who also serves, finds what was there before. */
static weft_status dies_in_a_copy(serving *self) {
    weft_table        *table = NULL;
    float             *got = malloc(ROWS * sizeof *got);
    weft_table_options options = {.name = "sums", .rows = ROWS, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    WEFTI_TRY(make_source(self));
    if (self->rank == 0) WEFTI_TRY(weft_table_push(table, NULL, source));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) {
        hide();
        dies = true;
        waits = waits && lingers;
        weft_status status = weft_table_push(table, NULL, source);
        return wefti_fail(WEFT_E_INTERNAL, "it lives, %s", weft_status_name(status));
    }
    bool gone = false;
    for (int ms = 0; ms < 10000 && !gone; ms++) {
        (void)!weft_server_poll(self->server);
        pthread_mutex_lock(&self->server->lock);
        gone = wefti_server_is_gone(self->server, 0);
        pthread_mutex_unlock(&self->server->lock);
        nanosleep(&(struct timespec){0, 1000 * 1000}, NULL);
    }
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    WEFTI_TRY(compare(got, ROWS, 1, "after a death"));
    weft_table_release(table);
    munmap(source, ROWS * sizeof *source);
    free(got);
    return WEFT_OK;
}

Test(follow, worker_dies) { ranks_free(serve_case_with("shm", 2, &beside, dies_in_a_copy, 1u << 0)); }
Test(follow, worker_dies_given_up) {
    lingers = true;
    ranks_free(serve_case_with("shm", 2, &beside, dies_in_a_copy, 1u << 0));
}

/* --- lines that are none --- */

static weft_status bad_lines(serving *self) {
    static server_job job;
    wefti_line       *line = (wefti_line *)(void *)&job;
    float            *memory = NULL;
    job.worker = self->rank;
    job.frame.line = 64; /* of a region that has 64 */
    WEFTI_TRY(wefti_follow_find(self->server, &job, &line));
    EXPECT(!line, "%p", (void *)line);
    job.frame.line_region = 1;
    if (!wefti_server_maps(self->server)) {
        REFUSED(wefti_follow_find(self->server, &job, &line), WEFT_E_CORRUPT, "does not map");
        return WEFT_OK;
    }
    WEFTI_TRY(weft_server_alloc(self->server, 4096, (void **)&memory));
    job.frame.line_region = self->server->wire->ops->region_of(self->server->wire, memory, 4096)->id;
    REFUSED(wefti_follow_find(self->server, &job, &line), WEFT_E_CORRUPT, "line 64 of its region");
    job.frame.line = UINT32_MAX;
    REFUSED(wefti_follow_find(self->server, &job, &line), WEFT_E_CORRUPT, "which has 4096 bytes");
    job.frame.line = 63;
    WEFTI_TRY(wefti_follow_find(self->server, &job, &line));
    EXPECT((uint8_t *)line == (uint8_t *)memory + 4096 - sizeof *line, "%p of %p", (void *)line, (void *)memory);
    return WEFT_OK;
}

Test(follow, bad_lines) {
    serve_case("shm", 2, &both, bad_lines);
    serve_case("tcp", 2, &both, bad_lines);
}

/* --- frames that name lines, and no memory that these are of --- */

typedef struct asking {
    server_event frame, reply;
    uint8_t      frame_bytes[sizeof(wefti_server_frame) + 16], reply_bytes[WEFTI_REPLY_BYTES];
    int          over;
} asking;

static void one_is_over(weft_server *server, server_event *event) {
    (void)server;
    ((asking *)event->owner)->over++;
}
static bool both_are_over(const void *context) { return ((const asking *)context)->over == 2; }

/* Sends a frame to the first server, past the worker's own checks, and expects to be told. */
static weft_status ask_wrongly(serving *self, wefti_server_frame head, size_t body_bytes, const char *part) {
    static asking a;
    weft_server  *server = self->server;
    a = (asking){.over = 0};
    pthread_mutex_lock(&server->lock);
    head.magic = WEFTI_SERVER_MAGIC;
    head.slot = ++server->next_slot;
    head.number = ++server->numbers[0];
    head.timeout_ns = server->timeout_ns;
    head.body_bytes = body_bytes;
    head.flags |= body_bytes ? WEFTI_SERVER_INLINE : 0;
    memcpy(a.frame_bytes, &head, sizeof head);
    int32_t to = wefti_server_rank(server, 0);
    a.reply.op = wefti_wire_recv(to, wefti_server_tag(WEFTI_TAG_REPLY, head.slot), a.reply_bytes, sizeof a.reply_bytes);
    a.frame.op = wefti_wire_send(to, wefti_server_tag(WEFTI_TAG_REQUEST, 0), a.frame_bytes, sizeof head + body_bytes);
    a.reply.done = a.frame.done = one_is_over;
    a.reply.owner = a.frame.owner = &a;
    wefti_server_post(server, &a.reply);
    wefti_server_post(server, &a.frame);
    pthread_mutex_unlock(&server->lock);
    WEFTI_TRY(wefti_server_wait(server, both_are_over, &a, wefti_deadline_after(wefti_host_now(server->host), 5 * WEFTI_SECOND_NS)));
    const wefti_server_frame *reply = (const wefti_server_frame *)(const void *)a.reply_bytes;
    EXPECT(reply->magic == WEFTI_SERVER_MAGIC && reply->status == WEFT_E_CORRUPT, "status %d", reply->status);
    EXPECT(strstr((const char *)a.reply_bytes + sizeof *reply, part), "%.200s", (const char *)a.reply_bytes + sizeof *reply);
    return WEFT_OK;
}

static weft_status lines_alone(serving *self) {
    weft_table *table = NULL;
    float      *memory = NULL, got[4];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 4, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_server_alloc(self->server, 4096, (void **)&memory)); /* zeros: nothing will ever be there */
    const uint32_t           region = self->server->wire->ops->region_of(self->server->wire, memory, 4096)->id;
    const wefti_server_frame head = {.table = table->id, .dtype = WEFT_F32, .width = 1, .count = 4, .kind = WEFTI_SERVER_PUSH};
    wefti_server_frame       wrong = head;
    wrong.line_region = region;
    WEFTI_TRY(ask_wrongly(self, wrong, 16, "names line 0 of its region"));
    wrong.kind = WEFTI_SERVER_SET;
    WEFTI_TRY(ask_wrongly(self, wrong, 16, "names line 0 of its region"));
    wrong.kind = WEFTI_SERVER_PULL;
    WEFTI_TRY(ask_wrongly(self, wrong, 0, "names line 0 of its region"));
    wrong.kind = WEFTI_SERVER_GIVE;
    wrong.keys = 1;
    wrong.flags = WEFTI_SERVER_SENT_IN_PLACE;
    wrong.send_region = region;
    WEFTI_TRY(ask_wrongly(self, wrong, 0, "names line 0 of its region"));
    wrong = head;
    wrong.flags = WEFTI_SERVER_RECEIVED_IN_PLACE;
    wrong.receive_region = region;
    WEFTI_TRY(ask_wrongly(self, wrong, 16, "names memory for rows"));
    wrong = head;
    wrong.kind = WEFTI_SERVER_PULL;
    wrong.flags = WEFTI_SERVER_SENT_IN_PLACE;
    wrong.send_region = region;
    WEFTI_TRY(ask_wrongly(self, wrong, 0, "brings values"));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    EXPECT(got[0] == 0 && got[3] == 0, "%g", (double)got[0]);
    weft_table_release(table);
    return WEFT_OK;
}
Test(follow, lines_of_nothing) { serve_case("shm", 2, &beside, lines_alone); }

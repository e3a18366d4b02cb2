/* One rank of a group whose network is about to be cut: guest.sh runs it in guests that are joined by a link.
 *
 *   ranks ROUNDS BYTES PROBE [CUT]
 *
 * Runs ROUNDS allreduces of BYTES and checks every sum. With CUT, a path, goes on from there without end: in the middle of the
 * next operation it makes that file, whereupon the guest cuts the link, and the group must end with a verdict. The last
 * line says how it went, for guest.sh to judge: "rank R sums ROUNDS in S s", or "rank R ended S s after the cut: STATUS by rank P:
 * MESSAGE", with what the wire says of its links. Exit status 0, but where a sum was wrong or there was no verdict.
 *
 * A guest that its host does not let run for a second gives no answer, as one beyond a cut. Such a verdict says nothing of Weft: where it is of that,
 * nobody here has made the file, and PROBE, a command, still reaches the other guest, the rank says so, and its exit status is 3. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "transport/transport.h"

enum { POLLS_BEFORE_CUT = 200, EARLY = 3 };
/* Of an operation: longer than a verdict takes, and than emulated guests of a busy machine need where packets are lost. */
#define PATIENCE_NS (100 * WEFTI_SECOND_NS)

static wefti_transport *transport;

static double seconds_since(uint64_t begin_ns) { return (double)(wefti_host_now(transport->host) - begin_ns) / 1e9; }

static void say(const char *format, ...) WEFTI_PRINTF(1, 2);
static void say(const char *format, ...) {
    char    text[WEFTI_MESSAGE_BYTES + 200]; /* a line in one write, so that ranks' lines do not mix */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("rank %d %s\n", (int)transport->rank, text);
    fflush(stdout);
}

static void make(const char *path) { close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); }

/* One allreduce of which every sum is known. `cut`: makes that file in the middle. */
static weft_status reduce(float *values, size_t count, int64_t round, const char *cut) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values, .receive = values, .count = count, .timeout_ns = PATIENCE_NS};
    wefti_collective     *operation = NULL;
    int32_t               size = transport->size;
    for (size_t i = 0; i < count; i++) values[i] = (float)(transport->rank + (int32_t)((i + (size_t)round) % 1000));
    WEFTI_TRY(wefti_collective_start(transport->group, &call, &operation));
    for (int i = 0; cut && i < POLLS_BEFORE_CUT; i++) WEFTI_TRY(transport->group->engine->progress(transport->group, wefti_host_now(transport->host)));
    if (cut) make(cut);
    WEFTI_TRY(wefti_collective_wait(operation, 0));
    for (size_t i = 0; i < count; i++) {
        float sum = (float)(size * (size - 1) / 2 + size * (int32_t)((i + (size_t)round) % 1000));
        if (values[i] != sum) {
            say("has a wrong sum in round %lld: element %zu is %g, not %g", (long long)round, i, (double)values[i], (double)sum);
            exit(1);
        }
    }
    return WEFT_OK;
}

/* Since the file was made, by whichever rank of this guest came first. */
static double seconds_since_cut(const char *cut) {
    struct stat     made = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (stat(cut, &made) != 0) return -1;
    return (double)(now.tv_sec - made.st_mtim.tv_sec) + (double)(now.tv_nsec - made.st_mtim.tv_nsec) / 1e9;
}

/* Whether a verdict is that somebody gave no answer, though the other guest can be reached. */
static bool is_early(const char *text, const char *cut, const char *probe) {
    if (!strstr(text, "transport retries exceeded") && !strstr(text, "it has been silent")) return false;
    return (!cut || access(cut, F_OK) != 0) && system(probe) == 0;
}

static int tell_early(int64_t round, const char *text) {
    say("was told of no answer over a link that is whole, in round %lld: %s", (long long)round, text);
    return EARLY;
}

/* Until the verdict. */
static int run_until_cut(float *values, size_t count, int64_t round, const char *cut, const char *probe) {
    weft_status status = reduce(values, count, round, NULL);
    uint64_t    begin_ns = wefti_host_now(transport->host);
    if (status == WEFT_OK) status = reduce(values, count, ++round, cut);
    while (status == WEFT_OK && seconds_since(begin_ns) < 100) status = reduce(values, count, ++round, NULL);
    if (status == WEFT_OK) return 1;
    char text[WEFTI_MESSAGE_BYTES];
    snprintf(text, sizeof text, "%s", weft_error_message());
    if (is_early(text, cut, probe)) return tell_early(round, text);
    make(cut); /* where the other guest was cut first */
    for (int32_t peer = 0; peer < transport->size; peer++) {
        const char *cause = transport->wire->ops->cause(transport->wire, peer);
        if (cause) say("says of the link to rank %d: %s", (int)peer, cause);
    }
    say("ended %.1f s after the cut: %s by rank %d: %s", seconds_since_cut(cut), weft_status_name(status),
        (int)wefti_fault_rank(transport->fault), text);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const char *probe = argv[3], *cut = argc > 4 ? argv[4] : NULL;
    int64_t     rounds = atoll(argv[1]), round = 0;
    size_t      count = strtoull(argv[2], NULL, 10) / sizeof(float);
    float      *values = malloc(count * sizeof *values);
    weft_status status = wefti_transport_open(NULL, &transport);
    if (!values || status != WEFT_OK) {
        printf("a rank did not join: %s\n", weft_error_message());
        return 1;
    }
    uint64_t begin_ns = wefti_host_now(transport->host);
    while (round < rounds && (status = reduce(values, count, round, NULL)) == WEFT_OK) round++;
    int result = status != WEFT_OK;
    char text[WEFTI_MESSAGE_BYTES] = "";
    if (result) snprintf(text, sizeof text, "%s", weft_error_message());
    if (result && is_early(text, cut, probe))
        result = tell_early(round, text);
    else if (result)
        say("failed in round %lld: %s", (long long)round, text);
    else if (cut)
        result = run_until_cut(values, count, round, cut, probe);
    else
        say("sums %lld in %.1f s over %s", (long long)rounds, seconds_since(begin_ns), transport->wire_name);
    wefti_transport_close(transport);
    free(values);
    return result;
}

/* Jobs that lose ranks: weftrun --elastic starts them again, they get the run's state from the others, and the run ends with the bits of one that
 * lost nobody; where none is started again the others go on. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "common/effort.h"
#include "train/run.h"
#include "transport/handshake.h"

enum { RANKS = 4 };

/* Cases in which threads do nothing that they do not in the others are not for the thread sanitizer, by which each takes ten seconds. */
#define PLAIN(name) Test(elastic, name, .disabled = UNDER_THREAD_SANITIZER)

/* Runs the program under weftrun; its output, to be freed. `name` is that of its files; `more` ends the command. */
static char *run_job_of(int ranks, const char *options, const char *fate, const char *name, int steps, const char *more, int *status_out) {
    const char *output = temporary_path("output"), *out = temporary_path(name);
    const char *folder = getenv("WEFT_TEST_BIN");
    char        log[64], command[4096];
    snprintf(log, sizeof log, "%s.jsonl", name);
    const char *log_path = temporary_path(log);
    if (!folder || !*folder) folder = WEFT_BIN_DIR;
    snprintf(command, sizeof command, "WEFT_THREADS=1 %s/weftrun -n %d %s %s/train_program_elastic %s %s %s %d %s >%s 2>&1 </dev/null", folder, ranks, options,
             folder, out, log_path, fate, steps, more, output);
    int ended = system(command);
    *status_out = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
    char *text = read_text(output);
    fprintf(stderr, "%s %s: status %d\n", options, fate, *status_out);
    return text;
}

static char *run_job(const char *options, const char *fate, const char *name, int steps, int *status_out) {
    return run_job_of(RANKS, options, fate, name, steps, "", status_out);
}

static void has(const char *text, const char *part) { cr_expect_not_null(strstr(text, part), "'%.4000s' lacks '%s'", text, part); }

static int count(const char *text, const char *part) {
    int found = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) found++;
    return found;
}

static void same_files(const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", temporary_path(a), temporary_path(b));
    cr_expect_eq(system(command), 0, "%s and %s differ", a, b);
}

/* The number after `key` in the line of the log's nth event of a kind. */
static int number_of(const char *log, const char *event, int nth, const char *key) {
    char        kind[64], name[64];
    const char *at = log;
    snprintf(kind, sizeof kind, "\"event\":\"%s\"", event);
    snprintf(name, sizeof name, "\"%s\":", key);
    for (int i = 0; i <= nth && at; i++) at = (at = strstr(at, kind)) ? at + 1 : NULL;
    at = at ? strstr(at, name) : NULL;
    cr_assert_not_null(at, "the log has no event %d of '%s' with '%s'", nth, event, key);
    return (int)strtol(at + strlen(name), NULL, 10);
}

/* Whoever is lost comes again, and all ranks end with what they end with when nobody is lost: that has run as "whole". */
static void comes_again(int ranks, const char *options, int restarts, const char *fate, int lost, const char *cause) {
    int  status;
    char well[64], elastic[128];
    snprintf(elastic, sizeof elastic, "--elastic --restarts %d --back-off 0.1 %s", restarts, options);
    char *text = run_job_of(ranks, elastic, fate, "lossy", 400, "", &status);
    cr_expect_eq(status, 0, "exit status %d", status);
    int again = count(text, "starting it again");
    cr_expect(again >= lost && (again == lost || restarts > lost), "%s", text);
    snprintf(well, sizeof well, "accuracy 1.000, %d ranks", ranks);
    cr_expect_eq(count(text, well), ranks, "%s", text);
    for (int rank = 0; rank < ranks; rank++) {
        char before[32], after[32];
        snprintf(before, sizeof before, "whole-%d", rank);
        snprintf(after, sizeof after, "lossy-%d", rank);
        same_files(before, after);
    }
    char *log = read_text(temporary_path("lossy.jsonl"));
    has(log, "\"event\":\"fault\"");
    has(log, cause);
    has(log, "\"event\":\"renewed\"");
    snprintf(well, sizeof well, "\"ranks\":%d,\"seconds\"", ranks);
    has(log, well);
    has(log, "\"event\":\"end\"");
    has(log, "\"step\":400");
    free(log);
    free(text);
}

static void run_whole(int ranks, const char *options) {
    int   status;
    char *text = run_job_of(ranks, options, "....", "whole", 400, "", &status);
    cr_assert_eq(status, 0, "%s", text);
    free(text);
}

static void restarts_of(int ranks, const char *options, const char *fate, int lost, const char *cause) {
    run_whole(ranks, options);
    comes_again(ranks, options, lost, fate, lost, cause);
}

static void restarts(const char *options, const char *fate, int lost) { restarts_of(RANKS, options, fate, lost, "its process has ended"); }

/* Rank 0, and two at once. */
Test(elastic, killed_ranks_come_again_over_shm) { restarts("--wire shm", "k..k", 2); }
PLAIN(one_that_dies_when_it_has_come_in_comes_again) { restarts("--wire shm", ".c..", 2); }
/* Rank 0, one that dies again before it has come in, and one that dies again later. */
Test(elastic, killed_ranks_come_again_over_tcp) { restarts("--wire tcp", "kdt.", 5); }
/* One dies while another one comes in: at once, while they join, while it gets the state, and a little later. Who has not got through its first calls by then
 * ends with an error, and is started once more. */
static void another_dies(const char *options, const char *fate, const int *moments_us) {
    enum { SPARE = 3 };
    char moment[16];
    run_whole(RANKS, options);
    setenv("WEFT_TEST_EPOCH_US", "4000", 1); /* the run is to last until then */
    for (; *moments_us; moments_us++) {
        snprintf(moment, sizeof moment, "%d", *moments_us);
        setenv("WEFT_TEST_MOMENT_US", moment, 1);
        remove(temporary_path("lossy.jsonl")); /* by which ranks tell when to die */
        comes_again(RANKS, options, 2 + SPARE, fate, 2, "its process has ended");
        if (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) break; /* once is enough there */
    }
}
PLAIN(another_one_dies_when_one_comes_in) { another_dies("--wire shm", ".x..", (int[]){1, 8000, 24000, 0}); }
/* It has opened less of the run's files by then than the others. */
PLAIN(another_one_dies_before_one_has_the_state) { restarts("--wire shm", "..y.", 2); }
PLAIN(rank_0_dies_when_one_comes_in) { another_dies("--wire tcp", "...x", (int[]){500, 10000, 0}); }
PLAIN(a_killed_rank_comes_again_encrypted) {
    if (!wefti_can_authenticate()) cr_skip_test("this build has no libsodium");
    restarts("--wire tcp --encrypt", ".k..", 1);
}

/* --- by a parameter server --- */

/* Steps go on without the lost, so another run would end otherwise: but all ranks end alike, those who came again too. */
static void served(const char *options, const char *staleness, const char *fate, int lost) {
    int   status;
    char  elastic[128];
    setenv("WEFT_TEST_SERVER", staleness, 1);
    snprintf(elastic, sizeof elastic, "--elastic --restarts %d --back-off 0.1 %s", lost, options);
    char *text = run_job(elastic, fate, "lossy", 600, &status), *log = read_text(temporary_path("lossy.jsonl"));
    cr_expect_eq(status, 0, "exit status %d", status);
    cr_expect_eq(count(text, "starting it again"), lost, "%s", text);
    cr_expect_eq(count(text, "accuracy 1.000, 4 ranks"), RANKS, "%s", text);
    for (int rank = 1; rank < RANKS; rank++) {
        char name[32];
        snprintf(name, sizeof name, "lossy-%d", rank);
        same_files("lossy-0", name);
    }
    has(log, "\"event\":\"fault\"");
    has(log, "\"event\":\"renewed\"");
    has(log, "\"ranks\":4,\"seconds\"");
    has(log, "\"step\":600");
    free(log);
    free(text);
}
Test(elastic, a_rank_that_serves_comes_again) { served("--wire shm", "0", ".k..", 1); }
Test(elastic, rank_0_that_serves_comes_again) { served("--wire shm", "0", "k...", 1); }
/* The others have gone on, each row twice on three of them, and go over once more for who comes in. */
Test(elastic, one_that_serves_and_comes_late_is_taken_in) {
    if (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) cr_skip_test("it takes long there, and the others do the same but that they do not wait");
    setenv("WEFT_TEST_EPOCH_US", "8000", 1);
    served("--wait 0.1 --wire shm", "0", "..l.", 1);
}
/* Nobody waits in a step; who comes again begins where rank 0 stands. */
PLAIN(one_that_serves_asynchronously_comes_again) { served("--wire shm", "-1", "..k.", 1); }
PLAIN(one_that_serves_within_a_bound_comes_again) { served("--wire shm", "2", "..k.", 1); }

/* --- one lives, and does not go on --- */

/* Who is stopped is given up by the others after 5 s, and killed for them. */
Test(elastic, a_stopped_rank_comes_again) { restarts_of(RANKS, "--wire shm", ".s..", 1, "silent"); }

/* Whose main thread hangs, or all its threads, is waited for until the deadline, and then with patience; of two ranks, too. */
static void hangs(int ranks, const char *wire, const char *fate) {
    char options[64];
    setenv("WEFT_TEST_TIMEOUT_MS", (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) ? "5000" : "1000", 1);
    snprintf(options, sizeof options, "--elastic --patience 0.7 --wire %s", wire);
    restarts_of(ranks, options, fate, 1, "no answer from rank");
}
Test(elastic, a_rank_that_hangs_comes_again) { hangs(3, "shm", ".h."); }
Test(elastic, rank_0_that_hangs_comes_again) {
    if (!UNDER_THREAD_SANITIZER) hangs(2, "tcp", "h."); /* which would wait for the same again */
}
PLAIN(one_of_two_whose_threads_all_hang_comes_again) { hangs(2, "shm", ".H"); }

Test(elastic, one_that_hangs_is_left_behind_where_no_restarts_are_left) {
    int status;
    if (UNDER_THREAD_SANITIZER) return;
    setenv("WEFT_TEST_TIMEOUT_MS", (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) ? "5000" : "1000", 1);
    char *text = run_job_of(3, "--elastic --restarts 0 --patience 0.7 --wire shm", "..h", "hung", 400, "", &status);
    cr_expect_eq(status, 0, "%d: %s", status, text);
    has(text, "rank 2 lives, and does not go on with the others, as rank 0 says: killing it");
    has(text, "none of 0 restarts is left");
    cr_expect_eq(count(text, "accuracy 1.000, 2 ranks"), 2, "%s", text);
    free(text);
}

/* --- nobody comes --- */

Test(elastic, the_others_go_on_where_no_restarts_are_left) {
    int   status;
    char *text = run_job("--elastic --restarts=0 --wire shm", "k..k", "less", 400, &status);
    cr_expect_eq(status, 0, "%d: %s", status, text);
    has(text, "none of 0 restarts is left");
    cr_expect_eq(count(text, "accuracy 1.000, 2 ranks"), 2, "%s", text);
    same_files("less-0", "less-1");
    free(text);
}

/* They are told that nobody will come, and do not wait for it, which would be 10 s. */
PLAIN(the_others_do_not_wait_for_who_will_not_come) {
    int   status;
    char *text = run_job("--elastic --restarts 1 --wire shm", "..t.", "once", 400, &status);
    cr_expect_eq(status, 0, "%d: %s", status, text);
    has(text, "none of 1 restarts is left, so the others go on without it");
    cr_expect_eq(count(text, "accuracy 1.000, 3 ranks"), 3, "%s", text);
    char *log = read_text(temporary_path("once.jsonl"));
    cr_expect_eq(number_of(log, "renewed", 0, "ranks"), 4);
    cr_expect_eq(number_of(log, "renewed", 1, "ranks"), 3);
    cr_expect_lt(number_of(log, "renewed", 1, "seconds"), 8);
    free(log);
    free(text);
}

Test(elastic, a_job_of_too_few_ends_with_a_word) {
    int   status;
    char *text = run_job("--elastic --restarts 0 --least 3 --wire tcp", "k.k.", "few", 400000, &status);
    cr_expect_eq(status, 1, "%d: %s", status, text);
    has(text, "WEFT_E_PEER");
    has(text, "2 ranks are left, fewer than the 3 that are to go on");
    has(text, "that came after");
    free(text);
}

PLAIN(all_killed_is_a_failure) {
    int   status;
    char *text = run_job("--elastic --restarts 0 --wire shm", "kkkk", "none", 400000, &status);
    cr_expect_eq(status, 137, "%d: %s", status, text);
    free(text);
}

PLAIN(an_error_of_its_own_ends_the_job) {
    int   status;
    char *text = run_job("--elastic --settle 0.2 --wire shm", "..e.", "error", 400000, &status);
    cr_expect_eq(status, 7, "%d: %s", status, text);
    has(text, "rank 2 failed with status 7; ending the others");
    free(text);
}

PLAIN(a_replacement_that_fails_is_started_again_and_then_done_without) {
    int   status;
    char *text = run_job("--elastic --restarts 2 --back-off 0.2 --wire shm", ".r..", "failing", 400, &status);
    cr_expect_eq(status, 0, "%d: %s", status, text);
    cr_expect_eq(count(text, "starting it again"), 2, "%s", text);
    has(text, "rank 1 failed with status 9; starting it again in 0.2 s (2 of 2)");
    has(text, "rank 1 failed with status 9; none of 2 restarts is left");
    cr_expect_eq(count(text, "accuracy 1.000, 3 ranks"), 3, "%s", text);
    free(text);
}

/* --- one comes late --- */

/* The others, or the only other one, go on after a while, and take it in when it comes: the bits of a run of all, then one less, then all ranks that
 * was resumed from saves at these steps. An epoch takes its time, so that the run lasts long enough. */
static void comes_late(int ranks, const char *wire, const char *fate) {
    enum { STEPS = 400 };
    int  status, less = ranks - 1;
    char options[128], well[64];
    setenv("WEFT_TEST_EPOCH_US", (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER) ? "40000" : "8000", 1);
    snprintf(options, sizeof options, "--elastic --wait 0.1 --wire %s", wire);
    char *text = run_job_of(ranks, options, fate, "late", STEPS, "", &status);
    cr_expect_eq(status, 0, "exit status %d", status);
    snprintf(well, sizeof well, "accuracy 1.000, %d ranks", ranks);
    cr_expect_eq(count(text, well), ranks, "%s", text);
    free(text);
    char *log = read_text(temporary_path("late.jsonl"));
    cr_expect_eq(number_of(log, "renewed", 0, "ranks"), less);
    cr_expect_eq(number_of(log, "renewed", 1, "ranks"), ranks);
    has(log, "another process was started in place of rank");
    int steps[3] = {number_of(log, "renewed", 0, "step"), number_of(log, "renewed", 1, "step"), STEPS}, sizes[3] = {ranks, less, ranks};
    cr_expect_geq(steps[1], steps[0], "the others went on from step %d to step %d", steps[0], steps[1]); /* equal where a sanitizer makes a step too slow */
    free(log);
    unsetenv("WEFT_TEST_EPOCH_US");
    snprintf(options, sizeof options, "--wire %s", wire);
    for (int i = 0; i < 3; i++) {
        free(run_job_of(sizes[i], options, "....", "saved", steps[i], temporary_path("checkpoint"), &status));
        cr_expect_eq(status, 0);
    }
    for (int rank = 0; rank < ranks; rank++) {
        char late[32], saved[32];
        snprintf(late, sizeof late, "late-%d", rank);
        snprintf(saved, sizeof saved, "saved-%d", rank);
        same_files(late, saved);
    }
}
Test(elastic, one_that_comes_late_is_taken_in_over_shm) { comes_late(4, "shm", "..l."); }
PLAIN(one_that_comes_late_is_taken_in_over_tcp) { comes_late(3, "tcp", "l.."); }
PLAIN(one_that_comes_late_is_taken_in_by_the_only_one_left) { comes_late(2, "shm", ".l"); }

/* The others are ready before it comes. */
PLAIN(one_that_comes_too_late_is_done_without) {
    int   status;
    char *text = run_job("--elastic --wait 0.3 --wire tcp", "..z.", "late", 400, &status);
    cr_expect_eq(status, 0, "%d: %s", status, text);
    cr_expect_eq(count(text, "accuracy 1.000, 3 ranks"), 3, "%s", text);
    has(text, "rank 2 was started in place of a lost one");
    has(text, "rank 2 failed with status 1 when another had ended well already");
    free(text);
}

/* --- what is refused --- */

static void refuses(const char *options, const char *words) {
    int   status;
    char *text = run_job(options, "....", "refused", 10, &status);
    cr_expect_eq(status, 2, "%s: %d", options, status);
    has(text, words);
    free(text);
}
PLAIN(wrong_options_are_refused) {
    refuses("--restarts 2", "go with --elastic");
    refuses("--least 2", "go with --elastic");
    refuses("--wait 2", "go with --elastic");
    refuses("--patience 2", "go with --elastic");
    refuses("--elastic --back-off soon", "--back-off wants seconds");
    refuses("--elastic --least 5", "more than the 4 ranks");
    refuses("--elastic --restarts -1", "--restarts wants a number");
    refuses("--elastic --least some", "--least wants a number");
    refuses("--elastic --wire mpi", "does not survive");
}

/* A process that says it is a replacement, and finds nobody, or not where to look. */
static void comes_alone(const char *environment, const char *words) {
    const char *output = temporary_path("alone"), *folder = getenv("WEFT_TEST_BIN");
    char        command[4096];
    if (!folder || !*folder) folder = WEFT_BIN_DIR;
    snprintf(command, sizeof command, "WEFT_RANK=1 WEFT_WORLD_SIZE=2 WEFT_STORE=127.0.0.1:9 WEFT_JOB=x WEFT_REJOIN=1 %s %s/train_program_elastic x y .. >%s 2>&1",
             environment, folder, output);
    cr_expect_neq(system(command), 0);
    char *text = read_text(output);
    has(text, words);
    free(text);
}
PLAIN(a_replacement_that_finds_nobody_says_so) {
    comes_alone("WEFT_DOORS=127.0.0.1:9,127.0.0.1:10", "nobody has the run's state any more");
    comes_alone("", "set WEFT_DOORS");
    comes_alone("WEFT_DOORS=127.0.0.1:9", "WEFT_DOORS lists 1 addresses, for 2 ranks");
    comes_alone("WEFT_DOORS=127.0.0.1:9,here", "here");
}

/* A small run by weft_fit whose ranks kill themselves. usage: elastic OUT LOG FATE [STEPS [CHECKPOINT]]
 * FATE has a letter for each rank: k, killed once the log tells of step 20; t, so the first two times; e, an error exit then; r, exits with an
 * error where it is a replacement, its first start being killed; d, is killed then at once; c, is so when it has come in; l, comes late then, when
 * the others have gone on; z, too late, when they have ended; s, is stopped;
 * h, its main thread hangs; H, all its threads do; x, whose replacement kills the next rank WEFT_TEST_MOMENT_US after it began to come in; y, just before it asks for
 * the run's state; . lives. Ranks write their parameters to OUT-RANK when all is done,
 * RANK being that of the world at the end, and print the accuracy. What is at CHECKPOINT is gone on from. */
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "weft.h"

enum { ROWS = 60, BATCH = 12, CLASSES = 3, WIDTH = 40 };

static const char *log_path;
static char        fate;
static pthread_t   main_thread;

static int lines_of(const char *text) {
    char  line[4096];
    int   count = 0;
    FILE *file = fopen(log_path, "r");
    while (file && fgets(line, sizeof line, file)) count += strstr(line, text) != NULL;
    if (file) fclose(file);
    return count;
}

static void hang(int number) {
    (void)number;
    for (;;) pause();
}

static void hang_all(void) {
    DIR           *threads = opendir("/proc/self/task");
    struct dirent *each;
    while (threads && (each = readdir(threads)))
        if (atoi(each->d_name) > 0 && atoi(each->d_name) != gettid()) syscall(SYS_tgkill, getpid(), atoi(each->d_name), SIGUSR1);
    hang(0);
}

static void *die_in_time(void *from) {
    int wanted = *(int *)from;
    while (lines_of("\"event\":\"step\"") < wanted) usleep(2000);
    if (fate == 'e') syscall(SYS_exit_group, 7); /* past what a sanitizer does at an exit: the main thread is in the middle of a step */
    if (fate == 's') raise(SIGSTOP);
    if (fate == 'h') pthread_kill(main_thread, SIGUSR1);
    if (fate == 'H') hang_all();
    if (fate == 'h') return NULL;
    raise(SIGKILL);
    return NULL;
}

/* Rank 0 tells of an epoch: so long it takes, where the test wants a run to last. */
static ssize_t take_time(void *context, const char *text, size_t bytes) {
    (void)text;
    usleep(*(useconds_t *)context);
    return (ssize_t)bytes;
}

static FILE *open_progress(void) {
    static useconds_t span;
    const char       *text = getenv("WEFT_TEST_EPOCH_US");
    span = text ? (useconds_t)atoi(text) : 0;
    return span ? fopencookie(&span, "w", (cookie_io_functions_t){.write = take_time}) : NULL;
}

static weft_status write_all(weft_trainer *trainer, const char *out) {
    weft_variables *variables = weft_trainer_variables(trainer);
    char            path[4096];
    snprintf(path, sizeof path, "%s-%d", out, (int)weft_world_rank(weft_trainer_world(trainer)));
    FILE       *file = fopen(path, "wb");
    weft_status status = file ? WEFT_OK : WEFT_E_IO;
    for (int32_t i = 0; i < weft_variables_count(variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        char               values[1 << 14];
        if ((status = weft_variables_info(variables, i, &info)) == WEFT_OK &&
            (status = weft_variables_get(variables, info.name, values, (size_t)info.bytes)) == WEFT_OK)
            fwrite(values, 1, (size_t)info.bytes, file);
    }
    if (file && fclose(file) != 0) status = WEFT_E_IO;
    return status;
}

/* --- another one dies when one comes in --- */

static pid_t next_rank;

static void *kill_next(void *none) {
    const char *moment = getenv("WEFT_TEST_MOMENT_US");
    usleep(moment ? (useconds_t)atoi(moment) : 0);
    kill(next_rank, SIGKILL);
    return none;
}

/* Ranks tell by a file which process they are. */
static FILE *open_number(const char *out, int rank, const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s-%d.process", out, rank);
    return fopen(path, mode);
}

static bool tell_number(const char *out, int rank) {
    FILE *file = open_number(out, rank, "w");
    return file && fprintf(file, "%d\n", (int)getpid()) > 0 && fclose(file) == 0;
}

static bool find_next(const char *out, int rank) {
    const char *size = getenv("WEFT_WORLD_SIZE");
    FILE       *file = open_number(out, (rank + 1) % (size ? atoi(size) : 1), "r");
    bool        known = file && fscanf(file, "%d", &next_rank) == 1;
    if (file) fclose(file);
    return known;
}

int main(int argc, char **argv) {
    static float   x[ROWS][CLASSES];
    static int32_t y[ROWS];
    static int     wanted;
    pthread_t      killer;
    weft_world    *world = NULL;
    weft_graph    *graph = NULL;
    weft_loader   *loader = NULL, *test = NULL;
    weft_trainer  *trainer = NULL;
    weft_status    status;
    weft_fit_result result;
    FILE           *progress = NULL;
    if (argc < 4) return 2;
    log_path = argv[2];
    const char *rank = getenv("WEFT_RANK"), *again = getenv("WEFT_REJOIN");
    int         start = again ? atoi(again) : 0;
    fate = rank && (size_t)atoi(rank) < strlen(argv[3]) ? argv[3][atoi(rank)] : '.';
    if (fate == 'r' && start > 0) return 9;
    if (fate == 'd' && start == 1) raise(SIGKILL);
    const char *until = fate == 'l' ? "\"event\":\"renewed\"" : fate == 'z' ? "\"event\":\"end\"" : NULL;
    while (until && start > 0 && lines_of(until) == 0) usleep(2000);
    bool dies = fate != '.' && (start == 0 || (fate == 't' && start == 1));
    wanted = 20 * (start + 1) + start * 30;
    main_thread = pthread_self();
    signal(SIGUSR1, hang);
    if (dies && pthread_create(&killer, NULL, die_in_time, &wanted) != 0) return 3;
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % CLASSES;
        for (int k = 0; k < CLASSES; k++) x[i][k] = (float)(k == y[i]) + 0.01f * (float)(i % 7);
    }
    const char *timeout = getenv("WEFT_TEST_TIMEOUT_MS");
    if (strpbrk(argv[3], "xy") && !tell_number(argv[1], rank ? atoi(rank) : 0)) return 5;
    bool kills = (fate == 'x' || fate == 'y') && start == 1;
    if (kills && !find_next(argv[1], atoi(rank))) return 6;
    if (kills && fate == 'x' && pthread_create(&killer, NULL, kill_next, NULL) != 0) return 3;
    if ((status = weft_world_create(&(weft_world_options){.timeout_ns = (timeout ? atoi(timeout) : 20000) * INT64_C(1000000)}, &world)) != WEFT_OK) goto done;
    if (weft_world_is_replacement(world) != (start > 0)) return 4;
    if (fate == 'c' && start == 1) raise(SIGKILL);
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 5}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, CLASSES), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .seed = 1, .epochs = -1, .rank = weft_world_rank(world), .ranks = weft_world_size(world)};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    how.epochs = 1;
    how.in_order = true;
    if ((status = weft_loader_open_arrays(fields, 2, &how, &test)) != WEFT_OK) goto done;
    weft_tensor *label = weft_input(graph, "y", WEFT_I32, weft_shape(BATCH));
    weft_tensor *h = weft_relu(weft_linear(weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, CLASSES)), "hidden", .out = WIDTH));
    weft_tensor *logits = weft_linear(weft_dropout(h, 0.1), "head", .out = CLASSES);
    weft_tensor *loss = weft_cross_entropy(logits, label);
    weft_tensor *correct = weft_sum(weft_cast(weft_eq(weft_argmax(logits, 1), weft_cast(label, WEFT_I64)), WEFT_I64));
    const char   *staleness = getenv("WEFT_TEST_SERVER"); /* by a parameter server, with replicas */
    weft_strategy strategy = staleness ? (weft_strategy){.sync = WEFT_SERVER, .staleness = atoi(staleness), .replicas = 1} : (weft_strategy){0};
    if ((status = weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_adam(0.003), .strategy = strategy}, &trainer)) != WEFT_OK) goto done;
    weft_fit_options options = {.test = test, .test_correct = correct, .log_path = log_path, .log_every = 1, .max_steps = argc > 4 ? atol(argv[4]) : 400,
                                .progress = progress = open_progress(), .checkpoint_path = argc > 5 ? argv[5] : NULL, .resume = argc > 5};
    if (kills && fate == 'y') kill(next_rank, SIGKILL);
    if ((status = weft_fit(trainer, loader, &options, &result)) != WEFT_OK) goto done;
    printf("accuracy %.3f, %d ranks\n", result.test_accuracy, (int)weft_world_size(weft_trainer_world(trainer)));
    status = write_all(trainer, argv[1]);
done:
    if (status != WEFT_OK) printf("error %s %s\n", weft_status_name(status), weft_error_message());
    fflush(stdout);
    if (progress) fclose(progress);
    weft_trainer_release(trainer);
    weft_loader_release(test);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

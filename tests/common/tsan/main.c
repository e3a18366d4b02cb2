/* Runs the tests of one program under ThreadSanitizer, each in a child process, and says which failed. Arguments are
 * parts of names: only tests whose "suite/name" has one of them run. */
#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <criterion/criterion.h>

enum { skipped = 77 };

static tsan_test  *tests;
static tsan_suite *suites;

void tsan_register(tsan_test *test) {
    test->next = tests;
    tests = test;
}

void tsan_register_suite(tsan_suite *suite) {
    suite->next = suites;
    suites = suite;
}

static const tsan_suite *suite_of(const tsan_test *test) {
    static const tsan_suite none;
    for (const tsan_suite *suite = suites; suite; suite = suite->next)
        if (strcmp(suite->name, test->suite) == 0) return suite;
    return &none;
}

void tsan_check(bool holds, const char *what, const char *file, int line, const char *format, ...) {
    if (holds) return;
    va_list arguments;
    fprintf(stderr, "%s:%d: failed: %s:", file, line, what);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(1);
}

void tsan_skip(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(skipped);
}

/* The way a child ended that is right for its test. */
static bool ended_well(const tsan_test *test, int state) {
    if (test->signal) return WIFSIGNALED(state) && WTERMSIG(state) == test->signal;
    if (!WIFEXITED(state)) return false;
    return WEXITSTATUS(state) == test->exit_code || WEXITSTATUS(state) == skipped;
}

static bool run(const tsan_test *test) {
    int   state = 0;
    pid_t child = fork();
    if (child == 0) {
        const tsan_suite *suite = suite_of(test);
        if (suite->init) suite->init();
        if (test->init) test->init();
        test->run();
        if (test->fini) test->fini();
        if (suite->fini) suite->fini();
        exit(0);
    }
    if (child < 0 || waitpid(child, &state, 0) != child) {
        perror("fork");
        return false;
    }
    bool well = ended_well(test, state);
    if (!well) fprintf(stderr, "FAILED %s/%s (wait status 0x%x)\n", test->suite, test->name, (unsigned)state);
    return well;
}

static bool chosen(const tsan_test *test, int argc, char **argv) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", test->suite, test->name);
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i])) return true;
    return argc < 2;
}

int main(int argc, char **argv) {
    int ran = 0, failed = 0;
    for (const tsan_test *test = tests; test; test = test->next) {
        if (test->disabled || !chosen(test, argc, argv)) continue;
        ran++;
        failed += !run(test);
    }
    printf("%d tests, %d failed\n", ran, failed);
    return failed > 0 || ran == 0;
}

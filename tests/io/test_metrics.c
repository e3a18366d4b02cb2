/* Metrics: exact lines, escapes, what JSON has no word for, going on after a kill, full disks; numbers in any locale. */
#include <criterion/criterion.h>
#include <errno.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/files.h"
#include "io/number.h"
#include "weft/memory.h"
#include "weft/metrics.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static void expect(const char *path, const char *contents) {
    uint8_t *bytes = read_file(path, NULL);
    cr_assert_not_null(bytes);
    cr_assert_str_eq((const char *)bytes, contents);
    free(bytes);
}

Test(metrics, writes_one_object_a_line) {
    const char   *path = scratch("m.jsonl");
    weft_metrics *metrics = NULL;
    OK(weft_metrics_open(path, false, &metrics));
    weft_metrics_text(metrics, "event", "step");
    weft_metrics_i64(metrics, "step", INT64_MIN);
    weft_metrics_f64(metrics, "loss", 0.1);
    weft_metrics_bool(metrics, "good", true);
    weft_metrics_bool(metrics, "bad", false);
    OK(weft_metrics_end_line(metrics));
    expect(path, "{\"event\":\"step\",\"step\":-9223372036854775808,\"loss\":0.1,\"good\":true,\"bad\":false}\n");
    OK(weft_metrics_end_line(metrics));
    weft_metrics_f64(metrics, "nan", NAN);
    weft_metrics_f64(metrics, "inf", INFINITY);
    weft_metrics_f64(metrics, "low", -INFINITY);
    OK(weft_metrics_end_line(metrics));
    weft_metrics_text(metrics, "a\"\\\n\t\x01\x7f/", "\xc3\xa9\xff\xe2\x82\xed\xa0\x80z");
    weft_metrics_text(metrics, "null", NULL);
    OK(weft_metrics_end_line(metrics));
    weft_metrics_text(metrics, "dropped", "x");
    weft_metrics_release(metrics);
    expect(path, "{\"event\":\"step\",\"step\":-9223372036854775808,\"loss\":0.1,\"good\":true,\"bad\":false}\n{}\n"
                 "{\"nan\":null,\"inf\":null,\"low\":null}\n"
                 "{\"a\\\"\\\\\\u000a\\u0009\\u0001\x7f/\":\"\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\","
                 "\"null\":\"\"}\n");
    weft_metrics_release(NULL);
}

Test(metrics, goes_on_behind_the_last_whole_line) {
    const char *path = scratch("m.jsonl");
    const struct {
        const char *before, *after;
    } cases[] = {{"{\"a\":1}\n", "{\"a\":1}\n{}\n"}, {"{\"a\":1}\n{\"b", "{\"a\":1}\n{}\n"}, {"{\"torn", "{}\n"}, {"", "{}\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        weft_metrics *metrics = NULL;
        write_file(path, cases[i].before, strlen(cases[i].before));
        OK(weft_metrics_open(path, true, &metrics));
        OK(weft_metrics_end_line(metrics));
        weft_metrics_release(metrics);
        expect(path, cases[i].after);
    }
    /* A torn line longer than what is looked at in one piece. */
    char *torn = malloc(20001);
    memset(torn, 'x', 20000);
    torn[20000] = 0;
    torn[10] = '\n';
    write_file(path, torn, 20000);
    weft_metrics *metrics = NULL;
    OK(weft_metrics_open(path, true, &metrics));
    OK(weft_metrics_end_line(metrics));
    weft_metrics_release(metrics);
    expect(path, "xxxxxxxxxx\n{}\n");
    free(torn);
}

Test(metrics, allocates_nothing_once_lines_repeat) {
    weft_metrics      *metrics = NULL;
    weft_memory_counts before, after;
    OK(weft_metrics_open(scratch("m.jsonl"), false, &metrics));
    for (int step = 0; step < 100; step++) {
        weft_metrics_i64(metrics, "step", step);
        weft_metrics_f64(metrics, "loss", 1.0 / (step + 3));
        OK(weft_metrics_end_line(metrics));
        if (step == 0) weft_memory_read(&before);
    }
    weft_memory_read(&after);
    cr_assert_eq(before.allocations, after.allocations);
    weft_metrics_release(metrics);
}

Test(metrics, drops_a_line_that_does_not_fit_on_the_disk) {
    const char *path = scratch("m.jsonl");
    pid_t       child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){20, 20});
        weft_metrics *metrics = NULL;
        if (weft_metrics_open(path, false, &metrics) != WEFT_OK) _exit(1);
        weft_metrics_i64(metrics, "a", 1);
        if (weft_metrics_end_line(metrics) != WEFT_OK) _exit(2);
        weft_metrics_text(metrics, "b", "far too long a text for the file");
        if (weft_metrics_end_line(metrics) == WEFT_OK || !message_has(path)) _exit(3);
        weft_metrics_i64(metrics, "c", 2);
        if (weft_metrics_end_line(metrics) != WEFT_OK) _exit(4);
        weft_metrics_release(metrics);
        _exit(0);
    }
    int state = 0;
    waitpid(child, &state, 0);
    cr_assert_eq(state, 0, "the child ended with 0x%x", (unsigned)state);
    expect(path, "{\"a\":1}\n{\"c\":2}\n");
}

typedef struct points {
    double x[8], y[8];
    int    count;
} points;

static weft_status take_point(void *context, double x, double y) {
    points *to = context;
    if (to->count == 8) return WEFT_E_STATE;
    to->x[to->count] = x;
    to->y[to->count++] = y;
    return WEFT_OK;
}

Test(metrics, are_read_back) {
    const char *path = scratch("m.jsonl"), *text =
        "{\"event\":\"start\",\"step\":0,\"loss\":9}\n"
        "{\"event\":\"step\",\"step\":1,\"loss\":0.5,\"more\":[1,{\"loss\":7,\"a\":\"]}\\\"\"}],\"t\":\"x\"}\n"
        "{ \"loss\" : 0.25 , \"x\":true, \"event\" : \"step\", \"step\": 2 }\n"
        "{\"event\":\"step\",\"step\":3,\"loss\":null}\n"
        "{\"event\":\"step\",\"step\":4}\n"
        "\n[1,2]\nnonsense\n{\"event\":\"step\",\"step\":5,\"loss\":1} x\n{}\n"
        "{\"event\":\"step\",\"step\":6,\"loss\":-1e-3}\n"
        "{\"event\":\"step\",\"step\":7,\"lo";
    points      found = {.count = 0}, all = {.count = 0}, full = {.count = 8};
    write_file(path, text, strlen(text));
    OK(weft_metrics_read(path, "step", "step", "loss", take_point, &found));
    cr_assert_eq(found.count, 3, "%d lines", found.count);
    cr_assert(found.x[0] == 1 && found.y[0] == 0.5 && found.x[1] == 2 && found.y[1] == 0.25 && found.x[2] == 6 && found.y[2] == -1e-3);
    OK(weft_metrics_read(path, NULL, "step", "loss", take_point, &all));
    cr_assert_eq(all.count, 4);
    cr_assert_eq(weft_metrics_read(path, NULL, "step", "loss", take_point, &full), WEFT_E_STATE);
    cr_assert_eq(weft_metrics_read(scratch("none"), NULL, "a", "b", take_point, &found), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_metrics_read(path, NULL, NULL, "b", take_point, &found), WEFT_E_INVALID);
    /* Every truncation is read without a fault. */
    for (size_t length = 0; length < strlen(text); length++) {
        points some = {.count = 0};
        write_file(path, text, length);
        OK(weft_metrics_read(path, "step", "step", "loss", take_point, &some));
        cr_assert_leq(some.count, 3);
    }
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0u);
}

Test(metrics, refuses_bad_paths) {
    weft_metrics *metrics = NULL;
    cr_assert_eq(weft_metrics_open("/nonexistent/m", false, &metrics), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_metrics_open("/tmp", false, &metrics), WEFT_E_IO);
    cr_assert_eq(weft_metrics_open("/dev/null", false, &metrics), WEFT_E_INVALID);
    cr_assert_eq(weft_metrics_open("", false, &metrics), WEFT_E_INVALID);
    cr_assert_null(metrics);
}

Test(number, reads_what_it_writes_to_the_last_bit) {
    const double hard[] = {0,     -0.0,       0.1,     1e22,    1e23,          123456789012345678.0, 5e-324,
                           1e-310, DBL_MAX,   DBL_MIN, 2.0 / 3, 0.30000000000000004, 1e15, 9007199254740993.0,
                           -1.5,  1234567890, 1e100,   1e-7,    INFINITY,      -INFINITY};
    char         text[wefti_number_text_bytes];
    double       back = 0;
    uint64_t     state = 1;
    for (size_t i = 0; i < 20000; i++) {
        double value;
        state = state * 6364136223846793005u + 1442695040888963407u;
        memcpy(&value, &state, sizeof value);
        if (i < sizeof hard / sizeof *hard) value = hard[i];
        if (isnan(value)) continue;
        wefti_number_to_text(value, text);
        cr_assert(wefti_number_from_text(text, strlen(text), &back) && memcmp(&back, &value, sizeof value) == 0, "%a as %s", value, text);
        wefti_number_to_hex(value, text);
        cr_assert(wefti_number_from_text(text, strlen(text), &back) && memcmp(&back, &value, sizeof value) == 0, "%a as %s", value, text);
    }
    wefti_number_to_text(0.1, text);
    cr_assert_str_eq(text, "0.1");
}

Test(number, agrees_with_the_c_library) {
    const char *const texts[] = {"1", "-1", "+1", "1.", ".5", "1e5", "1E-5", "1e+5", "0.000001", "123456.789", "1e22", "1e23",
                                 "999999999999999", "9999999999999999", "1e-400", "1e400", "0x1p3", "nan", "inf", "-Inf",
                                 "3.14159265358979323846264338327950288", "4.9e-324", "00012", "1e0000000001"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        double value = 0, expected = strtod(texts[i], NULL);
        cr_assert(wefti_number_from_text(texts[i], strlen(texts[i]), &value), "%s", texts[i]);
        cr_assert(memcmp(&value, &expected, sizeof value) == 0 || (isnan(value) && isnan(expected)), "%s: %a", texts[i], value);
    }
    const char *const bad[] = {"", " 1", "1 ", "x", "1x", "1.2.3", "1e", "1e+", "-", "+", ".", "e5", "--1", "1,5", "0x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double value;
        cr_assert_not(wefti_number_from_text(bad[i], strlen(bad[i]), &value), "'%s' is %g", bad[i], value);
    }
}

Test(number, heeds_no_locale) {
    const char *const comma[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "C.UTF-8"};
    char              text[wefti_number_text_bytes];
    double            value = 0;
    for (size_t i = 0; i < sizeof comma / sizeof *comma; i++)
        if (setlocale(LC_ALL, comma[i])) break;
    wefti_number_to_text(1.5e-7, text);
    cr_assert_str_eq(text, "1.5e-07");
    wefti_number_to_hex(1.5, text);
    cr_assert_str_eq(text, "0x1.8p+0");
    cr_assert(wefti_number_from_text("1.23456789012345678", 19, &value));
    cr_assert_eq(value, 1.23456789012345678);
}

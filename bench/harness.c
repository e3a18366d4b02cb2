/* The harness of weft-bench. A benchmark that cannot run says so and ends the program: there is nothing to clean up. */
#include "harness.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

double bench_now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* --- options --- */

static _Noreturn void refuse(const char *command, const char *what, const char *value) {
    fprintf(stderr, "error: %s: %s '%s'; see weft-bench %s --help\n", command, what, value, command);
    exit(2);
}

static bool read_size(const char *text, char **end_out, size_t *size_out) {
    double value = strtod(text, end_out);
    if (*end_out == text || !(value >= 0)) return false;
    switch (**end_out) {
    case 'k':
    case 'K': value *= 1024, ++*end_out; break;
    case 'm':
    case 'M': value *= 1024 * 1024, ++*end_out; break;
    case 'g':
    case 'G': value *= 1024 * 1024 * 1024, ++*end_out; break;
    default: break;
    }
    if (value > 1e15) return false;
    *size_out = (size_t)value;
    return true;
}

static bool read_sizes(const char *text, bench_sizes *sizes_out) {
    char *end = NULL;
    if (!read_size(text, &end, &sizes_out->first)) return false;
    sizes_out->last = sizes_out->first;
    if (*end == ':' && !read_size(end + 1, &end, &sizes_out->last)) return false;
    return *end == '\0' && sizes_out->first <= sizes_out->last;
}

static void print_help(const char *command, const char *help, const bench_option *options) {
    printf("usage: weft-bench %s [option...]\n%s\n\n", command, help);
    for (; options->name; options++) printf("  --%-12s %s\n", options->name, options->help);
    exit(0);
}

static void take(const char *command, const bench_option *option, const char *value) {
    char *end = NULL;
    switch (option->kind) {
    case BENCH_FLAG: *(bool *)option->value = true; return;
    case BENCH_TEXT: *(const char **)option->value = value; return;
    case BENCH_NUMBER:
        *(double *)option->value = strtod(value, &end);
        if (end == value || *end) refuse(command, "not a number:", value);
        return;
    case BENCH_SIZES:
        if (!read_sizes(value, option->value)) refuse(command, "not sizes (as in 8:64M):", value);
        return;
    }
}

void bench_read_options(int argc, char **argv, const char *help, const bench_option *options) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) print_help(argv[0], help, options);
        const char *name = strncmp(argv[i], "--", 2) == 0 ? argv[i] + 2 : NULL;
        const bench_option *option = options;
        size_t length = name ? strcspn(name, "=") : 0;
        while (option->name && !(name && strlen(option->name) == length && strncmp(option->name, name, length) == 0))
            option++;
        if (!option->name) refuse(argv[0], "no such option:", argv[i]);
        const char *value = name[length] == '=' ? name + length + 1 : NULL;
        if (option->kind != BENCH_FLAG && !value) {
            if (++i == argc) refuse(argv[0], "needs a value:", argv[i - 1]);
            value = argv[i];
        }
        take(argv[0], option, value);
    }
}

/* --- samples --- */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bench_spread bench_spread_of(double *samples, int count) {
    qsort(samples, (size_t)count, sizeof *samples, compare);
    return (bench_spread){samples[count / 2], samples[0], samples[count - 1], count};
}

bench_spread bench_spread_times(bench_spread spread, double factor) {
    return (bench_spread){spread.median * factor, spread.low * factor, spread.high * factor, spread.runs};
}

bench_spread bench_spread_over(bench_spread spread, double factor) {
    return (bench_spread){factor / spread.median, factor / spread.high, factor / spread.low, spread.runs};
}

/* --- records --- */

void bench_size_text(size_t bytes, char *text_out, size_t text_bytes) {
    const char *unit = "";
    if (bytes >= (size_t)1 << 30 && bytes % ((size_t)1 << 30) == 0)
        bytes >>= 30, unit = "G";
    else if (bytes >= (size_t)1 << 20 && bytes % ((size_t)1 << 20) == 0)
        bytes >>= 20, unit = "M";
    else if (bytes >= (size_t)1 << 10 && bytes % ((size_t)1 << 10) == 0)
        bytes >>= 10, unit = "K";
    snprintf(text_out, text_bytes, "%zu%s", bytes, unit);
}

FILE *bench_open_json(const char *path) {
    if (!path) return NULL;
    FILE *file = fopen(path, "w");
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

/* JSON has no word for a number that is none. */
static void write_number(FILE *file, const char *name, double value) {
    if (isnan(value)) fprintf(file, ", \"%s\": \"unmeasured\"", name);
    else fprintf(file, ", \"%s\": %.6g", name, value);
}

void bench_write(FILE *file, const bench_record *record) {
    if (!file) return;
    fprintf(file, "{\"bench\": \"%s\", \"case\": \"%s\", \"metric\": \"%s\", \"unit\": \"%s\"", record->bench, record->what, record->metric, record->unit);
    write_number(file, "median", record->spread.median);
    write_number(file, "low", record->spread.low);
    write_number(file, "high", record->spread.high);
    fprintf(file, ", \"runs\": %d", record->spread.runs);
    write_number(file, "limit", record->limit);
    if (record->extra) fprintf(file, ", %s", record->extra);
    fprintf(file, "}\n");
    fflush(file);
}

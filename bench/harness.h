/* What all benchmarks share: options, samples and their spread, the table on the screen, and the JSON lines. */
#ifndef WEFT_BENCH_HARNESS_H
#define WEFT_BENCH_HARNESS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* --- commands: one line each in main.c --- */

typedef struct bench_command {
    const char *name, *help;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; gives the exit status */
} bench_command;

/* --- options ---
 * `--name value` or `--name=value`, and flags. */

typedef struct bench_option {
    const char *name, *help;
    enum { BENCH_TEXT, BENCH_NUMBER, BENCH_SIZES, BENCH_FLAG } kind;
    void *value; /* const char **, double *, bench_sizes *, bool * */
} bench_option;
/* From `first` to `last`, by doubling: "8:64M", or one size. */
typedef struct bench_sizes {
    size_t first, last;
} bench_sizes;
/* Reads argv; prints the help (and exits with 0), or what is wrong (and exits with 2). `options` end with a NULL name.
 */
void bench_read_options(int argc, char **argv, const char *help, const bench_option *options);

/* --- samples --- */

#define BENCH_UNMEASURED ((double)NAN)
typedef struct bench_spread {
    double median, low, high;
    int runs;
} bench_spread;
/* Sorts the samples. */
bench_spread bench_spread_of(double *samples, int count);
/* factor · s, or factor / s, of each. */
bench_spread bench_spread_times(bench_spread spread, double factor);
bench_spread bench_spread_over(bench_spread spread, double factor);
double bench_now_s(void);

/* --- records --- */

typedef struct bench_record {
    const char *bench, *what, *metric, *unit; /* what: the case */
    bench_spread spread;
    double limit;      /* in the same unit; BENCH_UNMEASURED: none */
    const char *extra; /* more members, as `"algorithm": "ring"`; NULL: none */
} bench_record;
/* Appends one line to the JSON file; nothing where `file` is NULL. What is BENCH_UNMEASURED says so. */
void bench_write(FILE *file, const bench_record *record);
/* Opens what --json names; NULL for a NULL name. Exits where it cannot. */
FILE *bench_open_json(const char *path);
/* "64M", "8". */
void bench_size_text(size_t bytes, char *text_out, size_t text_bytes);

#endif

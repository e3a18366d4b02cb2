/* Starting programs under weftrun from a test, and reading what they leave. */
#ifndef TESTS_TRAIN_RUN_H
#define TESTS_TRAIN_RUN_H

#include <stddef.h>

/* Runs `weftrun -n ranks [--wire wire] program arguments` (alone, without weftrun, where ranks is 0) with one thread a rank and
 * gives its exit status; output goes to `output_path`, or nowhere. */
int run_ranks(int ranks, const char *wire, const char *program, const char *arguments, const char *output_path);
/* A fresh path in a temporary folder that lives as long as the test; valid until the process ends. */
const char *temporary_path(const char *name);
/* The doubles of a file; the count in *count_out. Ends the test where there are none. Free with free. */
double *read_doubles(const char *path, size_t *count_out);
/* The text of a file, NUL-terminated; "" where there is none. Free with free. */
char *read_text(const char *path);

#endif

/* Helpers of the file tests: a folder that goes away, small files, and damage done to them. */
#ifndef TESTS_COMMON_FILES_H
#define TESTS_COMMON_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where files of tests go: TMPDIR, as scripts/test.sh has it (in memory: what is synchronised to a slow disk takes most of a test's time),
 * /tmp where that is not set or too long for a test's paths. */
const char *temporary_root(void);
/* A path in a folder of this process's own, removed at exit; up to eight are alive at a time. */
const char *scratch(const char *name);
void        write_file(const char *path, const void *bytes, size_t count);
/* The file's bytes, malloc'd, with a NUL behind them. */
uint8_t *read_file(const char *path, size_t *count_out);
/* True where the file is there. */
bool exists(const char *path);
/* Files in the scratch folder, hidden ones too. */
int scratch_files(void);
/* True where the message of the latest error has `part` in it. */
bool message_has(const char *part);

#endif

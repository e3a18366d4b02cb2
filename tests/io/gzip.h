#ifndef TESTS_IO_GZIP_H
#define TESTS_IO_GZIP_H

#include <stdbool.h>
#include <stddef.h>

/* Compresses to a gzip file (all in one member); false in a build without zlib. */
bool gzip_file(const char *path, const void *bytes, size_t count);

#endif

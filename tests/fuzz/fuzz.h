/* What fuzz targets share: a file of the given bytes that needs no disk. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* The entry point that libFuzzer and replay.c call. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A path to a file with these bytes, until the next call. */
static inline const char *fuzz_path(const uint8_t *data, size_t size) {
    static char path[64];
    static int  descriptor = -1;
    if (descriptor >= 0) close(descriptor);
    descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    if (descriptor < 0 || (size > 0 && write(descriptor, data, size) != (ssize_t)size)) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return path;
}

#endif

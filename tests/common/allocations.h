/* Counts every way to memory: malloc and its relatives, mmap and mremap, and threads, which bring stacks. The calls are wrapped at link
 * time (weft_count_allocations in tests/CMakeLists.txt), so this is included by one source of a program that is linked so. What the
 * C library takes by itself is not seen. */
#ifndef TESTS_COMMON_ALLOCATIONS_H
#define TESTS_COMMON_ALLOCATIONS_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

static atomic_long allocation_calls;

/* TAKES(result, name, parameters, arguments): the wrapper counts and hands on. */
#define TAKES(result, name, parameters, arguments) \
    result __real_##name parameters;               \
    result __wrap_##name parameters;               \
    result __wrap_##name parameters {              \
        allocation_calls++;                        \
        return __real_##name arguments;            \
    }
TAKES(void *, malloc, (size_t bytes), (bytes))
TAKES(void *, calloc, (size_t n, size_t bytes), (n, bytes))
TAKES(void *, realloc, (void *memory, size_t bytes), (memory, bytes))
TAKES(void *, aligned_alloc, (size_t alignment, size_t bytes), (alignment, bytes))
TAKES(void *, memalign, (size_t alignment, size_t bytes), (alignment, bytes))
TAKES(int, posix_memalign, (void **memory, size_t alignment, size_t bytes), (memory, alignment, bytes))
TAKES(void *, mmap, (void *at, size_t bytes, int protection, int flags, int fd, off_t offset), (at, bytes, protection, flags, fd, offset))
TAKES(int, pthread_create, (pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument),
      (thread, attributes, run, argument))
#undef TAKES

void *__real_mremap(void *at, size_t old_bytes, size_t bytes, int flags, ...);
void *__wrap_mremap(void *at, size_t old_bytes, size_t bytes, int flags, ...);
void *__wrap_mremap(void *at, size_t old_bytes, size_t bytes, int flags, ...) {
    allocation_calls++;
    va_list rest;
    va_start(rest, flags);
    void *fixed = flags & MREMAP_FIXED ? va_arg(rest, void *) : NULL;
    va_end(rest);
    return __real_mremap(at, old_bytes, bytes, flags, fixed);
}

#endif

/* What every room may use: errors, memory, checked sizes, log, small macros.
 *
 * Errors: the function that decides an error calls `wefti_fail` once, which formats the thread's message and gives
 * the status back; callers hand it on with WEFTI_TRY, and may put "while doing X: " before it with `wefti_while`. */
#ifndef WEFTI_BASE_H
#define WEFTI_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/log.h"
#include "weft/memory.h"
#include "weft/status.h"

#define WEFTI_MESSAGE_BYTES 1024
#define WEFTI_CACHE_LINE 64
#define WEFTI_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WEFTI_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))

#define WEFTI_TRY(call)                                      \
    do {                                                     \
        weft_status wefti_try_status = (call);               \
        if (wefti_try_status != WEFT_OK) return wefti_try_status; \
    } while (0)
/* As WEFTI_TRY, for functions with a clean-up label: `status` is the local that they return. */
#define WEFTI_TRY_GOTO(call, label)                 \
    do {                                            \
        if ((status = (call)) != WEFT_OK) goto label; \
    } while (0)

/* Sets this thread's message and returns `status`. Never allocates. */
weft_status wefti_fail(weft_status status, const char *format, ...) WEFTI_PRINTF(2, 3);
/* As wefti_fail with WEFT_E_IO (or E_NOT_FOUND, E_NO_SPACE, E_NO_MEMORY where errno says so) and strerror(errno). */
weft_status wefti_fail_errno(const char *format, ...) WEFTI_PRINTF(1, 2);
/* Puts "<formatted>: " before the current message; returns `status` as it was. */
weft_status wefti_while(weft_status status, const char *format, ...) WEFTI_PRINTF(2, 3);

/* Allocates `size_bytes` zeroed bytes, aligned to a cache line; on failure WEFT_E_NO_MEMORY naming `what` and the
 * bytes. A size of 0 gives a valid pointer. Free with wefti_free and the same size. */
WEFT_MUST_CHECK weft_status wefti_alloc(size_t size_bytes, const char *what, void *memory_out);
/* As wefti_alloc without zeroing and with an alignment of at least a cache line (a power of two). */
WEFT_MUST_CHECK weft_status wefti_alloc_raw(size_t size_bytes, size_t alignment_bytes, const char *what, void *memory_out);
/* Grows an array by copying: *memory goes from old_bytes to new_bytes, new bytes zeroed. Left alone on failure. */
WEFT_MUST_CHECK weft_status wefti_grow(void *memory, size_t old_bytes, size_t new_bytes, const char *what);
void wefti_free(void *memory, size_t size_bytes);
/* A heap copy of a string; free with wefti_free_string. NULL gives NULL. */
WEFT_MUST_CHECK weft_status wefti_copy_string(const char *text, char **copy_out);
void wefti_free_string(char *text);

/* Checked arithmetic: false on overflow, *out untouched. */
static inline bool wefti_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool wefti_add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool wefti_mul_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool wefti_add_i64(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline size_t wefti_align_up(size_t value, size_t alignment) { return (value + alignment - 1) & ~(alignment - 1); }
static inline int64_t wefti_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t wefti_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/* FNV-1a of 64 bits (Fowler, Noll & Vo), begun with WEFTI_HASH_BEGIN: tells names and programs apart, proves nothing. */
#define WEFTI_HASH_BEGIN UINT64_C(14695981039346656037)
static inline uint64_t wefti_hash(uint64_t hash, const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * UINT64_C(1099511628211);
    return hash;
}

void wefti_log(weft_log_level level, const char *format, ...) WEFTI_PRINTF(2, 3);

/* Text that grows: for descriptions, JSON and the like. Errors latch (`failed`), so calls need no check each. */
typedef struct wefti_text {
    char  *bytes;   /* NUL-terminated once anything was added; NULL before */
    size_t length;  /* without the NUL */
    size_t capacity;
    bool   failed;  /* out of memory at some point; the text is cut there */
} wefti_text;
void wefti_text_add(wefti_text *text, const char *format, ...) WEFTI_PRINTF(2, 3);
void wefti_text_release(wefti_text *text);

#endif

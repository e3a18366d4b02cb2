/* Statuses and error messages.
 *
 * Every fallible function returns a `weft_status` that must be looked at. The function that decides an error also
 * writes one message, kept per thread: what failed, the names and shapes, the rank or peer, and what to do about it.
 * The library never exits, aborts or prints on its own. */
#ifndef WEFT_STATUS_H
#define WEFT_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define WEFT_MUST_CHECK __attribute__((warn_unused_result))
#else
#define WEFT_MUST_CHECK
#endif

typedef enum weft_status {
#define WEFTI_STATUS(name, group, text) WEFT_##name,
#include "weft/status.def"
#undef WEFTI_STATUS
    WEFT_STATUS_COUNT
} weft_status;

/* What is broken, and so what a caller can do. */
typedef enum weft_status_group {
    WEFT_GROUP_CALL,   /* the call: fix the program */
    WEFT_GROUP_DATA,   /* a file or value: fix the input */
    WEFT_GROUP_DEVICE, /* memory or a device: use less, or another one */
    WEFT_GROUP_LINK,   /* a connection: retry */
    WEFT_GROUP_PEER,   /* another rank: go on without it */
    WEFT_GROUP_GROUP   /* the whole group: stop or restart */
} weft_status_group;

/* The status's constant name, as in "WEFT_E_SHAPE". Static storage; never NULL. Thread-safe, does not block. */
const char *weft_status_name(weft_status status);

/* A few plain words for the status. Static storage; never NULL. Thread-safe, does not block. */
const char *weft_status_text(weft_status status);

/* The group of the status. Thread-safe, does not block. */
weft_status_group weft_status_group_of(weft_status status);

/* The message of the latest Weft call on the calling thread that returned an error. Owned by the library; valid until
 * the next Weft call on this thread that fails. Never NULL; empty where nothing failed yet. */
const char *weft_error_message(void);

#ifdef __cplusplus
}
#endif
#endif

/* Statuses and the per-thread message. The message lives in thread-local storage of fixed size, so that reporting an
 * error never allocates and never fails. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/base.h"

static _Thread_local char message[WEFTI_MESSAGE_BYTES];

typedef struct status_row {
    const char       *name;
    const char       *text;
    weft_status_group group;
} status_row;

static const status_row rows[WEFT_STATUS_COUNT] = {
#define WEFTI_STATUS(name, group, text) [WEFT_##name] = {"WEFT_" #name, text, WEFT_GROUP_##group},
#include "weft/status.def"
#undef WEFTI_STATUS
};

static bool known(weft_status status) { return (unsigned)status < WEFT_STATUS_COUNT; }

const char *weft_status_name(weft_status status) { return known(status) ? rows[status].name : "WEFT_(unknown status)"; }
const char *weft_status_text(weft_status status) { return known(status) ? rows[status].text : "unknown status"; }
weft_status_group weft_status_group_of(weft_status status) { return known(status) ? rows[status].group : WEFT_GROUP_CALL; }
const char *weft_error_message(void) { return message; }

weft_status wefti_fail(weft_status status, const char *format, ...) {
    /* Formatted aside first: an argument may be the current message itself. */
    char    fresh[WEFTI_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    memcpy(message, fresh, sizeof message);
    return status;
}

static weft_status status_of_errno(int error) {
    switch (error) {
    case ENOENT: return WEFT_E_NOT_FOUND;
    case ENOSPC:
    case EDQUOT: return WEFT_E_NO_SPACE;
    case ENOMEM: return WEFT_E_NO_MEMORY;
    default: return WEFT_E_IO;
    }
}

weft_status wefti_fail_errno(const char *format, ...) {
    int     error = errno;
    char    fresh[WEFTI_MESSAGE_BYTES];
    char    reason_buffer[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    const char *reason = strerror_r(error, reason_buffer, sizeof reason_buffer);
    return wefti_fail(status_of_errno(error), "%.800s: %s", fresh, reason);
}

weft_status wefti_while(weft_status status, const char *format, ...) {
    char    fresh[WEFTI_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    if (length < 0) return status;
    size_t used = (size_t)length < sizeof fresh ? (size_t)length : sizeof fresh - 1;
    snprintf(fresh + used, sizeof fresh - used, ": %s", message);
    memcpy(message, fresh, sizeof message);
    return status;
}

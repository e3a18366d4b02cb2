/* Worlds of real processes with a parameter server, for the tests of this room. */
#ifndef WEFT_TESTS_SERVER_SERVING_H
#define WEFT_TESTS_SERVER_SERVING_H

#include <string.h>

#include "weft.h"
#include "transport/ranks.h"

#define EXPECT(condition, ...)                                                                               \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            char what[300];                                                                                  \
            snprintf(what, sizeof what, __VA_ARGS__);                                                        \
            return wefti_fail(WEFT_E_INTERNAL, "line %d: %s: %s", __LINE__, #condition, what);               \
        }                                                                                                    \
    } while (0)
/* A call that has to be refused, with a message that has `part` in it. */
#define REFUSED(call, wanted, part)                                                                          \
    do {                                                                                                     \
        weft_status got_ = (call);                                                                           \
        EXPECT(got_ == (wanted), "%s: %.200s", weft_status_name(got_), weft_error_message());                \
        EXPECT(strstr(weft_error_message(), part), "%.250s", weft_error_message());                          \
    } while (0)

/* One rank of a case. */
typedef struct serving {
    ranks       *all;
    int32_t      rank, workers;
    weft_world  *world;
    weft_server *server;
} serving;
typedef weft_status (*serving_case)(serving *self);

/* Runs the case on every worker; ranks that only serve do that. Every rank that ends at all has to end well. */
void serve_case(const char *wire, int32_t size, const weft_server_options *options, serving_case function);
/* The same where the ranks of `lost` (bits) may end as they like; gives the results to whoever wants to look: release them. */
ranks *serve_case_with(const char *wire, int32_t size, const weft_server_options *options, serving_case function, uint32_t lost);
/* Workers meet: all have come before any goes on. */
weft_status serving_meet(serving *self);

#endif

/* A group whose other ranks are imagined: every other member gives what this one gives, plus its index distance for gathers. Operations
 * end after a number of looks at them, in any order; the test reads what was asked of it. */
#ifndef PLAN_FAKE_GROUP_H
#define PLAN_FAKE_GROUP_H

#include "core/iface/collective.h"

enum { FAKE_MOST = 64 };
typedef struct fake_group fake_group;
typedef struct fake_operation {
    wefti_collective      base;
    wefti_collective_call call;
    int32_t               looks; /* left until it ends */
    bool                  in_flight;
    fake_group           *owner;
} fake_operation;

struct fake_group {
    wefti_group    base;
    fake_operation operation[FAKE_MOST];
    int32_t        delay;       /* looks that an operation takes */
    int32_t        most;        /* in flight at once */
    int32_t        n_in_flight, most_in_flight, n_started;
    int32_t        fail_at;     /* the operation that fails, from 0; -1: none */
    float          sent;        /* the sum of all elements of messages of f32 to other members */
    int32_t        received[8]; /* messages from each member that have come */
    wefti_collective_call started[256];
};

void fake_group_open(fake_group *group, int32_t size, int32_t index);
void fake_group_close(fake_group *group);

#endif

/* A group whose reductions go by way of a parameter server, and so outlive ranks that die: what a plan reduces over ranks, and what ranks agree on, in
 * training by a server (meeting.c). */
#ifndef WEFTI_SERVER_MEETING_H
#define WEFTI_SERVER_MEETING_H

#include <string.h>

#include "core/iface/collective.h"
#include "weft/server.h"

/* Its tables are of this rule, which the server's options have to name; they are in no snapshot. */
#define WEFTI_MEETING_PREFIX "weft.meeting."
extern const weft_table_function wefti_meeting_rule;
static inline bool wefti_meeting_owns(const char *table) { return strncmp(table, WEFTI_MEETING_PREFIX, sizeof WEFTI_MEETING_PREFIX - 1) == 0; }

/* ALLREDUCE by SUM, AVG, MIN and MAX of numbers in host memory; all else is `over`'s, and ends as that does. Each rank of the server's world is a worker. Nothing is
 * sent. `over` outlives it. */
WEFT_MUST_CHECK weft_status wefti_meeting_open(weft_server *server, wefti_group *over, wefti_group **group_out);
/* After the server was released. NULL is fine. */
void wefti_meeting_close(wefti_group *group);
/* Before another split of the server, which goes on: its tables there stay as they are. */
void wefti_meeting_leave(wefti_group *group);
/* How many took part in the reduction that ended last: all, at first. The same on all who are there. */
int32_t wefti_meeting_members(const wefti_group *group);

#endif

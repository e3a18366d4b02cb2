/* What the launcher of an elastic job and its ranks say to each other, of ranks that are lost.
 *
 * WEFT_GONE_FD is a file with two bytes for each rank: the first is not 0 once nobody will be started in its place any more, so that nobody waits for
 * it; the second counts its starts, so that what is said of one process is not taken for another one's.
 * WEFT_FENCE_FD is a socket of messages, by which the launcher is asked to end a process that lives and does not come: the asker's rank and start and
 * the other's, as four numbers of text. The launcher judges between two who ask for each other's end: whom it ends, it hears no more. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/transport_inside.h"

enum { BYTES_EACH = 2, GONE = 0, STARTS = 1 };

/* A descriptor that the environment names, of the kind that it is to be; -1. It is not for this rank's own children. */
static int find_descriptor(const transport_inside *lost, const char *name, mode_t kind) {
    const char *text = lost->network ? NULL : getenv(name);
    char       *end = NULL;
    struct stat what;
    long        file = text && *text ? strtol(text, &end, 10) : -1;
    if (file < 0 || file > 1 << 20 || *end || fstat((int)file, &what) != 0 || (what.st_mode & S_IFMT) != kind) return -1;
    fcntl((int)file, F_SETFD, FD_CLOEXEC);
    return (int)file;
}

bool wefti_transport_is_gone(void *context, int32_t seat) {
    char gone = 0;
    int  file = find_descriptor(context, "WEFT_GONE_FD", S_IFREG);
    return file >= 0 && pread(file, &gone, 1, (off_t)seat * BYTES_EACH + GONE) == 1 && gone;
}

static bool read_starts(int file, int32_t seat, uint8_t *starts_out) {
    return pread(file, starts_out, 1, (off_t)seat * BYTES_EACH + STARTS) == 1;
}

weft_status wefti_transport_note_starts(transport_inside *lost) {
    int  file = find_descriptor(lost, "WEFT_GONE_FD", S_IFREG);
    bool simulated = lost->network && lost->network->fence; /* which tells one process from the next by itself */
    bool can = simulated || (file >= 0 && find_descriptor(lost, "WEFT_FENCE_FD", S_IFSOCK) >= 0);
    if (!can) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)lost->seats, "starts of ranks", &lost->going.starts));
    for (int32_t seat = 0; seat < lost->seats && can && !simulated; seat++) can = read_starts(file, seat, &lost->going.starts[seat]);
    if (!can) wefti_transport_forget_starts(lost);
    return WEFT_OK;
}

void wefti_transport_forget_starts(transport_inside *lost) {
    wefti_free(lost->going.starts, (size_t)lost->seats);
    lost->going.starts = NULL;
}

void wefti_transport_fence(void *context, int32_t seat) {
    const transport_inside *lost = context;
    if (lost->network) {
        lost->network->fence(lost->network->context, seat);
        return;
    }
    const uint8_t          *starts = lost->going.starts;
    int                     launcher = find_descriptor(lost, "WEFT_FENCE_FD", S_IFSOCK);
    char                    request[64];
    int length = snprintf(request, sizeof request, "%d %d %d %d", (int)lost->seat, starts[lost->seat], (int)seat, starts[seat]);
    /* Where it is not heard, all is as without a launcher. */
    if (launcher >= 0) (void)!send(launcher, request, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL);
}

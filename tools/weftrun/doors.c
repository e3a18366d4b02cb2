/* Doors of elastic ranks (weft/world.h): ports that outlive the processes that listen there. */
#include "weftrun.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DOOR_BYTES = 24 }; /* "127.0.0.1:65535," */

/* The flag lets a rank listen at the same port, as long as nobody does. */
static int hold_port(int *port_out) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0 &&
        getsockname(fd, (struct sockaddr *)&name, &length) == 0) {
        *port_out = ntohs(name.sin_port);
        return fd;
    }
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static bool open_gone(int ranks, int *gone_out) {
    char text[16];
    *gone_out = memfd_create("weftrun-gone", 0);
    if (*gone_out < 0 || ftruncate(*gone_out, ranks) != 0) {
        weftrun_complain("cannot make a file for --elastic: %s", strerror(errno));
        return false;
    }
    snprintf(text, sizeof text, "%d", *gone_out);
    return setenv("WEFT_GONE_FD", text, 1) == 0;
}

bool weftrun_hold_doors(int ranks, int *holders_out, int *gone_out) {
    char *list = calloc((size_t)ranks, DOOR_BYTES);
    size_t used = 0;
    for (int rank = 0; rank < ranks && list; ++rank) {
        int port = 0;
        holders_out[rank] = hold_port(&port);
        if (holders_out[rank] < 0) {
            weftrun_complain("rank %d: cannot hold a port for --elastic: %s", rank, strerror(errno));
            free(list);
            return false;
        }
        used += (size_t)snprintf(list + used, DOOR_BYTES, "%s127.0.0.1:%d", rank ? "," : "", port);
    }
    bool set = list && setenv("WEFT_DOORS", list, 1) == 0;
    if (!set) weftrun_complain("no memory for the addresses of %d ranks", ranks);
    free(list);
    return set && open_gone(ranks, gone_out);
}

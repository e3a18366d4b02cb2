/* What elastic ranks and the launcher need of each other (weft/world.h): ports that outlive the processes that listen there, who is gone for good,
 * and who is to be ended.
 *
 * Two parts of a job may each ask for the other's end. The requests come in one order, and whoever was ended asks for nothing any more, so one of them
 * goes on. A request tells which start of either process it means: one that has died meanwhile is not taken for the next one in its place. */
#include "weftrun.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DOOR_BYTES = 24 /* "127.0.0.1:65535," */, BYTES_EACH = 2, GONE = 0, STARTS = 1 };

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

static bool hold_doors(int ranks, int *holders) {
    char *list = calloc((size_t)ranks, DOOR_BYTES);
    size_t used = 0;
    for (int rank = 0; rank < ranks && list; ++rank) {
        int port = 0;
        holders[rank] = hold_port(&port);
        if (holders[rank] < 0) {
            weftrun_complain("rank %d: cannot hold a port for --elastic: %s", rank, strerror(errno));
            free(list);
            return false;
        }
        used += (size_t)snprintf(list + used, DOOR_BYTES, "%s127.0.0.1:%d", rank ? "," : "", port);
    }
    bool set = list && setenv("WEFT_DOORS", list, 1) == 0;
    if (!set) weftrun_complain("no memory for the addresses of %d ranks", ranks);
    free(list);
    return set;
}

static bool name_descriptor(const char *name, int fd) {
    char text[16];
    snprintf(text, sizeof text, "%d", fd);
    return setenv(name, text, 1) == 0;
}

bool weftrun_elastic_open(int ranks, weftrun_elastic *elastic_out) {
    *elastic_out = (weftrun_elastic){.gone_fd = -1, .fence_fds = {-1, -1}};
    elastic_out->holders = calloc((size_t)ranks, sizeof *elastic_out->holders);
    elastic_out->fenced = calloc((size_t)ranks, 1);
    if (!elastic_out->holders || !elastic_out->fenced) {
        weftrun_complain("no memory for %d ranks", ranks);
        return false;
    }
    if (!hold_doors(ranks, elastic_out->holders)) return false;
    elastic_out->gone_fd = memfd_create("weftrun-gone", 0);
    if (elastic_out->gone_fd < 0 || ftruncate(elastic_out->gone_fd, (off_t)ranks * BYTES_EACH) != 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, elastic_out->fence_fds) != 0 ||
        fcntl(elastic_out->fence_fds[1], F_SETFD, 0) != 0 || !name_descriptor("WEFT_GONE_FD", elastic_out->gone_fd) ||
        !name_descriptor("WEFT_FENCE_FD", elastic_out->fence_fds[1])) {
        weftrun_complain("cannot make what --elastic needs: %s", strerror(errno));
        return false;
    }
    return true;
}

void weftrun_elastic_close(weftrun_elastic *elastic) {
    free(elastic->holders); /* its sockets end with us */
    free(elastic->fenced);
    elastic->holders = NULL;
    elastic->fenced = NULL;
}

static void tell(const weftrun_elastic *elastic, int rank, int which, unsigned char value) {
    ssize_t told = pwrite(elastic->gone_fd, &value, 1, (off_t)rank * BYTES_EACH + which);
    (void)told; /* without it they wait for it in vain, or leave it as it is */
}

void weftrun_elastic_gone(const weftrun_elastic *elastic, int rank) { tell(elastic, rank, GONE, 1); }

void weftrun_elastic_started(weftrun_elastic *elastic, int rank, int starts) {
    elastic->fenced[rank] = 0;
    tell(elastic, rank, STARTS, (unsigned char)starts);
}

bool weftrun_elastic_fence(weftrun_elastic *elastic, int ranks, const int *starts, const pid_t *pids, int *rank_out, int *asker_out) {
    char text[64];
    ssize_t got;
    while ((got = recv(elastic->fence_fds[0], text, sizeof text - 1, 0)) > 0) {
        int from, from_start, of, of_start;
        text[got] = '\0';
        if (sscanf(text, "%d %d %d %d", &from, &from_start, &of, &of_start) != 4) continue;
        if (from < 0 || from >= ranks || of < 0 || of >= ranks || from == of) continue;
        bool lives = pids[from] > 0 && pids[of] > 0 && (unsigned char)starts[from] == from_start && (unsigned char)starts[of] == of_start;
        if (!lives || elastic->fenced[from] || elastic->fenced[of]) continue;
        elastic->fenced[of] = 1;
        *rank_out = of;
        *asker_out = from;
        return true;
    }
    return false;
}

/* The MPI wire: noticing that a process has ended. MPI does not say so, but the kernel does for processes of this host: each is
 * watched by a descriptor of its own (pidfd), and asked for by its id where the kernel has none. Of other hosts the
 * control channel knows. What a process sent before its end is still taken, for a moment. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/wire_mpi.h"

#define LOOK_NS (5 * WEFTI_MILLISECOND_NS)
#define LAST_WORDS_NS (50 * WEFTI_MILLISECOND_NS)

/* A number for where process ids mean the same: one kernel, one name space. */
static uint64_t watch_place(void) {
    char        boot[64] = "";
    struct stat space = {0};
    FILE       *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) {
        if (!fgets(boot, sizeof boot, file)) boot[0] = 0;
        fclose(file);
    }
    if (stat("/proc/self/ns/pid", &space) != 0) space.st_ino = 0;
    return wefti_hash(wefti_hash(WEFTI_HASH_BEGIN, boot, strlen(boot)), &space.st_ino, sizeof space.st_ino);
}

/* When a process began, in the kernel's ticks; 0 where it is not known. Tells a process from a later one of the same id. */
static uint64_t begin_of(int64_t pid) {
    char path[48], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    const char *at = strrchr(text, ')'); /* the name before it may hold anything */
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

void wefti_mpiw_describe_self(mpiw_address *address) {
    address->host = watch_place();
    address->pid = getpid();
    address->born = begin_of(address->pid);
}

void wefti_mpiw_watch(mpiw_wire *wire, int32_t peer, const mpiw_address *address) {
    mpiw_link *link = &wire->links[peer];
    if (address->host != watch_place() || address->pid <= 0 || address->pid > INT32_MAX) return;
    link->pid = address->pid;
    link->watch = (int)syscall(SYS_pidfd_open, (pid_t)address->pid, 0);
    if (begin_of(address->pid) != address->born || (link->watch < 0 && errno == ESRCH)) link->died = wire->ending = true;
    if (link->watch < 0) return; /* an older kernel: asked for by its id */
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
    if (epoll_ctl(wire->watcher, EPOLL_CTL_ADD, link->watch, &event) == 0) return;
    close(link->watch);
    link->watch = -1;
}

static void look_at_processes(mpiw_wire *wire) {
    struct epoll_event events[16];
    int                count = epoll_wait(wire->watcher, events, 16, 0);
    for (int i = 0; i < count; i++) {
        mpiw_link *link = &wire->links[events[i].data.u32];
        epoll_ctl(wire->watcher, EPOLL_CTL_DEL, link->watch, NULL);
        link->died = wire->ending = true;
    }
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        mpiw_link *link = &wire->links[peer];
        if (link->pid && link->watch < 0 && !link->died && kill((pid_t)link->pid, 0) != 0 && errno == ESRCH)
            link->died = wire->ending = true;
    }
}

static bool has_transfers_in(const mpiw_wire *wire, int32_t peer) {
    for (const mpiw_in *in = wire->ins; in; in = in->next)
        if (in->peer == peer) return true;
    return false;
}

void wefti_mpiw_look_for_ends(mpiw_wire *wire, uint64_t now_ns) {
    if (now_ns - wire->watched_ns >= LOOK_NS) {
        wire->watched_ns = now_ns;
        look_at_processes(wire);
    }
    if (!wire->ending) return;
    wire->ending = false;
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) {
        mpiw_link *link = &wire->links[peer];
        bool       open = link->state == WEFTI_LINK_UP || link->state == WEFTI_LINK_CONNECTING;
        if (!open || (!link->heard_bye && !link->died)) continue;
        if (link->until_ns == 0) link->until_ns = now_ns + LAST_WORDS_NS;
        if (link->heard_bye && (!has_transfers_in(wire, peer) || now_ns >= link->until_ns))
            wefti_mpiw_link_end(wire, peer, WEFTI_LINK_LEFT, "it has left");
        else if (!link->heard_bye && now_ns >= link->until_ns)
            wefti_mpiw_link_end(wire, peer, WEFTI_LINK_DOWN, "its process has ended");
        else
            wire->ending = true;
    }
}

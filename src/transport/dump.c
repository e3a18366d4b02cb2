/* What every rank has been doing, on demand: by a call, or by a signal that the program has asked for.
 *
 * A handler may do next to nothing, so it only rings an eventfd for each world that listens to its signal; the control thread writes the
 * text. The handlers are the one thing here that belongs to the process and not to a world: a table of a few bells, under a lock where it
 * changes, read without one by the handler. A bell's eventfd stays open for its next owner: a handler that has just seen the bell could
 * otherwise write into whatever has the number by then. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/iface/world.h"
#include "transport/transport.h"

enum { MOST_BELLS = 16 };
#define ANSWER_NS WEFTI_SECOND_NS

typedef struct bell {
    _Atomic int      fd, number; /* number 0: free */
    bool             has_fd;
    const void      *owner;      /* a transport */
    struct sigaction before;     /* what the signal did when the first bell on it was hung */
} bell;

static bell            bells[MOST_BELLS];
static pthread_mutex_t bells_lock = PTHREAD_MUTEX_INITIALIZER;

static void ring(int number) {
    int saved = errno;
    for (int i = 0; i < MOST_BELLS; i++) {
        uint64_t one = 1;
        if (atomic_load(&bells[i].number) != number) continue;
        ssize_t ignored = write(atomic_load(&bells[i].fd), &one, sizeof one);
        (void)ignored;
    }
    errno = saved;
}

static bell *find_bell(const void *owner, int number) {
    for (int i = 0; i < MOST_BELLS; i++)
        if (atomic_load(&bells[i].number) == number && (!owner || bells[i].owner == owner)) return &bells[i];
    return NULL;
}

/* Makes sure of the bell's eventfd, with nothing in it. */
static weft_status open_bell(bell *it) {
    uint64_t rings;
    if (it->has_fd) {
        ssize_t ignored = read(atomic_load(&it->fd), &rings, sizeof rings);
        (void)ignored;
        return WEFT_OK;
    }
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return wefti_fail_errno("cannot create an eventfd for a signal");
    atomic_store(&it->fd, fd);
    it->has_fd = true;
    return WEFT_OK;
}

/* Under the lock. */
static weft_status hang(const void *owner, int number, int *fd_out) {
    bell *other = find_bell(NULL, number), *one = find_bell(NULL, 0);
    for (int i = 0; i < MOST_BELLS; i++)
        if (atomic_load(&bells[i].number) && bells[i].owner == owner)
            return wefti_fail(WEFT_E_STATE, "weft_world_dump_on: the world listens to signal %d already, and takes no other", atomic_load(&bells[i].number));
    if (!one) return wefti_fail(WEFT_E_OVERFLOW, "weft_world_dump_on: %d worlds listen to signals already", MOST_BELLS);
    WEFTI_TRY(open_bell(one));
    if (other) {
        one->before = other->before;
    } else {
        struct sigaction action = {.sa_handler = ring, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        if (sigaction(number, &action, &one->before) != 0)
            return wefti_fail(WEFT_E_INVALID, "weft_world_dump_on: signal %d cannot be handled: %s", number, strerror(errno));
    }
    one->owner = owner;
    *fd_out = atomic_load(&one->fd);
    atomic_store(&one->number, number);
    return WEFT_OK;
}

weft_status weft_world_dump_on(weft_world *world, int number) {
    if (!world || number <= 0)
        return wefti_fail(WEFT_E_INVALID, "weft_world_dump_on: %s", world ? "there is no such signal" : "the world is NULL");
    wefti_transport *transport = world->transport;
    int              fd = -1;
    pthread_mutex_lock(&bells_lock);
    weft_status status = find_bell(transport, number) ? WEFT_OK : hang(transport, number, &fd);
    pthread_mutex_unlock(&bells_lock);
    if (status != WEFT_OK || fd < 0) return status; /* one that has it already is asked for nothing */
    wefti_transport_answer(transport, fd);
    return WEFT_OK;
}

void wefti_dump_forget(wefti_transport *transport) {
    wefti_transport_answer(transport, -1);
    pthread_mutex_lock(&bells_lock);
    for (int i = 0; i < MOST_BELLS; i++) {
        bell *it = &bells[i];
        int   number = atomic_load(&it->number);
        if (number == 0 || it->owner != transport) continue;
        atomic_store(&it->number, 0);
        if (!find_bell(NULL, number)) sigaction(number, &it->before, NULL);
        it->owner = NULL;
    }
    pthread_mutex_unlock(&bells_lock);
}

weft_status weft_world_dump(weft_world *world, FILE *to) {
    wefti_text text = {0};
    if (!world || !to) return wefti_fail(WEFT_E_INVALID, "weft_world_dump: the %s is NULL", world ? "file" : "world");
    weft_status status = wefti_transport_ask(world->transport, ANSWER_NS, &text);
    if (status == WEFT_OK && text.failed) status = wefti_fail(WEFT_E_NO_MEMORY, "weft_world_dump: no memory for the text");
    if (status == WEFT_OK && text.bytes && (fputs(text.bytes, to) < 0 || fflush(to) != 0))
        status = wefti_fail_errno("weft_world_dump: cannot write");
    wefti_text_release(&text);
    return status;
}

int32_t weft_world_straggler(const weft_world *world, double *share_out) {
    return wefti_transport_straggler(world->transport, share_out);
}

/* Notices when watched memory is unmapped, moved or emptied: by userfaultfd, which holds whoever does that until we have heard
 * of it. The memory is registered for write protection that is never switched on, so that no access ever faults.
 *
 * A thread reads the events, for the one who unmaps may be the one who would poll. It reads and notes them under the lock, and
 * whoever asks takes the lock: so what was unmapped before is known. Nothing else is done under the lock, and the thread
 * touches no memory but its own: freeing some could wait for this very thread. Without userfaultfd there is no watch. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/wire_verbs.h"

enum { MOST_RANGES = 64 };

typedef struct lost_range {
    uintptr_t first, end;
} lost_range;

struct verbs_watch {
    int             faults, wake; /* the userfaultfd; an eventfd that ends the thread */
    pthread_t       thread;
    pthread_mutex_t lock;
    lost_range      ranges[MOST_RANGES];
    int32_t         count;
    bool            overflow;
};

static void note(verbs_watch *watch, uintptr_t first, uintptr_t end) {
    if (watch->count == MOST_RANGES)
        watch->overflow = true;
    else
        watch->ranges[watch->count++] = (lost_range){first, end};
}

static void hear(verbs_watch *watch) {
    struct uffd_msg message;
    pthread_mutex_lock(&watch->lock);
    while (read(watch->faults, &message, sizeof message) == (ssize_t)sizeof message) switch (message.event) {
        case UFFD_EVENT_REMAP:
            note(watch, (uintptr_t)message.arg.remap.from, (uintptr_t)(message.arg.remap.from + message.arg.remap.len));
            break;
        case UFFD_EVENT_REMOVE:
        case UFFD_EVENT_UNMAP: note(watch, (uintptr_t)message.arg.remove.start, (uintptr_t)message.arg.remove.end); break;
        default: watch->overflow = true; break;
        }
    pthread_mutex_unlock(&watch->lock);
}

static void *listen_for_events(void *context) {
    verbs_watch  *watch = context;
    struct pollfd wait[2] = {{.fd = watch->faults, .events = POLLIN}, {.fd = watch->wake, .events = POLLIN}};
    for (;;) {
        if (poll(wait, 2, -1) < 0) continue;
        if (wait[1].revents) return NULL;
        hear(watch);
    }
}

static int open_faults(void) {
    int flags = O_CLOEXEC | O_NONBLOCK;
#ifdef UFFD_USER_MODE_ONLY
    flags |= UFFD_USER_MODE_ONLY; /* which needs no privilege; no fault is ever asked for */
#endif
    int              faults = (int)syscall(SYS_userfaultfd, flags);
    struct uffdio_api wish = {.api = UFFD_API,
                              .features = UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP |
                                          UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    if (faults >= 0 && ioctl(faults, UFFDIO_API, &wish) != 0) {
        close(faults);
        return -1;
    }
    return faults;
}

verbs_watch *wefti_verbs_watch_open(void) {
    verbs_watch *watch = NULL;
    sigset_t     all, before;
    int          faults = open_faults();
    if (faults < 0) return NULL;
    if (wefti_alloc(sizeof *watch, "a watch of memory", &watch) != WEFT_OK) {
        close(faults);
        return NULL;
    }
    watch->faults = faults;
    watch->wake = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&watch->lock, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool started = watch->wake >= 0 && pthread_create(&watch->thread, NULL, listen_for_events, watch) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started) return watch;
    if (watch->wake >= 0) close(watch->wake);
    close(watch->faults);
    pthread_mutex_destroy(&watch->lock);
    wefti_free(watch, sizeof *watch);
    return NULL;
}

void wefti_verbs_watch_close(verbs_watch *watch) {
    if (!watch) return;
    ssize_t ignored = write(watch->wake, &(uint64_t){1}, 8);
    (void)ignored;
    pthread_join(watch->thread, NULL);
    close(watch->faults); /* lets go whoever waits to be heard */
    close(watch->wake);
    pthread_mutex_destroy(&watch->lock);
    wefti_free(watch, sizeof *watch);
}

bool wefti_verbs_watch_add(verbs_watch *watch, uintptr_t base, size_t bytes) {
    struct uffdio_register wish = {.range = {.start = base, .len = bytes}, .mode = UFFDIO_REGISTER_MODE_WP};
    return ioctl(watch->faults, UFFDIO_REGISTER, &wish) == 0;
}

bool wefti_verbs_watch_news(verbs_watch *watch, void (*lost)(void *context, uintptr_t first, uintptr_t end), void *context) {
    lost_range ranges[MOST_RANGES];
    pthread_mutex_lock(&watch->lock);
    int32_t count = watch->count;
    bool    overflow = watch->overflow;
    memcpy(ranges, watch->ranges, (size_t)count * sizeof ranges[0]);
    watch->count = 0;
    watch->overflow = false;
    pthread_mutex_unlock(&watch->lock);
    for (int32_t i = 0; i < count; i++) lost(context, ranges[i].first, ranges[i].end);
    return overflow;
}

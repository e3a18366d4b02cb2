/* weftrun: starts the ranks of one program on this machine, and sees to it that they end together.
 *
 * Idea. Two processes stand over the ranks. The *front* is the one that the caller started: it only hands signals on
 * and waits. The *keeper*, its child in a process group of its own, starts the ranks (each leads a process group),
 * pumps their output, and decides. Either one may be killed with SIGKILL:
 *   - the front dies: the keeper sees the end of the life pipe, and kills everything below it;
 *   - the keeper dies: the kernel kills the ranks (PR_SET_PDEATHSIG), and what they leave behind falls to the front.
 * Both are subreapers, so an orphaned child of a rank becomes the keeper's child and is found again.
 *
 * Invariants. The keeper never blocks but in poll: output waits in a bounded queue per stream, and a rank whose stream
 * is full is simply not read from. It ends when it has no children left, adopted ones included.
 *
 * What a rank finds in its environment:
 *   WEFT_RANK, WEFT_WORLD_SIZE, WEFT_LOCAL_RANK, WEFT_LOCAL_SIZE
 *   WEFT_STORE     host:port where rank 0 serves the rendezvous store
 *   WEFT_STORE_FD  rank 0 only: that socket, bound and listening already, so that nobody can take the port between
 *   WEFT_JOB       16 hex digits, the same on all ranks of this run and on no other
 *   WEFT_SECRET    64 hex digits, known to this run's ranks alone (the environment of a process is its owner's)
 *   WEFT_WIRE      as --wire says; left as it was without
 *   WEFT_ENCRYPT   1 with --encrypt; left as it was without
 *   with --elastic WEFT_ELASTIC=1, WEFT_DOORS (a port for each rank, the same for all that follow one another there), WEFT_LEAST,
 *   WEFT_REPLACE_SECONDS and WEFT_PATIENCE_SECONDS (how long to wait for a rank that is started again, and for one that lives), WEFT_GONE_FD and WEFT_FENCE_FD (weftrun/elastic.c), and in a rank that was
 *   started again WEFT_REJOIN, its how manieth start it is
 *
 * Cost: two pipes and 32 KiB a rank. Nothing is created that has a name, so there is nothing to clean up after a kill.
 */
#include "weftrun/weftrun.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    LINE_BYTES = 16384,         /* a longer line is passed on in pieces of this size */
    QUEUE_BYTES = 1 << 20,      /* output that waits for a slow reader, a stream */
    LIFE_SECONDS = 60,          /* after which a death has little to do with the one before; and the longest pause before a restart */
    SWEEP_MILLISECONDS = 20,    /* how often what must die is looked for again */
    LAST_OUTPUT_NS = 500000000, /* that what a dead rank left behind may hold its output open, until it is started again */
    LAST_WORDS_NS = 1000000000, /* that a reader has for what the dead ranks wrote, once we were told twice to end */
};

/* One stream of one rank, and one of ours. */
typedef struct source {
    int fd; /* -1: at its end, or not ours to read */
    int rank;
    size_t length;
    char line[LINE_BYTES]; /* what came since the last newline */
} source;
typedef struct sink {
    int fd;
    bool live_line;    /* rank 0 writes to this terminal itself and may have a half-drawn line there */
    bool broken;       /* nobody reads it any more */
    size_t begin, end; /* what waits, within bytes[] */
    char bytes[QUEUE_BYTES];
} sink;

typedef enum phase {
    RUNNING,
    SETTLING, /* one rank failed: the others may notice by themselves and say so */
    ENDING,   /* asked to end */
    KILLING,
} phase;

typedef struct keeper {
    const weftrun_job *job;
    int life_fd;   /* ends when the front does */
    int signal_fd; /* signalfd */
    int alive;     /* ranks */
    int status;    /* the first failure's, else 0 */
    phase phase;
    uint64_t deadline_ns;  /* of the phase */
    pid_t *pids;           /* [ranks]; 0 once reaped */
    /* elastic */
    int *starts;           /* [ranks] how often it was started */
    uint64_t *started_ns;  /* [ranks] the last time */
    uint64_t *after_ns;    /* [ranks] no start before */
    uint64_t *due_ns;      /* [ranks] when it is to be started again, if its output does not end before; 0: it is not */
    weftrun_elastic elastic;
    int restarts, due;     /* that are left; that are to come */
    bool succeeded;        /* a rank has ended well: the work is done */
    int lost;              /* status of the first one that was lost, the others going on */
    source *sources;       /* [2 * ranks]: stdout and stderr of each */
    sink *sinks;           /* [2]: stdout, stderr */
    struct pollfd *polled; /* [2 * ranks + 5] */
} keeper;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void signal_ranks(const keeper *k, int number) {
    for (int rank = 0; rank < k->job->ranks; ++rank)
        if (k->pids[rank] > 0) kill(-k->pids[rank], number);
}

static void signal_everything(const keeper *k, int number) {
    signal_ranks(k, number);
    weftrun_signal_descendants(number, k->pids, k->job->ranks);
}

static void enter(keeper *k, phase next, double seconds) {
    k->phase = next;
    k->deadline_ns = now_ns() + (uint64_t)(seconds * 1e9);
}

static void end_all(keeper *k, int number) {
    if (k->phase >= ENDING) return;
    signal_everything(k, number);
    enter(k, ENDING, k->job->grace);
}

/* --- starting the ranks --- */

static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT};

static sigset_t watched_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; ++i) sigaddset(&set, forwarded[i]);
    sigaddset(&set, SIGCHLD);
    return set;
}

static void random_hex(char *text, size_t digits) {
    unsigned char bytes[64];
    size_t have = 0;
    while (have < digits / 2) {
        ssize_t got = getrandom(bytes + have, digits / 2 - have, 0);
        if (got > 0) have += (size_t)got;
    }
    for (size_t i = 0; i < digits / 2; ++i) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

/* A listening socket on loopback at a port that the system chooses; -1 on failure. */
static int open_store(char *address, size_t address_bytes) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&name, &length) != 0) {
        weftrun_complain("cannot listen on 127.0.0.1 for the ranks to meet: %s", strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    snprintf(address, address_bytes, "127.0.0.1:%d", ntohs(name.sin_port));
    return fd;
}

static void set_number(const char *name, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

static void set_seconds(const char *name, double value) {
    char text[32];
    snprintf(text, sizeof text, "%.3f", value);
    setenv(name, text, 1);
}

/* What all ranks share goes into our own environment, from which they inherit it. */
static void set_job_environment(const weftrun_job *job, const char *store) {
    char name[17], secret[65];
    random_hex(name, 16);
    random_hex(secret, 64);
    set_number("WEFT_WORLD_SIZE", job->ranks);
    set_number("WEFT_LOCAL_SIZE", job->ranks);
    setenv("WEFT_STORE", store, 1);
    setenv("WEFT_JOB", name, 1);
    setenv("WEFT_SECRET", secret, 1);
    unsetenv("WEFT_STORE_FD");
    unsetenv("WEFT_REJOIN");
    if (job->elastic) {
        setenv("WEFT_ELASTIC", "1", 1);
        set_number("WEFT_LEAST", job->least);
        set_seconds("WEFT_REPLACE_SECONDS", job->restarts > 0 ? job->wait : 0);
        set_seconds("WEFT_PATIENCE_SECONDS", job->patience);
    }
    if (job->wire) setenv("WEFT_WIRE", job->wire, 1);
    if (job->encrypt) setenv("WEFT_ENCRYPT", "1", 1);
}

/* In the new process: becomes the rank. Does not return; a failure to run the program goes through `report_fd`. */
static void become_rank(const weftrun_job *job, int rank, int starts, pid_t parent, const int *outputs, int store_fd,
                        int report_fd) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(STATUS_LAUNCHER); /* the keeper died before it could be noticed */
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTTOU, SIG_DFL);
    if (rank > 0 || isatty(STDIN_FILENO)) {
        int nothing = open("/dev/null", O_RDONLY);
        if (nothing >= 0) dup2(nothing, STDIN_FILENO);
        if (nothing > STDIN_FILENO) close(nothing);
    }
    for (int stream = 0; stream < 2; ++stream)
        if (outputs[stream] >= 0) dup2(outputs[stream], STDOUT_FILENO + stream);
    set_number("WEFT_RANK", rank);
    set_number("WEFT_LOCAL_RANK", rank);
    if (starts > 0) set_number("WEFT_REJOIN", starts);
    if (rank == 0 && store_fd >= 0) {
        set_number("WEFT_STORE_FD", store_fd);
        fcntl(store_fd, F_SETFD, 0);
    }
    execvp(job->program[0], job->program);
    int error = errno;
    ssize_t told = write(report_fd, &error, sizeof error);
    _exit(told == (ssize_t)sizeof error ? STATUS_NOT_FOUND : STATUS_LAUNCHER);
}

/* Gives the rank's stream a pipe to us, unless it may write to ours itself. -1 on failure. */
static int open_output(keeper *k, int rank, int stream, int *write_fd_out) {
    sink *to = &k->sinks[stream];
    *write_fd_out = -1;
    if (!k->job->prefix) return 0;
    if (rank == 0 && isatty(to->fd)) {
        to->live_line = true;
        return 0;
    }
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        weftrun_complain("rank %d: cannot make a pipe: %s (ulimit -n raises the number of open files)", rank,
                         strerror(errno));
        return -1;
    }
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    source *from = &k->sources[2 * rank + stream];
    from->fd = fds[0];
    *write_fd_out = fds[1];
    return 0;
}

/* 0, or the status to exit with after a message. */
static int start_rank(keeper *k, int rank, int store_fd) {
    int outputs[2] = {-1, -1}, report[2] = {-1, -1}, error = 0, status = STATUS_LAUNCHER;
    if (open_output(k, rank, 0, &outputs[0]) || open_output(k, rank, 1, &outputs[1])) goto done;
    if (pipe2(report, O_CLOEXEC) != 0) {
        weftrun_complain("rank %d: cannot make a pipe: %s (ulimit -n raises the number of open files)", rank,
                         strerror(errno));
        goto done;
    }
    pid_t self = getpid(), pid = fork();
    if (pid == 0) become_rank(k->job, rank, k->starts[rank], self, outputs, store_fd, report[1]);
    if (pid < 0) {
        weftrun_complain("rank %d: cannot start a process: %s (ulimit -u raises their number)", rank, strerror(errno));
        goto done;
    }
    setpgid(pid, pid); /* here too: whoever comes first */
    k->pids[rank] = pid;
    ++k->alive;
    ++k->starts[rank];
    if (k->job->elastic) weftrun_elastic_started(&k->elastic, rank, k->starts[rank]);
    k->started_ns[rank] = now_ns();
    close(report[1]);
    report[1] = -1;
    if (read(report[0], &error, sizeof error) == (ssize_t)sizeof error) {
        weftrun_complain("cannot run '%s': %s", k->job->program[0], strerror(error));
        status = error == ENOENT ? STATUS_NOT_FOUND : STATUS_CANNOT_RUN;
        goto done;
    }
    status = 0;
done:
    for (int i = 0; i < 2; ++i) {
        if (outputs[i] >= 0) close(outputs[i]);
        if (report[i] >= 0) close(report[i]);
    }
    return status;
}

static void raise_open_files(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files); /* worth a try: without it fewer ranks fit */
}

/* --- output --- */

/* Whether a whole line, its prefix and a little more still fit. */
static bool has_room(const sink *to) { return to->broken || to->end + LINE_BYTES + 64 <= QUEUE_BYTES; }
static bool is_empty(const sink *to) { return to->begin == to->end; }

static void put(sink *to, const char *bytes, size_t count) {
    if (to->broken || count > QUEUE_BYTES - to->end) return;
    memcpy(to->bytes + to->end, bytes, count);
    to->end += count;
}

static void put_line(sink *to, int rank, const char *line, size_t count) {
    char prefix[24];
    if (to->live_line) put(to, "\r\033[K", 4); /* rank 0 draws its line again */
    put(to, prefix, (size_t)snprintf(prefix, sizeof prefix, "[%d] ", rank));
    put(to, line, count);
    put(to, "\n", 1);
}

/* Moves the whole lines of `from` into `to`; what is left after the last newline stays. */
static void move_lines(sink *to, source *from, bool at_end) {
    size_t done = 0;
    char *newline;
    while (has_room(to) && (newline = memchr(from->line + done, '\n', from->length - done))) {
        size_t count = (size_t)(newline - from->line) - done;
        put_line(to, from->rank, from->line + done, count);
        done += count + 1;
    }
    from->length -= done;
    memmove(from->line, from->line + done, from->length);
    if (has_room(to) && (from->length == LINE_BYTES || (at_end && from->length > 0))) {
        put_line(to, from->rank, from->line, from->length);
        from->length = 0;
    }
}

/* Reads what there is. At the end of the stream the source closes, once all its lines found room. */
static void pump(sink *to, source *from) {
    bool at_end = false;
    if (from->length < LINE_BYTES) {
        ssize_t got = read(from->fd, from->line + from->length, LINE_BYTES - from->length);
        if (got > 0) from->length += (size_t)got;
        at_end = got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR);
    }
    move_lines(to, from, at_end);
    if (at_end && from->length == 0) {
        close(from->fd);
        from->fd = -1;
    }
}

static void abandon(sink *to) {
    to->broken = true;
    to->begin = to->end = 0;
}

/* Writes at most what a pipe takes without blocking once poll has said that it may be written to. */
static void drain(keeper *k, sink *to) {
    size_t waiting = to->end - to->begin;
    ssize_t wrote = write(to->fd, to->bytes + to->begin, waiting < PIPE_BUF ? waiting : PIPE_BUF);
    if (wrote > 0) {
        to->begin += (size_t)wrote;
        if (is_empty(to) || to->begin > QUEUE_BYTES / 2) {
            memmove(to->bytes, to->bytes + to->begin, to->end - to->begin);
            to->end -= to->begin;
            to->begin = 0;
        }
    } else if (wrote < 0 && errno != EINTR && errno != EAGAIN) {
        abandon(to);
        if (k->status == 0) k->status = STATUS_SIGNAL + SIGPIPE; /* as if we had been ended by it */
        end_all(k, SIGTERM);
    }
}

/* --- the keeper's loop --- */

/* Seconds until a rank that was lost is started again: none the first time; what dies again and again is not helped by haste. */
static double pause_before(const keeper *k, int rank) {
    double pause = k->job->back_off;
    if (k->starts[rank] < 2 || now_ns() - k->started_ns[rank] > LIFE_SECONDS * UINT64_C(1000000000)) return 0;
    for (int i = 2; i < k->starts[rank] && pause < LIFE_SECONDS; ++i) pause *= 2;
    return pause < LIFE_SECONDS ? pause : LIFE_SECONDS;
}

/* Whether the others go on without this rank, or with another one in its place: a rank that was killed, or one that could not come in
 * again. One that fails by itself at its first start would fail again. */
static bool goes_on_without(keeper *k, int rank, int status, const char *how) {
    if (!k->job->elastic || k->phase != RUNNING || (k->alive == 0 && !k->succeeded) || (status < STATUS_SIGNAL && k->starts[rank] < 2)) return false;
    if (k->lost == 0) k->lost = status;
    if (k->succeeded) {
        weftrun_complain("rank %d %s when another had ended well already", rank, how);
    } else if (k->restarts > 0) {
        --k->restarts;
        ++k->due;
        double pause = pause_before(k, rank);
        char when[32] = "";
        k->after_ns[rank] = now_ns() + (uint64_t)(pause * 1e9);
        k->due_ns[rank] = k->after_ns[rank] + LAST_OUTPUT_NS;
        if (pause > 0) snprintf(when, sizeof when, " in %.3g s", pause);
        weftrun_complain("rank %d %s; starting it again%s (%d of %d)", rank, how, when, k->job->restarts - k->restarts, k->job->restarts);
    } else {
        weftrun_elastic_gone(&k->elastic, rank);
        weftrun_complain("rank %d %s; none of %d restarts is left, so the others go on without it", rank, how, k->job->restarts);
    }
    return true;
}

/* Those that are to be started again, once what their former selves wrote has been read. */
static void start_again(keeper *k) {
    for (int rank = 0; rank < k->job->ranks && k->due > 0; ++rank) {
        source *outputs = &k->sources[2 * rank];
        bool at_end = outputs[0].fd < 0 && outputs[1].fd < 0;
        if (k->due_ns[rank] == 0 || now_ns() < (at_end ? k->after_ns[rank] : k->due_ns[rank])) continue;
        k->due_ns[rank] = 0;
        --k->due;
        for (int i = 0; i < 2; ++i)
            if (outputs[i].fd >= 0) close(outputs[i].fd); /* a process that it left behind holds the other end */
        outputs[0].fd = outputs[1].fd = -1;
        if (k->phase != RUNNING || k->alive == 0 || k->succeeded) continue;
        int status = start_rank(k, rank, -1);
        if (status != 0 && k->status == 0) k->status = status;
        if (status != 0) end_all(k, SIGTERM);
    }
}

/* Whom the others leave behind while its process lives: it hangs, or was stopped, and would never come again by itself. */
static void end_left_behind(keeper *k) {
    int rank, asker;
    while (weftrun_elastic_fence(&k->elastic, k->job->ranks, k->starts, k->pids, &rank, &asker)) {
        if (k->phase != RUNNING) continue;
        weftrun_complain("rank %d lives, and does not go on with the others, as rank %d says: killing it", rank, asker);
        kill(-k->pids[rank], SIGKILL);
    }
}

static void note_end(keeper *k, int rank, int wait_status) {
    bool signalled = WIFSIGNALED(wait_status);
    int status = signalled ? STATUS_SIGNAL + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
    k->pids[rank] = 0;
    --k->alive;
    if (status == 0) k->succeeded = true;
    if (status == 0 || k->status != 0) return;
    char how[64];
    if (signalled) snprintf(how, sizeof how, "was killed by signal %d (%s)", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    else snprintf(how, sizeof how, "failed with status %d", status);
    if (goes_on_without(k, rank, status, how)) return;
    k->status = status;
    if (k->phase != RUNNING) return;
    const char *others = k->alive > 0 ? "; ending the others" : "";
    weftrun_complain("rank %d %s%s", rank, how, others);
    enter(k, SETTLING, k->job->settle);
}

/* Whether anything still lives below us, adopted orphans included. */
static bool reap(keeper *k) {
    int wait_status;
    pid_t pid;
    while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0)
        for (int rank = 0; rank < k->job->ranks; ++rank)
            if (k->pids[rank] == pid) note_end(k, rank, wait_status);
    return pid == 0;
}

static void take_signals(keeper *k) {
    struct signalfd_siginfo info;
    while (read(k->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        int number = (int)info.ssi_signo;
        bool ends = number == SIGINT || number == SIGTERM || number == SIGHUP || number == SIGQUIT;
        if (number == SIGCHLD) continue;
        if (!ends)
            signal_ranks(k, number);
        else if (k->phase < ENDING)
            end_all(k, number);
        else
            enter(k, KILLING, 0);
    }
}

/* What the passing of time and the end of ranks ask for. */
static void advance(keeper *k, bool anything_lives) {
    if (k->alive == 0 && anything_lives) end_all(k, SIGTERM); /* leftovers of the ranks */
    if (k->phase == SETTLING && now_ns() >= k->deadline_ns) end_all(k, SIGTERM);
    if (k->phase == ENDING && now_ns() >= k->deadline_ns) enter(k, KILLING, 0);
    if (k->phase == KILLING && anything_lives) signal_everything(k, SIGKILL);
}

static int wait_milliseconds(const keeper *k, bool anything_lives) {
    if (k->phase == RUNNING) return k->due > 0 ? SWEEP_MILLISECONDS : -1;
    if (k->phase == KILLING || !anything_lives) return SWEEP_MILLISECONDS;
    uint64_t now = now_ns();
    if (now >= k->deadline_ns) return 0;
    uint64_t milliseconds = (k->deadline_ns - now) / 1000000 + 1;
    return milliseconds > 1000 ? 1000 : (int)milliseconds;
}

/* Waits for something to happen and deals with it. Returns how many sources had something to say. */
static int poll_once(keeper *k, int timeout_milliseconds) {
    int sources = 2 * k->job->ranks, readable = 0;
    for (int i = 0; i < sources; ++i)
        k->polled[i] = (struct pollfd){.fd = has_room(&k->sinks[i & 1]) ? k->sources[i].fd : -1, .events = POLLIN};
    struct pollfd *rest = k->polled + sources;
    for (int i = 0; i < 2; ++i)
        rest[i] = (struct pollfd){.fd = is_empty(&k->sinks[i]) ? -1 : k->sinks[i].fd, .events = POLLOUT};
    rest[2] = (struct pollfd){.fd = k->signal_fd, .events = POLLIN};
    rest[3] = (struct pollfd){.fd = k->life_fd, .events = POLLIN};
    rest[4] = (struct pollfd){.fd = k->job->elastic ? k->elastic.fence_fds[0] : -1, .events = POLLIN};
    if (poll(k->polled, (nfds_t)sources + 5, timeout_milliseconds) <= 0) return 0;
    if (rest[3].revents) { /* the front is gone, and with it whoever wanted our output */
        close(k->life_fd);
        k->life_fd = -1;
        abandon(&k->sinks[0]);
        abandon(&k->sinks[1]);
        enter(k, KILLING, 0);
    }
    if (rest[2].revents) take_signals(k);
    if (rest[4].revents) end_left_behind(k);
    for (int i = 0; i < sources; ++i)
        if (k->polled[i].revents) {
            pump(&k->sinks[i & 1], &k->sources[i]);
            ++readable;
        }
    for (int i = 0; i < 2; ++i)
        if (rest[i].revents) drain(k, &k->sinks[i]);
    return readable;
}

static bool has_output(const keeper *k) { return !is_empty(&k->sinks[0]) || !is_empty(&k->sinks[1]); }

static int keep(keeper *k) {
    for (bool lives = true; lives;) {
        lives = reap(k);
        if (k->due > 0) start_again(k);
        advance(k, lives);
        poll_once(k, lives ? wait_milliseconds(k, lives) : 0);
    }
    /* All are dead, so nothing new comes into the pipes: hand on what lies in them. */
    while (poll_once(k, has_output(k) ? 1000 : 0) > 0 || has_output(k))
        if (k->phase == KILLING && now_ns() > k->deadline_ns + LAST_WORDS_NS) break;
    return k->status == 0 && !k->succeeded ? k->lost : k->status;
}

static int run_keeper(const weftrun_job *job, int life_fd) {
    char store[64];
    size_t ranks = (size_t)job->ranks;
    sigset_t watched = watched_signals();
    keeper k = {.job = job, .life_fd = life_fd};
    setpgid(0, 0); /* what the terminal sends goes to the front alone */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    raise_open_files();
    k.restarts = job->restarts;
    k.pids = calloc(ranks, sizeof *k.pids);
    k.starts = calloc(ranks, sizeof *k.starts);
    k.started_ns = calloc(ranks, sizeof *k.started_ns);
    k.after_ns = calloc(ranks, sizeof *k.after_ns);
    k.due_ns = calloc(ranks, sizeof *k.due_ns);
    k.sources = calloc(2 * ranks, sizeof *k.sources);
    k.sinks = calloc(2, sizeof *k.sinks);
    k.polled = calloc(2 * ranks + 5, sizeof *k.polled);
    k.signal_fd = signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC);
    int store_fd = open_store(store, sizeof store), status = STATUS_LAUNCHER;
    if (!k.pids || !k.starts || !k.started_ns || !k.after_ns || !k.due_ns || !k.sources || !k.sinks || !k.polled || k.signal_fd < 0) {
        weftrun_complain("cannot prepare %d ranks: %s", job->ranks, strerror(errno));
        goto done;
    }
    if (store_fd < 0 || (job->elastic && !weftrun_elastic_open(job->ranks, &k.elastic))) goto done;
    for (int i = 0; i < 2; ++i) k.sinks[i].fd = STDOUT_FILENO + i;
    for (size_t i = 0; i < 2 * ranks; ++i) k.sources[i] = (source){.fd = -1, .rank = (int)(i / 2)};
    set_job_environment(job, store);
    status = 0;
    for (int rank = 0; rank < job->ranks && status == 0; ++rank) status = start_rank(&k, rank, store_fd);
    close(store_fd); /* rank 0's alone now, so that its end is seen */
    store_fd = -1;
    if (status != 0) {
        k.status = status;
        enter(&k, KILLING, 0);
    }
    status = keep(&k);
done:
    if (store_fd >= 0) close(store_fd);
    if (k.signal_fd >= 0) close(k.signal_fd);
    free(k.pids);
    free(k.starts);
    free(k.started_ns);
    free(k.after_ns);
    free(k.due_ns);
    weftrun_elastic_close(&k.elastic);
    free(k.sources);
    free(k.sinks);
    free(k.polled);
    return status;
}

/* --- the front --- */

/* The keeper was killed: the kernel has killed the ranks, and their children are ours now. */
static int clean_up_after_keeper(int wait_status) {
    weftrun_complain("the process that watches the ranks was killed by signal %d", WTERMSIG(wait_status));
    for (;;) {
        weftrun_signal_descendants(SIGKILL, NULL, 0);
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
        }
        if (pid < 0) break;
        usleep(SWEEP_MILLISECONDS * 1000);
    }
    return STATUS_SIGNAL + WTERMSIG(wait_status);
}

static int run_front(pid_t keeper_pid) {
    sigset_t watched = watched_signals();
    for (;;) {
        int number = 0, wait_status;
        if (sigwait(&watched, &number) != 0) continue;
        if (number != SIGCHLD) {
            kill(keeper_pid, number);
            if (number == SIGTSTP) raise(SIGSTOP); /* the shell wants to see its job stop */
            continue;
        }
        if (waitpid(keeper_pid, &wait_status, WNOHANG) != keeper_pid) continue;
        return WIFSIGNALED(wait_status) ? clean_up_after_keeper(wait_status) : WEXITSTATUS(wait_status);
    }
}

int main(int argc, char **argv) {
    weftrun_job job;
    int status = argc > 0 ? weftrun_parse(argv, &job) : STATUS_USAGE, life[2];
    if (status >= 0) return status;
    if (pipe2(life, O_CLOEXEC) != 0) {
        weftrun_complain("cannot make a pipe: %s", strerror(errno));
        return STATUS_LAUNCHER;
    }
    sigset_t watched = watched_signals();
    sigprocmask(SIG_BLOCK, &watched, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t keeper_pid = fork();
    if (keeper_pid < 0) {
        weftrun_complain("cannot start a process: %s", strerror(errno));
        return STATUS_LAUNCHER;
    }
    if (keeper_pid == 0) {
        close(life[1]);
        return run_keeper(&job, life[0]);
    }
    close(life[0]);
    return run_front(keeper_pid);
}

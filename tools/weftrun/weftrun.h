/* What the files of weftrun share: the job that the command line asks for, and two helpers. */
#ifndef WEFTRUN_H
#define WEFTRUN_H

#include <stdbool.h>
#include <sys/types.h>

enum {
    STATUS_USAGE = 2,
    STATUS_LAUNCHER = 125, /* weftrun itself failed; as env(1) and timeout(1) say it */
    STATUS_CANNOT_RUN = 126,
    STATUS_NOT_FOUND = 127,
    STATUS_SIGNAL = 128, /* plus the signal's number */
};

typedef struct weftrun_job {
    int ranks;
    const char *wire; /* NULL: not said */
    bool encrypt;
    bool prefix;
    double settle, grace, wait, patience; /* seconds; elastic: `wait` for a rank that is started again, `patience` with one that lives */
    bool elastic;         /* ranks may be lost */
    double back_off;      /* elastic: seconds before a rank's second restart; doubles with each */
    int restarts, least;  /* elastic: ranks to start again in all; ranks to go on with, 0: 1 */
    char **program;       /* argv of the ranks */
} weftrun_job;

/* Writes "weftrun: <formatted>" and a newline to standard error. */
void weftrun_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Reads the command line. -1 to go on, else the status to exit with, after a message or the help. */
int weftrun_parse(char **argv, weftrun_job *job_out);

/* What elastic ranks need: a door for each, which is a port of loopback held by a socket that does not listen, so that whoever has the place may, one
 * process after another, and nobody else is given the port; a file that tells them who is gone for good and how often each was started; and a
 * socket by which they ask for the end of one that they leave behind. */
typedef struct weftrun_elastic {
    int *holders;            /* [ranks] */
    int  gone_fd;
    int  fence_fds[2];       /* ours, theirs */
    unsigned char *fenced;   /* [ranks] 1: its process was ended for them */
} weftrun_elastic;
/* Puts WEFT_DOORS, WEFT_GONE_FD and WEFT_FENCE_FD into the environment. False after a message. */
bool weftrun_elastic_open(int ranks, weftrun_elastic *elastic_out);
void weftrun_elastic_close(weftrun_elastic *elastic);
void weftrun_elastic_gone(const weftrun_elastic *elastic, int rank);
void weftrun_elastic_started(weftrun_elastic *elastic, int rank, int starts);
/* The next one who is to be ended, and who asks for it; false: none. `starts` and `pids` [ranks]: how often each was started, and its process; 0: none. */
bool weftrun_elastic_fence(weftrun_elastic *elastic, int ranks, const int *starts, const pid_t *pids, int *rank_out, int *asker_out);

/* Sends signal `number` to every descendant of this process, except those in a process group that `spare` [spared]
 * lists; entries of 0 are none. Reads /proc once. */
void weftrun_signal_descendants(int number, const pid_t *spare, int spared);

#endif

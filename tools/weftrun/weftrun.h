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
    double settle, grace, wait; /* seconds; `wait`: elastic, for a rank that is started again */
    bool elastic;         /* ranks may be lost */
    double back_off;      /* elastic: seconds before a rank's second restart; doubles with each */
    int restarts, least;  /* elastic: ranks to start again in all; ranks to go on with, 0: 1 */
    char **program;       /* argv of the ranks */
} weftrun_job;

/* Writes "weftrun: <formatted>" and a newline to standard error. */
void weftrun_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Reads the command line. -1 to go on, else the status to exit with, after a message or the help. */
int weftrun_parse(char **argv, weftrun_job *job_out);

/* The doors of elastic ranks: a port of loopback for each, held by a socket that does not listen, so that whoever has the place may, one
 * process after another, and nobody else is given the port. And a file of a byte for each, which the ranks inherit, to be set once nobody will come to it any
 * more. Puts WEFT_DOORS and WEFT_GONE_FD into the environment. False after a message. */
bool weftrun_hold_doors(int ranks, int *holders_out, int *gone_out);

/* Sends signal `number` to every descendant of this process, except those in a process group that `spare` [spared]
 * lists; entries of 0 are none. Reads /proc once. */
void weftrun_signal_descendants(int number, const pid_t *spare, int spared);

#endif

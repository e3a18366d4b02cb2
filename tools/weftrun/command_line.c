/* The command line of weftrun: options, their bounds, and what is said when they are wrong. */
#include "weftrun.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 4096 }; /* far beyond what a machine can use; a slip of the finger should not start a million */

void weftrun_complain(const char *format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "weftrun: %s\n", text);
}

static const char help[] =
    "usage: weftrun -n RANKS [options] [--] PROGRAM [ARGUMENT...]\n"
    "Starts PROGRAM as RANKS processes on this machine that find each other, and ends them together.\n"
    "\n"
    "  -n, --ranks N     how many processes\n"
    "  --wire NAME       how they talk: shm, tcp, verbs, mpi or auto (default: WEFT_WIRE, else auto)\n"
    "  --encrypt         encrypt what they say over TCP (WEFT_ENCRYPT=1)\n"
    "  --elastic         go on when a rank dies: start it again, to get the run's state from the others; for programs that\n"
    "                    train by weft_fit, or go on by weft_world_shrink. Not with --wire mpi or verbs\n"
    "  --restarts N      with --elastic, so many times in all (default 3); then the ranks that are left go on without\n"
    "  --wait SECONDS    with --elastic, the others wait so long for one that is started again (default 10); if it comes\n"
    "                    later, two or more that have gone on take it in\n"
    "  --patience SECONDS  with --elastic, a rank that lives and does not come when the others go on, as it hangs, is left\n"
    "                    behind after so long, killed and started again (default 10)\n"
    "  --back-off SECONDS  with --elastic, the pause before a rank that died within a minute is started for the third time;\n"
    "                    it doubles each time after that, up to a minute (default 1)\n"
    "  --least N         with --elastic, end when fewer ranks are left (default 1)\n"
    "  --no-prefix       leave their output as it is; otherwise each line begins with its rank, as in \"[1] loss "
    "...\"\n"
    "  --settle SECONDS  once a rank has failed, let the others end by themselves for so long (default 6;\n"
    "                    they notice a lost rank within 5)\n"
    "  --grace SECONDS   then send SIGTERM, and SIGKILL after so long (default 5)\n"
    "  -h, --help        this text\n"
    "\n"
    "Each rank finds WEFT_RANK, WEFT_WORLD_SIZE, WEFT_LOCAL_RANK, WEFT_LOCAL_SIZE, WEFT_STORE, WEFT_JOB and WEFT_WIRE in\n"
    "its environment. The cores are shared among the ranks; WEFT_THREADS sets how many each takes. For ranks on several\n"
    "hosts start the program on each with these variables, or by torchrun, mpirun or srun: see weft/world.h.\n"
    "\n"
    "Standard input goes to rank 0, unless it is a terminal. On a terminal rank 0 writes unprefixed, so that its "
    "progress\n"
    "line works. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP and SIGCONT are handed to every rank; "
    "the\n"
    "second of those that end kills at once. Exit status: that of the first rank that failed (128 + number for a "
    "signal),\n"
    "0 when all succeeded; 2 for a bad command line, 125 when weftrun itself fails, 126 or 127 when PROGRAM cannot be "
    "run\n"
    "or is not found.\n";

static bool parse_seconds(const char *name, const char *text, double *seconds_out) {
    char *end = NULL;
    double value = text ? strtod(text, &end) : -1;
    if (!text || end == text || *end || !(value >= 0 && value <= 1e6)) {
        weftrun_complain("%s wants seconds from 0 to 1000000, not '%s'", name, text ? text : "nothing");
        return false;
    }
    *seconds_out = value;
    return true;
}

static bool parse_count(const char *name, const char *text, int *count_out) {
    char *end = NULL;
    errno = 0;
    long value = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || errno || value < 0 || value > 1000000) {
        weftrun_complain("%s wants a number from 0 to 1000000, not '%s'", name, text ? text : "nothing");
        return false;
    }
    *count_out = (int)value;
    return true;
}

static bool parse_ranks(const char *text, int *ranks_out) {
    char *end = NULL;
    errno = 0;
    long value = text ? strtol(text, &end, 10) : 0;
    if (!text || end == text || *end || errno || value < 1) {
        weftrun_complain("-n wants a positive number of ranks, not '%s'", text ? text : "nothing");
        return false;
    }
    if (value > MAX_RANKS) {
        weftrun_complain("-n %s is too many: one machine runs at most %d ranks", text, MAX_RANKS);
        return false;
    }
    *ranks_out = (int)value;
    return true;
}

/* Fits an argument to an option that takes a value: "--name value" and "--name=value" (and -n4). The value is NULL
 * where the command line ends before it. */
static bool takes(char **argv, int *at, const char *name, const char **value_out) {
    const char *argument = argv[*at];
    size_t length = strlen(name);
    if (strncmp(argument, name, length) != 0) return false;
    if (argument[length] == '\0') {
        *value_out = argv[*at + 1];
        if (*value_out) ++*at;
        return true;
    }
    bool is_long = name[1] == '-';
    if (is_long && argument[length] != '=') return false;
    *value_out = argument + length + (is_long ? 1 : 0);
    return true;
}

static bool is_wire(const char *name) {
    static const char *const names[] = {"shm", "tcp", "verbs", "mpi", "auto"};
    for (size_t i = 0; name && i < sizeof names / sizeof *names; ++i)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

/* 1: it was one of these; -1: and wrong; 0: none. */
static int take_elastic(char **argv, int *at, weftrun_job *job) {
    const char *value = NULL;
    if (takes(argv, at, "--restarts", &value)) return parse_count("--restarts", value, &job->restarts) ? 1 : -1;
    if (takes(argv, at, "--wait", &value)) return parse_seconds("--wait", value, &job->wait) ? 1 : -1;
    if (takes(argv, at, "--patience", &value)) return parse_seconds("--patience", value, &job->patience) ? 1 : -1;
    if (takes(argv, at, "--back-off", &value)) return parse_seconds("--back-off", value, &job->back_off) ? 1 : -1;
    if (takes(argv, at, "--least", &value)) return parse_count("--least", value, &job->least) ? 1 : -1;
    return 0;
}

static bool check_elastic(const weftrun_job *job, bool counts) {
    if (!job->elastic && counts) {
        weftrun_complain("--restarts, --wait, --patience, --back-off and --least go with --elastic");
        return false;
    }
    if (job->least > job->ranks) {
        weftrun_complain("--least %d is more than the %d ranks there are", job->least, job->ranks);
        return false;
    }
    if (job->elastic && job->wire && (strcmp(job->wire, "mpi") == 0 || strcmp(job->wire, "verbs") == 0)) {
        weftrun_complain("--elastic goes with --wire shm, tcp or auto: over %s a job does not survive a rank", job->wire);
        return false;
    }
    return true;
}

/* -1 to go on, else the status to exit with. */
int weftrun_parse(char **argv, weftrun_job *job_out) {
    *job_out = (weftrun_job){.prefix = true, .settle = 6, .grace = 5, .restarts = 3, .wait = 10, .patience = 10, .back_off = 1};
    bool counts = false;
    int at = 1, taken;
    for (; argv[at] && argv[at][0] == '-'; ++at) {
        const char *value = NULL;
        if (strcmp(argv[at], "--") == 0) {
            ++at;
            break;
        }
        if (strcmp(argv[at], "-h") == 0 || strcmp(argv[at], "--help") == 0) {
            fputs(help, stdout);
            return 0;
        } else if (strcmp(argv[at], "--no-prefix") == 0) {
            job_out->prefix = false;
        } else if (strcmp(argv[at], "--encrypt") == 0) {
            job_out->encrypt = true;
        } else if (strcmp(argv[at], "--elastic") == 0) {
            job_out->elastic = true;
        } else if ((taken = take_elastic(argv, &at, job_out)) != 0) {
            counts = true;
            if (taken < 0) return STATUS_USAGE;
        } else if (takes(argv, &at, "--ranks", &value) || takes(argv, &at, "-n", &value)) {
            if (!parse_ranks(value, &job_out->ranks)) return STATUS_USAGE;
        } else if (takes(argv, &at, "--settle", &value)) {
            if (!parse_seconds("--settle", value, &job_out->settle)) return STATUS_USAGE;
        } else if (takes(argv, &at, "--grace", &value)) {
            if (!parse_seconds("--grace", value, &job_out->grace)) return STATUS_USAGE;
        } else if (takes(argv, &at, "--wire", &value)) {
            if (!is_wire(value)) {
                weftrun_complain("--wire wants shm, tcp, verbs, mpi or auto, not '%s'", value ? value : "nothing");
                return STATUS_USAGE;
            }
            job_out->wire = value;
        } else {
            weftrun_complain("unknown option '%s' (weftrun --help lists them)", argv[at]);
            return STATUS_USAGE;
        }
    }
    if (job_out->ranks == 0) {
        weftrun_complain("how many ranks? weftrun -n RANKS PROGRAM...");
        return STATUS_USAGE;
    }
    if (!check_elastic(job_out, counts)) return STATUS_USAGE;
    if (!argv[at]) {
        weftrun_complain("which program? weftrun -n %d PROGRAM...", job_out->ranks);
        return STATUS_USAGE;
    }
    job_out->program = argv + at;
    return -1;
}

/* Where this process stands: what launchers say in the environment.
 *
 * Weft's own variables win, so that any launcher can be overruled:
 *   WEFT_RANK, WEFT_WORLD_SIZE           who this is, of how many
 *   WEFT_LOCAL_RANK, WEFT_LOCAL_SIZE     on this host (optional)
 *   WEFT_STORE=host:port                 where rank 0 serves the rendezvous
 *   WEFT_STORE_FD                        rank 0: that socket, bound and listening already
 *   WEFT_JOB                             a name for the job, the same on all of its ranks
 *   WEFT_INTERFACE                       interface of this host that wires bind to, by name or address (default: loopback)
 *   WEFT_SECRET, WEFT_SECRET_FILE        the job's secret, itself or in a file that only its owner can read
 *   WEFT_ENCRYPT=1                       what goes over TCP is encrypted
 * In an indexed job of Kubernetes the rank is JOB_COMPLETION_INDEX, beside WEFT_WORLD_SIZE and WEFT_STORE, which names rank 0's pod.
 * Other launchers give no port of ours, so a few ports from a number made of the job's name are tried. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/transport.h"

enum { LEAST_SECRET_BYTES = 16, PORTS_TO_TRY = 16, FIRST_PORT = 20000, PORT_RANGE = 12000 };

/* A launcher's variables; NULL where it has none for that. */
typedef struct launcher {
    const char *name, *rank, *size, *local_rank, *local_size;
} launcher;

static const launcher launchers[] = {
    {"weftrun", "WEFT_RANK", "WEFT_WORLD_SIZE", "WEFT_LOCAL_RANK", "WEFT_LOCAL_SIZE"},
    {"Kubernetes", "JOB_COMPLETION_INDEX", "WEFT_WORLD_SIZE", NULL, NULL},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    /* Not SLURM_NTASKS, which a batch script has too, beside a SLURM_PROCID of 0. */
    {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL},
};

static const char *variable(const char *name) {
    const char *value = name ? getenv(name) : NULL;
    return value && *value ? value : NULL;
}

static bool same_values(const char *a, const char *b) {
    return variable(a) && variable(b) && strcmp(variable(a), variable(b)) == 0;
}

/* Whether this is srun speaking PMI as well: Slurm's own variables then say more, as which nodes there are. */
static bool is_slurms(const launcher *from) {
    return strcmp(from->name, "PMI") == 0 && same_values(from->rank, "SLURM_PROCID") && same_values(from->size, "SLURM_STEP_NUM_TASKS");
}

static weft_status read_number(const char *name, int32_t least, int32_t most, int32_t *number_out) {
    const char *text = variable(name);
    char       *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < least || value > most)
        return wefti_fail(WEFT_E_INVALID, "%s=%s: expected a number from %d to %d", name, text, (int)least, (int)most);
    *number_out = (int32_t)value;
    return WEFT_OK;
}

static weft_status read_launcher(const launcher *from, wefti_place *place) {
    if (!variable(from->rank) || !variable(from->size))
        return wefti_fail(WEFT_E_INVALID, "%s is set, but %s is not: set both or neither",
                          variable(from->rank) ? from->rank : from->size, variable(from->rank) ? from->size : from->rank);
    WEFTI_TRY(read_number(from->size, 1, 1 << 20, &place->size));
    WEFTI_TRY(read_number(from->rank, 0, 1 << 20, &place->rank));
    if (place->rank >= place->size)
        return wefti_fail(WEFT_E_INVALID, "%s=%d and %s=%d: ranks go from 0 to %d", from->rank, (int)place->rank, from->size,
                          (int)place->size, (int)place->size - 1);
    place->launcher = from->name;
    if (variable(from->local_rank)) WEFTI_TRY(read_number(from->local_rank, 0, 1 << 20, &place->local_rank));
    if (variable(from->local_size)) WEFTI_TRY(read_number(from->local_size, 1, 1 << 20, &place->local_size));
    if (place->local_size >= 0 && place->local_rank >= place->local_size)
        return wefti_fail(WEFT_E_INVALID, "%s=%d and %s=%d: there are more ranks on this host than the launcher says that it has room for; local "
                          "ranks go from 0 to %d", from->local_rank, (int)place->local_rank, from->local_size, (int)place->local_size,
                          (int)place->local_size - 1);
    return WEFT_OK;
}

/* --- the job's secret --- */

static weft_status keep_secret(wefti_place *place, const char *text, size_t length, const char *where) {
    while (length > 0 && isspace((unsigned char)text[length - 1])) length--;
    if (length < LEAST_SECRET_BYTES || length > sizeof place->secret)
        return wefti_fail(WEFT_E_INVALID, "the secret in %s has %zu bytes; expected %d to %zu (as `openssl rand -hex 32` makes)",
                          where, length, LEAST_SECRET_BYTES, sizeof place->secret);
    memcpy(place->secret, text, length);
    place->secret_bytes = length;
    return WEFT_OK;
}

static weft_status read_secret_file(const char *path, wefti_place *place) {
    char text[256];
    int  file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe that nobody writes to would be waited for */
    if (file < 0) return wefti_fail_errno("cannot open WEFT_SECRET_FILE=%s", path);
    struct stat info;
    ssize_t     got = -1;
    bool        sound = fstat(file, &info) == 0 && S_ISREG(info.st_mode);
    bool        own = sound && info.st_uid == geteuid(), closed = own && (info.st_mode & 077) == 0;
    if (closed) got = read(file, text, sizeof text);
    close(file);
    if (!sound) return wefti_fail(WEFT_E_INVALID, "WEFT_SECRET_FILE=%s is no regular file", path);
    if (!own)
        return wefti_fail(WEFT_E_AUTH, "WEFT_SECRET_FILE=%s belongs to user %u, and this process runs as user %u: others could change it; "
                          "make a copy of mode 0600 for this user", path, (unsigned)info.st_uid, (unsigned)geteuid());
    if (!closed)
        return wefti_fail(WEFT_E_AUTH, "WEFT_SECRET_FILE=%s has mode %04o: others could read it; give it to this user and "
                          "run chmod 600 %s", path, (unsigned)(info.st_mode & 07777), path);
    if (got < 0) return wefti_fail(WEFT_E_IO, "cannot read WEFT_SECRET_FILE=%s", path);
    weft_status status = keep_secret(place, text, (size_t)got, path);
    explicit_bzero(text, sizeof text);
    return status;
}

static weft_status read_secret(wefti_place *place) {
    if (variable("WEFT_SECRET"))
        return keep_secret(place, variable("WEFT_SECRET"), strlen(variable("WEFT_SECRET")), "WEFT_SECRET");
    return variable("WEFT_SECRET_FILE") ? read_secret_file(variable("WEFT_SECRET_FILE"), place) : WEFT_OK;
}

static weft_status read_encrypt(wefti_place *place) {
    int32_t number = 0;
    if (variable("WEFT_ENCRYPT")) WEFTI_TRY(read_number("WEFT_ENCRYPT", 0, 1, &number));
    place->encrypt = number == 1;
    return WEFT_OK;
}

/* --- the store --- */

/* The end of the text included. */
static uint64_t hash_of(uint64_t hash, const char *text) { return wefti_hash(hash, text, strlen(text) + 1); }

static int32_t port_of_job(const char *job) {
    return FIRST_PORT + (int32_t)((hash_of(WEFTI_HASH_BEGIN, job) >> 32) % PORT_RANGE);
}

/* The first host of a Slurm list: "node[3-7,9],other" gives node3. */
static void first_host(const char *list, char *host_out, size_t most) {
    size_t used = 0;
    bool   inside = false;
    for (const char *at = list; *at && used + 1 < most; at++) {
        if (*at == '[') {
            inside = true;
            continue;
        }
        if (*at == ',' || *at == ']' || (inside && *at == '-')) break;
        host_out[used++] = *at;
    }
    host_out[used] = 0;
}

/* What launchers call a job may be long and differ in its last digits only: a number made of all of it goes behind what fits. */
static void set_job(wefti_place *place, const char *kind, const char *first, const char *second) {
    const char *own = variable("WEFT_JOB");
    uint64_t    hash = hash_of(WEFTI_HASH_BEGIN, own ? own : first ? first : "");
    if (own && strlen(own) < sizeof place->job)
        snprintf(place->job, sizeof place->job, "%s", own);
    else if (own)
        snprintf(place->job, sizeof place->job, "%.40s-%016llx", own, (unsigned long long)hash);
    else
        snprintf(place->job, sizeof place->job, "%.10s-%.30s-%016llx", kind, first ? first : "",
                 (unsigned long long)hash_of(hash, second ? second : ""));
}

/* The job that an indexed job's pod belongs to: its host's name without the index at the end. */
static void read_pods_job(char *job_out, size_t most) {
    const char *host = variable("HOSTNAME") ? variable("HOSTNAME") : "", *dash = strrchr(host, '-');
    if (dash && strcmp(dash + 1, variable("JOB_COMPLETION_INDEX")) == 0) snprintf(job_out, most, "%.*s", (int)(dash - host), host);
}

static weft_status find_store(wefti_place *place) {
    const char *store = variable("WEFT_STORE");
    place->store_ports = 1;
    if (strcmp(place->launcher, "torchrun") == 0) {
        set_job(place, "torchrun", variable("TORCHELASTIC_RUN_ID"), variable("MASTER_PORT"));
        if (!store && variable("MASTER_ADDR") && variable("MASTER_PORT")) {
            int32_t port = 0; /* its own store is there; ours comes after it */
            WEFTI_TRY(read_number("MASTER_PORT", 1, 65535 - PORTS_TO_TRY - 1, &port));
            /* On one machine its address may be a name that is not of loopback, which would demand a secret. */
            const char *host = place->local_size == place->size ? "127.0.0.1" : variable("MASTER_ADDR");
            snprintf(place->store, sizeof place->store, "%.200s:%d", host, (int)port + 1);
            place->store_ports = PORTS_TO_TRY;
        }
    } else if (strcmp(place->launcher, "Open MPI") == 0 || strcmp(place->launcher, "PMI") == 0) {
        const char *space = variable("PMIX_NAMESPACE");
        set_job(place, "mpi", space ? space : variable("OMPI_MCA_ess_base_jobid"), variable("PMI_JOBID"));
        if (!store && place->local_size == place->size) {
            snprintf(place->store, sizeof place->store, "127.0.0.1:%d", (int)port_of_job(place->job));
            place->store_ports = PORTS_TO_TRY;
        }
    } else if (strcmp(place->launcher, "Slurm") == 0) {
        const char *nodes = variable("SLURM_STEP_NODELIST") ? variable("SLURM_STEP_NODELIST") : variable("SLURM_NODELIST");
        const char *count = variable("SLURM_STEP_NUM_NODES") ? variable("SLURM_STEP_NUM_NODES") : variable("SLURM_NNODES");
        char        host[200] = "127.0.0.1";
        set_job(place, "slurm", variable("SLURM_JOB_ID"), variable("SLURM_STEP_ID"));
        if (nodes && count && strcmp(count, "1") != 0) first_host(nodes, host, sizeof host);
        if (!store && (nodes || count)) {
            snprintf(place->store, sizeof place->store, "%s:%d", host, (int)port_of_job(place->job));
            place->store_ports = PORTS_TO_TRY;
        }
    } else if (strcmp(place->launcher, "Kubernetes") == 0) {
        char job[64] = "";
        read_pods_job(job, sizeof job);
        set_job(place, "kubernetes", job, NULL);
    } else {
        set_job(place, "weft", NULL, NULL);
    }
    if (store) {
        if (strlen(store) >= sizeof place->store) return wefti_fail(WEFT_E_INVALID, "WEFT_STORE is too long");
        snprintf(place->store, sizeof place->store, "%s", store);
    }
    if (place->rank == 0 && variable("WEFT_STORE_FD"))
        WEFTI_TRY(read_number("WEFT_STORE_FD", 0, 1 << 20, &place->store_descriptor));
    return WEFT_OK;
}

weft_status wefti_place_read(wefti_place *place_out) {
    wefti_place *place = place_out;
    *place = (wefti_place){.size = 1, .local_rank = -1, .local_size = -1, .launcher = "none", .store_ports = 1,
                           .store_descriptor = -1};
    for (size_t i = 0; i < WEFTI_COUNT(launchers); i++) {
        /* One of the two alone is a mistake for our own; other launchers' names are common words. */
        bool rank = variable(launchers[i].rank), size = variable(launchers[i].size);
        bool kubernetes = !rank && variable("JOB_COMPLETION_INDEX"); /* whose rank goes with our size */
        if (i == 0 ? !(rank || size) || kubernetes : !(rank && size)) continue;
        if (is_slurms(&launchers[i])) continue;
        WEFTI_TRY(read_launcher(&launchers[i], place));
        break;
    }
    if (variable("WEFT_INTERFACE")) {
        if (strlen(variable("WEFT_INTERFACE")) >= sizeof place->interface)
            return wefti_fail(WEFT_E_INVALID, "WEFT_INTERFACE is too long: expected an interface (eth0) or an address of this host");
        snprintf(place->interface, sizeof place->interface, "%s", variable("WEFT_INTERFACE"));
    }
    WEFTI_TRY(read_secret(place));
    WEFTI_TRY(read_encrypt(place));
    return find_store(place);
}

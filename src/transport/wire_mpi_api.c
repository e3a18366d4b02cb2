/* Finding, loading and starting MPI.
 *
 * Which MPI: WEFT_MPI names a flavour or a module's file; else the one that the program has loaded already; else that of the
 * launcher which started this process; else the first module that loads. Modules lie where WEFT_MPI_DIR says, beside the
 * program (lib/ next to its bin/, as built and as installed), or where this build put and installs them.
 *
 * One lock for the whole process stands before MPI, held for short calls only. Memory that MPI holds and does not give back
 * (a rank died in the middle of a transfer) makes it poison: nobody calls it again, and the memory may be used again. */
#include "core/iface/collective.h"
#include "transport/wire_mpi_api.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef WEFTI_MPI_DIRS
#define WEFTI_MPI_DIRS ""
#endif

enum { WIRE_TAGS = 8192, COMM_TAGS = 1024 }; /* for frames, and for making communicators; the tags above are for transfers */
enum { POISON_LOOK_NS = 10000000 };

static struct {
    wefti_mpi       mpi;
    pthread_t       thread;  /* that started it */
    bool            started;
    weft_status     failed;  /* to start … */
    char            failure[WEFTI_MESSAGE_BYTES]; /* … in words: MPI does not start twice */
    int             last_wire, last_data;
    _Atomic int     users;   /* that have not left */
    _Atomic bool    failed_once; /* one left because of a fault */
    _Atomic int     poisoned; /* 1: being written, 2: written */
    char            poison[256];
    pthread_mutex_t start_lock, lock;
} process = {.start_lock = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};

static const char *const flavours[] = {"openmpi", "mpich"};

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* --- which one --- */

/* The flavour that the program has in it already. */
static const char *loaded_flavour(void) {
    if (!dlsym(RTLD_DEFAULT, "MPI_Init_thread")) return NULL;
    return dlsym(RTLD_DEFAULT, "ompi_mpi_comm_world") ? "openmpi" : "mpich";
}

/* The flavour that this process was started for; NULL: it was not by an MPI launcher. */
static const char *launched_flavour(void) {
    if (variable("OMPI_COMM_WORLD_SIZE") || variable("PMIX_RANK")) return "openmpi";
    if (variable("PMI_RANK") || variable("PMI_FD") || variable("PMI_SIZE")) return "mpich";
    return NULL;
}

/* The next of a list of folders; false at its end. */
static bool next_folder(const char **list, char *folder_out, size_t folder_bytes) {
    if (!*list || !**list) return false;
    const char *end = strchr(*list, ':');
    size_t      length = end ? (size_t)(end - *list) : strlen(*list);
    snprintf(folder_out, folder_bytes, "%.*s", (int)length, *list);
    *list = end ? end + 1 : NULL;
    return true;
}

/* The folders in which modules are looked for, in order, as a list. */
static void read_folders(char *list_out, size_t list_bytes) {
    char    beside[PATH_MAX] = "";
    ssize_t length = readlink("/proc/self/exe", beside, sizeof beside - 1);
    if (length > 0) beside[length] = 0;
    char *name = strrchr(beside, '/');
    if (name) *name = 0;
    const char *own = variable("WEFT_MPI_DIR");
    snprintf(list_out, list_bytes, "%s%s%s/../lib:%s/../lib/weft:%s", own ? own : "", own ? ":" : "", beside, beside,
             WEFTI_MPI_DIRS);
}

static bool find_module(const char *flavour, char *path_out, size_t path_bytes) {
    char        list[4 * PATH_MAX], folder[PATH_MAX];
    const char *at = list;
    read_folders(list, sizeof list);
    while (next_folder(&at, folder, sizeof folder)) {
        if (!folder[0]) continue;
        snprintf(path_out, path_bytes, "%s/libweft_mpi_%s.so", folder, flavour);
        if (access(path_out, R_OK) == 0) return true;
    }
    return false;
}

bool wefti_mpi_is_likely(void) {
    char        path[PATH_MAX + 64];
    const char *flavour = variable("WEFT_MPI") ? variable("WEFT_MPI") : launched_flavour();
    if (process.started) return true;
    if (!launched_flavour()) return false;
    return strchr(flavour, '/') ? access(flavour, R_OK) == 0 : find_module(flavour, path, sizeof path);
}

/* --- loading --- */

static weft_status load_file(const char *path, const wefti_mpi_api **api_out) {
    /* Global: Open MPI loads parts of itself later that look for its symbols there. */
    void *module = dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE);
    if (!module) return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: %s cannot be loaded: %s", path, dlerror());
    wefti_mpi_entry entry = NULL;
    *(void **)&entry = dlsym(module, WEFTI_MPI_ENTRY);
    const wefti_mpi_api *api = entry ? entry() : NULL;
    if (!api || api->version != WEFTI_MPI_TABLE_VERSION)
        return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: %s is of another version of Weft (%u, not %d): install the module that was "
                          "built with this library", path, api ? api->version : 0, WEFTI_MPI_TABLE_VERSION);
    *api_out = api;
    return WEFT_OK;
}

static weft_status load_flavour(const char *flavour, const char *why, const wefti_mpi_api **api_out) {
    char path[PATH_MAX + 64], folders[4 * PATH_MAX];
    if (find_module(flavour, path, sizeof path)) return load_file(path, api_out);
    read_folders(folders, sizeof folders);
    return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: there is no module libweft_mpi_%s.so (%s) in %.500s; build Weft where that MPI's mpicc "
                      "is, or say where the module is by WEFT_MPI_DIR", flavour, why, folders);
}

static weft_status load(const wefti_mpi_api **api_out) {
    const char *own = variable("WEFT_MPI");
    if (own && strchr(own, '/')) return load_file(own, api_out);
    if (own) return load_flavour(own, "which WEFT_MPI asks for", api_out);
    if (loaded_flavour()) return load_flavour(loaded_flavour(), "which the program has loaded", api_out);
    if (!launched_flavour())
        return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: this process was not started by an MPI launcher: start the ranks with mpirun "
                          "(or srun --mpi=pmix, srun --mpi=pmi2), or take another wire (WEFT_WIRE=auto)");
    /* An MPI that is compatible with one of ours has its launcher's variables, maybe; try the others too. */
    weft_status status = load_flavour(launched_flavour(), "which the launcher's variables are of", api_out);
    for (size_t i = 0; i < WEFTI_COUNT(flavours) && status != WEFT_OK && variable("PMIX_RANK") && !variable("OMPI_COMM_WORLD_SIZE"); i++)
        if (strcmp(flavours[i], launched_flavour()) != 0) status = load_flavour(flavours[i], "which speaks PMIx too", api_out);
    return status;
}

/* --- starting --- */

static void stop_at_exit(void) {
    if (atomic_load(&process.users) > 0 || atomic_load(&process.failed_once) || wefti_mpi_poisoned() || pthread_mutex_trylock(&process.lock) != 0) return; /* in a call of another thread: leave it */
    if (process.mpi.facts.serialized || pthread_equal(pthread_self(), process.thread)) (void)process.mpi.api->stop();
    pthread_mutex_unlock(&process.lock);
}

/* What MPI does not reduce as we do is reduced by us. */
static void combine(void *into, const void *more, size_t count, int dtype, int op) {
    const wefti_reducer *reducer = wefti_reducer_host();
    const void          *sources[] = {into, more};
    (void)!reducer->reduce(reducer->context, into, sources, 2, count, (weft_dtype)dtype, (wefti_reduce_op)op, 1);
}

static weft_status start(void) {
    wefti_mpi *mpi = &process.mpi;
    char       text[WEFTI_MPI_TEXT_BYTES];
    WEFTI_TRY(load(&mpi->api));
    int code = mpi->api->start(combine, &mpi->facts);
    if (code != 0) {
        mpi->api->error_text(code, text, sizeof text);
        return wefti_fail(WEFT_E_UNSUPPORTED, "mpi: %s does not start: %s", mpi->api->flavour, text);
    }
    if (!mpi->facts.serialized && !mpi->facts.main_thread)
        return wefti_fail(WEFT_E_STATE, "mpi: the program initialised MPI for its main thread alone, and the world is made by another: "
                          "ask MPI_Init_thread for MPI_THREAD_SERIALIZED, or use the main thread");
    process.thread = pthread_self();
    process.last_wire = 0;
    process.last_data = WIRE_TAGS + COMM_TAGS;
    process.started = true;
    wefti_log(WEFT_LOG_INFO, "mpi: %s, process %d of %d", mpi->facts.version, mpi->facts.rank, mpi->facts.size);
    if (mpi->facts.started_here && atexit(stop_at_exit) != 0)
        wefti_log(WEFT_LOG_WARNING, "mpi: MPI will not be finalised when the process ends");
    return WEFT_OK;
}

weft_status wefti_mpi_start(const wefti_mpi **mpi_out) {
    pthread_mutex_lock(&process.start_lock);
    if (!process.started && process.failed == WEFT_OK) {
        process.failed = start();
        if (process.failed != WEFT_OK) snprintf(process.failure, sizeof process.failure, "%s", weft_error_message());
    }
    pthread_mutex_unlock(&process.start_lock);
    if (process.failed != WEFT_OK) return wefti_fail(process.failed, "%s", process.failure);
    if (wefti_mpi_poisoned()) return wefti_fail(WEFT_E_STATE, "mpi: MPI was given up in this process: %s", wefti_mpi_poisoned());
    if (!process.mpi.facts.serialized && !pthread_equal(pthread_self(), process.thread))
        return wefti_fail(WEFT_E_STATE, "mpi: the program initialised MPI for one thread alone, and this is another: ask "
                          "MPI_Init_thread for MPI_THREAD_SERIALIZED");
    wefti_mpi_lock(true);
    bool running = process.mpi.api->is_running();
    wefti_mpi_unlock();
    if (!running) return wefti_fail(WEFT_E_STATE, "mpi: the program has finalised MPI: release worlds before MPI_Finalize");
    *mpi_out = &process.mpi;
    atomic_fetch_add(&process.users, 1);
    return WEFT_OK;
}

void wefti_mpi_leave(bool in_order) {
    if (!in_order) atomic_store(&process.failed_once, true);
    atomic_fetch_sub(&process.users, 1);
}

bool wefti_mpi_lock(bool wait) {
    if (process.started && !process.mpi.facts.serialized && !pthread_equal(pthread_self(), process.thread)) return false;
    if (pthread_mutex_trylock(&process.lock) == 0) return true;
    while (wait && !wefti_mpi_poisoned()) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += POISON_LOOK_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_mutex_timedlock(&process.lock, &until) == 0) return true;
    }
    return false;
}
void wefti_mpi_unlock(void) { pthread_mutex_unlock(&process.lock); }

void wefti_mpi_poison(const char *cause) {
    int none = 0;
    if (!atomic_compare_exchange_strong(&process.poisoned, &none, 1)) return;
    snprintf(process.poison, sizeof process.poison, "%s", cause);
    atomic_store(&process.poisoned, 2);
    wefti_log(WEFT_LOG_WARNING, "mpi: MPI is not used any more: %s", cause);
}
const char *wefti_mpi_poisoned(void) { return atomic_load(&process.poisoned) == 2 ? process.poison : NULL; }

int wefti_mpi_wire_tag(const wefti_mpi *mpi) {
    (void)mpi;
    return process.last_wire = process.last_wire % (WIRE_TAGS - 1) + 1;
}
int wefti_mpi_data_tag(const wefti_mpi *mpi) {
    process.last_data = process.last_data >= mpi->facts.most_tag ? WIRE_TAGS + COMM_TAGS : process.last_data + 1;
    return process.last_data;
}
int wefti_mpi_comm_tag(int group) { return WIRE_TAGS + group % COMM_TAGS; }

/* The keeper: a thread of a server that reads and writes files, so that a slow disk holds up nobody's request. It is made when it is first
 * wanted. A server without a thread of its own, as in simulated worlds, works on files at once. */
#include <stdio.h>
#include <string.h>

#include "parallel/server/saves.h"

struct server_keeper {
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  something;
    keeper_job     *first, *last;
    bool            stop;
};

static void work(keeper_job *job) {
    job->status = job->run(job->context);
    snprintf(job->message, sizeof job->message, "%.*s", WEFTI_SERVER_TEXT_BYTES - 1, job->status == WEFT_OK ? "" : weft_error_message());
    atomic_store_explicit(&job->done, true, memory_order_release);
}

static void *run_keeper(void *context) {
    struct server_keeper *keeper = context;
    pthread_mutex_lock(&keeper->lock);
    while (!keeper->stop) {
        keeper_job *job = keeper->first;
        if (!job) {
            pthread_cond_wait(&keeper->something, &keeper->lock);
            continue;
        }
        keeper->first = job->next;
        if (!keeper->first) keeper->last = NULL;
        pthread_mutex_unlock(&keeper->lock);
        work(job); /* after which it may be gone */
        pthread_mutex_lock(&keeper->lock);
    }
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

static weft_status open_keeper(weft_server *server) {
    struct server_keeper *keeper = NULL;
    if (server->keeper) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(sizeof *keeper, "the keeper of snapshots", &keeper));
    pthread_mutex_init(&keeper->lock, NULL);
    pthread_cond_init(&keeper->something, NULL);
    if (pthread_create(&keeper->thread, NULL, run_keeper, keeper) != 0) {
        pthread_cond_destroy(&keeper->something);
        pthread_mutex_destroy(&keeper->lock);
        wefti_free(keeper, sizeof *keeper);
        return wefti_fail(WEFT_E_NO_MEMORY, "rank %d, which serves, gets no thread for its files", (int)server->rank);
    }
    server->keeper = keeper;
    return WEFT_OK;
}

void wefti_keeper_run(weft_server *server, keeper_job *job) {
    atomic_store(&job->done, false);
    job->next = NULL;
    if (!(server->of ? server->of : server)->threaded || open_keeper(server) != WEFT_OK) { /* without one it is slow, and right */
        work(job);
        return;
    }
    struct server_keeper *keeper = server->keeper;
    pthread_mutex_lock(&keeper->lock);
    if (keeper->last) keeper->last->next = job;
    else keeper->first = job;
    keeper->last = job;
    pthread_cond_signal(&keeper->something);
    pthread_mutex_unlock(&keeper->lock);
}

void wefti_keeper_close(weft_server *server) {
    struct server_keeper *keeper = server->keeper;
    if (!keeper) return;
    pthread_mutex_lock(&keeper->lock);
    keeper->stop = true;
    pthread_cond_signal(&keeper->something);
    pthread_mutex_unlock(&keeper->lock);
    pthread_join(keeper->thread, NULL);
    pthread_cond_destroy(&keeper->something);
    pthread_mutex_destroy(&keeper->lock);
    wefti_free(keeper, sizeof *keeper);
    server->keeper = NULL;
}

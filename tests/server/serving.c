#include "serving.h"

#include <criterion/criterion.h>
#include <string.h>
#include <time.h>

static const char         *wire_name;
static weft_server_options how;
static serving_case        what;

static weft_status run(ranks *all, int32_t rank) {
    serving     self = {.all = all, .rank = rank};
    weft_status status = weft_world_create(&(weft_world_options){.wire = wire_name, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS},
                                           &self.world);
    if (status == WEFT_OK) status = weft_server_create(self.world, &how, &self.server);
    if (status == WEFT_OK) {
        self.workers = weft_server_workers(self.server);
        status = weft_server_is_worker(self.server) ? what(&self) : weft_server_serve(self.server);
    }
    weft_server_release(self.server);
    weft_world_release(self.world);
    weft_memory_counts held;
    weft_memory_read(&held);
    if (status == WEFT_OK && held.held_bytes) return wefti_fail(WEFT_E_INTERNAL, "%llu bytes are held at the end", (unsigned long long)held.held_bytes);
    return status;
}

ranks *serve_case_with(const char *wire, int32_t size, const weft_server_options *options, serving_case function, uint32_t lost) {
    wire_name = wire;
    how = options ? *options : (weft_server_options){0};
    what = function;
    ranks *all = ranks_start(size, run);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (!(lost >> rank & 1))
            cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", wire, (int)rank,
                      (int)size, all->results[rank].message);
    return all;
}

void serve_case(const char *wire, int32_t size, const weft_server_options *options, serving_case function) {
    ranks_free(serve_case_with(wire, size, options, function, 0));
}

weft_status serving_meet(serving *self) {
    int32_t round = atomic_fetch_add(&self->all->ready, 1) / self->workers + 1;
    for (int tries = 0; atomic_load(&self->all->ready) < round * self->workers; tries++) {
        if (tries > 100000) return wefti_fail(WEFT_E_TIMEOUT, "the workers did not meet");
        if (weft_server_poll(self->server) != WEFT_OK) return wefti_fail(WEFT_E_PEER, "%s", weft_error_message());
        struct timespec pause = {0, 200 * 1000};
        nanosleep(&pause, NULL);
    }
    return WEFT_OK;
}

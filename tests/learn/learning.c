#include "learn/learning.h"

#include <sys/mman.h>

static learner     what;
static const char *over;

static weft_status live(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    (void)all;
    (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = over, .threads = {.count = 1}}, &world));
    weft_status status = what(world);
    weft_world_release(world);
    return status;
}

ranks *learn_and_see(const char *wire, int32_t count, learner function) {
    what = function;
    over = wire;
    ranks *all = ranks_start(count, live);
    ranks_join(all);
    return all;
}

void learn_on(const char *wire, int32_t count, learner function) {
    ranks *all = learn_and_see(wire, count, function);
    for (int32_t rank = 0; rank < count; rank++)
        cr_expect(all->results[rank].finished && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", wire, (int)rank, (int)count,
                  all->results[rank].message);
    ranks_free(all);
}

void *learn_share(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(memory != MAP_FAILED);
    return memory;
}

double learn_noise(uint64_t number) {
    number = (number + UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
    number = (number ^ number >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)(int32_t)((number ^ number >> 31) >> 32) * 0x1p-31;
}

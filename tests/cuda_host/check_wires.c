/* The device's memory as wires see it: what the device says of it, exports, copies and gives back; and stages of a pipeline whose messages go straight from
 * one device's memory to another's by the verbs wire, on a fabric of this process, with ranks as threads. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weft.h"
#include "core/iface/world.h"
#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "verbs/fake_verbs.h"
#include "transport/ranks.h"

/* In the place of what would load libibverbs. */
weft_status wefti_verbs_api_load(const wefti_verbs_api **api_out) {
    *api_out = &fake_verbs;
    return WEFT_OK;
}

/* --- what the device gives --- */

typedef struct heard {
    int         times;
    const void *memory;
    size_t      bytes;
} heard;

static void note(void *listener, const void *memory, size_t bytes) {
    heard *h = listener;
    h->times++;
    h->memory = memory;
    h->bytes = bytes;
}

static wefti_device *open_device(wefti_cuda_host_options how, wefti_foreign *foreign) {
    wefti_device *device = NULL;
    how.seed = 1;
    wefti_cuda_host_reset(&how);
    cr_assert_eq(wefti_cuda_create(NULL, &device), WEFT_OK, "%s", weft_error_message());
    cr_assert(device->vtable->foreign && device->vtable->foreign(device, foreign));
    return device;
}

static char *allocate(wefti_device *device, size_t bytes) {
    void *memory = NULL;
    cr_assert_eq(device->vtable->allocate(device, bytes, "a test's memory", &memory), WEFT_OK, "%s", weft_error_message());
    return memory;
}

Test(cuda_wires, finds_the_piece_of_an_address) {
    wefti_foreign foreign;
    wefti_device *device = open_device((wefti_cuda_host_options){0}, &foreign);
    char         *memory = allocate(device, 10000);
    void         *base = NULL;
    size_t        whole = 0;
    cr_expect(foreign.find(foreign.context, memory + 5000, 5000, &base, &whole));
    cr_expect(base == memory && whole >= 10000);
    cr_expect_not(foreign.find(foreign.context, memory + 5000, whole - 4999, &base, &whole), "it reaches out of its piece");
    cr_expect_not(foreign.find(foreign.context, &whole, 8, &base, &whole), "memory of the host's");
    device->vtable->deallocate(device, memory, 10000);
    cr_expect_not(foreign.find(foreign.context, memory, 100, &base, &whole), "memory that is nobody's");
    device->vtable->release(device);
}

Test(cuda_wires, exports_dmabufs_of_whole_pages) {
    wefti_foreign foreign;
    wefti_device *device = open_device((wefti_cuda_host_options){0}, &foreign);
    char         *memory = allocate(device, 20000);
    int           descriptor = -1;
    uint64_t      offset = 0;
    cr_assert_eq(foreign.open_dmabuf(foreign.context, memory + 5000, 10000, &descriptor, &offset), WEFT_OK, "%s", weft_error_message());
    cr_expect(descriptor >= 0 && close(descriptor) == 0);
    cr_expect_eq(offset, (uintptr_t)(memory + 5000) % 4096);
    cr_expect_eq(wefti_cuda_host_dmabufs(), 1);
    device->vtable->deallocate(device, memory, 20000);
    device->vtable->release(device);
}

static void refuses(wefti_cuda_host_options how, const char *words) {
    wefti_foreign foreign;
    wefti_device *device = open_device(how, &foreign);
    char         *memory = allocate(device, 20000);
    int           descriptor = -1;
    uint64_t      offset = 0;
    cr_expect_eq(foreign.open_dmabuf(foreign.context, memory, 20000, &descriptor, &offset), WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), words), "'%s' is not in: %s", words, weft_error_message());
    cr_expect_eq(descriptor, -1);
    device->vtable->deallocate(device, memory, 20000);
    device->vtable->release(device);
}
Test(cuda_wires, an_old_driver_exports_none) {
    refuses((wefti_cuda_host_options){.no_dmabuf = true}, "cuda:0: the driver has no cuMemGetHandleForAddressRange; one for CUDA 11.7 or newer has");
}
Test(cuda_wires, a_kernel_without_dmabufs_is_named) {
    refuses((wefti_cuda_host_options){.refuses_dmabuf = true}, "cuda:0 exports no dma-buf: cudaErrorNotSupported");
}

Test(cuda_wires, copies_either_way_beside_what_computes) {
    wefti_foreign foreign;
    wefti_device *device = open_device((wefti_cuda_host_options){.lazy = true}, &foreign);
    char         *memory = allocate(device, 5000), from[5000], to[5000];
    for (int i = 0; i < 5000; i++) from[i] = (char)(i * 3);
    cr_assert_eq(foreign.copy(foreign.context, memory, from, 5000), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(foreign.copy(foreign.context, to, memory + 10, 4990), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(memcmp(from + 10, to, 4990), 0);
    device->vtable->deallocate(device, memory, 5000);
    device->vtable->release(device);
}

Test(cuda_wires, tells_of_memory_before_it_gives_it_back) {
    wefti_foreign foreign;
    heard         ear = {0};
    wefti_device *device = open_device((wefti_cuda_host_options){.memory_bytes = 3 << 20}, &foreign);
    foreign.listen(foreign.context, note, &ear);
    char *memory = allocate(device, 2 << 20);
    device->vtable->deallocate(device, memory, 2 << 20);
    cr_expect_eq(ear.times, 0, "it is kept for the next who asks");
    char *next = allocate(device, 3 << 19 | 1 << 18); /* does not fit beside it */
    cr_expect(ear.times == 1 && ear.memory == memory && ear.bytes == 2 << 20, "%d times", ear.times);
    device->vtable->deallocate(device, next, 3 << 19 | 1 << 18);
    foreign.listen(foreign.context, NULL, NULL);
    device->vtable->release(device);
    cr_expect_eq(ear.times, 1, "nobody listens any more");
}

Test(cuda_wires, flushes_where_the_device_wants_it) {
    for (int flushes = 0; flushes < 2; flushes++) {
        wefti_foreign foreign;
        wefti_device *device = open_device((wefti_cuda_host_options){.flushes = flushes}, &foreign);
        cr_expect_eq(foreign.arrived(foreign.context), WEFT_OK, "%s", weft_error_message());
        cr_expect_eq(wefti_cuda_host_flushes(), flushes);
        device->vtable->release(device);
    }
}

/* --- stages of a pipeline --- */

enum { RANKS = 2, ROWS = 256, IN = 8, HIDDEN = 160, STEPS = 3 };

typedef struct stage {
    int32_t     rank;
    const char *store;
    weft_status status;
    float       losses[STEPS];
    char        world[512], plan[300], message[600];
} stage;

static weft_tensor *stretch(weft_tensor *h, const char *name) { return weft_tanh(weft_linear(h, name, .out = HIDDEN)); }

/* A message of 80 KiB for each micro-batch and direction, and small ones of the loss. */
static weft_status train(weft_world *world, stage *mine) {
    weft_graph   *g = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report;
    static float  x[ROWS * IN], y[ROWS]; /* alike in all threads */
    const char   *text = "";
    for (int i = 0; i < ROWS * IN; i++) x[i] = (float)(i * 37 % 101 - 50) / 60;
    for (int i = 0; i < ROWS; i++) y[i] = sinf((float)i);
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &g));
    weft_tensor   *h = stretch(stretch(weft_input(g, "x", WEFT_F32, weft_shape(ROWS, IN)), "a"), "b");
    weft_tensor   *loss = weft_mse(weft_linear(stretch(h, "c"), "head", .out = 1), weft_input(g, "y", WEFT_F32, weft_shape(ROWS, 1)));
    weft_program   program = {.loss = loss, .solver = weft_adam(0.01), .strategy = {.pipeline = RANKS, .accumulate = 2}};
    weft_status    status = weft_trainer_create(world, &program, &trainer);
    weft_batch     batch = {.field_count = 2, .global_rows = ROWS, .local_rows = ROWS};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(ROWS, IN), x};
    batch.field[1] = (weft_batch_field){"y", WEFT_F32, weft_shape(ROWS, 1), y};
    for (int step = 0; step < STEPS && status == WEFT_OK; step++) {
        status = weft_trainer_step(trainer, &batch, &report);
        mine->losses[step] = (float)report.loss;
    }
    if (status == WEFT_OK) status = weft_plan_describe(weft_trainer_plan(trainer), &text);
    const char *line = strstr(text, "messages of at least");
    snprintf(mine->plan, sizeof mine->plan, "%s", line ? line : text);
    if (status != WEFT_OK) snprintf(mine->message, sizeof mine->message, "%s", weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(g);
    return status;
}

static void *run_stage(void *argument) {
    stage      *mine = argument;
    weft_world *world = NULL;
    mine->status = weft_world_create(&(weft_world_options){.rank = mine->rank, .size = RANKS, .store = mine->store, .wire = "verbs", .device = "cuda", .nccl = "off"},
                                     &world);
    if (mine->status != WEFT_OK) snprintf(mine->message, sizeof mine->message, "%s", weft_error_message());
    else {
        snprintf(mine->world, sizeof mine->world, "%s", weft_world_describe(world));
        mine->status = train(world, mine);
    }
    weft_world_release(world);
    return NULL;
}

static void run(const char *way, stage stages[RANKS]) {
    static char store[64];
    pthread_t   threads[RANKS];
    fake_verbs_reset();
    fake_verbs_set()->any_dmabuf = true;
    setenv("WEFT_VERBS_DEVICE_MEMORY", way, 1);
    ranks_pick_store(store);
    for (int32_t i = 0; i < RANKS; i++) {
        stages[i] = (stage){.rank = i, .store = store};
        pthread_create(&threads[i], NULL, run_stage, &stages[i]);
    }
    for (int32_t i = 0; i < RANKS; i++) pthread_join(threads[i], NULL);
    for (int32_t i = 0; i < RANKS; i++) cr_assert_eq(stages[i].status, WEFT_OK, "rank %d, %s: %s", (int)i, way, stages[i].message);
    cr_expect_eq(fake_verbs_read().misuse, 0, "%s: %s", way, fake_verbs_read().what);
    cr_expect_eq(fake_verbs_read().objects, 0, "%s: %d objects of verbs were left", way, fake_verbs_read().objects);
}

static void compare(bool lazy, bool flushes) {
    static stage straight[RANKS], copied[RANKS];
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 3, .lazy = lazy, .flushes = flushes});
    run("copies", copied);
    cr_expect_eq(fake_verbs_read().dmabufs, 0);
    run("auto", straight);
    cr_expect_eq(wefti_cuda_host_flushes() > 0, flushes);
    /* Each rank's sample and exported memory. */
    cr_expect_eq(fake_verbs_read().dmabufs, 2 * RANKS, "%d", fake_verbs_read().dmabufs);
    for (int i = 0; i < RANKS; i++) {
        cr_expect(strstr(straight[i].world, "wire verbs (device memory by dma-buf)"), "%s", straight[i].world);
        cr_expect(strstr(copied[i].world, "wire verbs (device memory by copies)"), "%s", copied[i].world);
        cr_expect(strstr(straight[i].plan, "go straight from and to the device's memory: the wire reaches the device's memory by dma-buf"), "%s", straight[i].plan);
        cr_expect(strstr(copied[i].plan, "go by copies: the wire reaches the device's memory by copies"), "%s", copied[i].plan);
        cr_expect_eq(memcmp(straight[i].losses, copied[i].losses, sizeof copied[i].losses), 0, "the losses differ");
    }
    cr_expect(straight[0].losses[1] != straight[0].losses[0] && straight[0].losses[2] != straight[0].losses[1], "nothing is learnt");
}
Test(cuda_wires, stages_send_straight_from_device_memory) { compare(false, false); }
Test(cuda_wires, stages_on_lazy_streams) { compare(true, false); }
Test(cuda_wires, stages_on_a_device_that_wants_flushes) { compare(true, true); }

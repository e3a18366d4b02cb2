#include "common/far.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 256 };

typedef struct copy {
    void       *to;
    const void *from;
    size_t      size_bytes;
    uint64_t    ticket; /* of a copy out */
    int         looks;
    bool        out;
} copy;

typedef struct far {
    wefti_device  base;
    wefti_device *inside;
    size_t        held;
    int           delay, n_copies;
    uint64_t      tickets, over; /* tickets below `over` are */
    copy          copies[MOST];
} far;

struct wefti_program {
    far           *device;
    wefti_program *inside;
    int32_t        n_buffers;
    void          *buffers[];
};

static far *far_of(wefti_device *device) { return (far *)device; }
/* Bit 62 is in no address of the host's. */
static void *away(void *memory) { return memory ? (void *)((uintptr_t)memory ^ UINT64_C(1) << 62) : NULL; }
static void *near(const void *memory) { return away((void *)(uintptr_t)memory); }

static void release(wefti_device *device) { free(device); }

static weft_status allocate(wefti_device *device, size_t size_bytes, const char *what, void **memory_out) {
    WEFTI_TRY(far_of(device)->inside->vtable->allocate(far_of(device)->inside, size_bytes, what, memory_out));
    memset(*memory_out, 0xff, size_bytes); /* NaNs */
    *memory_out = away(*memory_out);
    far_of(device)->held += size_bytes;
    return WEFT_OK;
}

static void deallocate(wefti_device *device, void *memory, size_t size_bytes) {
    if (memory) far_of(device)->held -= size_bytes;
    far_of(device)->inside->vtable->deallocate(far_of(device)->inside, near(memory), size_bytes);
}

static weft_status write_memory(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes) {
    (void)device;
    if (size_bytes) memcpy(near(device_memory), host_memory, size_bytes);
    return WEFT_OK;
}
static weft_status read_memory(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes) {
    (void)device;
    if (size_bytes) memcpy(host_memory, near(device_memory), size_bytes);
    return WEFT_OK;
}
static weft_status read_all(wefti_device *device, const wefti_read *reads, int32_t n_reads) {
    for (int32_t i = 0; i < n_reads; i++) WEFTI_TRY(read_memory(device, reads[i].host_memory, reads[i].device_memory, reads[i].size_bytes));
    return WEFT_OK;
}

static weft_status query(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out) {
    return far_of(device)->inside->vtable->query(far_of(device)->inside, call, scratch_bytes_out);
}

static weft_status compile(wefti_device *device, const wefti_segment *segment, wefti_program **program_out) {
    wefti_device  *inside = far_of(device)->inside;
    wefti_program *self = calloc(1, sizeof *self + (size_t)segment->n_buffers * sizeof *self->buffers);
    weft_status    status = inside->vtable->compile(inside, segment, &self->inside);
    self->device = far_of(device);
    self->n_buffers = segment->n_buffers;
    if (status != WEFT_OK) free(self);
    *program_out = status == WEFT_OK ? self : NULL;
    return status;
}

static void release_program(wefti_program *program) {
    if (!program) return;
    program->device->inside->vtable->release_program(program->inside);
    free(program);
}

static weft_status launch(wefti_program *program, const wefti_launch *given) {
    wefti_launch moved = *given;
    for (int32_t i = 0; i < program->n_buffers; i++) program->buffers[i] = near(given->buffers[i]);
    moved.buffers = program->buffers;
    return program->device->inside->vtable->launch(program->inside, &moved);
}

static weft_status reduce(void *device, void *dst, const void *const *sources, int32_t source_count, size_t count, weft_dtype dtype,
                          wefti_reduce_op op, int32_t divisor) {
    wefti_device *inside = far_of(device)->inside;
    return inside->vtable->reduce(inside, dst, sources, source_count, count, dtype, op, divisor);
}

static int32_t threads(wefti_device *device) { return far_of(device)->inside->vtable->threads(far_of(device)->inside); }

/* --- copies beside --- */

/* Makes the first `n` copies. */
static void make(far *self, int n) {
    for (int i = 0; i < n; i++) {
        memcpy(self->copies[i].to, self->copies[i].from, self->copies[i].size_bytes);
        if (self->copies[i].out) self->over = self->copies[i].ticket + 1;
    }
    self->n_copies -= n;
    memmove(self->copies, self->copies + n, (size_t)self->n_copies * sizeof *self->copies);
}

static void add(far *self, copy one) {
    if (self->n_copies == MOST) make(self, MOST);
    self->copies[self->n_copies++] = one;
}

static void pin(wefti_device *device, void *host_memory, size_t size_bytes) { (void)device, (void)host_memory, (void)size_bytes; }
static void unpin(wefti_device *device, void *host_memory, size_t size_bytes) {
    (void)host_memory, (void)size_bytes;
    make(far_of(device), far_of(device)->n_copies);
}

static weft_status copy_out(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes, uint64_t *ticket_out) {
    far *self = far_of(device);
    *ticket_out = self->tickets++;
    add(self, (copy){.to = host_memory, .from = near(device_memory), .size_bytes = size_bytes, .ticket = *ticket_out, .looks = self->delay, .out = true});
    return WEFT_OK;
}

static weft_status copy_test(wefti_device *device, uint64_t ticket) {
    far *self = far_of(device);
    if (ticket < self->over) return WEFT_OK;
    for (int i = 0; i < self->n_copies; i++) {
        if (!self->copies[i].out || self->copies[i].ticket != ticket) continue;
        if (self->copies[i].looks-- > 0) return WEFT_E_AGAIN;
        make(self, i + 1);
        return WEFT_OK;
    }
    return wefti_fail(WEFT_E_INTERNAL, "no copy has ticket %llu", (unsigned long long)ticket);
}

static weft_status copy_in(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes) {
    add(far_of(device), (copy){.to = near(device_memory), .from = host_memory, .size_bytes = size_bytes});
    return WEFT_OK;
}

static weft_status copy_join(wefti_device *device) {
    make(far_of(device), far_of(device)->n_copies);
    return WEFT_OK;
}

static const wefti_device_vtable vtable = {
    .kind = "far", .host_memory = false, .fuses_reductions = true, .release = release, .allocate = allocate, .deallocate = deallocate,
    .write = write_memory, .read = read_memory, .read_all = read_all, .query = query, .compile = compile, .release_program = release_program,
    .launch = launch, .reduce = reduce, .threads = threads, .pin = pin, .unpin = unpin, .copy_out = copy_out, .copy_test = copy_test,
    .copy_in = copy_in, .copy_join = copy_join,
};

wefti_device *far_device(wefti_device *inside, int delay) {
    far *self = calloc(1, sizeof *self);
    self->base.vtable = &vtable;
    self->inside = inside;
    self->delay = delay;
    return &self->base;
}

size_t far_device_held(const wefti_device *device) { return ((const far *)device)->held; }

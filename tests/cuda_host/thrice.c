/* The wrapper keeps a list of what was allocated, copies every buffer of a launch before it, and puts the copies back in between. */
#include "cuda_host/thrice.h"

#include <stdlib.h>
#include <string.h>

enum { PIECES = 256, LAUNCHES = 3 };

typedef struct piece {
    void  *memory;
    size_t bytes;
} piece;

typedef struct thrice {
    wefti_device  base; /* first */
    wefti_device *inner;
    piece         pieces[PIECES];
    int64_t       compared;
} thrice;

/* What launch is given must say which device it is of. */
struct wefti_program {
    thrice        *of;
    wefti_program *inner;
    int32_t        n_buffers;
};

static thrice *of(wefti_device *device) { return (thrice *)(void *)device; }

static void release(wefti_device *device) {
    of(device)->inner->vtable->release(of(device)->inner);
    free(device);
}
static piece *find(thrice *self, const void *memory) {
    for (int i = 0; i < PIECES; i++)
        if (self->pieces[i].memory == memory) return &self->pieces[i];
    return NULL;
}
static weft_status allocate(wefti_device *device, size_t size_bytes, const char *what, void **memory_out) {
    thrice *self = of(device);
    WEFTI_TRY(self->inner->vtable->allocate(self->inner, size_bytes, what, memory_out));
    piece *spare = find(self, NULL);
    if (!spare) return wefti_fail(WEFT_E_INTERNAL, "more than %d pieces of memory", (int)PIECES);
    *spare = (piece){*memory_out, size_bytes};
    return WEFT_OK;
}
static void deallocate(wefti_device *device, void *memory, size_t size_bytes) {
    piece *held = find(of(device), memory);
    if (memory && held) *held = (piece){NULL, 0};
    of(device)->inner->vtable->deallocate(of(device)->inner, memory, size_bytes);
}
static weft_status write_to(wefti_device *device, void *memory, const void *host, size_t size_bytes) {
    return of(device)->inner->vtable->write(of(device)->inner, memory, host, size_bytes);
}
static weft_status read_from(wefti_device *device, void *host, const void *memory, size_t size_bytes) {
    return of(device)->inner->vtable->read(of(device)->inner, host, memory, size_bytes);
}
static weft_status query(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out) {
    return of(device)->inner->vtable->query(of(device)->inner, call, scratch_bytes_out);
}
static int32_t threads(wefti_device *device) { return of(device)->inner->vtable->threads(of(device)->inner); }

static weft_status compile(wefti_device *device, const wefti_segment *segment, wefti_program **program_out) {
    wefti_program *inner = NULL;
    *program_out = NULL;
    WEFTI_TRY(of(device)->inner->vtable->compile(of(device)->inner, segment, &inner));
    *program_out = malloc(sizeof **program_out);
    **program_out = (wefti_program){of(device), inner, segment->n_buffers};
    return WEFT_OK;
}
static void release_program(wefti_program *program) {
    if (!program) return;
    program->of->inner->vtable->release_program(program->inner);
    free(program);
}

/* Copies buffer i, which may be missing. */
static weft_status snapshot(thrice *self, void *memory, char **copy_out) {
    const piece *held = memory ? find(self, memory) : NULL;
    *copy_out = NULL;
    if (!held) return WEFT_OK;
    *copy_out = malloc(held->bytes);
    return read_from(&self->base, *copy_out, memory, held->bytes);
}

static weft_status put_back(thrice *self, void *const *buffers, char *const *copies, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (copies[i]) WEFTI_TRY(write_to(&self->base, buffers[i], copies[i], find(self, buffers[i])->bytes));
    return WEFT_OK;
}

/* Whether memory is as it was after the first launch. Scratch counts too: what is left there must not depend on chance either. */
static weft_status compare(thrice *self, void *const *buffers, char *const *expected, int32_t n, int launch) {
    for (int32_t i = 0; i < n; i++) {
        char       *now = NULL;
        weft_status status = snapshot(self, buffers[i], &now);
        if (status == WEFT_OK && now && memcmp(now, expected[i], find(self, buffers[i])->bytes) != 0)
            status = wefti_fail(WEFT_E_INTERNAL, "launch %d left other bits in buffer %d than the first one", launch, (int)i);
        free(now);
        if (status != WEFT_OK) return status;
    }
    self->compared++;
    return WEFT_OK;
}

static weft_status launch(wefti_program *program, const wefti_launch *given) {
    thrice     *self = program->of;
    size_t      n = (size_t)program->n_buffers;
    char      **before = calloc(2 * n + 1, sizeof *before), **after = before + n;
    weft_status status = WEFT_OK;
    for (size_t i = 0; i < n && status == WEFT_OK; i++) status = snapshot(self, given->buffers[i], &before[i]);
    for (int k = 0; k < LAUNCHES && status == WEFT_OK; k++) {
        if (k > 0) status = put_back(self, given->buffers, before, program->n_buffers);
        if (status == WEFT_OK) status = self->inner->vtable->launch(program->inner, given);
        for (size_t i = 0; i < n && k == 0 && status == WEFT_OK; i++) status = snapshot(self, given->buffers[i], &after[i]);
        if (k > 0 && status == WEFT_OK) status = compare(self, given->buffers, after, program->n_buffers, k + 1);
    }
    for (size_t i = 0; i < 2 * n; i++) free(before[i]);
    free(before);
    return status;
}

wefti_device *thrice_create(wefti_device *inner) {
    static wefti_device_vtable vtable;
    vtable = (wefti_device_vtable){.kind = inner->vtable->kind,
                                   .fuses_reductions = inner->vtable->fuses_reductions,
                                   .fuses_products = inner->vtable->fuses_products,
                                   .release = release,
                                   .allocate = allocate,
                                   .deallocate = deallocate,
                                   .write = write_to,
                                   .read = read_from,
                                   .query = query,
                                   .compile = compile,
                                   .release_program = release_program,
                                   .launch = launch,
                                   .threads = threads};
    thrice *self = calloc(1, sizeof *self);
    self->base.vtable = &vtable;
    self->inner = inner;
    return &self->base;
}

int64_t thrice_compared(const wefti_device *device) { return ((const thrice *)(const void *)device)->compared; }

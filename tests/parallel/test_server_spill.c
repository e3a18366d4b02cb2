/* Pieces in memory and in a file (spill.h): whatever comes and goes, each has the bytes that it was last given, and no more are in memory than may be; and what
 * a disk does that is full, broken, or slow of uptake. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "parallel/server/spill.h"

enum { PIECES = 300, BOUND = 20000, MOST = 900 };

/* --- an owner --- */

typedef struct owner {
    wefti_spill *spill;
    uint8_t     *memory[PIECES];
    size_t       bytes[PIECES];
    uint32_t     version[PIECES]; /* of what it has */
    uint64_t     random;
} owner;

static void *memory_of(void *context, uint32_t piece, size_t *bytes_out) {
    owner *of = context;
    *bytes_out = of->bytes[piece];
    return of->memory[piece];
}
static void drop(void *context, uint32_t piece) {
    owner *of = context;
    free(of->memory[piece]);
    of->memory[piece] = NULL;
}
static uint64_t draw(owner *of, uint64_t below) {
    of->random ^= of->random << 13, of->random ^= of->random >> 7, of->random ^= of->random << 17;
    return (of->random >> 16) % below;
}
static uint8_t byte_of(const owner *of, uint32_t piece, size_t at) { return (uint8_t)(piece * 31 + of->version[piece] * 7 + at); }
static void fill(owner *of, uint32_t piece) {
    of->version[piece]++;
    for (size_t i = 0; i < of->bytes[piece]; i++) of->memory[piece][i] = byte_of(of, piece, i);
}
static void check(const owner *of, uint32_t piece, const uint8_t *memory) {
    for (size_t i = 0; i < of->bytes[piece]; i++) cr_assert_eq(memory[i], byte_of(of, piece, i), "piece %u of %zu bytes, byte %zu", piece, of->bytes[piece], i);
}

static weft_status bring(owner *of, uint32_t piece, bool changes) {
    if (of->bytes[piece] == 0) return WEFT_OK;
    if (of->memory[piece]) {
        wefti_spill_touch(of->spill, piece, changes);
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_spill_make_room(of->spill, of->bytes[piece], changes));
    uint8_t    *memory = malloc(of->bytes[piece]);
    weft_status status = wefti_spill_load(of->spill, piece, 0, memory, of->bytes[piece]);
    if (status != WEFT_OK) {
        free(memory);
        return status;
    }
    of->memory[piece] = memory;
    wefti_spill_enter(of->spill, piece, changes);
    return WEFT_OK;
}

static weft_status resize(owner *of, uint32_t piece, size_t bytes) {
    WEFTI_TRY(bring(of, piece, false));
    WEFTI_TRY(wefti_spill_resize(of->spill, piece, bytes));
    bool was = of->memory[piece];
    of->memory[piece] = realloc(of->memory[piece], bytes);
    of->bytes[piece] = bytes;
    if (!was) wefti_spill_enter(of->spill, piece, true);
    fill(of, piece);
    return WEFT_OK;
}

static void change(owner *of, uint32_t piece) {
    cr_assert_eq(bring(of, piece, true), WEFT_OK, "%s", weft_error_message());
    fill(of, piece);
}
static void look(owner *of, uint32_t piece) {
    cr_assert_eq(bring(of, piece, false), WEFT_OK, "%s", weft_error_message());
    check(of, piece, of->memory[piece]);
}

static void release(owner *of) {
    wefti_spill_release(of->spill);
    for (int i = 0; i < PIECES; i++) free(of->memory[i]);
}

static void begin(uint64_t seed, ssize_t (*write_at)(int, const void *, size_t, off_t), ssize_t (*read_at)(int, void *, size_t, off_t), owner *of) {
    *of = (owner){.random = seed};
    wefti_spill_options how = {.folder = "/tmp", .name = "t", .most_bytes = BOUND, .owner = of, .memory_of = memory_of, .drop = drop, .write = write_at, .read = read_at};
    cr_assert_eq(wefti_spill_create(&how, &of->spill), WEFT_OK, "%s", weft_error_message());
}

static uint64_t resident(const owner *of) {
    wefti_spill_counts counts;
    wefti_spill_count(of->spill, &counts);
    uint64_t sum = 0;
    for (int i = 0; i < PIECES; i++) sum += of->memory[i] ? of->bytes[i] : 0;
    cr_assert_eq(counts.resident, sum, "%llu bytes are in memory, and %llu are counted", (unsigned long long)sum, (unsigned long long)counts.resident);
    return sum;
}

static ssize_t write_little(int file, const void *bytes, size_t count, off_t at) {
    static int turn;
    if (++turn % 3 == 0) {
        errno = EINTR;
        return -1;
    }
    return pwrite(file, bytes, count > 100 ? 100 : count, at);
}
static ssize_t read_little(int file, void *bytes, size_t count, off_t at) { return pread(file, bytes, count > 77 ? 77 : count, at); }

Test(spill, pieces_have_what_they_were_given) {
    static owner of;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        begin(seed * 1000003, seed % 3 ? NULL : write_little, seed % 3 ? NULL : read_little, &of);
        uint32_t count = 0;
        for (int step = 0; step < 6000; step++) {
            if (count < PIECES && draw(&of, 10) == 0) {
                uint32_t more = 1 + (uint32_t)draw(&of, 5);
                if (more > PIECES - count) more = PIECES - count;
                cr_assert_eq(wefti_spill_add(of.spill, more, 0), WEFT_OK);
                count += more;
            }
            if (!count) continue;
            uint32_t piece = (uint32_t)draw(&of, draw(&of, 2) ? count : count / 8 + 1);
            size_t   bytes = of.bytes[piece] + 8 * (1 + draw(&of, 10));
            switch (draw(&of, 4)) {
            case 0: cr_assert_eq(resize(&of, piece, bytes > MOST ? 24 : bytes), WEFT_OK); break;
            case 1: change(&of, piece); break;
            default: look(&of, piece);
            }
            cr_assert_leq(resident(&of), BOUND);
        }
        wefti_spill_counts counts;
        wefti_spill_count(of.spill, &counts);
        cr_assert(counts.loaded > 100 && counts.written > 100 && counts.total > BOUND, "%llu read, %llu written", (unsigned long long)counts.loaded,
                  (unsigned long long)counts.written);
        cr_assert_leq(counts.file, 3 * counts.total + (2 << 20)); /* extents are used again */
        release(&of);
    }
}

/* --- what fails --- */

static int broken; /* errno; 0: none */
static ssize_t write_broken(int file, const void *bytes, size_t count, off_t at) {
    if (!broken) return pwrite(file, bytes, count, at);
    errno = broken;
    return broken == -1 ? 0 : -1;
}
static ssize_t read_broken(int file, void *bytes, size_t count, off_t at) {
    if (!broken) return pread(file, bytes, count, at);
    errno = broken;
    return -1;
}

/* A piece that cannot be written stays; who only reads is told, who changes goes on beyond the bound, and the next change is told until it works. */
Test(spill, what_cannot_be_written_stays) {
    static const int errors[] = {EIO, ENOSPC, -1};
    static owner     of;
    for (int turn = 0; turn < 3; turn++) {
        broken = 0;
        begin(9, write_broken, NULL, &of);
        cr_assert_eq(wefti_spill_add(of.spill, PIECES, 0), WEFT_OK);
        for (uint32_t i = 0; i < PIECES; i++) cr_assert_eq(resize(&of, i, 200), WEFT_OK);
        cr_assert_eq(wefti_spill_settle(of.spill), WEFT_OK);
        for (uint32_t i = 0; i < PIECES; i++) change(&of, i); /* all in memory have changed */
        broken = errors[turn];
        cr_assert_eq(bring(&of, 0, false), errors[turn] == ENOSPC ? WEFT_E_NO_SPACE : WEFT_E_IO);
        cr_assert(strstr(weft_error_message(), "table 't': the file in '/tmp'") && strstr(weft_error_message(), "piece of 200 bytes"), "%s", weft_error_message());
        cr_assert_eq(resize(&of, PIECES - 1, 8 + BOUND / 2), errors[turn] == ENOSPC ? WEFT_E_NO_SPACE : WEFT_E_IO);
        for (uint32_t i = 0; i < 50; i++) change(&of, i);
        cr_assert_gt(resident(&of), BOUND);
        cr_assert_neq(wefti_spill_settle(of.spill), WEFT_OK);
        broken = 0;
        cr_assert_eq(wefti_spill_settle(of.spill), WEFT_OK);
        cr_assert_leq(resident(&of), BOUND);
        for (uint32_t i = 0; i < PIECES; i++) look(&of, i);
        release(&of);
    }
}

Test(spill, what_cannot_be_read_is_told) {
    static owner of;
    broken = 0;
    begin(9, NULL, read_broken, &of);
    cr_assert_eq(wefti_spill_add(of.spill, PIECES, 0), WEFT_OK);
    for (uint32_t i = 0; i < PIECES; i++) cr_assert_eq(resize(&of, i, 200), WEFT_OK);
    broken = EIO;
    cr_assert_eq(bring(&of, 0, true), WEFT_E_IO);
    cr_assert(strstr(weft_error_message(), "does not give back 200 bytes"), "%s", weft_error_message());
    cr_assert_eq(bring(&of, PIECES - 1, true), WEFT_OK);
    broken = 0;
    cr_assert_eq(bring(&of, 0, true), WEFT_OK);
    check(&of, 0, of.memory[0]);
    release(&of);
}

/* A limit of file sizes: no signal, and nothing has changed. */
Test(spill, a_limit_is_told_before_anything_changes) {
    static owner       of;
    struct rlimit      limit;
    wefti_spill_counts before, after;
    begin(9, NULL, NULL, &of);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = BOUND + 10000;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    uint32_t count = 0;
    weft_status status = WEFT_OK;
    while (count < PIECES && status == WEFT_OK) {
        wefti_spill_count(of.spill, &before);
        status = wefti_spill_add(of.spill, 1, 300);
        if (status != WEFT_OK) break;
        of.bytes[count] = 300;
        cr_assert_eq(wefti_spill_make_room(of.spill, 300, true), WEFT_OK);
        of.memory[count] = malloc(300);
        fill(&of, count);
        wefti_spill_enter(of.spill, count++, true);
    }
    wefti_spill_count(of.spill, &after);
    cr_assert_eq(status, WEFT_E_NO_SPACE, "%s", weft_error_message());
    cr_assert(count > BOUND / 320 && count <= (BOUND + 10000) / 300, "%u", count);
    cr_assert(memcmp(&before, &after, sizeof before) == 0 && strstr(weft_error_message(), "cannot grow by"), "%s", weft_error_message());
    for (uint32_t i = 0; i < count; i++) look(&of, i);
    cr_assert_eq(wefti_spill_settle(of.spill), WEFT_OK);
    limit.rlim_cur = limit.rlim_max;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(wefti_spill_add(of.spill, 1, 300), WEFT_OK);
    release(&of);
}

Test(spill, folders_that_are_none) {
    wefti_spill        *spill;
    wefti_spill_options how = {.name = "t", .most_bytes = 1};
    cr_assert_eq(wefti_spill_create(&how, &spill), WEFT_E_INVALID);
    cr_assert(strstr(weft_error_message(), "weft_server_options.spill"), "%s", weft_error_message());
    how.folder = "/tmp/no such folder";
    cr_assert_eq(wefti_spill_create(&how, &spill), WEFT_E_NOT_FOUND);
    cr_assert(strstr(weft_error_message(), "'/tmp/no such folder'"), "%s", weft_error_message());
    how.folder = "/proc";
    cr_assert_neq(wefti_spill_create(&how, &spill), WEFT_OK);
}

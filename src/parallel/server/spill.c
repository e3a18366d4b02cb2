/* Pieces in memory and in a file. A list from the piece that was used last to the oldest, by numbers; an array of sizes, each with the extents of that
 * size that are free. Nothing here is per request: a piece that is in memory costs four stores when it is used. */
#include "parallel/server/spill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define NONE UINT32_MAX
#define NOWHERE UINT64_MAX
enum { ALIGN = 64, STEP_LEAST = 1 << 20, LIST_LEAST = 64 };

typedef struct piece {
    uint64_t at; /* in the file, or NOWHERE */
    uint32_t newer, older;
    uint32_t size;  /* of sizes; NONE: of no bytes */
    bool     in_memory, changed, saved;
} piece;
_Static_assert(sizeof(piece) == 24, "what a piece costs");

typedef struct extents {
    size_t    bytes;
    uint64_t *free; /* [room], `count` in use */
    uint64_t  count, room;
} extents;

struct wefti_spill {
    wefti_spill_options options;
    int                 file;
    piece              *pieces; /* [room] */
    uint64_t            count, room;
    extents            *sizes; /* [size_room] */
    uint32_t            size_count, size_room, newest, oldest;
    uint64_t            end, reserved; /* of extents; that the file has room for */
    bool                active;        /* pieces have extents */
    wefti_spill_counts  counts;
    bool                troubled;
};

/* --- the file --- */

static int open_unnamed(const char *folder) {
    int file = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
    char path[4096]; /* a file system that knows no files without names */
    if (snprintf(path, sizeof path, "%s/.weft-spill-XXXXXX", folder) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    file = mkstemp(path);
    if (file >= 0) (void)!unlink(path);
    if (file >= 0) (void)!fcntl(file, F_SETFD, FD_CLOEXEC);
    return file;
}

/* A limit is looked at before the system does, who would end the process (SIGXFSZ). */
static bool is_beyond_limit(uint64_t end) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || end <= limit.rlim_cur) return false;
    errno = EFBIG;
    return true;
}

static int extend_file(int file, uint64_t from, uint64_t to) {
    if (is_beyond_limit(to)) return -1;
    int result;
    do result = fallocate(file, 0, (off_t)from, (off_t)(to - from));
    while (result != 0 && errno == EINTR);
    if (result != 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) result = ftruncate(file, (off_t)to); /* room is found when it is written */
    return result;
}

static weft_status fail_file(const wefti_spill *spill, const char *doing, uint64_t bytes) {
    if (errno == EFBIG) errno = ENOSPC;
    return wefti_fail_errno("table '%s': the file in '%s' for rows that are not in memory, of %llu bytes, %s %llu bytes; %llu are in memory, of %zu (memory_bytes): "
                            "make room there or give another folder (weft_server_options.spill), or more memory_bytes", spill->options.name, spill->options.folder,
                            (unsigned long long)spill->reserved, doing, (unsigned long long)bytes, (unsigned long long)spill->counts.resident,
                            spill->options.most_bytes);
}

/* The file has room up to there. Some more at once, where that is to be had. */
static weft_status reserve(wefti_spill *spill, uint64_t end) {
    if (end <= spill->reserved) return WEFT_OK;
    uint64_t step = spill->reserved / 8 > STEP_LEAST ? spill->reserved / 8 : STEP_LEAST, more = end + step;
    if (extend_file(spill->file, spill->reserved, more) == 0) {
        spill->reserved = more;
        return WEFT_OK;
    }
    if (extend_file(spill->file, spill->reserved, end) != 0) return fail_file(spill, "cannot grow by", end - spill->reserved);
    spill->reserved = end;
    return WEFT_OK;
}

static weft_status write_piece(wefti_spill *spill, const piece *p, const uint8_t *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        errno = EIO;
        ssize_t some = is_beyond_limit(p->at + count) ? -1 : spill->options.write(spill->file, bytes + done, count - done, (off_t)(p->at + done));
        if (some < 0 && errno == EINTR) continue;
        if (some <= 0) return fail_file(spill, "does not take a piece of", count);
        done += (size_t)some;
    }
    return WEFT_OK;
}

weft_status wefti_spill_load(wefti_spill *spill, uint32_t number, size_t from, void *memory, size_t bytes) {
    const piece *p = &spill->pieces[number];
    for (size_t done = 0; done < bytes;) {
        errno = EIO;
        ssize_t some = spill->options.read(spill->file, (uint8_t *)memory + done, bytes - done, (off_t)(p->at + from + done));
        if (some < 0 && errno == EINTR) continue;
        if (some <= 0) return fail_file(spill, "does not give back", bytes);
        done += (size_t)some;
    }
    spill->counts.loaded++;
    return WEFT_OK;
}

/* --- extents --- */

static weft_status find_size(wefti_spill *spill, size_t bytes, uint32_t *size_out) {
    *size_out = NONE;
    if (bytes == 0) return WEFT_OK;
    for (uint32_t i = 0; i < spill->size_count; i++)
        if (spill->sizes[i].bytes == bytes) {
            *size_out = i;
            return WEFT_OK;
        }
    if (spill->size_count == spill->size_room) {
        uint32_t room = spill->size_room ? 2 * spill->size_room : LIST_LEAST;
        WEFTI_TRY(wefti_grow(&spill->sizes, spill->size_room * sizeof *spill->sizes, room * sizeof *spill->sizes, "sizes of rows on disk"));
        spill->counts.held += (room - spill->size_room) * sizeof *spill->sizes;
        spill->size_room = room;
    }
    spill->sizes[spill->size_count].bytes = bytes;
    *size_out = spill->size_count++;
    return WEFT_OK;
}

static uint64_t extent_bytes(size_t bytes) { return wefti_align_up(bytes, ALIGN); }
static size_t   bytes_of(const wefti_spill *spill, const piece *p) { return p->size == NONE ? 0 : spill->sizes[p->size].bytes; }

static weft_status take_extent(wefti_spill *spill, uint32_t size, uint64_t *at_out) {
    *at_out = NOWHERE;
    if (size == NONE) return WEFT_OK;
    extents *list = &spill->sizes[size];
    if (list->count) {
        *at_out = list->free[--list->count];
        return WEFT_OK;
    }
    WEFTI_TRY(reserve(spill, spill->end + extent_bytes(list->bytes)));
    *at_out = spill->end;
    spill->end += extent_bytes(list->bytes);
    return WEFT_OK;
}

/* One that finds no place in the list is lost to the file, which does no harm. */
static void give_extent(wefti_spill *spill, uint32_t size, uint64_t at) {
    if (at == NOWHERE) return;
    extents *list = &spill->sizes[size];
    if (list->count == list->room) {
        uint64_t room = list->room ? 2 * list->room : LIST_LEAST;
        if (wefti_grow(&list->free, list->room * sizeof *list->free, room * sizeof *list->free, "extents that are free") != WEFT_OK) return;
        spill->counts.held += (room - list->room) * sizeof *list->free;
        list->room = room;
    }
    list->free[list->count++] = at;
}

/* From the first byte beyond the bound on, all pieces have extents. `more`: bytes of extents that come beside them. */
static weft_status activate(wefti_spill *spill, uint64_t more) {
    uint64_t end = spill->end;
    for (uint64_t i = 0; i < spill->count; i++) end += extent_bytes(bytes_of(spill, &spill->pieces[i]));
    WEFTI_TRY(reserve(spill, end + more));
    for (uint64_t i = 0; i < spill->count; i++) {
        piece *p = &spill->pieces[i];
        if (p->size == NONE) continue;
        p->at = spill->end;
        spill->end += extent_bytes(bytes_of(spill, p));
    }
    spill->active = true;
    return WEFT_OK;
}

/* --- the order of use --- */

static void take_out(wefti_spill *spill, uint32_t number) {
    piece *p = &spill->pieces[number];
    if (p->newer != NONE) spill->pieces[p->newer].older = p->older;
    else spill->newest = p->older;
    if (p->older != NONE) spill->pieces[p->older].newer = p->newer;
    else spill->oldest = p->newer;
}

static void put_first(wefti_spill *spill, uint32_t number) {
    piece *p = &spill->pieces[number];
    p->newer = NONE;
    p->older = spill->newest;
    if (spill->newest != NONE) spill->pieces[spill->newest].newer = number;
    else spill->oldest = number;
    spill->newest = number;
}

static weft_status drop_oldest(wefti_spill *spill) {
    const uint32_t number = spill->oldest;
    piece         *p = &spill->pieces[number];
    size_t         bytes = 0;
    const void    *memory = spill->options.memory_of(spill->options.owner, number, &bytes);
    if (p->changed) {
        WEFTI_TRY(write_piece(spill, p, memory, bytes));
        spill->counts.written++;
        p->saved = true;
    }
    take_out(spill, number);
    p->in_memory = p->changed = false;
    spill->counts.resident -= bytes;
    spill->options.drop(spill->options.owner, number);
    return WEFT_OK;
}

/* `but`: stays, whatever comes; NONE: nothing. */
static weft_status shrink(wefti_spill *spill, size_t bytes, uint32_t but) {
    while (spill->oldest != NONE && spill->oldest != but && spill->counts.resident + bytes > spill->options.most_bytes) WEFTI_TRY(drop_oldest(spill));
    return WEFT_OK;
}

weft_status wefti_spill_make_room(wefti_spill *spill, size_t bytes, bool must) {
    weft_status status = shrink(spill, bytes, NONE);
    if (status == WEFT_OK || !must) return status;
    spill->troubled = true;
    return WEFT_OK;
}

weft_status wefti_spill_settle(wefti_spill *spill) {
    if (!spill->troubled) return WEFT_OK;
    WEFTI_TRY(shrink(spill, 0, NONE));
    spill->troubled = false;
    return WEFT_OK;
}

void wefti_spill_enter(wefti_spill *spill, uint32_t number, bool changes) {
    piece *p = &spill->pieces[number];
    p->in_memory = true;
    p->changed = changes;
    put_first(spill, number);
    spill->counts.resident += bytes_of(spill, p);
}

void wefti_spill_touch(wefti_spill *spill, uint32_t number, bool changes) {
    piece *p = &spill->pieces[number];
    spill->counts.found++;
    p->changed = p->changed || changes;
    if (spill->newest == number) return;
    take_out(spill, number);
    put_first(spill, number);
}

bool wefti_spill_is_saved(const wefti_spill *spill, uint32_t number) { return spill->pieces[number].saved; }

/* --- pieces --- */

weft_status wefti_spill_add(wefti_spill *spill, uint64_t more, size_t bytes_each) {
    uint32_t size;
    size_t   bytes;
    if (spill->count + more >= NONE || !wefti_mul_size(more, extent_bytes(bytes_each), &bytes) || bytes > (UINT64_C(1) << 62) - spill->counts.total)
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu pieces of %zu bytes are too many to lie on disk", spill->options.name,
                          (unsigned long long)(spill->count + more), bytes_each);
    WEFTI_TRY(find_size(spill, bytes_each, &size));
    if (spill->count + more > spill->room) {
        uint64_t room = spill->room ? spill->room : LIST_LEAST;
        while (room < spill->count + more) room += room / 2;
        WEFTI_TRY(wefti_grow(&spill->pieces, spill->room * sizeof *spill->pieces, room * sizeof *spill->pieces, "pieces of a table on disk"));
        spill->counts.held += (room - spill->room) * sizeof *spill->pieces;
        spill->room = room;
    }
    bool active = spill->active || spill->counts.total + more * bytes_each > spill->options.most_bytes;
    if (spill->active) WEFTI_TRY(reserve(spill, spill->end + bytes));
    else if (active && bytes) WEFTI_TRY(activate(spill, bytes));
    for (uint64_t i = 0; i < more; i++) {
        spill->pieces[spill->count] = (piece){.at = NOWHERE, .newer = NONE, .older = NONE, .size = size};
        if (spill->active && bytes_each) {
            spill->pieces[spill->count].at = spill->end;
            spill->end += extent_bytes(bytes_each);
        }
        spill->count++;
    }
    spill->counts.total += more * bytes_each;
    return WEFT_OK;
}

weft_status wefti_spill_resize(wefti_spill *spill, uint32_t number, size_t bytes) {
    piece       *p = &spill->pieces[number];
    const size_t had = bytes_of(spill, p);
    uint32_t     size;
    uint64_t     at = NOWHERE;
    WEFTI_TRY(find_size(spill, bytes, &size));
    if (size == p->size) return WEFT_OK;
    if (!spill->active && spill->counts.total - had + bytes > spill->options.most_bytes) WEFTI_TRY(activate(spill, 0));
    if (spill->active) WEFTI_TRY(take_extent(spill, size, &at));
    weft_status status = bytes > had ? shrink(spill, bytes - had, number) : WEFT_OK;
    if (status != WEFT_OK) {
        give_extent(spill, size, at);
        return status;
    }
    give_extent(spill, p->size, p->at);
    p->size = size;
    p->at = at;
    p->saved = false;
    p->changed = p->in_memory;
    spill->counts.total += bytes - had;
    if (p->in_memory) spill->counts.resident += bytes - had;
    return WEFT_OK;
}

/* --- making one --- */

static weft_status open_in(const char *folder, const char *name, int *file_out) {
    *file_out = folder && *folder ? open_unnamed(folder) : -1;
    if (!folder || !*folder)
        return wefti_fail(WEFT_E_INVALID, "table '%s' keeps a part of its rows in memory only (memory_bytes), and this server has no folder for the rest: name one by "
                          "weft_server_options.spill", name);
    return *file_out >= 0 ? WEFT_OK : wefti_fail_errno("table '%s': no file for rows that are not in memory can be made in '%s' (weft_server_options.spill)", name, folder);
}

weft_status wefti_spill_create(const wefti_spill_options *options, wefti_spill **spill_out) {
    wefti_spill *spill;
    *spill_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *spill, "rows on disk", &spill));
    spill->options = *options;
    if (!spill->options.write) spill->options.write = pwrite;
    if (!spill->options.read) spill->options.read = pread;
    spill->newest = spill->oldest = NONE;
    weft_status status = open_in(options->folder, options->name, &spill->file);
    if (status != WEFT_OK) {
        wefti_free(spill, sizeof *spill);
        return status;
    }
    *spill_out = spill;
    return WEFT_OK;
}

void wefti_spill_release(wefti_spill *spill) {
    if (!spill) return;
    for (uint32_t i = 0; i < spill->size_count; i++) wefti_free(spill->sizes[i].free, spill->sizes[i].room * sizeof *spill->sizes[i].free);
    wefti_free(spill->sizes, spill->size_room * sizeof *spill->sizes);
    wefti_free(spill->pieces, spill->room * sizeof *spill->pieces);
    close(spill->file);
    wefti_free(spill, sizeof *spill);
}

void wefti_spill_count(const wefti_spill *spill, wefti_spill_counts *counts_out) {
    *counts_out = spill->counts;
    counts_out->file = spill->reserved;
}

/* --- memory of a file --- */

weft_status wefti_spill_map(const char *folder, const char *name, size_t bytes, void *memory_out) {
    int         file = -1;
    void       *memory = MAP_FAILED;
    size_t      room = bytes ? bytes : 1;
    WEFTI_TRY(open_in(folder, name, &file));
    if (extend_file(file, 0, room) == 0) memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    int error = errno;
    close(file);
    errno = error == EFBIG ? ENOSPC : error;
    if (memory == MAP_FAILED) return wefti_fail_errno("table '%s': no room for a copy of %zu bytes in '%s' (weft_server_options.spill)", name, bytes, folder);
    *(void **)memory_out = memory;
    return WEFT_OK;
}

void wefti_spill_rest(void *memory, size_t bytes) { (void)!madvise(memory, bytes, MADV_DONTNEED); } /* of a file: it is still there */
void wefti_spill_unmap(void *memory, size_t bytes) { (void)!munmap(memory, bytes ? bytes : 1); }

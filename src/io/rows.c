/* Random access to the rows of an IDX file.
 *
 * Idea: a plain file of bytes is read where it lies, by pread (a mapping would kill the process when the file is
 * shortened). A gzip file has no random access and wider values have the wrong byte order, so these are unpacked once:
 * into memory up to the limit, beyond it into a file without a name, whose pages the system can write out and drop.
 * Small files are held in memory too: a system call a label would cost more than the label.
 * Cost: the unpacked size in memory or on the disk; nothing for a large plain file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/rows.h"
#include "io/source.h"

enum { chunk_bytes = 1 << 20, small_bytes = 4 << 20 };

/* A file that is gone when its descriptor is closed. */
static weft_status open_nameless(int *descriptor_out) {
    const char *folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = "/var/tmp";
    *descriptor_out = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*descriptor_out >= 0) return WEFT_OK;
    /* Not every file system has O_TMPFILE. */
    char name[512];
    int  length = snprintf(name, sizeof name, "%s/weft-XXXXXX", folder);
    if (length < 0 || (size_t)length >= sizeof name)
        return wefti_fail(WEFT_E_INVALID, "the path in TMPDIR is too long: '%.200s…'", folder);
    *descriptor_out = mkostemp(name, O_CLOEXEC);
    if (*descriptor_out < 0) return wefti_fail_errno("cannot make a temporary file in '%s' (TMPDIR)", folder);
    unlink(name);
    return WEFT_OK;
}

static weft_status write_all(int descriptor, const uint8_t *bytes, size_t count) {
    while (count > 0) {
        ssize_t done = write(descriptor, bytes, count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return wefti_fail_errno("cannot write the temporary file (TMPDIR says where it lies)");
        bytes += done;
        count -= (size_t)done;
    }
    return WEFT_OK;
}

static weft_status unpack_into_memory(wefti_rows *rows, weft_idx *idx) {
    int64_t got = 0;
    WEFTI_TRY(wefti_alloc_raw(rows->memory_bytes, WEFTI_CACHE_LINE, "the rows of an IDX file", &rows->memory));
    weft_status status = weft_idx_read(idx, rows->info.shape.dim[0], rows->memory, &got);
    return status == WEFT_END ? WEFT_OK : status;
}

static weft_status unpack_into_file(wefti_rows *rows, weft_idx *idx) {
    uint8_t    *chunk = NULL;
    weft_status status;
    int64_t     row_bytes = rows->info.row_bytes, most = wefti_max_i64(1, chunk_bytes / row_bytes), got = 0;
    WEFTI_TRY(open_nameless(&rows->descriptor));
    WEFTI_TRY(wefti_alloc_raw((size_t)(most * row_bytes), WEFTI_CACHE_LINE, "unpacking an IDX file", &chunk));
    while ((status = weft_idx_read(idx, most, chunk, &got)) == WEFT_OK)
        if ((status = write_all(rows->descriptor, chunk, (size_t)(got * row_bytes))) != WEFT_OK) break;
    wefti_free(chunk, (size_t)(most * row_bytes));
    if (status != WEFT_END) return wefti_while(status, "unpacking '%s'", rows->path);
    return WEFT_OK;
}

weft_status wefti_rows_open(const char *path, int64_t memory_limit_bytes, wefti_rows *rows_out) {
    weft_idx   *idx = NULL;
    weft_status status;
    *rows_out = (wefti_rows){.descriptor = -1};
    WEFTI_TRY(weft_idx_open(path, &idx));
    rows_out->info = *weft_idx_describe(idx);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &rows_out->path), done);
    int64_t bytes = 0;
    if (!wefti_mul_i64(rows_out->info.row_bytes, rows_out->info.shape.dim[0], &bytes)) {
        status = wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of its rows overflows", path);
        goto done;
    }
    bool as_it_lies = !rows_out->info.compressed && rows_out->info.dtype == WEFT_U8;
    if (as_it_lies && bytes > wefti_min_i64(small_bytes, memory_limit_bytes)) {
        uint64_t file_bytes = 0;
        rows_out->data_offset = (uint64_t)rows_out->info.data_offset;
        status = wefti_open_regular(path, &rows_out->descriptor, &file_bytes);
    } else if (bytes <= memory_limit_bytes) {
        rows_out->memory_bytes = (size_t)bytes;
        status = unpack_into_memory(rows_out, idx);
    } else {
        status = unpack_into_file(rows_out, idx);
    }
done:
    weft_idx_release(idx);
    if (status != WEFT_OK) wefti_rows_close(rows_out);
    return status;
}

weft_status wefti_rows_get(const wefti_rows *rows, int64_t row, void *scratch, const void **row_out) {
    uint64_t offset = (uint64_t)row * (uint64_t)rows->info.row_bytes;
    *row_out = rows->memory ? rows->memory + offset : scratch;
    if (rows->memory) return WEFT_OK;
    return wefti_read_at(rows->descriptor, rows->path, rows->data_offset + offset, scratch, (size_t)rows->info.row_bytes);
}

void wefti_rows_expect(const wefti_rows *rows, int64_t row) {
    enum { MOST = 4096 }; /* the machine follows longer rows by itself */
    if (!rows->memory) return;
    size_t         bytes = (size_t)rows->info.row_bytes;
    const uint8_t *from = rows->memory + (uint64_t)row * bytes;
    for (size_t i = 0; i < bytes && i < MOST; i += WEFTI_CACHE_LINE) __builtin_prefetch(from + i);
}

void wefti_rows_close(wefti_rows *rows) {
    if (rows->descriptor >= 0) close(rows->descriptor);
    if (rows->memory) wefti_free(rows->memory, rows->memory_bytes);
    wefti_free_string(rows->path);
    *rows = (wefti_rows){.descriptor = -1};
}

/* IDX: two zero bytes, a type byte, a rank byte, `rank` big-endian 32-bit dimensions, then the values, big-endian.
 *
 * Idea: the header says the exact length, so a plain file is refused at once when its own differs, and a gzip file when
 * it could not even hold that many bytes; both before any memory is asked for. The end of the stream is looked at
 * together with the last row, so that a damaged tail is told while the rows are still in hand.
 * Cost: the source's buffer, and 4 KiB for widening small integers. */
#include <string.h>

#include "io/bytes.h"
#include "io/source.h"
#include "weft/idx.h"

typedef struct idx_type {
    const char *name;
    uint8_t     bytes;
    weft_dtype  dtype;
} idx_type;

static const idx_type types[256] = {
    [0x08] = {"u8", 1, WEFT_U8},   [0x09] = {"i8", 1, WEFT_I32},  [0x0b] = {"i16", 2, WEFT_I32},
    [0x0c] = {"i32", 4, WEFT_I32}, [0x0d] = {"f32", 4, WEFT_F32}, [0x0e] = {"f64", 8, WEFT_F64},
};

struct weft_idx {
    wefti_source *source;
    weft_idx_info info;
    idx_type      type;
    int64_t       row_elements, rows_left;
    bool          failed;
};

static weft_status read_header(weft_idx *idx, const char *path) {
    uint8_t header[4 + 4 * WEFT_MAX_RANK];
    size_t  got = 0;
    WEFTI_TRY(wefti_source_read(idx->source, header, 4, &got));
    if (got < 4) return wefti_fail(WEFT_E_CORRUPT, "'%s' ends at offset %zu inside the 4-byte IDX magic", path, got);
    if (header[0] != 0 || header[1] != 0)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' is not an IDX file: bytes 0 and 1 are 0x%02x 0x%02x, expected 0x00 0x00",
                          path, header[0], header[1]);
    idx->type = types[header[2]];
    if (!idx->type.name)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has IDX type 0x%02x at offset 2; expected 0x08, 0x09, 0x0b, 0x0c, 0x0d "
                          "or 0x0e", path, header[2]);
    int32_t rank = header[3];
    if (rank == 0) return wefti_fail(WEFT_E_CORRUPT, "'%s' has rank 0 at offset 3; expected at least 1", path);
    if (rank > WEFT_MAX_RANK)
        return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' has %d dimensions (offset 3); at most %d are supported", path, rank,
                          WEFT_MAX_RANK);
    WEFTI_TRY(wefti_source_read(idx->source, header + 4, 4 * (size_t)rank, &got));
    if (got < 4 * (size_t)rank)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' ends at offset %zu inside its header; %d dimensions take %d bytes", path,
                          4 + got, rank, 4 + 4 * rank);
    idx->info.shape.rank = rank;
    for (int32_t axis = 0; axis < rank; axis++) {
        const uint8_t *at = header + 4 + 4 * axis;
        idx->info.shape.dim[axis] = (int64_t)((uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]);
    }
    return WEFT_OK;
}

static weft_status check_sizes(weft_idx *idx, const char *path) {
    weft_shape row = weft_shape_of(idx->info.shape.rank - 1, idx->info.shape.dim + 1);
    int64_t    elements = weft_shape_elements(idx->info.shape), row_elements = weft_shape_elements(row);
    int64_t    stored_bytes = 0, out_bytes = 0;
    if (elements < 0 || row_elements < 0 || !wefti_mul_i64(elements, idx->type.bytes, &stored_bytes) ||
        !wefti_mul_i64(row_elements, (int64_t)weft_dtype_bytes(idx->type.dtype), &out_bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of %s %s overflows", path, idx->type.name,
                          weft_shape_text(idx->info.shape).text);
    int64_t header_bytes = 4 + 4 * (int64_t)idx->info.shape.rank;
    int64_t expected = 0;
    if (!wefti_add_i64(stored_bytes, header_bytes, &expected))
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of %s %s overflows", path, idx->type.name,
                          weft_shape_text(idx->info.shape).text);
    uint64_t file_bytes = wefti_source_file_bytes(idx->source);
    if (!wefti_source_compressed(idx->source) && (uint64_t)expected != file_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes; its header (%s %s) makes %lld: %s", path,
                          (unsigned long long)file_bytes, idx->type.name, weft_shape_text(idx->info.shape).text,
                          (long long)expected, file_bytes < (uint64_t)expected ? "it is truncated" : "there is more after the end");
    if ((uint64_t)expected > wefti_source_most_bytes(idx->source))
        return wefti_fail(WEFT_E_CORRUPT, "'%s': a gzip file of %llu bytes cannot hold the %lld bytes that its header "
                          "(%s %s) makes; it is truncated or damaged", path, (unsigned long long)file_bytes,
                          (long long)expected, idx->type.name, weft_shape_text(idx->info.shape).text);
    idx->info.dtype = idx->type.dtype;
    idx->info.stored = idx->type.name;
    idx->info.row_bytes = out_bytes;
    idx->info.compressed = wefti_source_compressed(idx->source);
    idx->info.data_offset = header_bytes;
    idx->row_elements = row_elements;
    idx->rows_left = idx->info.shape.dim[0];
    return WEFT_OK;
}

/* The stream must end here; for gzip this also verifies the checksum. */
static weft_status expect_end(weft_idx *idx) {
    uint8_t extra;
    size_t  got = 0;
    WEFTI_TRY(wefti_source_read(idx->source, &extra, 1, &got));
    if (got != 0)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' goes on after offset %llu, where its header (%s %s) says that it ends",
                          wefti_source_path(idx->source), (unsigned long long)wefti_source_offset(idx->source) - 1,
                          idx->type.name, weft_shape_text(idx->info.shape).text);
    return WEFT_OK;
}

weft_status weft_idx_open(const char *path, weft_idx **idx_out) {
    if (!idx_out) return wefti_fail(WEFT_E_INVALID, "weft_idx_open: idx_out is NULL");
    *idx_out = NULL;
    weft_idx   *idx = NULL;
    weft_status status;
    WEFTI_TRY(wefti_alloc(sizeof *idx, "an IDX reader", &idx));
    WEFTI_TRY_GOTO(wefti_source_open(path, &idx->source), fail);
    WEFTI_TRY_GOTO(read_header(idx, path), fail);
    WEFTI_TRY_GOTO(check_sizes(idx, path), fail);
    if (weft_shape_elements(idx->info.shape) == 0) WEFTI_TRY_GOTO(expect_end(idx), fail);
    *idx_out = idx;
    return WEFT_OK;
fail:
    weft_idx_release(idx);
    return status;
}

const weft_idx_info *weft_idx_describe(const weft_idx *idx) { return &idx->info; }

static weft_status read_exactly(weft_idx *idx, void *out, size_t bytes) {
    size_t got = 0;
    WEFTI_TRY(wefti_source_read(idx->source, out, bytes, &got));
    if (got == bytes) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "'%s' ends at offset %llu with %lld rows missing; its header says %s %s",
                      wefti_source_path(idx->source), (unsigned long long)wefti_source_offset(idx->source),
                      (long long)idx->rows_left, idx->type.name, weft_shape_text(idx->info.shape).text);
}

/* i8 and i16 become i32, through a small buffer. */
static weft_status read_widened(weft_idx *idx, int32_t *out, size_t count) {
    uint8_t narrow[4096];
    while (count > 0) {
        size_t now = sizeof narrow / idx->type.bytes;
        if (now > count) now = count;
        WEFTI_TRY(read_exactly(idx, narrow, now * idx->type.bytes));
        for (size_t i = 0; i < now; i++)
            out[i] = idx->type.bytes == 1 ? (int8_t)narrow[i] : (int16_t)(narrow[2 * i] << 8 | narrow[2 * i + 1]);
        out += now;
        count -= now;
    }
    return WEFT_OK;
}

static weft_status read_rows(weft_idx *idx, int64_t rows, void *rows_out) {
    size_t count = (size_t)rows * (size_t)idx->row_elements;
    if (idx->type.bytes < weft_dtype_bytes(idx->type.dtype)) {
        WEFTI_TRY(read_widened(idx, rows_out, count));
    } else {
        WEFTI_TRY(read_exactly(idx, rows_out, count * idx->type.bytes));
        wefti_swap_bytes(rows_out, count, idx->type.bytes);
    }
    idx->rows_left -= rows;
    return idx->rows_left == 0 && idx->row_elements > 0 ? expect_end(idx) : WEFT_OK;
}

weft_status weft_idx_read(weft_idx *idx, int64_t max_rows, void *rows_out, int64_t *rows_read_out) {
    if (!idx || !rows_read_out || max_rows < 0 || (max_rows > 0 && !rows_out && idx->info.row_bytes > 0))
        return wefti_fail(WEFT_E_INVALID, "weft_idx_read: needs a reader, max_rows >= 0 (is %lld), and where to write",
                          (long long)max_rows);
    *rows_read_out = 0;
    if (idx->failed)
        return wefti_fail(WEFT_E_STATE, "weft_idx_read: '%s' failed before; open it again", wefti_source_path(idx->source));
    if (idx->rows_left == 0) return WEFT_END;
    int64_t rows = wefti_min_i64(max_rows, idx->rows_left);
    weft_status status = read_rows(idx, rows, rows_out);
    if (status != WEFT_OK) {
        idx->failed = true;
        return status;
    }
    *rows_read_out = rows;
    return WEFT_OK;
}

void weft_idx_release(weft_idx *idx) {
    if (!idx) return;
    wefti_source_release(idx->source);
    wefti_free(idx, sizeof *idx);
}

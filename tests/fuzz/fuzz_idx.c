/* IDX, plain and gzip: reading any bytes ends, and writes only the rows that it says. */
#include "fuzz.h"
#include "weft/idx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { room = 1 << 16 };
    weft_idx *idx = NULL;
    if (weft_idx_open(fuzz_path(data, size), &idx) != WEFT_OK) return 0;
    const weft_idx_info *info = weft_idx_describe(idx);
    if (info->row_bytes > 0 && info->row_bytes <= room) {
        int64_t at_once = room / info->row_bytes, got = 0, total = 0;
        void   *rows = malloc((size_t)(at_once * info->row_bytes)); /* exactly, so that a sanitizer sees every excess */
        if (!rows) abort();
        while (weft_idx_read(idx, at_once, rows, &got) == WEFT_OK)
            if (got > at_once || (total += got) > info->shape.dim[0]) abort();
        free(rows);
    }
    weft_idx_release(idx);
    return 0;
}

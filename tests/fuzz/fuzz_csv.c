/* CSV: any text gives rows of the same width or an error. The first byte chooses the options. */
#include "fuzz.h"
#include "weft/table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    weft_csv              *csv = NULL;
    const weft_csv_options options = {.header = data[0] & 1, .comment = data[0] & 2 ? '#' : 0,
                                      .separator = "\0\t, ;\0\0"[data[0] >> 2 & 7]};
    if (weft_csv_open(fuzz_path(data + 1, size - 1), &options, &csv) != WEFT_OK) return 0;
    int64_t columns = weft_csv_columns(csv), got = 0, total = 0;
    if (columns < 1 || columns > (int64_t)size) abort();
    for (int64_t column = 0; column < columns; column++)
        if ((weft_csv_column_name(csv, column) != NULL) != options.header) abort();
    float *rows = malloc((size_t)(3 * columns) * sizeof *rows);
    if (!rows) abort();
    while (weft_csv_read(csv, 3, WEFT_F32, rows, &got) == WEFT_OK)
        if (got < 1 || got > 3 || (total += got) > (int64_t)size) abort();
    free(rows);
    weft_csv_release(csv);
    return 0;
}

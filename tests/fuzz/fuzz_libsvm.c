/* libsvm: any text gives rows whose entries are in order and in bounds, or an error. */
#include "fuzz.h"
#include "weft/table.h"

static void check(const weft_libsvm_rows *rows) {
    if (rows->row_start[0] != 0) abort();
    for (int64_t row = 0; row < rows->rows; row++) {
        if (rows->row_start[row] > rows->row_start[row + 1] || rows->query[row] < -1) abort();
        for (int64_t i = rows->row_start[row]; i < rows->row_start[row + 1]; i++) {
            if (rows->column[i] < 0 || rows->column[i] >= rows->columns) abort();
            if (i > rows->row_start[row] && rows->column[i] <= rows->column[i - 1]) abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weft_libsvm              *libsvm = NULL;
    weft_libsvm_rows          rows;
    const weft_libsvm_options options = {.zero_based = size % 2};
    if (weft_libsvm_open(fuzz_path(data, size), &options, &libsvm) != WEFT_OK) return 0;
    while (weft_libsvm_read(libsvm, 3, &rows) == WEFT_OK) check(&rows);
    if (weft_libsvm_rewind(libsvm) == WEFT_E_INTERNAL) abort();
    weft_libsvm_release(libsvm);
    return 0;
}

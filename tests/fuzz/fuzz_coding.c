/* Rows and lists of keys as servers and workers read them: a codec, a dtype, how many rows of which width, then bytes that a rank may have sent.
 * Whatever comes, nothing is written beside what is given; a list that is read ascends and is written as it can be read again. */
#include <string.h>

#include "fuzz.h"
#include "parallel/server/coding.h"

enum { HEAD = 6, MOST_ROWS = 512, MOST_WIDTH = 5 };

static void read_list(const uint8_t *data, size_t size, int64_t count) {
    uint64_t   *keys = malloc((size_t)count * sizeof *keys + 1), *again = malloc((size_t)count * sizeof *keys + 1);
    weft_status status = wefti_list_read(data, size, count, keys);
    if (status != WEFT_OK && status != WEFT_E_CORRUPT) abort();
    for (int64_t i = 1; i < count && status == WEFT_OK; i++)
        if (keys[i] <= keys[i - 1]) abort();
    if (status == WEFT_OK) {
        size_t   bytes = wefti_list_bytes(keys, count);
        uint8_t *written = malloc(bytes + 1);
        wefti_list_write(keys, count, written);
        if (wefti_list_read(written, bytes, count, again) != WEFT_OK || memcmp(keys, again, (size_t)count * sizeof *keys) != 0) abort();
        free(written);
    }
    free(keys);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const weft_codec codecs[] = {WEFT_COMPRESS_BF16,    WEFT_COMPRESS_FP8,         WEFT_COMPRESS_FP8_E5M2, WEFT_COMPRESS_TOP_K,
                                        WEFT_COMPRESS_FIXED8,  WEFT_COMPRESS_FIXED16,     WEFT_COMPRESS_SIGNIFICANT, WEFT_COMPRESS_NONZERO};
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_F16, WEFT_I32, WEFT_I64};
    if (size < HEAD) return 0;
    weft_compression how = {.codec = codecs[data[1] % WEFTI_COUNT(codecs)]};
    wefti_coding     coding = {.how = &how, .width = 1 + data[3] % MOST_WIDTH,
                               .dtype = how.codec == WEFT_COMPRESS_NONZERO ? dtypes[data[2] % WEFTI_COUNT(dtypes)] : WEFT_F32};
    int64_t          rows = (data[4] | data[5] << 8) % (MOST_ROWS + 1), count = -1;
    if (data[0] & 1) {
        read_list(data + HEAD, size - HEAD, rows);
        return 0;
    }
    uint64_t   *places = malloc((size_t)rows * sizeof *places + 1);
    uint8_t    *values = malloc((size_t)(rows * coding.width) * weft_dtype_bytes(coding.dtype) + 1);
    weft_status status = wefti_coding_read(&coding, data + HEAD, size - HEAD, rows, places, &count, values);
    if (status != WEFT_OK && status != WEFT_E_CORRUPT) abort();
    if (status == WEFT_OK && (count < 0 || count > rows)) abort();
    for (int64_t i = 0; i < count && status == WEFT_OK; i++)
        if (places[i] >= (uint64_t)rows || (i && places[i] <= places[i - 1])) abort();
    free(places);
    free(values);
    return 0;
}

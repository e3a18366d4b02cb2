/* npy: whatever opens can be read into memory of exactly the size that it says. */
#include "fuzz.h"
#include "weft/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weft_npy *npy = NULL;
    if (weft_npy_open(fuzz_path(data, size), &npy) != WEFT_OK) return 0;
    const weft_npy_info *info = weft_npy_describe(npy);
    size_t               bytes = (size_t)weft_shape_elements(info->shape) * weft_dtype_bytes(info->dtype);
    if (bytes <= 1u << 24) {
        void *out = malloc(bytes + !bytes);
        if (!out) abort();
        if (weft_npy_read(npy, out) == WEFT_E_INTERNAL) abort();
        free(out);
    }
    weft_npy_release(npy);
    return 0;
}

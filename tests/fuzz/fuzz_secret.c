/* Files of secrets: 16 to 64 bytes come out of them, or an error that does not repeat them. */
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"
#include "transport/transport.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wefti_place place;
    const char *path = fuzz_path(data, size);
    if (chmod(path, 0600) != 0) abort();
    clearenv();
    setenv("WEFT_SECRET_FILE", path, 1);
    weft_status status = wefti_place_read(&place);
    if (status == WEFT_OK && (place.secret_bytes < 16 || place.secret_bytes > sizeof place.secret ||
                              memcmp(place.secret, data, place.secret_bytes) != 0))
        abort();
    if (status != WEFT_OK && status != WEFT_E_INVALID) abort();
    if (status != WEFT_OK && size >= 8 && memmem(weft_error_message(), strlen(weft_error_message()), data, 8)) abort();
    return 0;
}

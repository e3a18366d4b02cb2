/* What launchers say in the environment, NAME=VALUE a line: a place among the ranks comes out of it, or an error. */
#include <string.h>

#include "fuzz.h"
#include "transport/transport.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wefti_place place;
    char       *text = malloc(size + 1);
    if (!text) abort();
    memcpy(text, data, size);
    text[size] = 0;
    clearenv();
    for (char *at = NULL, *line = strtok_r(text, "\n", &at); line; line = strtok_r(NULL, "\n", &at)) {
        char *equals = strchr(line, '=');
        if (!equals || equals == line) continue;
        *equals = 0;
        if (strcmp(line, "WEFT_SECRET_FILE") != 0) setenv(line, equals + 1, 1);
    }
    free(text);
    if (wefti_place_read(&place) != WEFT_OK) return 0;
    if (place.size < 1 || place.rank < 0 || place.rank >= place.size || place.store_ports < 1) abort();
    if (strlen(place.store) >= sizeof place.store || strlen(place.job) >= sizeof place.job) abort();
    return 0;
}

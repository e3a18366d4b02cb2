/* Strategies as text: refused, and then unchanged, or read; and what is written of it is read as the same. */
#include <string.h>

#include "fuzz.h"
#include "weft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weft_strategy before = {.data = 3}, first = before, second = {0};
    char         *text = malloc(size + 1);
    if (!text) abort();
    memcpy(text, data, size);
    text[size] = 0;
    weft_status status = weft_strategy_parse(text, &first);
    free(text);
    if (status != WEFT_OK && (status != WEFT_E_INVALID || memcmp(&first, &before, sizeof first) != 0)) abort();
    weft_strategy_string written = weft_strategy_text(&first);
    if (weft_strategy_parse(written.text, &second) != WEFT_OK || strcmp(written.text, weft_strategy_text(&second).text) != 0) abort();
    return 0;
}

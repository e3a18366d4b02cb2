/* Files of tunings: what is read can be written and read again, to the same. */
#include <string.h>

#include "core/base/base.h"
#include "fuzz.h"
#include "transport/tune.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    wefti_tuning first, second;
    wefti_text   text = {0}, again = {0};
    if (wefti_tuning_read(fuzz_path(data, size), &first) != WEFT_OK) return 0;
    if (first.rule_count < 0 || first.rule_count > WEFTI_TUNING_RULES || first.ranks < 1) abort();
    wefti_tuning_write(&first, &text);
    if (wefti_tuning_read(fuzz_path((const uint8_t *)text.bytes, strlen(text.bytes)), &second) != WEFT_OK) abort();
    wefti_tuning_write(&second, &again);
    if (strcmp(text.bytes, again.bytes) != 0) abort();
    wefti_text_release(&text);
    wefti_text_release(&again);
    return 0;
}

/* What a test of the verbs wire leaves when its wires are closed: nothing. */
#ifndef TESTS_VERBS_LEFTOVERS_H
#define TESTS_VERBS_LEFTOVERS_H

#include <criterion/criterion.h>

#include "fake_verbs.h"
#include "weft/memory.h"

static inline void expect_nothing_left(void) {
    weft_memory_counts memory;
    weft_memory_read(&memory);
    fake_verbs_counts counts = fake_verbs_read();
    cr_expect_eq(memory.held_bytes, 0, "%llu bytes were left", (unsigned long long)memory.held_bytes);
    cr_expect_eq(counts.objects, 0, "%d objects of verbs were left", counts.objects);
    cr_expect_eq(counts.misuse, 0, "%d times, first: %s", counts.misuse, counts.what);
}

#endif

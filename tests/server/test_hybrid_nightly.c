/* As the last of test_hybrid.c with 10^8 tokens. */
#include <criterion/criterion.h>

#include "words.h"

static weft_status many_words(serving *self) { return count_words(self, 100000, 10000, 100000000); }
Test(hybrid_nightly, counts_of_words_take_a_sixth_of_dense_memory) { serve_case("shm", 1, NULL, many_words); }

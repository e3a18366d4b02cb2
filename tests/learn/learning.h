/* Ranks of tests of this room: real processes, each with a world. */
#ifndef TESTS_LEARN_LEARNING_H
#define TESTS_LEARN_LEARNING_H

#include <criterion/criterion.h>

#include "weft.h"
#include "transport/ranks.h"

/* What a rank does in its world; another status than WEFT_OK fails the test, with its message. */
typedef weft_status (*learner)(weft_world *world);
/* Runs it on so many ranks. */
void learn_on(const char *wire, int32_t count, learner function);
/* The same, and what became of the ranks; to be freed by ranks_free. */
ranks *learn_and_see(const char *wire, int32_t count, learner function);
/* Zeroed memory that ranks and test share. Never freed: a test is a process. */
void *learn_share(size_t bytes);
/* Reproducible noise in [-1, 1). */
double learn_noise(uint64_t number);

#endif

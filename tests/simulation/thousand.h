/* Very many ranks: the code of ranks that are real opens their world, communicates by every kind of algorithm, notices the death of two of them, rank 0
 * among them, goes on with those who are left, and communicates again. */
#ifndef WEFT_TESTS_SIMULATION_THOUSAND_H
#define WEFT_TESTS_SIMULATION_THOUSAND_H

#include <stdint.h>

void thousand_run(int32_t ranks); /* at most 1,024 */

#endif

/* Sums of floats in fixed point: a number of 64-bit words in two's complement, whose lowest bit is the least subnormal. Every float is a multiple of
 * that, so adding is exact and has no order. Above the largest float there are bits for 2^75 additions and more. */
#ifndef WEFTI_SERVER_EXACT_H
#define WEFTI_SERVER_EXACT_H

#include <stdint.h>

enum { WEFTI_EXACT_F32 = 6, WEFTI_EXACT_F64 = 34 };                              /* words */
enum { WEFTI_EXACT_NAN = 1, WEFTI_EXACT_ABOVE = 2, WEFTI_EXACT_BELOW = 4 };      /* what came that is no number */

void   wefti_exact_add_f32(uint64_t sum[WEFTI_EXACT_F32], uint32_t *special, float value);
void   wefti_exact_add_f64(uint64_t sum[WEFTI_EXACT_F64], uint32_t *special, double value);
/* Rounded to odd: what is left out makes the last digit 1. Rounded to a format of fewer digits after that, it is as if rounded once. */
float  wefti_exact_odd_f32(const uint64_t sum[WEFTI_EXACT_F32], uint32_t special);
float  wefti_exact_f32(const uint64_t sum[WEFTI_EXACT_F32], uint32_t special); /* to nearest, ties to even; zero is +0 */
double wefti_exact_f64(const uint64_t sum[WEFTI_EXACT_F64], uint32_t special);

#endif

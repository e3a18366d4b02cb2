/* Exact sums of floats. An addition touches two words, and more only where a carry runs on. */
#include "parallel/server/exact.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* sum +- fraction x 2^at */
static void add(uint64_t *sum, int words, uint64_t fraction, uint32_t at, bool minus) {
    uint32_t word = at / 64, shift = at % 64;
    uint64_t parts[2] = {fraction << shift, shift ? fraction >> (64 - shift) : 0}, carry = 0;
    for (int i = 0; i < 2 || carry; i++) {
        int place = (int)word + i;
        if (place >= words) return; /* the sign of two's complement runs out here */
        uint64_t part = i < 2 ? parts[i] : 0, old = sum[place];
        if (minus) {
            uint64_t less = old - part;
            sum[place] = less - carry;
            carry = (uint64_t)(old < part) | (uint64_t)(less < carry);
        } else {
            uint64_t more = old + part;
            sum[place] = more + carry;
            carry = (uint64_t)(more < part) | (uint64_t)(sum[place] < more);
        }
    }
}

static uint32_t special_of(bool nan, bool minus) { return nan ? WEFTI_EXACT_NAN : minus ? WEFTI_EXACT_BELOW : WEFTI_EXACT_ABOVE; }

void wefti_exact_add_f32(uint64_t sum[WEFTI_EXACT_F32], uint32_t *special, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t exponent = bits >> 23 & 0xff, fraction = bits & 0x7fffff;
    if (exponent == 0xff) *special |= special_of(fraction != 0, bits >> 31);
    else add(sum, WEFTI_EXACT_F32, exponent ? fraction | 0x800000 : fraction, exponent ? exponent - 1 : 0, bits >> 31);
}

void wefti_exact_add_f64(uint64_t sum[WEFTI_EXACT_F64], uint32_t *special, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t exponent = (uint32_t)(bits >> 52) & 0x7ff;
    uint64_t fraction = bits & 0xfffffffffffff;
    if (exponent == 0x7ff) *special |= special_of(fraction != 0, bits >> 63);
    else add(sum, WEFTI_EXACT_F64, exponent ? fraction | UINT64_C(1) << 52 : fraction, exponent ? exponent - 1 : 0, bits >> 63);
}

/* The first `digits` binary digits of a number that is not negative, rounded to nearest even, or to odd: *fraction_out x 2^result. */
static int round_to(const uint64_t *number, int words, int digits, bool odd, uint64_t *fraction_out) {
    int top = words - 1;
    while (top >= 0 && number[top] == 0) top--;
    *fraction_out = top >= 0 ? number[0] : 0;
    int length = top < 0 ? 0 : 64 * top + 64 - __builtin_clzll(number[top]), cut = length - digits;
    if (cut <= 0) return 0;
    int      word = cut / 64, shift = cut % 64;
    uint64_t high = word + 1 < words && shift ? number[word + 1] << (64 - shift) : 0;
    uint64_t fraction = (number[word] >> shift | high) & ((UINT64_C(1) << digits) - 1);
    int      half = (cut - 1) / 64;
    uint64_t bit = UINT64_C(1) << (cut - 1) % 64;
    bool     below = number[half] & (bit - 1);
    for (int i = 0; i < half && !below; i++) below = number[i];
    if (odd) fraction |= below || number[half] & bit;
    else if (number[half] & bit && (below || fraction & 1)) fraction++;
    *fraction_out = fraction;
    return cut;
}

static double value_of(const uint64_t *sum, int words, int digits, int least, bool odd, uint32_t special) {
    uint64_t number[WEFTI_EXACT_F64], fraction;
    bool     minus = sum[words - 1] >> 63, carry = true;
    if (special & WEFTI_EXACT_NAN || special == (WEFTI_EXACT_ABOVE | WEFTI_EXACT_BELOW)) return (double)NAN;
    if (special) return special == WEFTI_EXACT_ABOVE ? (double)INFINITY : -(double)INFINITY;
    for (int i = 0; i < words; i++) {
        number[i] = minus ? ~sum[i] + carry : sum[i];
        carry = carry && number[i] == 0;
    }
    int exponent = round_to(number, words, digits, odd, &fraction);
    double value = ldexp((double)fraction, exponent + least); /* exact, or infinite */
    return minus ? -value : value;
}

float wefti_exact_f32(const uint64_t sum[WEFTI_EXACT_F32], uint32_t special) {
    return (float)value_of(sum, WEFTI_EXACT_F32, 24, -149, false, special); /* has 24 digits, or is too large */
}
double wefti_exact_f64(const uint64_t sum[WEFTI_EXACT_F64], uint32_t special) { return value_of(sum, WEFTI_EXACT_F64, 53, -1074, false, special); }
float wefti_exact_odd_f32(const uint64_t sum[WEFTI_EXACT_F32], uint32_t special) {
    return (float)value_of(sum, WEFTI_EXACT_F32, 24, -149, true, special);
}

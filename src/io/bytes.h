/* Byte order. */
#ifndef WEFTI_BYTES_H
#define WEFTI_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Turns `count` elements of 2, 4 or 8 bytes around, in place; others are left alone. */
static inline void wefti_swap_bytes(void *data, size_t count, size_t element_bytes) {
    uint8_t *at = data;
    for (size_t i = 0; i < count; i++, at += element_bytes) {
        uint16_t two;
        uint32_t four;
        uint64_t eight;
        switch (element_bytes) {
        case 2:
            memcpy(&two, at, 2);
            two = __builtin_bswap16(two);
            memcpy(at, &two, 2);
            break;
        case 4:
            memcpy(&four, at, 4);
            four = __builtin_bswap32(four);
            memcpy(at, &four, 4);
            break;
        case 8:
            memcpy(&eight, at, 8);
            eight = __builtin_bswap64(eight);
            memcpy(at, &eight, 8);
            break;
        default: return;
        }
    }
}

#endif

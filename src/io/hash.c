/* XXH64 guards checkpoints: it runs at memory speed without special instructions, and finds any damage that is not aimed
 * at it. CRC-32C is what TensorBoard's records want; those are short, so four bits at a time will do.
 * Sources: Y. Collet, "xxHash fast digest algorithm", specification 0.1.1, section XXH64; RFC 3720 appendix B.4. */
#include <string.h>

#include "io/hash.h"

static const uint64_t prime1 = 0x9e3779b185ebca87u, prime2 = 0xc2b2ae3d27d4eb4fu, prime3 = 0x165667b19e3779f9u,
                      prime4 = 0x85ebca77c2b2ae63u, prime5 = 0x27d4eb2f165667c5u;

static uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static uint64_t mix(uint64_t lane, uint64_t input) { return rotate(lane + input * prime2, 31) * prime1; }

static uint64_t load64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

void wefti_xxh64_begin(wefti_xxh64 *hash) {
    *hash = (wefti_xxh64){.lane = {prime1 + prime2, prime2, 0, 0 - prime1}};
}

static const uint8_t *add_blocks(wefti_xxh64 *hash, const uint8_t *at, size_t blocks) {
    uint64_t a = hash->lane[0], b = hash->lane[1], c = hash->lane[2], d = hash->lane[3];
    for (; blocks > 0; blocks--, at += 32) {
        a = mix(a, load64(at));
        b = mix(b, load64(at + 8));
        c = mix(c, load64(at + 16));
        d = mix(d, load64(at + 24));
    }
    hash->lane[0] = a;
    hash->lane[1] = b;
    hash->lane[2] = c;
    hash->lane[3] = d;
    return at;
}

void wefti_xxh64_add(wefti_xxh64 *hash, const void *bytes, size_t count) {
    const uint8_t *at = bytes;
    hash->total += count;
    if (hash->rest_bytes > 0) {
        size_t now = 32 - hash->rest_bytes < count ? 32 - hash->rest_bytes : count;
        memcpy(hash->rest + hash->rest_bytes, at, now);
        hash->rest_bytes += now;
        at += now;
        count -= now;
        if (hash->rest_bytes < 32) return;
        add_blocks(hash, hash->rest, 1);
        hash->rest_bytes = 0;
    }
    at = add_blocks(hash, at, count / 32);
    hash->rest_bytes = count % 32;
    if (hash->rest_bytes > 0) memcpy(hash->rest, at, hash->rest_bytes);
}

uint64_t wefti_xxh64_end(const wefti_xxh64 *hash) {
    const uint64_t *lane = hash->lane;
    uint64_t        value = prime5;
    if (hash->total >= 32) {
        value = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
        for (int i = 0; i < 4; i++) value = (value ^ mix(0, lane[i])) * prime1 + prime4;
    }
    value += hash->total;
    const uint8_t *at = hash->rest;
    size_t         left = hash->rest_bytes;
    for (; left >= 8; left -= 8, at += 8) value = rotate(value ^ mix(0, load64(at)), 27) * prime1 + prime4;
    if (left >= 4) {
        uint32_t word;
        memcpy(&word, at, sizeof word);
        value = rotate(value ^ word * prime1, 23) * prime2 + prime3;
        left -= 4;
        at += 4;
    }
    for (; left > 0; left--, at++) value = rotate(value ^ *at * prime5, 11) * prime1;
    value = (value ^ value >> 33) * prime2;
    value = (value ^ value >> 29) * prime3;
    return value ^ value >> 32;
}

uint32_t wefti_crc32c(const void *bytes, size_t count) {
    static const uint32_t nibble[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                        0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                        0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    uint32_t       crc = 0xffffffffu;
    const uint8_t *at = bytes;
    for (size_t i = 0; i < count; i++) {
        crc ^= at[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    return ~crc;
}

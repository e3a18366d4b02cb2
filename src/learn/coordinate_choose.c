/* The scheduler: which weights change in a round, and which rank changes them.
 *
 * A column's sketch is its sum over rows that hash to the same of WEFTI_SKETCH numbers, with signs by hash (Charikar, Chen, Farach-Colton 2002), scaled to length
 * 1; the inner product of two sketches estimates the cosine of the columns. Sketches are made once, by ranks in shares, and every rank has all of them, so that
 * choosing takes no message: all ranks choose the same from the same numbers. Candidates come in the order of what they have to gain.
 *
 * Most pairs are told apart by the signs of their sketches alone: those of unrelated columns agree in half of their places, give or take 6 of 128, those of columns
 * with a cosine of 0.4 in 81 (Charikar 2002). Only where they agree or disagree in clearly more is the product looked at.
 *
 * Cost of a round: candidates times chosen weights times some 10 ns on every rank. */
#include <math.h>
#include <string.h>

#include "learn/coordinate.h"

enum { LANES = 8, LOOK = 4 /* candidates looked at, for each that a round may take */, CLEARLY = 9 /* signs */, SLACK = 2 /* columns */ };
typedef float lanes __attribute__((vector_size(32)));

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void add_entry(float *sketch, uint64_t seed, int64_t row, float value) {
    uint64_t hash = mix(seed + (uint64_t)(row + 1) * UINT64_C(0x9e3779b97f4a7c15));
    sketch[hash % WEFTI_SKETCH] += hash >> 63 ? value : -value;
}

static void sketch_column(const wefti_coordinate *c, int64_t j, float *sketch) {
    const weft_columns *data = c->data;
    double              square = 0;
    memset(sketch, 0, WEFTI_SKETCH * sizeof *sketch);
    if (j < data->columns)
        for (int64_t e = data->start[j]; e < data->start[j + 1]; e++) add_entry(sketch, c->options->seed, data->row[e], data->value[e]);
    else
        for (int64_t i = 0; i < c->n; i++) add_entry(sketch, c->options->seed, i, 1);
    for (int k = 0; k < WEFTI_SKETCH; k++) square += (double)sketch[k] * sketch[k];
    for (int k = 0; k < WEFTI_SKETCH && square > 0; k++) sketch[k] = (float)(sketch[k] / sqrt(square));
}

weft_status wefti_coordinate_sketch(wefti_coordinate *c) {
    if (!c->sketch) return WEFT_OK;
    for (int64_t j = c->first; j < c->first + c->count; j++) sketch_column(c, j, c->sketch + j * WEFTI_SKETCH);
    for (int32_t r = 0; r < c->ranks; r++) c->share[r] *= WEFTI_SKETCH;
    weft_status status = weft_group_allgatherv(c->group, c->sketch + c->first * WEFTI_SKETCH, c->sketch, c->share, WEFT_F32);
    for (int32_t r = 0; r < c->ranks; r++) c->share[r] /= WEFTI_SKETCH;
    for (int64_t i = 0; i < c->weights * WEFTI_SKETCH; i++) c->signs[i / 64] |= (uint64_t)(c->sketch[i] > 0) << i % 64;
    return status;
}

static int agreements(const uint64_t *a, const uint64_t *b) {
    int count = 0;
    for (int k = 0; k < WEFTI_SIGNS; k++) { /* as popcount instructions do, which not every processor of this kind has */
        uint64_t x = ~(a[k] ^ b[k]);
        x -= x >> 1 & UINT64_C(0x5555555555555555);
        x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
        count += (int)(((x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f)) * UINT64_C(0x0101010101010101) >> 56);
    }
    return count;
}

static float coupling(const wefti_coordinate *c, int64_t j, int64_t k) {
    int off = agreements(c->signs + j * WEFTI_SIGNS, c->signs + k * WEFTI_SIGNS) - WEFTI_SKETCH / 2;
    if (off < CLEARLY && off > -CLEARLY) return 0;
    const lanes *a = (const lanes *)(c->sketch + j * WEFTI_SKETCH), *b = (const lanes *)(c->sketch + k * WEFTI_SKETCH);
    lanes        sum = {0};
    for (int i = 0; i < WEFTI_SKETCH / LANES; i++) sum += a[i] * b[i];
    return fabsf(((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])));
}

/* The rank that has least to do and room; -1: none has room. */
static int32_t idlest(const wefti_coordinate *c) {
    int32_t best = -1;
    for (int32_t r = 0; r < c->ranks; r++)
        if (c->chosen_count[r] < (size_t)c->block && (best < 0 || c->load[r] < c->load[best])) best = r;
    return best;
}

/* Where a weight goes that is free to: to the rank that has its column in passes, and so in its cache, unless that one has clearly more to do. */
static int32_t free_rank(const wefti_coordinate *c, int64_t j) {
    int32_t home = 0, idle = idlest(c);
    for (int64_t end = (int64_t)c->share[0]; j >= end; end += (int64_t)c->share[home]) home++;
    bool takes = idle >= 0 && c->chosen_count[home] < (size_t)c->block && c->load[home] <= c->load[idle] + SLACK * wefti_column_entries(c, j);
    return takes ? home : idle;
}

/* The strongest coupling to what rank r has chosen, as far as it is within the limit; beyond, any that is. */
static float coupling_to(const wefti_coordinate *c, int64_t j, int32_t r, float limit) {
    const int32_t *chosen = c->chosen + (size_t)r * (size_t)c->block;
    float          most = 0;
    for (size_t i = 0; i < c->chosen_count[r] && most <= limit; i++) {
        float now = coupling(c, j, chosen[i]);
        if (now > most) most = now;
    }
    return most;
}

/* The rank that may change weight j beside what is chosen already; -1: none may. */
static int32_t rank_for(wefti_coordinate *c, int64_t j) {
    float   limit = c->options->coupling > 0 ? (float)c->options->coupling : 0.4f, largest = 0;
    int32_t to = free_rank(c, j), coupled = -1;
    if (to < 0 || !c->sketch || limit >= 1) return to;
    for (int32_t r = 0; r < c->ranks; r++) { /* what is coupled to `to` does not matter, unless the weight has to go elsewhere */
        if (r == to && coupled < 0) continue;
        float now = coupling_to(c, j, r, limit);
        if (now <= limit) largest = now > largest ? now : largest;
        else if (coupled >= 0) return -1; /* to two ranks' */
        else {
            coupled = r;
            if (r > to && coupling_to(c, j, to, limit) > limit) return -1;
        }
    }
    if (coupled >= 0) to = coupled;
    if (c->chosen_count[to] == (size_t)c->block) return -1;
    c->report.coupling = fmax(c->report.coupling, (double)largest);
    return to;
}

bool wefti_coordinate_choose(wefti_coordinate *c) {
    int64_t wanted = wefti_min_i64((int64_t)c->ranks * c->block, c->most), seen = 0, got = 0;
    memset(c->chosen_count, 0, (size_t)c->ranks * sizeof *c->chosen_count);
    memset(c->load, 0, (size_t)c->ranks * sizeof *c->load);
    for (int64_t i = 0; i < c->listed && got < wanted && seen < LOOK * wanted; i++) {
        if (c->list[i].taken) continue;
        int64_t j = c->list[i].column;
        int32_t to = rank_for(c, j);
        seen++;
        if (to < 0) {
            c->report.deferred++;
            continue;
        }
        c->list[i].taken = true;
        c->chosen[(size_t)to * (size_t)c->block + c->chosen_count[to]++] = (int32_t)j;
        c->load[to] += wefti_column_entries(c, j);
        got++;
    }
    return got > 0;
}

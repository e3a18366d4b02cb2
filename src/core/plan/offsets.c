/* Offsets: blocks that live over intervals are laid into one region so that no two alive at once overlap, in little more than
 * the most that is alive at once.
 *
 * Two ways, the smaller result is taken. By size: the largest first, each into the tightest gap between those that live at the same
 * time; good, and quadratic with a small constant, so only for regions of up to MOST_BY_SIZE blocks. By time: as an allocator would,
 * best fit with merging of freed neighbours; near linear. */
#include <stdlib.h>
#include <string.h>

#include "core/plan/ir.h"

enum { MOST_BY_SIZE = 8192 };

typedef struct layout {
    wefti_block_range *blocks;
    int32_t           *list; /* [n] the blocks of this place */
    int32_t            n;
    int64_t           *offset; /* by place in the list */
} layout;

/* For sorting: what is sorted, by what. */
typedef struct entry {
    int64_t first_key, second_key;
    int32_t index;
} entry;

static int compare_entries(const void *left, const void *right) {
    const entry *a = left, *b = right;
    if (a->first_key != b->first_key) return a->first_key < b->first_key ? -1 : 1;
    if (a->second_key != b->second_key) return a->second_key < b->second_key ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static const wefti_block_range *block_at(const layout *l, int32_t i) { return &l->blocks[l->list[i]]; }

/* --- by size --- */

/* The tightest gap that holds `bytes` among the placed ones that live when `block` does; placed is sorted by offset. */
static int64_t tightest(const layout *l, const int32_t *placed, int32_t n_placed, const wefti_block_range *block) {
    int64_t end = 0, best = -1, best_gap = INT64_MAX;
    for (int32_t i = 0; i < n_placed; i++) {
        const wefti_block_range *other = block_at(l, placed[i]);
        if (other->last < block->first || other->first > block->last) continue;
        int64_t gap = l->offset[placed[i]] - end;
        if (gap >= block->bytes && gap < best_gap) {
            best = end;
            best_gap = gap;
        }
        end = wefti_max_i64(end, l->offset[placed[i]] + other->bytes);
    }
    return best >= 0 ? best : end;
}

static int64_t lay_by_size(layout *l, entry *entries, int32_t *placed) {
    int64_t total = 0;
    for (int32_t i = 0; i < l->n; i++) entries[i] = (entry){-block_at(l, i)->bytes, block_at(l, i)->first, i};
    qsort(entries, (size_t)l->n, sizeof *entries, compare_entries);
    for (int32_t k = 0; k < l->n; k++) {
        int32_t index = entries[k].index, low = 0, high = k;
        l->offset[index] = tightest(l, placed, k, block_at(l, index));
        total = wefti_max_i64(total, l->offset[index] + block_at(l, index)->bytes);
        while (low < high) { /* where it belongs in the list by offset */
            int32_t middle = (low + high) / 2;
            if (l->offset[placed[middle]] <= l->offset[index]) low = middle + 1;
            else high = middle;
        }
        memmove(&placed[low + 1], &placed[low], (size_t)(k - low) * sizeof *placed);
        placed[low] = index;
    }
    return total;
}

/* --- by time --- */

typedef struct gap {
    int64_t offset, bytes;
} gap;

static void give_back(gap *gaps, int32_t *n, int64_t offset, int64_t bytes) {
    int32_t at = 0;
    if (bytes == 0) return;
    while (at < *n && gaps[at].offset < offset) at++;
    bool joins_before = at > 0 && gaps[at - 1].offset + gaps[at - 1].bytes == offset;
    bool joins_after = at < *n && offset + bytes == gaps[at].offset;
    if (joins_before && joins_after) {
        gaps[at - 1].bytes += bytes + gaps[at].bytes;
        memmove(&gaps[at], &gaps[at + 1], (size_t)(*n - at - 1) * sizeof *gaps);
        (*n)--;
    } else if (joins_before) {
        gaps[at - 1].bytes += bytes;
    } else if (joins_after) {
        gaps[at] = (gap){offset, bytes + gaps[at].bytes};
    } else {
        memmove(&gaps[at + 1], &gaps[at], (size_t)(*n - at) * sizeof *gaps);
        gaps[at] = (gap){offset, bytes};
        (*n)++;
    }
}

static int64_t take(gap *gaps, int32_t *n, int64_t bytes, int64_t *end) {
    int32_t best = -1;
    int64_t offset;
    for (int32_t i = 0; i < *n; i++)
        if (gaps[i].bytes >= bytes && (best < 0 || gaps[i].bytes < gaps[best].bytes)) best = i;
    if (best >= 0) {
        offset = gaps[best].offset;
        gaps[best].offset += bytes;
        gaps[best].bytes -= bytes;
        if (gaps[best].bytes == 0) {
            memmove(&gaps[best], &gaps[best + 1], (size_t)(*n - best - 1) * sizeof *gaps);
            (*n)--;
        }
        return offset;
    }
    if (*n > 0 && gaps[*n - 1].offset + gaps[*n - 1].bytes == *end) { /* a gap at the end grows */
        offset = gaps[--*n].offset;
        *end = offset + bytes;
        return offset;
    }
    offset = *end;
    *end += bytes;
    return offset;
}

/* `entries` has room for twice the blocks: by begin, then by end. */
static int64_t lay_by_time(layout *l, entry *entries, gap *gaps) {
    entry  *ends = entries + l->n;
    int64_t end = 0;
    int32_t n_gaps = 0, freed = 0;
    int64_t total = 0;
    for (int32_t i = 0; i < l->n; i++) {
        entries[i] = (entry){block_at(l, i)->first, -block_at(l, i)->bytes, i};
        ends[i] = (entry){block_at(l, i)->last, 0, i};
    }
    qsort(entries, (size_t)l->n, sizeof *entries, compare_entries);
    qsort(ends, (size_t)l->n, sizeof *ends, compare_entries);
    for (int32_t k = 0; k < l->n; k++) {
        for (; freed < l->n && ends[freed].first_key < entries[k].first_key; freed++)
            give_back(gaps, &n_gaps, l->offset[ends[freed].index], block_at(l, ends[freed].index)->bytes);
        l->offset[entries[k].index] = take(gaps, &n_gaps, block_at(l, entries[k].index)->bytes, &end);
        total = wefti_max_i64(total, end);
    }
    return total;
}

/* --- the most that is alive at once --- */

static int64_t peak_of(const layout *l, entry *entries) {
    int64_t alive = 0, peak = 0;
    for (int32_t i = 0; i < l->n; i++) {
        entries[2 * i] = (entry){2 * (int64_t)block_at(l, i)->first, block_at(l, i)->bytes, i};
        entries[2 * i + 1] = (entry){2 * (int64_t)block_at(l, i)->last + 1, -block_at(l, i)->bytes, i};
    }
    qsort(entries, 2 * (size_t)l->n, sizeof *entries, compare_entries);
    for (int32_t i = 0; i < 2 * l->n; i++) {
        alive += entries[i].second_key;
        peak = wefti_max_i64(peak, alive);
    }
    return peak;
}

static int64_t lay_apart(layout *l) {
    int64_t total = 0;
    for (int32_t i = 0; i < l->n; i++) {
        l->offset[i] = total;
        total += block_at(l, i)->bytes;
    }
    return total;
}

static void keep(layout *l) {
    for (int32_t i = 0; i < l->n; i++) l->blocks[l->list[i]].offset_bytes = l->offset[i];
}

weft_status wefti_lay_out(wefti_block_range *blocks, int32_t n_blocks, wefti_home place, bool reuse, int64_t *bytes_out,
                          int64_t *peak_out) {
    weft_status status = WEFT_OK;
    layout      l = {.blocks = blocks};
    entry      *entries = NULL;
    void       *work = NULL; /* gaps, or the placed */
    size_t      n = (size_t)n_blocks + 1;
    *bytes_out = *peak_out = 0;
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *l.list, "a plan", &l.list), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *l.offset, "a plan", &l.offset), done);
    WEFTI_TRY_GOTO(wefti_alloc(2 * n * sizeof *entries, "a plan", &entries), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof(gap), "a plan", &work), done);
    for (int32_t b = 0; b < n_blocks; b++)
        if (blocks[b].place == place && blocks[b].bytes > 0) l.list[l.n++] = b; /* empty ones stay at 0 */
    *peak_out = peak_of(&l, entries);
    *bytes_out = reuse ? lay_by_time(&l, entries, work) : lay_apart(&l);
    keep(&l);
    if (reuse && l.n <= MOST_BY_SIZE && *bytes_out > *peak_out) {
        int64_t by_size = lay_by_size(&l, entries, work);
        if (by_size < *bytes_out) {
            *bytes_out = by_size;
            keep(&l);
        }
    }
done:
    wefti_free(l.list, n * sizeof *l.list);
    wefti_free(l.offset, n * sizeof *l.offset);
    wefti_free(entries, 2 * n * sizeof *entries);
    wefti_free(work, n * sizeof(gap));
    return status;
}

/* Measuring what links and memory cost, and the file that keeps it.
 *
 * In turn for each distance d, every member sends to the one d further on and receives from the one d before it, all at once:
 * that is how collectives use links. A turn begins once the one before is over, so that over some turns nobody gets ahead of
 * the others, and their mean is what a message takes. α is the least of a few such means of small messages, β that of large
 * ones, by the byte: the least says what the link can do when nobody is in the way. Of several links the median counts.
 *
 * Without WEFT_TUNING the wire's first guesses stand, because a choice that follows from a measurement may differ from one run
 * to the next, and with it the order of a sum. A file is the same in every run. */
#include "transport/tune.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/coll.h"

enum { SMALL_BYTES = 8, SMALL_WINDOWS = 4, LARGE_BYTES = 256 << 10, LARGE_WINDOWS = 2, TURNS = 8, MEMORY_BYTES = 4 << 20, MEMORY_TIMES = 3 };

int32_t wefti_tuning_links(int32_t size) {
    return size * (size - 1 < WEFTI_TUNING_DISTANCES ? size - 1 : WEFTI_TUNING_DISTANCES);
}

/* --- measuring --- */

typedef struct sample {
    double alpha_ns, beta_ns;
} sample;

/* Whom a member sends to and receives from. */
typedef struct partners {
    int32_t to, from;
} partners;

/* Some exchanges with the same members, one after the other; a mean. */
static weft_status exchange(wefti_group *group, partners with, uint8_t *memory, size_t bytes, double *mean_ns_out) {
    const wefti_host *host = group->wire->host;
    uint64_t begin_ns = wefti_host_now(host);
    for (int i = 0; i < TURNS; i++) {
        wefti_collective *in = NULL, *out = NULL;
        wefti_collective_call receive = {.kind = WEFTI_RECEIVE, .dtype = WEFT_U8, .root = with.from, .receive = memory + bytes, .count = bytes};
        wefti_collective_call send = {.kind = WEFTI_SEND, .dtype = WEFT_U8, .root = with.to, .send = memory, .count = bytes};
        WEFTI_TRY(wefti_collective_start(group, &receive, &in));
        WEFTI_TRY(wefti_collective_start(group, &send, &out));
        WEFTI_TRY(wefti_collective_wait(in, 0));
        WEFTI_TRY(wefti_collective_wait(out, 0));
    }
    *mean_ns_out = (double)(wefti_host_now(host) - begin_ns) / TURNS;
    return WEFT_OK;
}

static weft_status exchange_windows(wefti_group *group, partners with, uint8_t *memory, size_t bytes, int windows, double *best_out) {
    *best_out = 1e18;
    for (int i = 0; i < windows; i++) {
        double mean_ns;
        WEFTI_TRY(exchange(group, with, memory, bytes, &mean_ns));
        if (mean_ns < *best_out) *best_out = mean_ns;
    }
    return WEFT_OK;
}

static weft_status measure_link(wefti_group *group, partners with, uint8_t *memory, sample *out) {
    double small, large;
    WEFTI_TRY(exchange_windows(group, with, memory, SMALL_BYTES, SMALL_WINDOWS, &small));
    WEFTI_TRY(exchange_windows(group, with, memory, LARGE_BYTES, LARGE_WINDOWS, &large));
    out->alpha_ns = small > 1 ? small : 1;
    out->beta_ns = large > small ? (large - small) / LARGE_BYTES : 1.0 / LARGE_BYTES;
    return WEFT_OK;
}

static weft_status measure_links(wefti_group *group, uint8_t *memory, sample *mine) {
    int32_t size = group->size, distances = wefti_tuning_links(size) / size;
    for (int32_t d = 0; d < distances; d++) {
        partners with = {(group->index + d + 1) % size, (group->index + size - d - 1) % size};
        WEFTI_TRY(measure_link(group, with, memory, &mine[d]));
    }
    return WEFT_OK;
}

/* Hosts with several members have links of two kinds, and around the whole group those of one kind wait for the others. So each kind by itself:
 * around each host, and around the hosts from a member to the one in its place. What a member has no part in stays 0. */
typedef struct kinds {
    sample near, far;
} kinds;

static bool has_two_kinds(const coll_group *group) { return group->nodes.count > 1 && group->nodes.most > 1; }

static weft_status measure_kinds(coll_group *group, uint8_t *memory, kinds *mine) {
    const coll_nodes *nodes = &group->nodes;
    int32_t node = nodes->mine, place = nodes->place, here = coll_node_size(nodes, node), count = nodes->count;
    const int32_t *members = nodes->order + nodes->first[node];
    const wefti_collective_call barrier = {.kind = WEFTI_BARRIER};
    *mine = (kinds){{0, 0}, {0, 0}};
    if (here > 1) {
        partners with = {members[(place + 1) % here], members[(place + here - 1) % here]};
        WEFTI_TRY(measure_link(&group->base, with, memory, &mine->near));
    }
    WEFTI_TRY(wefti_collective_run(&group->base, &barrier)); /* who comes late finds messages there, and links too fast */
    if (place >= nodes->least) return WEFT_OK;
    partners with = {nodes->order[nodes->first[(node + 1) % count] + place], nodes->order[nodes->first[(node + count - 1) % count] + place]};
    return measure_link(&group->base, with, memory, &mine->far);
}

/* Two sources are read and one result is written; more than a core keeps for itself, as others' data is not there either. */
static weft_status measure_memory(coll_group *group, uint8_t *memory, double *gamma_out) {
    const void *sources[2] = {memory, memory + MEMORY_BYTES};
    double best = 1e18;
    memset(memory, 1, 2 * MEMORY_BYTES); /* what nobody wrote to would be one page of zeros */
    for (int i = 0; i < MEMORY_TIMES; i++) {
        uint64_t begin_ns = wefti_host_now(group->host);
        WEFTI_TRY(group->reducer->reduce(group->reducer->context, memory, sources, 2, MEMORY_BYTES / sizeof(float), WEFT_F32,
                                         WEFTI_REDUCE_SUM, 1));
        double taken_ns = (double)(wefti_host_now(group->host) - begin_ns);
        best = taken_ns < best ? taken_ns : best;
    }
    *gamma_out = best / (3.0 * MEMORY_BYTES);
    return WEFT_OK;
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Members on other hosts have another number in `order`. */
static int32_t node_of(const coll_nodes *nodes, int32_t member) {
    for (int32_t node = 0; nodes->order && node < nodes->count; node++)
        for (int32_t i = nodes->first[node]; i < nodes->first[node + 1]; i++)
            if (nodes->order[i] == member) return node;
    return 0;
}

static void list_links(const coll_group *group, const sample *all, wefti_link_cost *links) {
    int32_t size = group->base.size, distances = wefti_tuning_links(size) / size;
    for (int32_t member = 0; member < size; member++)
        for (int32_t d = 0; d < distances; d++) {
            const sample *link = &all[member * distances + d]; /* what it waits for comes from the one before it */
            int32_t from = (member + size - d - 1) % size;
            links[member * distances + d] = (wefti_link_cost){from, member, node_of(&group->nodes, from) != node_of(&group->nodes, member),
                                                              link->alpha_ns, link->beta_ns};
        }
}

/* The medians of the links inside of hosts, or between them; leaves the numbers alone where there are none. */
static void take_medians(const wefti_link_cost *links, int32_t count, bool far, double *values, double *alpha_out, double *beta_out) {
    for (int which = 0; which < 2; which++) {
        int32_t used = 0;
        for (int32_t i = 0; i < count; i++)
            if (links[i].far == far) values[used++] = which ? links[i].beta_ns : links[i].alpha_ns;
        if (used == 0) return;
        qsort(values, (size_t)used, sizeof *values, by_size);
        *(which ? beta_out : alpha_out) = values[used / 2];
    }
}

static double median_of(const kinds *all, int32_t size, size_t offset, double *values) {
    int32_t used = 0;
    for (int32_t i = 0; i < size; i++) {
        double value = *(const double *)((const char *)&all[i] + offset);
        if (value > 0) values[used++] = value;
    }
    qsort(values, (size_t)used, sizeof *values, by_size);
    return values[used / 2];
}

/* Collective, as all of this. */
static weft_status decide_kinds(coll_group *group, uint8_t *memory, wefti_tuning *tuning) {
    kinds   mine, *all = NULL;
    int32_t size = group->base.size;
    size_t  bytes = (size_t)size * (sizeof *all + sizeof(double));
    if (!has_two_kinds(group)) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "memory to measure with", &all));
    double *values = (double *)(all + size);
    wefti_collective_call gather = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_F64, .send = &mine, .receive = all, .count = sizeof mine / sizeof(double)};
    weft_status status = measure_kinds(group, memory, &mine);
    if (status == WEFT_OK) status = wefti_collective_run(&group->base, &gather);
    if (status == WEFT_OK) {
        tuning->alpha_ns = median_of(all, size, offsetof(kinds, near.alpha_ns), values);
        tuning->beta_ns = median_of(all, size, offsetof(kinds, near.beta_ns), values);
        tuning->far_alpha_ns = median_of(all, size, offsetof(kinds, far.alpha_ns), values);
        tuning->far_beta_ns = median_of(all, size, offsetof(kinds, far.beta_ns), values);
    }
    wefti_free(all, bytes);
    return status;
}

static weft_status gather_and_decide(coll_group *group, const sample *mine, wefti_tuning *tuning, wefti_link_cost *links,
                                     sample *all, double *values, uint8_t *memory) {
    int32_t count = wefti_tuning_links(group->base.size);
    wefti_collective_call gather = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_F64, .send = mine, .receive = all,
                                    .count = (size_t)(count / group->base.size) * 2};
    wefti_collective_call share = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = tuning, .receive = tuning, .count = sizeof *tuning};
    WEFTI_TRY(wefti_collective_run(&group->base, &gather));
    list_links(group, all, links);
    coll_model first = wefti_coll_first_model(group->base.wire);
    tuning->alpha_ns = first.alpha_ns, tuning->beta_ns = first.beta_ns;
    take_medians(links, count, false, values, &tuning->alpha_ns, &tuning->beta_ns);
    tuning->far_alpha_ns = tuning->alpha_ns, tuning->far_beta_ns = tuning->beta_ns;
    take_medians(links, count, true, values, &tuning->far_alpha_ns, &tuning->far_beta_ns);
    WEFTI_TRY(decide_kinds(group, memory, tuning));
    return wefti_collective_run(&group->base, &share);
}

/* MPI's own collectives have no model: which of them are the faster is tried. Rank 0's findings are everyone's. */
static weft_status measure_mpi(coll_group *group, wefti_tuning *tuning) {
#ifdef WEFTI_HAVE_MPI
    wefti_collective_call share = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = tuning, .receive = tuning, .count = sizeof *tuning};
    if (!group->mpi) return WEFT_OK;
    wefti_tuning_apply(&group->base, tuning);
    WEFTI_TRY(wefti_coll_mpi_measure(group, tuning));
    return wefti_collective_run(&group->base, &share);
#else
    (void)group, (void)tuning;
    return WEFT_OK;
#endif
}

weft_status wefti_tuning_measure(wefti_group *base, wefti_tuning *tuning_out, wefti_link_cost *links_out) {
    coll_group *group = (coll_group *)base;
    size_t count = (size_t)wefti_tuning_links(base->size);
    size_t bytes = 2 * MEMORY_BYTES + count * (sizeof(sample) + sizeof(wefti_link_cost) + 2 * sizeof(double));
    sample mine[WEFTI_TUNING_DISTANCES] = {0};
    uint8_t *memory = NULL;
    memset(tuning_out, 0, sizeof *tuning_out);
    if (base->engine != wefti_collective_engine_weft() || base->size < 2)
        return wefti_fail(WEFT_E_UNSUPPORTED, "tuning wants a group of at least two ranks of our own engine");
    snprintf(tuning_out->wire, sizeof tuning_out->wire, "%s", base->wire->can.name);
    tuning_out->ranks = base->size;
    tuning_out->hosts = group->nodes.count;
    WEFTI_TRY(wefti_alloc(bytes, "memory to measure with", &memory));
    sample *all = (sample *)(memory + 2 * MEMORY_BYTES);
    double *values = (double *)(all + count);
    wefti_link_cost *links = (wefti_link_cost *)(values + 2 * count);
    weft_status status = measure_memory(group, memory, &tuning_out->gamma_ns);
    if (status == WEFT_OK) status = measure_links(base, memory, mine);
    if (status == WEFT_OK) status = gather_and_decide(group, mine, tuning_out, links, all, values, memory);
    if (status == WEFT_OK) status = measure_mpi(group, tuning_out);
    if (status == WEFT_OK && links_out) memcpy(links_out, links, count * sizeof *links);
    wefti_free(memory, bytes);
    return status;
}

/* --- using --- */

void wefti_tuning_add_rule(wefti_tuning *tuning, wefti_collective_kind kind, size_t bytes, const char *algorithm) {
    wefti_tuning_rule *last = tuning->rule_count ? &tuning->rules[tuning->rule_count - 1] : NULL;
    bool same_kind = last && last->kind == (int32_t)kind;
    if ((same_kind && strcmp(last->algorithm, algorithm) == 0) || tuning->rule_count == WEFTI_TUNING_RULES) return;
    wefti_tuning_rule *rule = &tuning->rules[tuning->rule_count++];
    *rule = (wefti_tuning_rule){.bytes = same_kind ? bytes : 0, .kind = (int32_t)kind};
    snprintf(rule->algorithm, sizeof rule->algorithm, "%s", algorithm);
}

static const coll_algorithm *algorithm_named(wefti_collective_kind kind, const char *name) {
    for (int i = 0; i < wefti_coll_algorithm_count; i++)
        if ((wefti_coll_algorithms[i].kinds >> kind & 1) && strcmp(wefti_coll_algorithms[i].name, name) == 0)
            return &wefti_coll_algorithms[i];
    return NULL;
}

void wefti_tuning_apply(wefti_group *base, const wefti_tuning *tuning) {
    coll_group *group = (coll_group *)base;
    if (base->engine != wefti_collective_engine_weft() || base->size < 2) return;
    group->model = (coll_model){tuning->alpha_ns, tuning->beta_ns, tuning->far_alpha_ns, tuning->far_beta_ns, tuning->gamma_ns};
    memset(group->chosen, 0, sizeof group->chosen);
    int32_t count = 0;
    for (int32_t kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++) {
        group->rule_first[kind] = count;
        for (int32_t i = 0; i < tuning->rule_count && tuning->ranks == base->size; i++) {
            const wefti_tuning_rule *rule = &tuning->rules[i];
            if (rule->kind != kind) continue;
            const coll_algorithm *algorithm = algorithm_named((wefti_collective_kind)kind, rule->algorithm);
            if (!algorithm || !wefti_coll_usable(group, algorithm, (wefti_collective_kind)kind)) continue;
            group->rules[count++] = (coll_rule){(size_t)rule->bytes, algorithm};
        }
    }
    group->rule_first[WEFTI_COLLECTIVE_KIND_COUNT] = count;
}

/* --- the file --- */

static const struct {
    const char *name;
    size_t offset;
} numbers[] = {{"alpha_ns", offsetof(wefti_tuning, alpha_ns)},
               {"beta_ns", offsetof(wefti_tuning, beta_ns)},
               {"far_alpha_ns", offsetof(wefti_tuning, far_alpha_ns)},
               {"far_beta_ns", offsetof(wefti_tuning, far_beta_ns)},
               {"gamma_ns", offsetof(wefti_tuning, gamma_ns)}};

static uint64_t hash_text(uint64_t hash, const char *text) { return wefti_hash(hash, text, strlen(text)); }

static double *number_at(const wefti_tuning *tuning, size_t i) { return (double *)((uintptr_t)tuning + numbers[i].offset); }

void wefti_tuning_write(const wefti_tuning *tuning, wefti_text *text) {
    wefti_text_add(text, "# What messages and memory cost, and which algorithm is the quickest from so many bytes on.\n");
    wefti_text_add(text, "wire %s\nranks %d\nhosts %d\n", tuning->wire, (int)tuning->ranks, (int)tuning->hosts);
    for (size_t i = 0; i < WEFTI_COUNT(numbers); i++) wefti_text_add(text, "%s %.9g\n", numbers[i].name, *number_at(tuning, i));
    for (int32_t i = 0; i < tuning->rule_count; i++)
        wefti_text_add(text, "use %s %llu %s\n", wefti_coll_kind_name((wefti_collective_kind)tuning->rules[i].kind),
                       (unsigned long long)tuning->rules[i].bytes, tuning->rules[i].algorithm);
    if (!text->failed) wefti_text_add(text, "check %016llx\n", (unsigned long long)hash_text(WEFTI_HASH_BEGIN, text->bytes));
}

weft_status wefti_tuning_save(const char *path, const wefti_tuning *tuning) {
    wefti_text text = {0};
    weft_status status = WEFT_OK;
    wefti_tuning_write(tuning, &text);
    FILE *file = !text.failed ? fopen(path, "we") : NULL;
    bool written = file && fputs(text.bytes, file) >= 0;
    if (file && fclose(file) != 0) written = false;
    if (text.failed)
        status = wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text of the tuning %s", path);
    else if (!written)
        status = wefti_fail_errno("cannot write the tuning %s", path);
    wefti_text_release(&text);
    return status;
}

static bool read_rule(const char *line, wefti_tuning *tuning) {
    char kind[32], algorithm[32];
    unsigned long long bytes;
    int used = 0;
    if (sscanf(line, "use %31s %llu %31s %n", kind, &bytes, algorithm, &used) != 3 || line[used]) return false;
    if (tuning->rule_count == WEFTI_TUNING_RULES || strlen(algorithm) >= sizeof tuning->rules[0].algorithm) return false;
    for (int k = 0; k < WEFTI_COLLECTIVE_KIND_COUNT; k++) {
        if (strcmp(wefti_coll_kind_name((wefti_collective_kind)k), kind) != 0) continue;
        if (!algorithm_named((wefti_collective_kind)k, algorithm)) return false;
        wefti_tuning_rule *rule = &tuning->rules[tuning->rule_count], *last = tuning->rule_count > 0 ? rule - 1 : NULL;
        if (last && (last->kind > k || (last->kind == k && last->bytes >= bytes))) return false;
        tuning->rule_count++;
        rule->bytes = bytes;
        rule->kind = k;
        strcpy(rule->algorithm, algorithm);
        return true;
    }
    return false;
}

static bool read_number(const char *line, wefti_tuning *tuning, unsigned *seen) {
    for (size_t i = 0; i < WEFTI_COUNT(numbers); i++) {
        size_t length = strlen(numbers[i].name);
        char *end = NULL;
        if (strncmp(line, numbers[i].name, length) != 0 || line[length] != ' ') continue;
        double value = strtod(line + length, &end);
        *number_at(tuning, i) = value;
        *seen |= 1u << i;
        return end != line + length && *end == 0 && value > 0 && value < 1e12;
    }
    return false;
}

static bool read_count(const char *line, const char *name, int32_t *count_out) {
    char *end = NULL;
    long value = strtol(line + strlen(name), &end, 10);
    *count_out = (int32_t)value;
    return *count_out > 0 && *count_out == value && *end == 0;
}

/* Of a line without its end. */
static bool read_line(const char *line, wefti_tuning *tuning, unsigned *seen) {
    int used = 0;
    if (line[0] == 0 || line[0] == '#') return true;
    if (sscanf(line, "wire %15s%n", tuning->wire, &used) == 1) return line[used] == 0;
    if (strncmp(line, "ranks ", 6) == 0) return read_count(line, "ranks ", &tuning->ranks);
    if (strncmp(line, "hosts ", 6) == 0) return read_count(line, "hosts ", &tuning->hosts);
    return strncmp(line, "use ", 4) == 0 ? read_rule(line, tuning) : read_number(line, tuning, seen);
}

static weft_status refuse_line(const char *path, int number, char *line) {
    for (char *c = line; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
    return wefti_fail(WEFT_E_CORRUPT, "%s:%d: '%.60s' is no line of a tuning; weft-bench tune writes such files", path, number, line);
}

static weft_status read_lines(const char *path, FILE *file, wefti_tuning *tuning, unsigned *seen) {
    uint64_t hash = WEFTI_HASH_BEGIN;
    bool checked = false;
    int number = 0;
    char line[256], check[32];
    while (fgets(line, sizeof line, file)) {
        uint64_t before = hash;
        number++;
        hash = hash_text(hash, line);
        snprintf(check, sizeof check, "check %016llx\n", (unsigned long long)before);
        if (checked) return wefti_fail(WEFT_E_CORRUPT, "%s:%d: the tuning goes on after its check", path, number);
        checked = strcmp(line, check) == 0;
        if (checked) continue;
        if (strncmp(line, "check ", 6) == 0)
            return wefti_fail(WEFT_E_CORRUPT, "%s:%d: the tuning is damaged: its text does not give this check; write it anew by weft-bench tune",
                              path, number);
        line[strcspn(line, "\n")] = 0;
        if (!read_line(line, tuning, seen)) return refuse_line(path, number, line);
    }
    if (ferror(file)) return wefti_fail_errno("cannot read the tuning %s", path);
    if (checked) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "%s: the tuning is cut off: its last line, the check, is missing; write it anew by weft-bench tune", path);
}

weft_status wefti_tuning_read(const char *path, wefti_tuning *tuning_out) {
    unsigned seen = 0;
    memset(tuning_out, 0, sizeof *tuning_out);
    FILE *file = fopen(path, "re");
    if (!file) return wefti_fail_errno("cannot open the tuning %s", path);
    weft_status status = read_lines(path, file, tuning_out, &seen);
    fclose(file);
    bool whole = seen == (1u << WEFTI_COUNT(numbers)) - 1 && tuning_out->wire[0] && tuning_out->ranks && tuning_out->hosts;
    if (status == WEFT_OK && !whole)
        status = wefti_fail(WEFT_E_CORRUPT, "%s: a tuning wants lines for wire, ranks, hosts, alpha_ns, beta_ns, far_alpha_ns, far_beta_ns and "
                            "gamma_ns", path);
    return status;
}

/* --- at the start --- */

static const char measure_word[] = "measure";
typedef enum wish { WISH_NOTHING = 1, WISH_MEASURE, WISH_FILE } wish;

char wefti_tuning_wish(void) {
    const char *how = getenv("WEFT_TUNING");
    size_t length = sizeof measure_word - 1;
    if (!how || !*how) return WISH_NOTHING;
    if (strncmp(how, measure_word, length) == 0 && (how[length] == 0 || how[length] == ':')) return WISH_MEASURE;
    return WISH_FILE;
}

weft_status wefti_tuning_agree(const char *wishes, int32_t ranks) {
    static const char *const words[] = {"", "not set", "to measure", "a file"};
    for (int32_t rank = 1; rank < ranks; rank++)
        if (wishes[rank] != wishes[0])
            return wefti_fail(WEFT_E_MISMATCH, "WEFT_TUNING is %s on rank 0 and %s on rank %d: set it alike on all", words[wishes[0] & 3],
                              words[wishes[rank] & 3], (int)rank);
    return WEFT_OK;
}

/* What rank 0 hands out: a tuning, or why there is none. */
typedef struct reading {
    wefti_tuning tuning;
    int32_t status;
    char message[WEFTI_MESSAGE_BYTES];
} reading;

static weft_status read_ours(const coll_group *group, const char *path, wefti_tuning *tuning_out) {
    const char *wire = group->base.wire->can.name;
    WEFTI_TRY(wefti_tuning_read(path, tuning_out));
    if (strcmp(tuning_out->wire, wire) != 0)
        return wefti_fail(WEFT_E_MISMATCH, "the tuning %s is of the wire %s, and this is %s", path, tuning_out->wire, wire);
    if (tuning_out->hosts == group->nodes.count) return WEFT_OK;
    return wefti_fail(WEFT_E_MISMATCH, "the tuning %s was measured on %d host(s), and the ranks are on %d: WEFT_TUNING=measure:PATH writes one here",
                      path, (int)tuning_out->hosts, (int)group->nodes.count);
}

static weft_status share(wefti_group *group, const char *how, reading *mine) {
    bool measure = wefti_tuning_wish() == WISH_MEASURE;
    weft_status status = WEFT_OK;
    if (measure) WEFTI_TRY(wefti_tuning_measure(group, &mine->tuning, NULL));
    if (group->index == 0) {
        if (!measure)
            status = read_ours((coll_group *)group, how, &mine->tuning);
        else if (how[sizeof measure_word - 1])
            status = wefti_tuning_save(how + sizeof measure_word, &mine->tuning);
        mine->status = (int32_t)status;
        if (status != WEFT_OK) snprintf(mine->message, sizeof mine->message, "%s", weft_error_message());
    }
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = mine, .receive = mine, .count = sizeof *mine};
    WEFTI_TRY(wefti_collective_run(group, &call));
    return mine->status == WEFT_OK ? WEFT_OK : wefti_fail((weft_status)mine->status, "%s", mine->message);
}

weft_status wefti_tuning_start(wefti_group *group, wefti_tuning *tuning_out, bool *tuned_out) {
    const char *how = getenv("WEFT_TUNING");
    reading *mine = NULL;
    *tuned_out = false;
    if (!how || !*how || group->engine != wefti_collective_engine_weft() || group->size < 2) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(sizeof *mine, "a tuning", &mine));
    weft_status status = share(group, how, mine);
    if (status == WEFT_OK) {
        *tuning_out = mine->tuning;
        *tuned_out = true;
        wefti_tuning_apply(group, tuning_out);
    }
    wefti_free(mine, sizeof *mine);
    return status;
}

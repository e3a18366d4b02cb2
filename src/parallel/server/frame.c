/* Frames and specifications: what is sent, and what is believed of what comes. */
#include "parallel/server/frame.h"

#include <math.h>
#include <string.h>

#include "parallel/server/coding.h"
#include "parallel/server/store.h"

/* --- short forms --- */

static size_t shorten_request(const wefti_server_frame *f, size_t bytes, void *message) {
    const uint64_t timeout = (f->timeout_ns >> 20) + 1;
    bool           plain = f->kind == WEFTI_SERVER_CLOCK || (f->kind == WEFTI_SERVER_PULL && !f->part && !f->receive_region);
    if (!plain || bytes != sizeof *f || f->flags & WEFTI_SERVER_LISTED || f->count > UINT32_MAX || timeout > UINT32_MAX) return bytes;
    wefti_brief_request brief = {.mark = WEFTI_SERVER_BRIEF, .kind = f->kind, .flags = f->flags, .slot = f->slot, .table = f->table, .number = f->number,
                                 .keys = f->keys, .count = (uint32_t)f->count, .timeout = (uint32_t)timeout};
    memcpy(message, &brief, sizeof brief);
    return sizeof brief;
}

static size_t shorten_reply(const wefti_server_frame *f, size_t bytes, void *message) {
    size_t values = bytes - sizeof *f;
    if (f->status != WEFT_OK || f->clock || values > WEFTI_BRIEF_VALUES) return bytes;
    wefti_brief_reply brief = {.mark = WEFTI_SERVER_BRIEF, .kind = f->kind, .flags = f->flags, .slot = f->slot, .first = f->first, .body_bytes = f->body_bytes};
    if (values) memcpy(brief.values, (const uint8_t *)message + sizeof *f, values);
    memcpy(message, &brief, sizeof brief);
    return sizeof brief - WEFTI_BRIEF_VALUES + values;
}

size_t wefti_server_shorten(void *message, size_t bytes) {
    wefti_server_frame frame;
    memcpy(&frame, message, sizeof frame);
    return frame.kind == WEFTI_SERVER_REPLY ? shorten_reply(&frame, bytes, message) : shorten_request(&frame, bytes, message);
}

size_t wefti_server_lengthen(void *message, size_t bytes) {
    union {
        wefti_brief_request request;
        wefti_brief_reply   reply;
    } brief;
    wefti_server_frame frame = {.magic = WEFTI_SERVER_MAGIC};
    const size_t       most = sizeof brief, least = most - WEFTI_BRIEF_VALUES;
    if (bytes >= sizeof frame) return bytes;
    if (bytes < least || bytes > most) return 0;
    memset(&brief, 0, sizeof brief);
    memcpy(&brief, message, bytes);
    if (brief.request.mark != WEFTI_SERVER_BRIEF) return 0;
    frame.kind = brief.request.kind;
    frame.flags = brief.request.flags;
    frame.slot = brief.request.slot;
    if (frame.kind == WEFTI_SERVER_REPLY) {
        frame.first = brief.reply.first;
        frame.body_bytes = brief.reply.body_bytes;
        memcpy((uint8_t *)message + sizeof frame, brief.reply.values, WEFTI_BRIEF_VALUES);
        memcpy(message, &frame, sizeof frame);
        return sizeof frame + bytes - least;
    }
    if (bytes != most || (frame.kind != WEFTI_SERVER_CLOCK && frame.kind != WEFTI_SERVER_PULL)) return 0;
    frame.table = brief.request.table;
    frame.number = brief.request.number;
    frame.keys = brief.request.keys;
    frame.count = brief.request.count;
    frame.timeout_ns = (uint64_t)brief.request.timeout << 20;
    memcpy(message, &frame, sizeof frame);
    return sizeof frame;
}

weft_status wefti_server_frame_check(const wefti_server_frame *frame, size_t bytes) {
    if (bytes < sizeof *frame || frame->magic != WEFTI_SERVER_MAGIC)
        return wefti_fail(WEFT_E_CORRUPT, "the parameter server: %zu bytes that begin with %08x are no message of this version of Weft", bytes,
                          bytes < sizeof *frame ? 0u : (unsigned)frame->magic);
    if (frame->kind >= WEFTI_SERVER_KINDS) return wefti_fail(WEFT_E_CORRUPT, "the parameter server: there is no message of kind %d", frame->kind);
    bool inside = frame->flags & WEFTI_SERVER_INLINE;
    if (inside ? frame->body_bytes != bytes - sizeof *frame : bytes != sizeof *frame)
        return wefti_fail(WEFT_E_CORRUPT, "the parameter server: a message of %zu bytes says that %llu follow its head", bytes,
                          (unsigned long long)frame->body_bytes);
    return WEFT_OK;
}

static weft_status copy_name(const char *what, const char *name, char out[WEFT_TABLE_NAME_BYTES + 8]) {
    size_t length = name ? strlen(name) : 0;
    if (length > WEFT_TABLE_NAME_BYTES)
        return wefti_fail(WEFT_E_INVALID, "the %s '%.60s…' has %zu bytes; at most %d", what, name, length, WEFT_TABLE_NAME_BYTES);
    if (length) memcpy(out, name, length);
    return WEFT_OK;
}

static wefti_server_codec codec_written(const weft_compression *how) {
    return (wefti_server_codec){.codec = (int32_t)how->codec, .error_feedback = how->error_feedback, .ratio = how->ratio, .threshold = how->threshold,
                                .seed = how->seed, .least = how->least};
}
static weft_compression codec_read(const wefti_server_codec *codec) {
    return (weft_compression){.codec = (weft_codec)codec->codec, .error_feedback = codec->error_feedback != 0, .ratio = codec->ratio,
                              .threshold = codec->threshold, .seed = codec->seed, .least = codec->least};
}

weft_status wefti_server_spec_write(const weft_table_options *o, wefti_server_spec *spec) {
    const weft_table_rule *r = &o->rule;
    *spec = (wefti_server_spec){.rows = o->rows, .width = o->width, .sparse = o->sparse, .dtype = (int32_t)o->dtype, .staleness = o->staleness,
                                .spares = o->spares, .split = (int32_t)o->split, .start = (int32_t)o->start, .rule = (int32_t)r->kind, .mean = r->mean,
                                .solver = (int32_t)r->solver.kind, .hybrid = o->hybrid, .low = o->low, .high = o->high, .seed = o->seed,
                                .most_bytes = o->most_bytes, .memory_bytes = o->memory_bytes, .rate = r->solver.rate, .momentum = r->solver.momentum,
                                .beta1 = r->solver.beta1, .beta2 = r->solver.beta2, .rho = r->solver.rho, .epsilon = r->solver.epsilon,
                                .weight_decay = r->solver.weight_decay, .clip_value = r->solver.clip_value, .l2 = r->regulariser.l2,
                                .l1 = r->regulariser.l1, .group = r->regulariser.group, .nesterov = r->solver.nesterov,
                                .ftrl = {r->alpha, r->beta, r->l1, r->l2}, .push = codec_written(&o->push), .pull = codec_written(&o->pull)};
    WEFTI_TRY(copy_name("name of the table", o->name, spec->name));
    return copy_name("name of the function", r->function, spec->function);
}

weft_status wefti_server_spec_read(const wefti_server_spec *s, weft_table_options *o) {
    if (!memchr(s->name, 0, sizeof s->name) || !memchr(s->function, 0, sizeof s->function))
        return wefti_fail(WEFT_E_CORRUPT, "a table's specification has a name without an end");
    weft_solver solver = {.kind = (weft_solver_kind)s->solver, .rate = s->rate, .momentum = s->momentum, .nesterov = s->nesterov != 0,
                          .beta1 = s->beta1, .beta2 = s->beta2, .rho = s->rho, .epsilon = s->epsilon, .weight_decay = s->weight_decay,
                          .clip_value = s->clip_value};
    *o = (weft_table_options){.name = s->name, .sparse = s->sparse != 0, .rows = s->rows, .width = s->width, .dtype = (weft_dtype)s->dtype,
                              .staleness = s->staleness, .spares = s->spares, .split = (weft_table_split)s->split, .start = (weft_table_start)s->start,
                              .hybrid = s->hybrid != 0, .low = s->low, .high = s->high, .seed = s->seed, .most_bytes = s->most_bytes,
                              .memory_bytes = s->memory_bytes,
                              .push = codec_read(&s->push), .pull = codec_read(&s->pull),
                              .rule = {.kind = (weft_table_rule_kind)s->rule, .solver = solver,
                                       .regulariser = {.l2 = s->l2, .l1 = s->l1, .group = s->group}, .alpha = s->ftrl[0], .beta = s->ftrl[1],
                                       .l1 = s->ftrl[2], .l2 = s->ftrl[3], .function = s->function[0] ? s->function : NULL,
                                       .mean = s->mean != 0}};
    return WEFT_OK;
}

const char *wefti_server_spec_differ(const wefti_server_spec *a, const wefti_server_spec *b) {
    static const struct {
        size_t offset, bytes;
        const char *name;
    } fields[] = {
#define FIELD(field, name) {offsetof(wefti_server_spec, field), sizeof a->field, name}
        FIELD(name, "name"), FIELD(rows, "rows"), FIELD(width, "width"), FIELD(sparse, "sparse"), FIELD(dtype, "dtype"), FIELD(hybrid, "hybrid"),
        FIELD(staleness, "staleness"), FIELD(spares, "spares"), FIELD(split, "split"), FIELD(start, "start"), FIELD(low, "low"), FIELD(high, "high"),
        FIELD(seed, "seed"), FIELD(most_bytes, "most_bytes"), FIELD(memory_bytes, "memory_bytes"), FIELD(rule, "rule.kind"), FIELD(function, "rule.function"),
        FIELD(mean, "rule.mean"), FIELD(solver, "rule.solver.kind"), FIELD(rate, "rule.solver.rate"),
        FIELD(momentum, "rule.solver.momentum"), FIELD(nesterov, "rule.solver.nesterov"), FIELD(beta1, "rule.solver.beta1"),
        FIELD(beta2, "rule.solver.beta2"), FIELD(rho, "rule.solver.rho"), FIELD(epsilon, "rule.solver.epsilon"),
        FIELD(weight_decay, "rule.solver.weight_decay"), FIELD(clip_value, "rule.solver.clip_value"), FIELD(l2, "rule.regulariser.l2"),
        FIELD(l1, "rule.regulariser.l1"), FIELD(group, "rule.regulariser.group"), FIELD(ftrl, "rule.alpha, beta, l1, l2"),
        FIELD(push, "push"), FIELD(pull, "pull"),
#undef FIELD
    };
    for (size_t i = 0; i < WEFTI_COUNT(fields); i++)
        if (memcmp((const char *)a + fields[i].offset, (const char *)b + fields[i].offset, fields[i].bytes) != 0) return fields[i].name;
    return NULL;
}

static weft_status check_split(weft_table_options *o) {
    if ((unsigned)o->split > WEFT_SPLIT_HASH) return wefti_fail(WEFT_E_INVALID, "table '%s': split %d is none", o->name, (int)o->split);
    if (o->split == WEFT_SPLIT_DEFAULT) o->split = o->sparse ? WEFT_SPLIT_HASH : WEFT_SPLIT_RANGE;
    if (!o->sparse && o->split == WEFT_SPLIT_HASH)
        return wefti_fail(WEFT_E_INVALID, "table '%s': a dense table is split by ranges; make it sparse to split it by a hash", o->name);
    if (o->split == WEFT_SPLIT_RANGE && o->rows == 0)
        return wefti_fail(WEFT_E_INVALID, "table '%s': ranges of keys want .rows, the least number above all keys", o->name);
    return WEFT_OK;
}

weft_status wefti_server_options_check(weft_table_options *o) {
    if (!o->name || !*o->name) return wefti_fail(WEFT_E_INVALID, "a table has no name");
    if (strlen(o->name) > WEFT_TABLE_NAME_BYTES)
        return wefti_fail(WEFT_E_INVALID, "the table's name '%.60s…' has more than %d bytes", o->name, WEFT_TABLE_NAME_BYTES);
    if (o->width == 0) o->width = 1;
    if (o->rows < 0 || o->width < 0 || (!o->sparse && o->rows == 0))
        return wefti_fail(WEFT_E_SHAPE, "table '%s': %lld rows of %lld elements", o->name, (long long)o->rows, (long long)o->width);
    int64_t bytes = 0;
    if (o->width > INT64_C(1) << 40 || (!o->sparse && (!wefti_mul_i64(o->rows, o->width, &bytes) || bytes > INT64_MAX / 64)))
        return wefti_fail(WEFT_E_OVERFLOW, "table '%s': %lld rows of %lld elements", o->name, (long long)o->rows, (long long)o->width);
    if (o->staleness < WEFT_TABLE_ASYNCHRONOUS)
        return wefti_fail(WEFT_E_INVALID, "table '%s': staleness %d; it is 0, more, or WEFT_TABLE_ASYNCHRONOUS", o->name, (int)o->staleness);
    if (o->spares < 0 || (o->spares > 0 && o->staleness != 0))
        return wefti_fail(WEFT_E_INVALID, "table '%s': %d spares with staleness %d; backup workers are for clocks that all end (staleness 0)", o->name,
                          (int)o->spares, (int)o->staleness);
    if (o->staleness != 0 && (o->rule.mean || o->rule.kind == WEFT_TABLE_AVERAGE))
        return wefti_fail(WEFT_E_INVALID, "table '%s': a mean over workers is one of a clock that all have ended: it wants staleness 0, and has %d",
                          o->name, (int)o->staleness);
    WEFTI_TRY(check_split(o));
    WEFTI_TRY(wefti_coding_check(o));
    return wefti_store_check(o);
}

/* What ranks ask each other over the control channel: what each has been doing, and whom they wait for.
 *
 * A question goes to rank 0, which hands it to all and the answers back; the control threads answer, so a rank tells what it does even while
 * it is stuck. With heartbeats every rank says how long it has waited in operations; rank 0 compares, and its own heartbeats say
 * who is the straggler: the rank that waits less than all others, who therefore wait for it. That needs no common clock.
 * Cost: 16 bytes a heartbeat; an answer is at most 12 KiB. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/control_inside.h"
#include "transport/watch.h"

/* --- questions --- */

static void describe_self(wefti_control *control, wefti_text *text) {
    wefti_text_add(text, "rank %d, process %ld:\n", (int)control->place->rank, (long)getpid());
    weft_status verdict = wefti_fault_verdict(control->fault);
    if (verdict != WEFT_OK) wefti_text_add(text, "  fault: %s: %s\n", weft_status_name(verdict), wefti_fault_cause(control->fault));
    if (control->watch) wefti_watch_describe(control->watch, text);
}

void wefti_control_keep_answer(wefti_control *control, int32_t rank, uint32_t number, const char *text, size_t bytes) {
    control_question *question = &control->question;
    if (!question->open || number != question->number || rank < 0 || rank >= control->place->size || question->answers[rank].bytes) return;
    wefti_text_add(&question->answers[rank], "%.*s", (int)bytes, text);
    if (question->answers[rank].bytes) question->answered++;
}

static void tell(control_member *to, int32_t rank, uint32_t number, const char *text, size_t bytes) {
    if (wefti_control_reaches(to))
        (void)!wefti_frames_send(&to->frames, (wefti_frame){CONTROL_TELL, (uint32_t)bytes, rank, number}, text);
}

/* Answers; at rank 0 the answer goes to the asker at once, else by way of rank 0. */
static void answer(wefti_control *control, int32_t asker, uint32_t number) {
    wefti_text text = {0};
    describe_self(control, &text);
    size_t bytes = text.length < CONTROL_TELL_BYTES ? text.length : CONTROL_TELL_BYTES;
    bool   server = control->place->rank == 0;
    tell(&control->members[server ? asker : 0], server ? 0 : asker, number, text.bytes ? text.bytes : "", bytes);
    wefti_text_release(&text);
}

static void ask_members(wefti_control *control, int32_t asker, uint32_t number) {
    for (int32_t rank = 1; rank < control->place->size; rank++)
        if (rank != asker && wefti_control_reaches(&control->members[rank]))
            (void)!wefti_frames_send(&control->members[rank].frames, (wefti_frame){CONTROL_ASK, 0, asker, number}, NULL);
}

void wefti_control_hear_question(wefti_control *control, int32_t from, const wefti_frame *frame, const uint8_t *payload) {
    bool server = control->place->rank == 0;
    if (frame->rank < 0 || frame->rank >= control->place->size) return;
    if (frame->kind == CONTROL_ASK) {
        if (server) ask_members(control, from, frame->value);
        answer(control, server ? from : frame->rank, frame->value);
    } else if (server && frame->rank != 0) {
        tell(&control->members[frame->rank], from, frame->value, (const char *)payload, frame->length);
    } else {
        wefti_control_keep_answer(control, server ? from : frame->rank, frame->value, (const char *)payload, frame->length);
    }
}

static void collect(wefti_control *control, wefti_text *text_out) {
    control_question *question = &control->question;
    for (int32_t rank = 0; rank < control->place->size; rank++) {
        if (question->answers[rank].bytes)
            wefti_text_add(text_out, "%s", question->answers[rank].bytes);
        else
            wefti_text_add(text_out, "rank %d: no answer (dead, stopped, cut off, or without a control thread and computing)\n", (int)rank);
        wefti_text_release(&question->answers[rank]);
    }
}

weft_status wefti_control_ask(wefti_control *control, uint64_t timeout_ns, wefti_text *text_out) {
    control_question *question = &control->question;
    size_t            bytes = (size_t)control->place->size * sizeof *question->answers;
    wefti_text        own = {0};
    pthread_mutex_lock(&control->lock);
    weft_status status = question->open ? wefti_fail(WEFT_E_STATE, "the ranks are being asked already") : WEFT_OK;
    if (status == WEFT_OK) status = wefti_alloc(bytes, "answers", &question->answers);
    if (status == WEFT_OK) {
        question->open = true;
        question->answered = 0;
        question->number++;
        describe_self(control, &own);
        wefti_control_keep_answer(control, control->place->rank, question->number, own.bytes ? own.bytes : "", own.length);
        if (control->place->rank == 0)
            ask_members(control, 0, question->number);
        else if (wefti_control_reaches(&control->members[0]))
            (void)!wefti_frames_send(&control->members[0].frames,
                                     (wefti_frame){CONTROL_ASK, 0, control->place->rank, question->number}, NULL);
        uint64_t until_ns = wefti_deadline_after(wefti_host_now(control->host), timeout_ns);
        while (question->answered < control->place->size && wefti_host_now(control->host) < until_ns) wefti_control_wait(control);
        collect(control, text_out);
        wefti_free(question->answers, bytes);
        question->answers = NULL;
        question->open = false;
    }
    pthread_mutex_unlock(&control->lock);
    wefti_text_release(&own);
    return status;
}

/* --- a signal that asks --- */

void wefti_control_answer_signal(wefti_control *control) {
    uint64_t   rings;
    wefti_text text = {0};
    if (control->signalled < 0 || read(control->signalled, &rings, sizeof rings) != (ssize_t)sizeof rings) return;
    describe_self(control, &text);
    for (size_t at = 0; at < text.length;) {
        ssize_t wrote = write(STDERR_FILENO, text.bytes + at, text.length - at);
        if (wrote <= 0) break;
        at += (size_t)wrote;
    }
    wefti_text_release(&text);
}

/* --- the straggler --- */

int32_t wefti_straggler_find(const control_wait *waits, int32_t size, uint64_t window_ns, double *share_out) {
    int32_t  least = -1;
    uint64_t second = UINT64_MAX;
    for (int32_t rank = 0; rank < size; rank++) {
        uint64_t waited = waits[rank].waited_ns - waits[rank].waited_before_ns;
        if (least < 0 || waited < waits[least].waited_ns - waits[least].waited_before_ns) {
            if (least >= 0) second = waits[least].waited_ns - waits[least].waited_before_ns;
            least = rank;
        } else if (waited < second) {
            second = waited;
        }
    }
    uint64_t behind = size > 1 ? second - (waits[least].waited_ns - waits[least].waited_before_ns) : 0;
    *share_out = window_ns ? (double)behind / (double)window_ns : 0;
    if (*share_out > 1) *share_out = 1;
    return *share_out >= CONTROL_STRAGGLER_SHARE ? least : -1;
}

/* Rank 0, with every heartbeat: looks again once everyone has done something in a long enough window. */
static void look_for_straggler(wefti_control *control, uint64_t now_ns) {
    if (!control->waits) return;
    control->waits[0].waited_ns = atomic_load_explicit(&control->watch->waited_ns, memory_order_relaxed);
    control->waits[0].operations = atomic_load_explicit(&control->watch->operations, memory_order_relaxed);
    uint64_t window_ns = now_ns - control->window_ns;
    if (window_ns < CONTROL_WINDOW_NS) return;
    for (int32_t rank = 0; rank < control->place->size; rank++)
        if (control->waits[rank].operations == control->waits[rank].operations_before) return;
    double  share = 0;
    int32_t rank = control->window_ns ? wefti_straggler_find(control->waits, control->place->size, window_ns, &share) : -1;
    for (int32_t i = 0; i < control->place->size; i++) {
        control->waits[i].waited_before_ns = control->waits[i].waited_ns;
        control->waits[i].operations_before = control->waits[i].operations;
    }
    control->window_ns = now_ns;
    wefti_control_name_straggler(control, rank, (uint32_t)(share * 1000));
}

void wefti_control_name_straggler(wefti_control *control, int32_t rank, uint32_t permille) {
    int32_t before = (int32_t)(atomic_load_explicit(&control->straggler, memory_order_relaxed) >> 32) - 1;
    atomic_store_explicit(&control->straggler, (uint64_t)(rank + 1) << 32 | permille, memory_order_relaxed);
    if (rank >= 0 && rank != before)
        wefti_log(WEFT_LOG_INFO, "rank %d is the straggler: the others wait for it %.0f %% of the time", (int)rank, permille / 10.0);
}

wefti_frame wefti_control_beat_frame(wefti_control *control, uint64_t now_ns, uint64_t payload_out[2]) {
    wefti_frame frame = {CONTROL_BEAT, 2 * sizeof *payload_out, control->place->rank, 0};
    payload_out[0] = control->watch ? atomic_load_explicit(&control->watch->waited_ns, memory_order_relaxed) : 0;
    payload_out[1] = control->watch ? atomic_load_explicit(&control->watch->operations, memory_order_relaxed) : 0;
    if (control->place->rank != 0) return frame;
    look_for_straggler(control, now_ns);
    uint64_t straggler = atomic_load_explicit(&control->straggler, memory_order_relaxed);
    frame.rank = (int32_t)(straggler >> 32) - 1;
    frame.value = (uint32_t)straggler;
    return frame;
}

void wefti_control_hear_beat(wefti_control *control, int32_t from, const wefti_frame *frame, const uint8_t *payload) {
    uint64_t words[2];
    if (control->place->rank != 0) {
        if (frame->rank >= -1 && frame->rank < control->place->size && frame->value <= 1000)
            wefti_control_name_straggler(control, frame->rank, frame->value);
    } else if (control->waits && frame->length == sizeof words) {
        memcpy(words, payload, sizeof words);
        control->waits[from].waited_ns = words[0];
        control->waits[from].operations = words[1];
    }
}

int32_t wefti_control_straggler(wefti_control *control, double *share_out) {
    uint64_t straggler = atomic_load_explicit(&control->straggler, memory_order_relaxed);
    if (share_out) *share_out = (double)(uint32_t)straggler / 1000;
    return (int32_t)(straggler >> 32) - 1;
}

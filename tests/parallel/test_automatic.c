/* The search for a strategy, on programs and clusters that are made up so that the best is known by hand. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "parallel/automatic.h"

#define GB 1e9
#define NEAR(a, b) (fabs((a) - (b)) <= 1e-9 * (fabs(a) + fabs(b)))

/* A program of `layers` equal layers of so many flops and bytes of parameters, with two all-reduces a layer and pass where tensors are split. Adam. */
static wefti_auto_costs layered(int64_t rows, double flops, double parameters, double kept, double passed) {
    wefti_auto_costs c = {.rows = rows, .forward_share = 1.0 / 3};
    for (int32_t n = 1; n <= 64; n *= 2) {
        wefti_auto_split each = {.ranks = n, .work = {.flops = flops / n, .bytes = 0, .ops = 100}, .update_bytes = 7 * parameters / n, .parameter_bytes = parameters / n,
                                 .state_bytes = 2 * parameters / n, .kept_bytes = kept / n, .recompute_bytes = -1};
        if (n > 1) each.messages = 4 * 24, each.message_bytes = 4 * 24 * passed;
        c.tensor[c.n_tensor++] = each;
        if (n == 1) continue;
        each.work.ops = 100.0 / n;
        each.messages = 4;
        each.message_bytes = 4 * passed;
        c.pipeline[c.n_pipeline++] = each;
    }
    return c;
}

/* Of so many ranks, fast everywhere. */
static wefti_auto_machine cluster(int32_t ranks, double memory) {
    return (wefti_auto_machine){.ranks = ranks, .flops = 1e14, .bytes = 1e12, .op_seconds = 1e-6, .near = {1e-6, 1e-11}, .far = {1e-6, 1e-11}, .memory_bytes = memory};
}

static bool no_zero(void *context, const weft_strategy *s) {
    (void)context;
    return s->zero == 0;
}

static weft_strategy best_of(const wefti_auto_costs *c, const wefti_auto_machine *m, weft_strategy asked, wefti_auto_allows allows) {
    wefti_auto_choice choice;
    asked.automatic = true;
    cr_assert_eq(wefti_auto_search(c, m, &asked, allows, NULL, &choice), WEFT_OK, "%s", weft_error_message());
    weft_strategy found = choice.candidates[0].strategy;
    int32_t others = (found.sequence > 1 ? found.sequence : 1) * (found.expert > 1 ? found.expert : 1);
    cr_expect(!found.automatic && found.data * found.tensor * found.pipeline * others == m->ranks && choice.candidates[0].fits);
    for (int32_t i = 1; i < choice.n_fitting; i++) cr_expect(choice.candidates[i].seconds >= choice.candidates[i - 1].seconds * (1 - 1e-8));
    wefti_auto_release(&choice);
    return found;
}

Test(automatic, small_models_share_the_batch) {
    wefti_auto_costs   c = layered(1024, 1e13, 1e6, 1e9, 1e8);
    wefti_auto_machine m = cluster(8, 0);
    m.shares_updates = true; /* else ZeRO 1 would update sooner */
    weft_strategy s = best_of(&c, &m, (weft_strategy){0}, NULL);
    cr_expect(s.data == 8 && s.tensor == 1 && s.pipeline == 1 && s.zero == 0 && !s.recompute && s.accumulate == 1, "%s", weft_strategy_text(&s).text);
}

/* 40 GB of parameters, with gradients and Adam 160, on 8 ranks of 40. */
Test(automatic, what_does_not_fit_a_rank_is_split) {
    wefti_auto_costs   c = layered(1024, 1e15, 40 * GB, 50 * GB, 1e8);
    wefti_auto_machine m = cluster(8, 40 * GB);
    weft_strategy      s = best_of(&c, &m, (weft_strategy){0}, NULL);
    cr_expect(s.tensor * s.pipeline > 1 || s.zero == 3, "%s", weft_strategy_text(&s).text);
    wefti_auto_candidate data = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 8, .tensor = 1, .pipeline = 1});
    cr_expect(!data.fits && NEAR(data.memory_bytes, 160 * GB + 50 * GB / 8), "%g", data.memory_bytes);
    s = best_of(&c, &m, (weft_strategy){0}, no_zero);
    cr_expect(s.tensor * s.pipeline >= 5, "without ZeRO: %s", weft_strategy_text(&s).text);
}

/* Tensor ranks exchange 96 times a step, stages once for each micro-batch. */
Test(automatic, over_slow_links_layers_are_dealt_out_and_not_tensors) {
    wefti_auto_costs   c = layered(1024, 1e14, 40 * GB, 10 * GB, 1e8);
    wefti_auto_machine slow = cluster(8, 40 * GB);
    slow.near = slow.far = (wefti_auto_link){5e-5, 1e-9};
    weft_strategy s = best_of(&c, &slow, (weft_strategy){0}, no_zero);
    cr_expect(s.pipeline == 8 && s.tensor == 1 && s.accumulate > 8, "%s", weft_strategy_text(&s).text);
    /* One row has no micro-batches: stages would take turns. */
    wefti_auto_costs   row = layered(1, 1e14, 40 * GB, 10 * GB, 1e6);
    wefti_auto_machine fast = cluster(8, 40 * GB);
    s = best_of(&row, &fast, (weft_strategy){0}, no_zero);
    cr_expect(s.tensor == 8 && s.pipeline == 1, "%s", weft_strategy_text(&s).text);
}

/* Hosts of 4 ranks with quick links inside and slow ones between. */
Test(automatic, tensors_stay_inside_of_hosts) {
    wefti_auto_costs   c = layered(16, 1e15, 20 * GB, 10 * GB, 4e6);
    wefti_auto_machine m = cluster(16, 40 * GB);
    m.per_host = 4;
    m.far = (wefti_auto_link){1e-4, 1e-9};
    weft_strategy s = best_of(&c, &m, (weft_strategy){0}, no_zero);
    cr_expect(s.tensor >= 2 && s.tensor <= 4, "%s", weft_strategy_text(&s).text);
    wefti_auto_candidate inside = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 4, .tensor = 4, .pipeline = 1});
    wefti_auto_candidate across = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 2, .tensor = 8, .pipeline = 1});
    cr_expect(across.tensors > 10 * inside.tensors, "inside of hosts tensors wait %g s, across %g", inside.tensors, across.tensors);
}

/* Term by term, as automatic.h has it. */
Test(automatic, the_model_is_what_it_says) {
    wefti_auto_costs     c = layered(64, 3e12, 4e9, 8e9, 1e6);
    wefti_auto_machine   m = cluster(8, 0);
    weft_strategy        s = {.data = 2, .tensor = 2, .pipeline = 2, .accumulate = 4};
    wefti_auto_candidate it = wefti_auto_judge(&c, &m, &s);
    double parameters = 4e9 / 4, micro = 3e12 / 4 / 1e14 / 8 + 6 * parameters / 1e12 + 50 * 1e-6, waiting = 48 * 2 * 1e-6 + 48 * 1e6 / 8 * 1e-11;
    cr_expect(NEAR(it.computing, 4 * micro), "%g, not %g", it.computing, 4 * micro);
    cr_expect(NEAR(it.tensors, 4 * waiting), "%g, not %g", it.tensors, 4 * waiting);
    double pass = 2 * 1e-6 + 2e6 / 8 / 2 * 1e-11;
    cr_expect(NEAR(it.idle, micro + waiting + 2 * pass), "%g, not %g", it.idle, micro + waiting + 2 * pass);
    double buckets = ceil(parameters / (4 << 20)), all = buckets * 2 * 1e-6 + parameters * 1e-11, hidden = 2.0 / 3 * (micro + waiting);
    cr_expect(NEAR(it.gradients, fmax(all - hidden, all / buckets)), "%g", it.gradients);
    cr_expect(NEAR(it.updating, 7 * parameters / 1e12) && NEAR(it.seconds, it.computing + it.tensors + it.idle + it.gradients + it.updating));
    cr_expect(NEAR(it.memory_bytes, 4 * parameters + 2e9 / 8 * 2), "%g", it.memory_bytes);
    s.schedule = WEFT_GPIPE;
    cr_expect(NEAR(wefti_auto_judge(&c, &m, &s).memory_bytes, 4 * parameters + 2e9 / 8 * 4));
    s.schedule = WEFT_INTERLEAVED; /* two runs of layers for each rank: half of the bubble, twice the messages */
    cr_expect(NEAR(wefti_auto_judge(&c, &m, &s).idle, (micro + waiting) / 2 + 4 * pass));
    s.schedule = WEFT_ZERO_BUBBLE;
    cr_expect(NEAR(wefti_auto_judge(&c, &m, &s).idle, (micro + waiting) * 2 / 3 + 2 * pass));
}

/* A rank of two along time has half of all that is computed, and messages that go round; one of two along experts has half of them, here half of the parameters. */
static wefti_auto_costs with_time_and_experts(int64_t rows, double flops, double parameters, double kept) {
    wefti_auto_costs        c = layered(rows, flops, parameters, kept, 1e6);
    const wefti_auto_split *whole = &c.tensor[0];
    for (int32_t n = 2; n <= 8; n *= 2) {
        wefti_auto_split each = *whole;
        each.ranks = n;
        each.work.flops /= n;
        each.kept_bytes /= n;
        each.work.ops *= 2;
        each.messages = 8 * 24 * (n - 1);
        each.message_bytes = each.messages * 1e6 / n;
        c.sequence[c.n_sequence++] = each;
        each = *whole;
        each.ranks = n;
        each.expert_bytes = parameters / 2 / n;
        each.parameter_bytes = parameters / 2 + each.expert_bytes;
        each.state_bytes = 2 * each.parameter_bytes;
        each.update_bytes = 7 * each.parameter_bytes;
        each.messages = 10;
        each.message_bytes = 8e6;
        c.expert[c.n_expert++] = each;
    }
    return c;
}

Test(automatic, the_model_of_time_and_experts_is_what_it_says) {
    wefti_auto_costs     c = with_time_and_experts(64, 3e12, 4e9, 8e9);
    wefti_auto_machine   m = cluster(8, 0);
    wefti_auto_candidate it = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 2, .tensor = 1, .pipeline = 1, .sequence = 2, .expert = 2, .accumulate = 4});
    double parameters = 3e9, micro = 3e12 / 2 / 1e14 / 16 + 6 * parameters / 1e12 + 200 * 1e-6;
    cr_expect(NEAR(it.computing, 4 * micro), "%g, not %g", it.computing, 4 * micro);
    double ring = 192 * 1e-6 + 192 * 1e6 / 2 / 16 * 1e-11, choices = 10 * 1e-6 + 0.5 * 8e6 / 2 / 16 * 1e-11;
    cr_expect(NEAR(it.ring, 4 * ring) && NEAR(it.choices, 4 * choices) && it.tensors == 0 && it.idle == 0, "%g, %g", it.ring, it.choices);
    double dense = ceil(2e9 / (4 << 20)), experts = ceil(1e9 / (4 << 20)); /* over 8 ranks, and over the 4 that have the same ones */
    double all = dense * 6 * 1e-6 + 2.0 * 7 / 8 * 2e9 * 1e-11 + experts * 4 * 1e-6 + 2.0 * 3 / 4 * 1e9 * 1e-11;
    cr_expect(NEAR(it.gradients, fmax(all - 2.0 / 3 * (micro + ring + choices), all / (dense + experts))), "%g", it.gradients);
    cr_expect(NEAR(it.seconds, it.computing + it.ring + it.choices + it.gradients + it.updating));
    cr_expect(NEAR(it.memory_bytes, 4 * parameters + 8e9 / 2 / 16), "%g", it.memory_bytes);
    it = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 2, .tensor = 1, .pipeline = 1, .sequence = 2, .expert = 2, .accumulate = 4, .zero = 3});
    cr_expect(NEAR(it.memory_bytes, 4 * (2e9 / 8 + 1e9 / 4) + 8e9 / 2 / 16), "ZeRO 3 holds %g", it.memory_bytes);
    cr_expect(!isfinite(wefti_auto_judge(&c, &m, &(weft_strategy){.data = 1, .tensor = 1, .pipeline = 1, .sequence = 3}).seconds));
}

static bool whole_models(void *context, const weft_strategy *s) {
    (void)context;
    return s->zero == 0 && s->tensor == 1 && s->pipeline == 1 && !s->recompute;
}

/* One long row is not for two data ranks; experts that fill a rank are dealt out. */
Test(automatic, time_and_experts_are_dealt_out_where_memory_wants_it) {
    wefti_auto_costs   c = with_time_and_experts(1, 1e15, 1e9, 100e9);
    wefti_auto_machine m = cluster(8, 20e9);
    weft_strategy      s = best_of(&c, &m, (weft_strategy){0}, whole_models);
    cr_expect(s.sequence == 8 && s.data == 1, "%s", weft_strategy_text(&s).text);
    c = with_time_and_experts(64, 1e15, 20e9, 1e9);
    m = cluster(8, 65e9);
    s = best_of(&c, &m, (weft_strategy){0}, whole_models);
    cr_expect(s.expert >= 2 && s.sequence <= 1, "%s", weft_strategy_text(&s).text);
    s = best_of(&c, &m, (weft_strategy){.sequence = 2, .expert = 4}, NULL);
    cr_expect(s.expert == 4 && s.sequence == 2, "%s", weft_strategy_text(&s).text);
    wefti_auto_choice choice;
    wefti_text        text = {0};
    cr_assert_eq(wefti_auto_search(&c, &m, &(weft_strategy){.automatic = true}, whole_models, NULL, &choice), WEFT_OK);
    wefti_auto_explain(&choice, &m, &text);
    cr_expect(strstr(text.bytes, " for choices of experts") && strstr(text.bytes, "by time alone, "), "%s", text.bytes);
    wefti_text_release(&text);
    wefti_auto_release(&choice);
}

/* Rajbhandari et al.: of 16 bytes a parameter, here 4 of each kind: parameter, gradient, two states. */
Test(automatic, zero_takes_memory_as_its_formulas_say) {
    wefti_auto_costs   c = layered(64, 3e12, 4e9, 0, 1e6);
    wefti_auto_machine m = cluster(4, 0);
    const double       bytes[] = {16e9, 4e9 + 4e9 + 2e9, 4e9 + 1e9 + 2e9, 1e9 + 1e9 + 2e9};
    double             before = 0;
    for (int32_t zero = 0; zero <= 3; zero++) {
        wefti_auto_candidate it = wefti_auto_judge(&c, &m, &(weft_strategy){.data = 4, .tensor = 1, .pipeline = 1, .zero = zero});
        cr_expect(NEAR(it.memory_bytes, bytes[zero]), "ZeRO %d holds %g", (int)zero, it.memory_bytes);
        cr_expect(zero < 2 || it.gradients >= before, "ZeRO %d sends in %g s", (int)zero, it.gradients);
        before = it.gradients;
    }
}

Test(automatic, recomputes_where_memory_wants_it_and_only_there) {
    wefti_auto_costs c = layered(64, 1e14, 1e9, 64e9, 1e6);
    for (int32_t i = 0; i < c.n_tensor; i++) c.tensor[i].recompute_bytes = 0.1 * c.tensor[i].kept_bytes;
    for (int32_t i = 0; i < c.n_pipeline; i++) c.pipeline[i].recompute_bytes = 0.1 * c.pipeline[i].kept_bytes;
    wefti_auto_machine m = cluster(1, 20e9);
    cr_expect(best_of(&c, &m, (weft_strategy){.accumulate = 1}, NULL).recompute);
    m.memory_bytes = 200e9;
    cr_expect(!best_of(&c, &m, (weft_strategy){.accumulate = 1}, NULL).recompute);
}

Test(automatic, keeps_to_what_is_asked) {
    wefti_auto_costs   c = layered(64, 1e13, 1e9, 1e9, 1e6);
    wefti_auto_machine m = cluster(8, 0);
    weft_strategy      s = best_of(&c, &m, (weft_strategy){.tensor = 2, .accumulate = 4, .zero = 1, .precision = WEFT_BF16, .bucket_bytes = 7}, NULL);
    cr_expect(s.tensor == 2 && s.accumulate == 4 && s.zero == 1 && s.precision == WEFT_BF16 && s.bucket_bytes == 7, "%s", weft_strategy_text(&s).text);
    s = best_of(&c, &m, (weft_strategy){.pipeline = 4, .schedule = WEFT_GPIPE}, NULL);
    cr_expect(s.pipeline == 4 && s.schedule == WEFT_GPIPE);
}

Test(automatic, says_what_would_do_where_nothing_fits) {
    wefti_auto_costs   c = layered(64, 1e13, 100e9, 1e9, 1e6);
    wefti_auto_machine m = cluster(4, 1e9);
    wefti_auto_choice  choice;
    cr_assert_eq(wefti_auto_search(&c, &m, &(weft_strategy){.automatic = true}, NULL, NULL, &choice), WEFT_E_NO_MEMORY);
    cr_expect(strstr(weft_error_message(), "no strategy of ") && strstr(weft_error_message(), "MB a rank") && strstr(weft_error_message(), " ranks would do"), "%s",
              weft_error_message());
    cr_expect(choice.n > 0 && choice.n_fitting == 0);
    wefti_auto_release(&choice);
    cr_assert_eq(wefti_auto_search(&c, &m, &(weft_strategy){.automatic = true, .tensor = 3}, NULL, NULL, &choice), WEFT_E_INVALID);
    cr_expect(strstr(weft_error_message(), "tensor=3") && strstr(weft_error_message(), "4 ranks"), "%s", weft_error_message());
    wefti_auto_release(&choice);
    wefti_auto_costs few = layered(1, 1e13, 1e6, 1e6, 1e6); /* one row is not for two */
    cr_assert_eq(wefti_auto_search(&few, &m, &(weft_strategy){.automatic = true, .data = 4}, NULL, NULL, &choice), WEFT_E_INVALID);
    wefti_auto_release(&choice);
}

Test(automatic, explains_itself) {
    wefti_auto_costs   c = layered(1024, 1e15, 40 * GB, 50 * GB, 1e8);
    wefti_auto_machine m = cluster(8, 60 * GB);
    wefti_auto_choice  choice;
    wefti_text         text = {0};
    m.per_host = 4;
    cr_assert_eq(wefti_auto_search(&c, &m, &(weft_strategy){.automatic = true}, no_zero, NULL, &choice), WEFT_OK);
    wefti_auto_explain(&choice, &m, &text);
    const char *const words[] = {"strategy: data=", "chosen of ", "because a step should take ", " computing", "a rank holds about ", " of 60 GB", "by data alone, data=8",
                                 "does not fit, it would hold ", "next to it:", "   2. ", "between hosts"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) cr_expect(strstr(text.bytes, words[i]), "'%s' is not in: %s", words[i], text.bytes);
    wefti_text_release(&text);
    wefti_auto_release(&choice);
}

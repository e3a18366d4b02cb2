/* On paper: what the model of automatic strategies (src/parallel/automatic.h) says of a GPT of 1.7 billion parameters on 1 to 1,024 ranks of a cluster that is described
 * here. Nothing is measured; `weft-bench auto` holds the same model against steps that are. With --simulate each step is played on the simulated wire, too
 * (paper_steps.h). */
#include <string.h>

#include "bench.h"
#include "paper_steps.h"
#include "parallel/automatic.h"
#include "weft.h"

typedef struct paper_options {
    double layers, width, context, vocabulary, rows;
    double flops, bytes, memory, near_bytes, far_bytes, near_us, far_us, per_host, simulate, least, most;
} paper_options;

/* Arithmetic of products and attention (6 N a token, and 6 L W T for causal attention: Chowdhery et al. 2022); what is kept of a layer, 34 numbers of two bytes a unit with attention
 * in pieces (Korthikanti et al. 2022), of which tensor ranks share 24; f32 parameters and two states. */
static wefti_auto_costs costs_of(const paper_options *o) {
    double            tokens = o->rows * o->context, n = 12 * o->layers * o->width * o->width + o->vocabulary * o->width;
    double            flops = tokens * (6 * n + 6 * o->layers * o->width * o->context), kept = tokens * o->layers * o->width * 68, stream = tokens * o->width * 2;
    wefti_auto_costs  c = {.rows = (int64_t)o->rows, .forward_share = 1.0 / 3};
    for (int32_t r = 1; r <= 64; r *= 2) {
        double           share = r, whole = (10 + 24 / share) / 34;
        wefti_auto_split each = {.ranks = r, .work = {.flops = flops / share, .bytes = 3 * kept * whole, .ops = 90 * o->layers}, .update_bytes = 7 * 4 * n / share,
                                 .parameter_bytes = 4 * n / share, .state_bytes = 8 * n / share, .kept_bytes = kept * whole,
                                 .recompute_bytes = o->layers * stream + kept * whole / o->layers};
        if (r > 1) each.messages = 4 * o->layers, each.message_bytes = 4 * o->layers * stream;
        c.tensor[c.n_tensor++] = each;
        if (r == 1 || r > o->layers) continue;
        double stage = 1 / share + 0.5 / o->layers; /* not every division is even */
        each.work = (wefti_auto_work){flops * stage, 3 * kept * stage, 90 * o->layers * stage};
        each.parameter_bytes = 4 * n * stage;
        each.state_bytes = 8 * n * stage;
        each.kept_bytes = kept * stage;
        each.recompute_bytes = o->layers * stream * stage + kept / o->layers;
        each.messages = 2;
        each.message_bytes = 2 * stream;
        c.pipeline[c.n_pipeline++] = each;
    }
    return c;
}

/* The step of a candidate: its computing, layer by layer, and the messages that the model prices. */
static double simulated(const paper_options *o, const wefti_auto_candidate *it) {
    const weft_strategy *s = &it->strategy;
    int32_t              micro = s->accumulate > 0 ? s->accumulate : 1;
    double               stream = o->rows * o->context * o->width * 2 / (s->data * micro), n = 12 * o->layers * o->width * o->width + o->vocabulary * o->width;
    double               layer_s = it->computing / micro / (o->layers / s->pipeline);
    const paper_step     step = {.data = s->data, .tensor = s->tensor, .pipeline = s->pipeline, .chunks = s->schedule == WEFT_INTERLEAVED ? 2 : 1, .micro = micro, .zero = s->zero,
                                 .layers = (int32_t)o->layers, .per_host = (int32_t)o->per_host, .forward_s = layer_s / 3, .backward_s = layer_s * 2 / 3, .update_s = it->updating,
                                 .layer_bytes = 4 * n / o->layers / s->tensor, .sum_bytes = stream, .stage_bytes = stream / s->tensor, .near_bytes = o->near_bytes,
                                 .far_bytes = o->far_bytes, .near_s = 1e-6 * o->near_us, .far_s = 1e-6 * o->far_us, .memory_bytes = o->bytes, .shrink = o->simulate};
    return s->recompute ? it->seconds : paper_step_play(&step); /* one rank alone, which sends nothing */
}

int bench_paper(int argc, char **argv) {
    paper_options      o = {.layers = 48, .width = 1664, .context = 1024, .vocabulary = 50304, .rows = 1024, .flops = 4e14, .bytes = 2.5e12, .memory = 80e9,
                            .near_bytes = 300e9, .far_bytes = 25e9, .near_us = 5, .far_us = 10, .per_host = 8, .most = 1024};
    const bench_option options[] = {{"layers", "blocks", BENCH_NUMBER, &o.layers},
                                    {"width", "of them", BENCH_NUMBER, &o.width},
                                    {"rows", "sequences of a step", BENCH_NUMBER, &o.rows},
                                    {"flops", "a rank does in a second", BENCH_NUMBER, &o.flops},
                                    {"memory", "bytes of a rank", BENCH_NUMBER, &o.memory},
                                    {"far-bytes", "a second between hosts, for each rank", BENCH_NUMBER, &o.far_bytes},
                                    {"ranks", "as many at most", BENCH_NUMBER, &o.most},
                                    {"from", "ranks whose steps are played", BENCH_NUMBER, &o.least},
                                    {"simulate", "play steps on the simulated wire, with messages so many times shorter and links slower; 0: do not", BENCH_NUMBER, &o.simulate},
                                    {0}};
    bench_read_options(argc, argv, "On paper: a large GPT on 1 to 1,024 ranks, by the model of automatic strategies.", options);
    wefti_auto_costs c = costs_of(&o);
    double           first = 0;
    printf("| ranks | strategy | step, s | for gradients | for tensors | idle | speed-up | a rank holds, GB |%s\n|---|---|---|---|---|---|---|---|%s\n",
           o.simulate > 0 ? " simulated step, s | speed-up |" : "", o.simulate > 0 ? "---|---|" : "");
    for (int32_t ranks = 1; ranks <= (int32_t)o.most; ranks *= 2) {
        wefti_auto_machine m = {.ranks = ranks, .per_host = ranks < (int32_t)o.per_host ? ranks : (int32_t)o.per_host, .flops = o.flops, .bytes = o.bytes, .op_seconds = 5e-6,
                                .near = {1e-6 * o.near_us, 1 / o.near_bytes}, .far = {1e-6 * o.far_us, 1 / o.far_bytes}, .memory_bytes = o.memory};
        wefti_auto_choice  choice;
        if (wefti_auto_search(&c, &m, &(weft_strategy){.automatic = true}, NULL, NULL, &choice) == WEFT_OK) {
            const wefti_auto_candidate *it = &choice.candidates[0];
            if (first == 0) first = it->seconds * ranks;
            printf("| %d | `%s` | %.3g | %.1f %% | %.1f %% | %.1f %% | %.1f | %.3g |", (int)ranks, weft_strategy_text(&it->strategy).text, it->seconds,
                   100 * it->gradients / it->seconds, 100 * it->tensors / it->seconds, 100 * it->idle / it->seconds, first / it->seconds, it->memory_bytes / 1e9);
            fflush(stdout);
            bool   plays = o.simulate > 0 && ranks >= (int32_t)o.least;
            double played = plays ? simulated(&o, it) : 0;
            if (plays) printf(" %.3g | %.1f |", played, first / played);
            putchar('\n');
        } else {
            printf("| %d | %s |\n", (int)ranks, weft_error_message());
        }
        wefti_auto_release(&choice);
    }
    return 0;
}

/* Command lines of the samples: a table of options, --help made of it, and errors that name what is wrong. */
#ifndef SAMPLES_CLI_H
#define SAMPLES_CLI_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

typedef enum cli_kind { CLI_TEXT, CLI_INTEGER, CLI_REAL, CLI_FLAG, CLI_STRATEGY } cli_kind;

typedef struct cli_option {
    const char *name; /* without the dashes */
    cli_kind    kind;
    void       *value; /* const char *, int64_t, double or bool; holds the default. CLI_STRATEGY: weft_strategy, of which it sets what its name says */
    const char *help;
} cli_option;

static inline void cli_help(const char *program, const char *about, const cli_option *options, int count) {
    printf("usage: %s [options]\n%s\n\n", program, about);
    for (int i = 0; i < count; i++) {
        static const char *const hints[] = {" TEXT", " N", " X", "", " TEXT"};
        bool                     on = options[i].kind == CLI_FLAG && *(bool *)options[i].value;
        char                     left[64];
        snprintf(left, sizeof left, "--%s%s%s", on ? "[no-]" : "", options[i].name, hints[options[i].kind]);
        printf("  %-24s %s", left, options[i].help);
        if (options[i].kind == CLI_INTEGER) printf(" (%lld)", (long long)*(int64_t *)options[i].value);
        if (options[i].kind == CLI_REAL) printf(" (%g)", *(double *)options[i].value);
        if (options[i].kind == CLI_TEXT && *(const char **)options[i].value) printf(" (%s)", *(const char **)options[i].value);
        printf("%s\n", on ? " (on)" : "");
    }
    printf("  %-24s %s\n", "--help", "this text");
}

/* What splits the program, in weft_strategy_parse's words: --mesh data=2,tensor=2 is a text of them, the others are settings. */
#define CLI_SPLIT(strategy)                                                                                                                   \
    {"mesh", CLI_STRATEGY, strategy, "ranks along each axis, as data=2,tensor=2,pipeline=2, or auto, to have it chosen; all data where it is not given"},                  \
    {"schedule", CLI_STRATEGY, strategy, "of a pipeline: 1f1b, gpipe, interleaved, zero-bubble"},                                                             \
    {"accumulate", CLI_STRATEGY, strategy, "micro-batches of a step"},                                                                         \
    {"zero", CLI_STRATEGY, strategy, "what ranks along data keep in parts: 1 solver states, 2 gradients too, 3 parameters too"},               \
    {"sync", CLI_STRATEGY, strategy, "allreduce, or a parameter server by staleness: server, server:3, server:async (not with --clip)"},         \
    {"servers", CLI_STRATEGY, strategy, "ranks that keep the parameters then; 0: all"},                                                        \
    {"replicas", CLI_STRATEGY, strategy, "1: each of them keeps another one's share, too"},                                                    \
    {"precision", CLI_STRATEGY, strategy, "of products and activations: f32, bf16, f16 or fp8"},                                                  \
    {"compress", CLI_STRATEGY, strategy, "gradients between ranks: none, bf16, fp8, fp8-e5m2, topk:0.01, powersgd:4"},                         \
    {"compress-warmup", CLI_STRATEGY, strategy, "steps before that begins"}

static inline bool cli_set_strategy(const cli_option *option, const char *text) {
    char setting[512];
    bool whole = strcmp(option->name, "mesh") == 0;
    snprintf(setting, sizeof setting, "%s%s%s", whole ? "" : option->name, whole ? "" : "=", text);
    return weft_strategy_parse(setting, option->value) == WEFT_OK;
}

static inline bool cli_set(const cli_option *option, const char *text) {
    char *end = NULL;
    errno = 0;
    switch (option->kind) {
    case CLI_TEXT: *(const char **)option->value = text; return true;
    case CLI_FLAG: return false; /* they take none */
    case CLI_STRATEGY: return cli_set_strategy(option, text);
    case CLI_INTEGER: *(int64_t *)option->value = strtoll(text, &end, 10); break;
    case CLI_REAL: *(double *)option->value = strtod(text, &end); break;
    }
    return errno == 0 && end != text && *end == '\0';
}

/* The option that an argument names: --name, --name=value and, for flags, --no-name. NULL where there is none. */
static inline const cli_option *cli_find(const char *argument, const cli_option *options, int count, const char **value_out, bool *on_out) {
    if (strncmp(argument, "--", 2) != 0) return NULL;
    const char *name = argument + 2, *equals = strchr(name, '=');
    size_t      length = equals ? (size_t)(equals - name) : strlen(name);
    *value_out = equals ? equals + 1 : NULL;
    for (int i = 0; i < count; i++) {
        size_t own = strlen(options[i].name);
        bool   no = options[i].kind == CLI_FLAG && length == own + 3 && strncmp(name, "no-", 3) == 0;
        *on_out = !no;
        if ((no || length == own) && strncmp(no ? name + 3 : name, options[i].name, own) == 0) return &options[i];
    }
    return NULL;
}

/* Reads the command line. Returns -1 to go on, otherwise the status to exit with: 0 after --help, 2 after an error. */
static inline int cli_parse(int argc, char **argv, const char *about, const cli_option *options, int count) {
    for (int i = 1; i < argc; i++) {
        const char *text = NULL;
        bool        on = true;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_help(argv[0], about, options, count);
            return 0;
        }
        const cli_option *found = cli_find(argv[i], options, count, &text, &on);
        if (!found) {
            fprintf(stderr, "%s: unknown option '%s'; --help lists those there are\n", argv[0], argv[i]);
            return 2;
        }
        if (found->kind == CLI_FLAG) {
            if (text) fprintf(stderr, "%s: --%s takes no value, but has '%s'\n", argv[0], found->name, text);
            if (text) return 2;
            *(bool *)found->value = on;
            continue;
        }
        if (!text && i + 1 < argc) text = argv[++i];
        if (!text || !cli_set(found, text)) {
            bool words = found->kind == CLI_TEXT || found->kind == CLI_STRATEGY;
            if (text && words) fprintf(stderr, "%s: --%s %s: %s\n", argv[0], found->name, text, weft_error_message());
            else fprintf(stderr, "%s: --%s needs a %s%s%s\n", argv[0], found->name, words ? "value" : "number", text ? ", not " : "", text ? text : "");
            return 2;
        }
    }
    return -1;
}

#endif

/* Command lines of the samples: a table of options, --help made of it, and errors that name what is wrong. */
#ifndef SAMPLES_CLI_H
#define SAMPLES_CLI_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum cli_kind { CLI_TEXT, CLI_INTEGER, CLI_REAL, CLI_FLAG } cli_kind;

typedef struct cli_option {
    const char *name; /* without the dashes */
    cli_kind    kind;
    void       *value; /* const char *, int64_t, double or bool; holds the default */
    const char *help;
} cli_option;

static inline void cli_help(const char *program, const char *about, const cli_option *options, int count) {
    printf("usage: %s [options]\n%s\n\n", program, about);
    for (int i = 0; i < count; i++) {
        char left[64];
        static const char *const hints[] = {" TEXT", " N", " X", ""};
        snprintf(left, sizeof left, "--%s%s", options[i].name, hints[options[i].kind]);
        printf("  %-24s %s", left, options[i].help);
        if (options[i].kind == CLI_INTEGER) printf(" (%lld)", (long long)*(int64_t *)options[i].value);
        if (options[i].kind == CLI_REAL) printf(" (%g)", *(double *)options[i].value);
        if (options[i].kind == CLI_TEXT && *(const char **)options[i].value) printf(" (%s)", *(const char **)options[i].value);
        printf("\n");
    }
    printf("  %-24s %s\n", "--help", "this text");
}

static inline bool cli_set(const cli_option *option, const char *text) {
    char *end = NULL;
    errno = 0;
    switch (option->kind) {
    case CLI_TEXT: *(const char **)option->value = text; return true;
    case CLI_FLAG: *(bool *)option->value = true; return true;
    case CLI_INTEGER: *(int64_t *)option->value = strtoll(text, &end, 10); break;
    case CLI_REAL: *(double *)option->value = strtod(text, &end); break;
    }
    return errno == 0 && end != text && *end == '\0';
}

/* Reads the command line. Returns -1 to go on, otherwise the status to exit with: 0 after --help, 2 after an error. */
static inline int cli_parse(int argc, char **argv, const char *about, const cli_option *options, int count) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_help(argv[0], about, options, count);
            return 0;
        }
        const cli_option *found = NULL;
        for (int k = 0; k < count && strncmp(argv[i], "--", 2) == 0; k++)
            if (strcmp(argv[i] + 2, options[k].name) == 0) found = &options[k];
        if (!found) {
            fprintf(stderr, "%s: unknown option '%s'; --help lists those there are\n", argv[0], argv[i]);
            return 2;
        }
        const char *text = found->kind == CLI_FLAG ? "" : i + 1 < argc ? argv[++i] : NULL;
        if (!text || !cli_set(found, text)) {
            fprintf(stderr, "%s: --%s needs a %s%s%s\n", argv[0], found->name, found->kind == CLI_TEXT ? "value" : "number",
                    text ? ", not " : "", text ? text : "");
            return 2;
        }
    }
    return -1;
}

#endif

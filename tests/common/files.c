#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "weft/status.h"

static char folder[64];
static pid_t owner;

static void remove_folder(void) {
    if (getpid() != owner) return;
    DIR *open = opendir(folder);
    for (struct dirent *entry; open && (entry = readdir(open));) {
        char path[400];
        if (entry->d_name[0] == '.' && (!entry->d_name[1] || entry->d_name[1] == '.')) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (remove(path) != 0) perror(path);
    }
    if (open) closedir(open);
    rmdir(folder);
}

const char *temporary_root(void) {
    const char *where = getenv("TMPDIR");
    return where && where[0] == '/' && strlen(where) < 32 ? where : "/tmp";
}

const char *scratch(const char *name) {
    static char path[8][400];
    static int  next;
    if (owner != getpid()) {
        owner = getpid();
        snprintf(folder, sizeof folder, "%s/weft-test-XXXXXX", temporary_root());
        if (!mkdtemp(folder)) abort();
        atexit(remove_folder);
    }
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

void write_file(const char *path, const void *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) abort();
}

uint8_t *read_file(const char *path, size_t *count_out) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    struct stat facts;
    if (fstat(fileno(file), &facts) != 0) abort();
    uint8_t *bytes = malloc((size_t)facts.st_size + 1);
    if (!bytes || fread(bytes, 1, (size_t)facts.st_size, file) != (size_t)facts.st_size) abort();
    bytes[facts.st_size] = 0;
    fclose(file);
    if (count_out) *count_out = (size_t)facts.st_size;
    return bytes;
}

bool exists(const char *path) { return access(path, F_OK) == 0; }

int scratch_files(void) {
    int  count = 0;
    DIR *open = opendir(folder);
    for (struct dirent *entry; open && (entry = readdir(open));)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    if (open) closedir(open);
    return count;
}

bool message_has(const char *part) { return strstr(weft_error_message(), part) != NULL; }

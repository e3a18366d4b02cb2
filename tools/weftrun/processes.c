/* Finds and signals everything that lives below this process, whatever process group or session it moved to.
 *
 * /proc is read in one sweep; a process that is born during it is missed, so whoever must be sure sweeps until waitpid
 * finds no child. Cost: one small file a process of the machine. */
#include "weftrun.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct process {
    pid_t pid, parent, group;
} process;

/* Reads the three ids from /proc/PID/stat. The name in it may hold anything, so what counts is after its last ')'. */
static bool read_process(const char *pid, process *process_out) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return false;
    text[got] = '\0';
    const char *after = strrchr(text, ')');
    int parent, group;
    if (!after || sscanf(after + 1, " %*c %d %d", &parent, &group) != 2) return false;
    *process_out = (process){.pid = atoi(pid), .parent = parent, .group = group};
    return true;
}

void weftrun_signal_descendants(int number, const pid_t *spare, int spared) {
    DIR *proc = opendir("/proc");
    if (!proc) return;
    size_t count = 0, capacity = 0;
    process *all = NULL;
    struct dirent *entry;
    while ((entry = readdir(proc))) {
        process one;
        if (!isdigit((unsigned char)entry->d_name[0]) || !read_process(entry->d_name, &one)) continue;
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            process *grown = realloc(all, capacity * sizeof *all);
            if (!grown) break;
            all = grown;
        }
        all[count++] = one;
    }
    closedir(proc);
    for (size_t i = 0; i < count; ++i) {
        pid_t ancestor = all[i].parent;
        for (int depth = 0; ancestor > 1 && ancestor != getpid() && depth < 1000; ++depth) {
            size_t j = 0;
            while (j < count && all[j].pid != ancestor) ++j;
            ancestor = j < count ? all[j].parent : 0;
        }
        bool skip = ancestor != getpid();
        for (int s = 0; s < spared; ++s) skip = skip || (spare[s] > 0 && spare[s] == all[i].group);
        if (!skip) kill(all[i].pid, number);
    }
    free(all);
}

#include "ranks.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t ranks_now(void) { return wefti_host_now(wefti_host_system()); }

void ranks_pick_store(char store_out[64]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          length = sizeof address;
    int                holder = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    /* Stays bound until the test ends: else another test's wire could be given the port before rank 0 takes it. The flag,
     * which rank 0 sets too, lets it listen there all the same. */
    setsockopt(holder, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    cr_assert(bind(holder, (struct sockaddr *)&address, length) == 0);
    getsockname(holder, (struct sockaddr *)&address, &length);
    snprintf(store_out, 64, "127.0.0.1:%d", ntohs(address.sin_port));
}

static _Noreturn void run(ranks *all, int32_t rank, rank_function function) {
    char number[16];
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* also a stopped one goes when the test ends */
    alarm(90);
    snprintf(number, sizeof number, "%d", (int)rank);
    setenv("WEFT_RANK", number, 0);
    snprintf(number, sizeof number, "%d", (int)all->size);
    setenv("WEFT_WORLD_SIZE", number, 0);
    setenv("WEFT_STORE", all->store, 0);
    setenv("WEFT_JOB", "a test", 0);
    rank_result *result = &all->results[rank];
    result->fault_rank = -1;
    result->status = function(all, rank);
    if (result->status != WEFT_OK) snprintf(result->message, sizeof result->message, "%s", weft_error_message());
    result->at_ns = ranks_now();
    atomic_store(&result->finished, 1);
    _exit(0);
}

ranks *ranks_start(int32_t size, rank_function function) {
    ranks *all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(all, MAP_FAILED);
    all->size = size;
    ranks_pick_store(all->store);
    for (int32_t rank = 0; rank < size; rank++) {
        pid_t child = fork(); /* not straight into what the child shares, which would write its 0 there */
        if (child == 0) run(all, rank, function);
        cr_assert(child > 0);
        all->children[rank] = child;
    }
    return all;
}

void ranks_join(ranks *all) {
    uint64_t until_ns = ranks_now() + 60 * WEFTI_SECOND_NS;
    for (int32_t rank = 0; rank < all->size; rank++) {
        int status = 0;
        pid_t ended;
        while ((ended = waitpid(all->children[rank], &status, WNOHANG)) == 0) {
            if (ranks_now() > until_ns) kill(all->children[rank], SIGKILL);
            struct timespec pause = {0, 1000 * 1000};
            nanosleep(&pause, NULL);
        }
        cr_assert_eq(ended, all->children[rank], "%s", strerror(errno));
        cr_expect(!WIFSIGNALED(status) || WTERMSIG(status) == SIGKILL, "rank %d ended by signal %d", (int)rank,
                  WTERMSIG(status));
        cr_expect(!WIFEXITED(status) || WEXITSTATUS(status) == 0, "rank %d exited with %d", (int)rank, WEXITSTATUS(status));
    }
    cr_assert(ranks_now() < until_ns, "a rank hung");
}

void ranks_free(ranks *all) { munmap(all, sizeof *all); }

void ranks_wait_ready(ranks *all, int32_t count) {
    uint64_t until_ns = ranks_now() + 30 * WEFTI_SECOND_NS;
    while (atomic_load(&all->ready) < count) {
        cr_assert(ranks_now() < until_ns, "%d of %d ranks came to the point; rank 0 says: %s", (int)atomic_load(&all->ready),
                  (int)count, all->results[0].message);
        struct timespec pause = {0, 200 * 1000};
        nanosleep(&pause, NULL);
    }
}

static bool has_socket(pid_t process, unsigned long inode) {
    char folder[64], name[64], wanted[64];
    snprintf(folder, sizeof folder, "/proc/%d/fd", (int)process);
    snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
    DIR *list = opendir(folder);
    bool found = false;
    for (struct dirent *entry; list && !found && (entry = readdir(list));) {
        char    path[400];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        ssize_t length = readlink(path, name, sizeof name - 1);
        name[length > 0 ? length : 0] = 0;
        found = strcmp(name, wanted) == 0;
    }
    if (list) closedir(list);
    return found;
}

int ranks_find_ports(const ranks *all, uint16_t *ports_out, int most) {
    char  line[400];
    int   count = 0;
    FILE *table = fopen("/proc/net/tcp", "r");
    cr_assert_not_null(table);
    while (fgets(line, sizeof line, table)) {
        unsigned      number, state;
        unsigned long inode;
        if (sscanf(line, "%*d: %*x:%x %*x:%*x %x %*s %*s %*s %*d %*d %lu", &number, &state, &inode) != 3 || state != 0x0a) continue;
        for (int32_t rank = 0; rank < all->size && count < most; rank++)
            if (has_socket(all->children[rank], inode)) {
                ports_out[count++] = (uint16_t)number;
                break;
            }
    }
    fclose(table);
    return count;
}

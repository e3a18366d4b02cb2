/* In the place of libc's calls that change files: where RUN_DISK_DIES=RANK:N says so, that rank ends in the middle of its N-th one behind disk_count. A write has
 * then left half of its bytes, and the others nothing yet: what comes after a call is what comes before the next. What is read is counted. */
#ifndef TESTS_TRAIN_MORTAL_DISK_H
#define TESTS_TRAIN_MORTAL_DISK_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int disk_left = -1; /* calls until the last; negative: there is none */

static void disk_count(int rank) {
    const char *text = getenv("RUN_DISK_DIES");
    int         who, call;
    if (text && sscanf(text, "%d:%d", &who, &call) == 2 && who == rank) disk_left = call;
}

static int disk_is_last(void) { return disk_left > 0 && --disk_left == 0; }

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    if (!disk_is_last()) return syscall(SYS_pwrite64, descriptor, bytes, count, offset);
    (void)!syscall(SYS_pwrite64, descriptor, bytes, count / 2, offset);
    return raise(SIGKILL);
}
static long long disk_read_bytes;

ssize_t pread(int descriptor, void *bytes, size_t count, off_t offset) {
    ssize_t done = syscall(SYS_pread64, descriptor, bytes, count, offset);
    if (done > 0) disk_read_bytes += done;
    return done;
}
int fsync(int descriptor) {
    if (disk_is_last()) raise(SIGKILL);
    return (int)syscall(SYS_fsync, descriptor);
}
int rename(const char *from, const char *to) {
    if (disk_is_last()) raise(SIGKILL);
    return (int)syscall(SYS_renameat2, -100 /* AT_FDCWD */, from, -100, to, 0);
}
int unlinkat(int folder, const char *path, int flags) {
    if (disk_is_last()) raise(SIGKILL);
    return (int)syscall(SYS_unlinkat, folder, path, flags);
}

#endif

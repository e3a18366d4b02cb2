/* Atomic files: whatever call fails, the old file stays and nothing else is left. The system's calls are wrapped at link
 * time, so that each can be made to fail at its n-th use. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/files.h"
#include "io/sink.h"
#include "weft/safetensors.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

/* Which call is to fail, after how many good ones, with what; short_writes makes pwrite take one byte at a time. */
static struct {
    const char *call;
    int         after, error;
    bool        short_writes, interrupted;
} fault;

static bool fails(const char *call) {
    if (!fault.call || strcmp(fault.call, call) != 0) return false;
    if (fault.after-- != 0) return false;
    errno = fault.error;
    return true;
}

ssize_t __real_pwrite(int descriptor, const void *bytes, size_t count, off_t offset);
int     __real_fsync(int descriptor);
int     __real_rename(const char *from, const char *to);
int     __real_ftruncate(int descriptor, off_t length);
int     __real_fchmod(int descriptor, mode_t mode);
ssize_t __wrap_pwrite(int descriptor, const void *bytes, size_t count, off_t offset);
int     __wrap_fsync(int descriptor);
int     __wrap_rename(const char *from, const char *to);
int     __wrap_ftruncate(int descriptor, off_t length);
int     __wrap_fchmod(int descriptor, mode_t mode);

ssize_t __wrap_pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    if (fails("pwrite")) return fault.error ? -1 : 0;
    if (fault.interrupted && (fault.after ^= 1)) {
        errno = EINTR;
        return -1;
    }
    return __real_pwrite(descriptor, bytes, fault.short_writes && count > 1 ? 1 + count / 3 : count, offset);
}
int __wrap_fsync(int descriptor) { return fails("fsync") ? -1 : __real_fsync(descriptor); }
int __wrap_rename(const char *from, const char *to) { return fails("rename") ? -1 : __real_rename(from, to); }
int __wrap_ftruncate(int descriptor, off_t length) { return fails("ftruncate") ? -1 : __real_ftruncate(descriptor, length); }
int __wrap_fchmod(int descriptor, mode_t mode) { return fails("fchmod") ? -1 : __real_fchmod(descriptor, mode); }

static weft_status save(const char *path, const char *contents) {
    wefti_sink *sink = NULL;
    weft_status status = wefti_sink_create(path, &sink);
    if (status == WEFT_OK) status = wefti_sink_append(sink, contents, strlen(contents));
    if (status == WEFT_OK) status = wefti_sink_commit(sink);
    wefti_sink_release(sink);
    return status;
}

static void expect(const char *path, const char *contents) {
    size_t   count;
    uint8_t *bytes = read_file(path, &count);
    cr_assert_not_null(bytes, "%s is gone", path);
    cr_assert_str_eq((const char *)bytes, contents);
    free(bytes);
}

Test(sink, replaces_the_file_and_keeps_its_mode) {
    const char *path = scratch("f");
    struct stat facts;
    OK(save(path, "old"));
    expect(path, "old");
    chmod(path, 0640);
    OK(save(path, "new"));
    expect(path, "new");
    cr_assert_eq(stat(path, &facts), 0);
    cr_assert_eq(facts.st_mode & 07777, 0640u);
    cr_assert_eq(scratch_files(), 1);
}

Test(sink, leaves_the_old_file_whatever_fails) {
    const struct {
        const char *call;
        int         error;
        weft_status status;
    } cases[] = {{"pwrite", ENOSPC, WEFT_E_NO_SPACE}, {"pwrite", EIO, WEFT_E_IO},       {"pwrite", EDQUOT, WEFT_E_NO_SPACE},
                 {"pwrite", 0, WEFT_E_NO_SPACE},      {"fsync", EIO, WEFT_E_IO},        {"fsync", ENOSPC, WEFT_E_NO_SPACE},
                 {"rename", EACCES, WEFT_E_IO},       {"ftruncate", EIO, WEFT_E_IO},    {"fchmod", EPERM, WEFT_E_IO}};
    const char *path = scratch("f");
    OK(save(path, "old"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fault.call = cases[i].call;
        fault.error = cases[i].error;
        fault.after = 0;
        cr_assert_eq(save(path, "new"), cases[i].status, "%s with errno %d: %s", fault.call, fault.error, weft_error_message());
        cr_assert(message_has("left as it was") && message_has(path), "%s", weft_error_message());
        fault.call = NULL;
        expect(path, "old");
        cr_assert_eq(scratch_files(), 1, "%s left something behind", cases[i].call);
    }
    OK(save(path, "new"));
}

Test(sink, says_when_only_the_folder_was_not_synced) {
    const char *path = scratch("f");
    fault.call = "fsync";
    fault.after = 1;
    fault.error = EIO;
    cr_assert_eq(save(path, "new"), WEFT_E_IO);
    cr_assert(message_has("is written, but"), "%s", weft_error_message());
    expect(path, "new");
    fault.after = 1;
    fault.error = EINVAL;
    OK(save(path, "newer"));
}

Test(sink, goes_on_after_short_and_interrupted_writes) {
    const char *path = scratch("f");
    char       *large = malloc(300001);
    memset(large, 'x', 300000);
    large[300000] = 0;
    fault.short_writes = true;
    OK(save(path, large));
    expect(path, large);
    fault.interrupted = true;
    OK(save(path, "short"));
    expect(path, "short");
    free(large);
}

Test(sink, writes_nothing_after_a_failure) {
    const char *path = scratch("f");
    wefti_sink *sink = NULL;
    OK(wefti_sink_create(path, &sink));
    fault.call = "pwrite";
    fault.error = ENOSPC;
    cr_assert_eq(wefti_sink_write_at(sink, 0, "a", 1), WEFT_E_NO_SPACE);
    fault.call = NULL;
    cr_assert_eq(wefti_sink_write_at(sink, 0, "a", 1), WEFT_E_STATE);
    cr_assert_eq(wefti_sink_commit(sink), WEFT_E_STATE);
    wefti_sink_release(sink);
    cr_assert_not(exists(path));
    cr_assert_eq(scratch_files(), 0);
}

Test(sink, refuses_paths_that_cannot_be_files) {
    cr_assert_eq(save("/nonexistent/f", "x"), WEFT_E_NOT_FOUND);
    cr_assert(message_has("/nonexistent/f"), "%s", weft_error_message());
    cr_assert_eq(save("/tmp", "x"), WEFT_E_INVALID);
    cr_assert_eq(save("/tmp/", "x"), WEFT_E_INVALID);
    cr_assert_eq(save("/nonexistent/", "x"), WEFT_E_INVALID);
    cr_assert_eq(save("", "x"), WEFT_E_INVALID);
    cr_assert_eq(save(NULL, "x"), WEFT_E_INVALID);
    cr_assert_eq(save("/dev/null", "x"), WEFT_E_INVALID);
    cr_assert(exists("/dev/null"));
    cr_assert_eq(save("/proc/f", "x"), WEFT_E_NOT_FOUND, "%s", weft_error_message());
    char longest[300];
    memset(longest, 'n', sizeof longest);
    longest[299] = 0;
    cr_assert_eq(save(scratch(longest), "x"), WEFT_E_IO);
}

/* As an ordinary user, also where the tests run as root. */
Test(sink, refuses_an_unwritable_folder) {
    const char *folder = scratch("locked");
    char        path[512], above[512];
    snprintf(above, sizeof above, "%s/..", folder);
    snprintf(path, sizeof path, "%s/f", folder);
    cr_assert_eq(mkdir(folder, 0755), 0);
    OK(save(path, "old"));
    chmod(above, 0755);
    chmod(folder, 0555);
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) _exit(9);
        weft_status status = save(path, "new");
        _exit(status == WEFT_E_IO && message_has("Permission denied") ? 0 : 1);
    }
    int state = 0;
    waitpid(child, &state, 0);
    chmod(folder, 0755);
    expect(path, "old");
    remove(path);
    cr_assert_eq(state, 0, "the child ended with 0x%x", (unsigned)state);
}

Test(sink, follows_a_symbolic_link) {
    const char *real = scratch("real"), *link = scratch("link");
    struct stat facts;
    OK(save(real, "old"));
    cr_assert_eq(symlink(real, link), 0);
    OK(save(link, "new"));
    expect(real, "new");
    cr_assert_eq(lstat(link, &facts), 0);
    cr_assert(S_ISLNK(facts.st_mode));
}

Test(sink, refuses_a_second_writer_and_uses_a_dead_ones_leftover) {
    const char *path = scratch("f");
    wefti_sink *first = NULL, *second = NULL;
    OK(wefti_sink_create(path, &first));
    cr_assert_eq(wefti_sink_create(path, &second), WEFT_E_STATE);
    cr_assert(message_has("being written"), "%s", weft_error_message());
    wefti_sink_release(first);
    pid_t child = fork();
    if (child == 0) { /* killed in the middle of saving */
        if (wefti_sink_create(path, &first) == WEFT_OK && wefti_sink_write_at(first, 0, "half of a long file", 19) == WEFT_OK)
            raise(SIGKILL);
        _exit(1);
    }
    int state = 0;
    waitpid(child, &state, 0);
    cr_assert(WIFSIGNALED(state));
    cr_assert_eq(scratch_files(), 1);
    OK(save(path, "whole"));
    expect(path, "whole");
    cr_assert_eq(scratch_files(), 1);
}

/* The system itself refuses to let the file grow. */
Test(sink, survives_a_full_disk_in_the_middle_of_a_checkpoint) {
    const char *path = scratch("model.safetensors");
    OK(save(path, "the last good one"));
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){100000, 100000});
        weft_safetensors_writer *writer = NULL;
        static float             data[100000];
        if (weft_safetensors_writer_create(path, &writer) != WEFT_OK ||
            weft_safetensors_writer_add(writer, "w", WEFT_F32, weft_shape(100000)) != WEFT_OK)
            _exit(2);
        weft_status status = weft_safetensors_writer_write(writer, "w", data, sizeof data);
        bool        named = message_has("left as it was");
        if (status == WEFT_OK || !named || weft_safetensors_writer_commit(writer) != WEFT_E_STATE) _exit(3);
        weft_safetensors_writer_release(writer);
        _exit(0);
    }
    int state = 0;
    waitpid(child, &state, 0);
    cr_assert_eq(state, 0, "the child ended with 0x%x", (unsigned)state);
    expect(path, "the last good one");
    cr_assert_eq(scratch_files(), 1);
}

/* A small file system that is really full, where the tests may mount one. */
Test(sink, survives_a_full_file_system) {
    const char *folder = scratch("tiny");
    char        command[600], path[512];
    mkdir(folder, 0755);
    snprintf(command, sizeof command, "mount -t tmpfs -o size=64k tmpfs %s 2>/dev/null", folder);
    snprintf(path, sizeof path, "%s/f", folder);
    if (geteuid() != 0 || system(command) != 0) cr_skip_test("needs the right to mount");
    char *large = malloc(200001);
    memset(large, 'x', 200000);
    large[200000] = 0;
    weft_status first = save(path, "old"), second = save(path, large);
    bool        named = message_has("No space left");
    size_t      count = 0;
    uint8_t    *bytes = read_file(path, &count);
    snprintf(command, sizeof command, "ls -A %s | wc -l | grep -qx 1", folder);
    int alone = system(command);
    snprintf(command, sizeof command, "umount %s", folder);
    int unmounted = system(command);
    cr_assert_eq(first, WEFT_OK);
    cr_assert_eq(second, WEFT_E_NO_SPACE);
    cr_assert(named && count == 3 && memcmp(bytes, "old", 3) == 0 && alone == 0 && unmounted == 0);
    free(bytes);
    free(large);
}

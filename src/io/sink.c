/* Atomic files: write aside, sync, rename, sync the folder.
 *
 * Invariants: `path` holds the old contents until the rename and the new ones after it; any failure before leaves it
 * alone and release removes the hidden file. After a failure nothing more is written and commit refuses.
 * The hidden file has one name for each path, so that killed writers leave at most one file; the lock (which the kernel
 * drops with its holder) tells a dead leftover from a living writer. Cost: a buffer of 64 KiB. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/sink.h"

enum { buffer_bytes = 1 << 16 };

struct wefti_sink {
    char    *path, *hidden, *folder;
    int      descriptor;
    bool     failed, committed;
    uint64_t offset; /* in the file, of the buffer's first byte */
    size_t   buffered;
    uint8_t *buffer;
};

static weft_status fail_writing(wefti_sink *sink, const char *doing) {
    sink->failed = true;
    return wefti_fail_errno("%s '%s' failed and the file was left as it was", doing, sink->path);
}

static weft_status write_fully(wefti_sink *sink, uint64_t offset, const uint8_t *bytes, size_t count) {
    if (sink->failed || sink->committed)
        return wefti_fail(WEFT_E_STATE, "writing '%s' has %s; begin again", sink->path,
                          sink->committed ? "been finished" : "failed before");
    while (count > 0) {
        ssize_t done = pwrite(sink->descriptor, bytes, count, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done == 0) errno = ENOSPC;
        if (done <= 0) return fail_writing(sink, "writing");
        bytes += done;
        offset += (uint64_t)done;
        count -= (size_t)done;
    }
    return WEFT_OK;
}

static weft_status flush(wefti_sink *sink) {
    WEFTI_TRY(write_fully(sink, sink->offset, sink->buffer, sink->buffered));
    sink->offset += sink->buffered;
    sink->buffered = 0;
    return WEFT_OK;
}

weft_status wefti_sink_append(wefti_sink *sink, const void *bytes, size_t count) {
    if (count >= buffer_bytes - sink->buffered) WEFTI_TRY(flush(sink));
    if (count >= buffer_bytes) {
        WEFTI_TRY(write_fully(sink, sink->offset, bytes, count));
        sink->offset += count;
        return WEFT_OK;
    }
    if (count > 0) memcpy(sink->buffer + sink->buffered, bytes, count);
    sink->buffered += count;
    return WEFT_OK;
}

weft_status wefti_sink_write_at(wefti_sink *sink, uint64_t offset, const void *bytes, size_t count) {
    return write_fully(sink, offset, bytes, count);
}

/* Makes the three paths: what is written, its folder, and the hidden file's. */
static weft_status name_paths(wefti_sink *sink, const char *path, bool *there_out, mode_t *mode_out) {
    struct stat facts;
    char        real[PATH_MAX];
    if (!path || !*path) return wefti_fail(WEFT_E_INVALID, "no path of a file to write was given");
    *there_out = stat(path, &facts) == 0;
    if (*there_out && !S_ISREG(facts.st_mode))
        return wefti_fail(WEFT_E_INVALID, "'%s' is %s, not a regular file; it is not replaced", path,
                          S_ISDIR(facts.st_mode) ? "a folder" : "a pipe, socket or device");
    if (*there_out && !realpath(path, real)) return wefti_fail_errno("cannot resolve '%s'", path);
    if (*there_out) *mode_out = facts.st_mode & 07777;
    WEFTI_TRY(wefti_copy_string(*there_out ? real : path, &sink->path));
    const char *slash = strrchr(sink->path, '/'), *name = slash ? slash + 1 : sink->path;
    size_t      folder_bytes = slash ? (size_t)(slash - sink->path) : 0;
    if (!*name) return wefti_fail(WEFT_E_INVALID, "'%s' ends in '/'; expected the path of a file", path);
    size_t bytes = strlen(sink->path) + sizeof ".." ".weft-partial" + 2;
    WEFTI_TRY(wefti_alloc(bytes, "a path", &sink->hidden));
    snprintf(sink->hidden, bytes, "%.*s%s.%s.weft-partial", (int)folder_bytes, sink->path, slash ? "/" : "", name);
    char folder[PATH_MAX + 2];
    snprintf(folder, sizeof folder, "%.*s", (int)folder_bytes, sink->path);
    return wefti_copy_string(!slash ? "." : folder_bytes == 0 ? "/" : folder, &sink->folder);
}

/* One try to get the hidden file to ourselves; *descriptor stays -1 where somebody renamed it in between. */
static weft_status open_hidden_once(wefti_sink *sink) {
    struct stat opened, named;
    int         descriptor = open(sink->hidden, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (descriptor < 0) return wefti_fail_errno("cannot write '%s' (as '%s')", sink->path, sink->hidden);
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        close(descriptor);
        return wefti_fail(WEFT_E_STATE, "'%s' is being written by another process or thread", sink->path);
    }
    if (fstat(descriptor, &opened) != 0 || !S_ISREG(opened.st_mode)) {
        close(descriptor);
        return wefti_fail(WEFT_E_INVALID, "cannot write '%s': '%s' is in the way", sink->path, sink->hidden);
    }
    if (stat(sink->hidden, &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev)
        sink->descriptor = descriptor;
    else close(descriptor);
    return WEFT_OK;
}

static weft_status open_hidden(wefti_sink *sink, bool there, mode_t mode) {
    for (int attempt = 0; attempt < 16 && sink->descriptor < 0; attempt++) WEFTI_TRY(open_hidden_once(sink));
    if (sink->descriptor < 0)
        return wefti_fail(WEFT_E_STATE, "'%s' is being written by many at once", sink->path);
    if (ftruncate(sink->descriptor, 0) != 0) return fail_writing(sink, "beginning");
    if (there && fchmod(sink->descriptor, mode) != 0) return fail_writing(sink, "keeping the mode of");
    return WEFT_OK;
}

weft_status wefti_sink_create(const char *path, wefti_sink **sink_out) {
    wefti_sink *sink = NULL;
    weft_status status;
    bool        there = false;
    mode_t      mode = 0;
    *sink_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *sink, "a file writer", &sink));
    sink->descriptor = -1;
    WEFTI_TRY_GOTO(name_paths(sink, path, &there, &mode), fail);
    WEFTI_TRY_GOTO(wefti_alloc_raw(buffer_bytes, WEFTI_CACHE_LINE, "a write buffer", &sink->buffer), fail);
    WEFTI_TRY_GOTO(open_hidden(sink, there, mode), fail);
    *sink_out = sink;
    return WEFT_OK;
fail:
    wefti_sink_release(sink);
    return status;
}

static weft_status sync_folder(const wefti_sink *sink) {
    int descriptor = open(sink->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return wefti_fail_errno("'%s' is written, but its folder cannot be synced", sink->path);
    weft_status status = WEFT_OK;
    /* Some file systems have no sync of folders and say EINVAL. */
    if (fsync(descriptor) != 0 && errno != EINVAL)
        status = wefti_fail_errno("'%s' is written, but syncing its folder failed", sink->path);
    close(descriptor);
    return status;
}

weft_status wefti_sink_commit(wefti_sink *sink) {
    WEFTI_TRY(flush(sink));
    if (fsync(sink->descriptor) != 0) return fail_writing(sink, "syncing");
    if (rename(sink->hidden, sink->path) != 0) return fail_writing(sink, "renaming to");
    sink->committed = true;
    return sync_folder(sink);
}

void wefti_sink_release(wefti_sink *sink) {
    if (!sink) return;
    if (sink->descriptor >= 0) {
        if (!sink->committed) unlink(sink->hidden); /* while the lock is held, so it is surely ours */
        close(sink->descriptor);
    }
    if (sink->buffer) wefti_free(sink->buffer, buffer_bytes);
    if (sink->hidden) wefti_free(sink->hidden, strlen(sink->path) + sizeof ".." ".weft-partial" + 2);
    wefti_free_string(sink->path);
    wefti_free_string(sink->folder);
    wefti_free(sink, sizeof *sink);
}

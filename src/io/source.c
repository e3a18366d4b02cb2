/* Streams of bytes from plain and gzip files.
 *
 * Idea: one buffer of file bytes; a plain file is copied out of it (or read straight to the caller when the read is
 * large), a gzip file is inflated out of it. Several gzip members after each other are one stream, as gzip itself has it.
 * Invariants: `file_offset` counts the bytes taken from the file, `buffered` of which are still unused; an error latches.
 * Cost: one buffer of 64 KiB, and zlib's window of 32 KiB with about 10 KiB of tables for gzip. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef WEFTI_HAVE_ZLIB
#include <zlib.h>
#endif

#include "io/source.h"

enum { buffer_bytes = 1 << 16 };

struct wefti_source {
    char    *path;
    int      descriptor;
    bool     compressed, ended, failed;
    uint64_t file_bytes;  /* at the time of opening */
    uint64_t file_offset; /* bytes read from the file so far */
    uint64_t offset;      /* bytes handed out so far */
    uint8_t *buffer;
    size_t   begin, end; /* unused bytes of the buffer */
#ifdef WEFTI_HAVE_ZLIB
    z_stream inflater;
    bool     inflating;
#endif
};

weft_status wefti_open_regular(const char *path, int *descriptor_out, uint64_t *bytes_out) {
    *descriptor_out = -1;
    if (!path || !*path) return wefti_fail(WEFT_E_INVALID, "no path of a file to read was given");
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return wefti_fail_errno("cannot open '%s' for reading", path);
    struct stat facts;
    if (fstat(descriptor, &facts) != 0) {
        weft_status status = wefti_fail_errno("cannot look at '%s'", path);
        close(descriptor);
        return status;
    }
    if (!S_ISREG(facts.st_mode)) {
        close(descriptor);
        return wefti_fail(WEFT_E_INVALID, "'%s' is %s, not a regular file", path,
                          S_ISDIR(facts.st_mode) ? "a folder" : "a pipe, socket or device");
    }
    *descriptor_out = descriptor;
    *bytes_out = (uint64_t)facts.st_size;
    return WEFT_OK;
}

weft_status wefti_read_at(int descriptor, const char *path, uint64_t offset, void *out, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(descriptor, (uint8_t *)out + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return wefti_fail_errno("cannot read %zu bytes at offset %llu of '%s'", bytes,
                                             (unsigned long long)offset, path);
        if (got == 0)
            return wefti_fail(WEFT_E_CORRUPT, "'%s' ends at offset %llu, where %zu more bytes were expected", path,
                              (unsigned long long)(offset + done), bytes - done);
        done += (size_t)got;
    }
    return WEFT_OK;
}

/* Reads what the file gives, up to `bytes`; 0 at its end. */
static weft_status read_some(wefti_source *source, void *out, size_t bytes, size_t *read_out) {
    ssize_t got;
    do got = read(source->descriptor, out, bytes);
    while (got < 0 && errno == EINTR);
    if (got < 0) {
        source->failed = true;
        return wefti_fail_errno("cannot read '%s' at offset %llu", source->path,
                                (unsigned long long)source->file_offset);
    }
    source->file_offset += (uint64_t)got;
    *read_out = (size_t)got;
    return WEFT_OK;
}

static weft_status refill(wefti_source *source) {
    size_t got = 0;
    WEFTI_TRY(read_some(source, source->buffer, buffer_bytes, &got));
    source->begin = 0;
    source->end = got;
    return WEFT_OK;
}

#ifdef WEFTI_HAVE_ZLIB
/* zlib frees without saying how much, our hook wants to know: the size goes before the memory. */
static void *inflate_allocate(void *context, unsigned count, unsigned size) {
    (void)context;
    size_t   bytes = (size_t)count * size + WEFTI_CACHE_LINE;
    uint8_t *memory = NULL;
    if (wefti_alloc(bytes, "inflating a gzip file", &memory) != WEFT_OK) return NULL;
    memcpy(memory, &bytes, sizeof bytes);
    return memory + WEFTI_CACHE_LINE;
}

static void inflate_release(void *context, void *memory) {
    (void)context;
    uint8_t *begin = (uint8_t *)memory - WEFTI_CACHE_LINE;
    size_t   bytes;
    memcpy(&bytes, begin, sizeof bytes);
    wefti_free(begin, bytes);
}

static weft_status inflate_start(wefti_source *source) {
    source->inflater = (z_stream){.zalloc = inflate_allocate, .zfree = inflate_release};
    if (inflateInit2(&source->inflater, 15 + 16) != Z_OK)
        return wefti_fail(WEFT_E_NO_MEMORY, "'%s': no memory for inflating gzip", source->path);
    source->inflating = true;
    return WEFT_OK;
}

static weft_status inflate_fail(wefti_source *source, const char *why) {
    source->failed = true;
    return wefti_fail(WEFT_E_CORRUPT, "'%s': gzip stream is damaged near file offset %llu (after %llu bytes uncompressed): %s",
                      source->path, (unsigned long long)(source->file_offset - (source->end - source->begin)),
                      (unsigned long long)source->offset, why);
}

/* After a member: the end of the file, or another member, which must begin with gzip's magic. */
static weft_status inflate_next_member(wefti_source *source) {
    uint8_t magic[2] = {0, 0};
    size_t  have = 0;
    while (have < 2) {
        if (source->begin == source->end) WEFTI_TRY(refill(source));
        if (source->begin == source->end) break;
        magic[have++] = source->buffer[source->begin++];
    }
    if (have == 0) {
        source->ended = true;
        return WEFT_OK;
    }
    if (have < 2 || magic[0] != 0x1f || magic[1] != 0x8b) {
        source->begin = source->end;
        return inflate_fail(source, "bytes after the end that are not another gzip member");
    }
    if (inflateReset(&source->inflater) != Z_OK) return inflate_fail(source, "cannot begin another member");
    /* The two bytes of magic may have come from two buffers; hand them over first. */
    source->inflater.next_in = magic;
    source->inflater.avail_in = 2;
    source->inflater.next_out = magic;
    source->inflater.avail_out = 0;
    int code = inflate(&source->inflater, Z_NO_FLUSH);
    if (source->inflater.avail_in != 0 || (code != Z_OK && code != Z_BUF_ERROR))
        return inflate_fail(source, "cannot begin another member");
    return WEFT_OK;
}

static weft_status inflate_some(wefti_source *source, uint8_t *out, size_t bytes, size_t *read_out) {
    *read_out = 0;
    while (!source->ended && *read_out == 0) {
        if (source->begin == source->end) WEFTI_TRY(refill(source));
        if (source->begin == source->end) return inflate_fail(source, "the file is truncated");
        size_t room = bytes < 1u << 30 ? bytes : 1u << 30;
        source->inflater.next_in = source->buffer + source->begin;
        source->inflater.avail_in = (unsigned)(source->end - source->begin);
        source->inflater.next_out = out;
        source->inflater.avail_out = (unsigned)room;
        int code = inflate(&source->inflater, Z_NO_FLUSH);
        source->begin = source->end - source->inflater.avail_in;
        *read_out = room - source->inflater.avail_out;
        if (code == Z_STREAM_END) WEFTI_TRY(inflate_next_member(source));
        else if (code == Z_MEM_ERROR) {
            source->failed = true;
            return wefti_fail(WEFT_E_NO_MEMORY, "'%s': no memory for inflating gzip", source->path);
        } else if (code != Z_OK && code != Z_BUF_ERROR)
            return inflate_fail(source, source->inflater.msg ? source->inflater.msg : "unknown error");
    }
    return WEFT_OK;
}
#endif

/* Some bytes of the stream, at least one unless it has ended; `out` has room for `bytes` > 0. */
static weft_status stream_some(wefti_source *source, uint8_t *out, size_t bytes, size_t *read_out) {
    *read_out = 0;
    if (source->ended) return WEFT_OK;
#ifdef WEFTI_HAVE_ZLIB
    if (source->compressed) return inflate_some(source, out, bytes, read_out);
#endif
    if (source->begin == source->end) {
        if (bytes >= buffer_bytes) {
            WEFTI_TRY(read_some(source, out, bytes, read_out));
            source->ended = *read_out == 0;
            return WEFT_OK;
        }
        WEFTI_TRY(refill(source));
    }
    size_t have = source->end - source->begin;
    *read_out = have < bytes ? have : bytes;
    memcpy(out, source->buffer + source->begin, *read_out);
    source->begin += *read_out;
    source->ended = have == 0;
    return WEFT_OK;
}

weft_status wefti_source_read(wefti_source *source, void *out, size_t bytes, size_t *read_out) {
    *read_out = 0;
    if (source->failed) return wefti_fail(WEFT_E_STATE, "'%s' failed before; open it again", source->path);
    while (*read_out < bytes) {
        size_t got = 0;
        WEFTI_TRY(stream_some(source, (uint8_t *)out + *read_out, bytes - *read_out, &got));
        *read_out += got;
        source->offset += got;
        if (source->ended) break;
    }
    return WEFT_OK;
}

static weft_status detect(wefti_source *source) {
    WEFTI_TRY(refill(source));
    source->compressed = source->end >= 2 && source->buffer[0] == 0x1f && source->buffer[1] == 0x8b;
    if (!source->compressed) return WEFT_OK;
#ifdef WEFTI_HAVE_ZLIB
    return inflate_start(source);
#else
    return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' is a gzip file and Weft was built without zlib; unpack it with gunzip, "
                      "or install zlib1g-dev and build with -DWEFT_ZLIB=ON", source->path);
#endif
}

weft_status wefti_source_open(const char *path, wefti_source **source_out) {
    wefti_source *source = NULL;
    weft_status   status;
    *source_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *source, "a file reader", &source));
    source->descriptor = -1;
    WEFTI_TRY_GOTO(wefti_open_regular(path, &source->descriptor, &source->file_bytes), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &source->path), fail);
    WEFTI_TRY_GOTO(wefti_alloc_raw(buffer_bytes, WEFTI_CACHE_LINE, "a read buffer", &source->buffer), fail);
    WEFTI_TRY_GOTO(detect(source), fail);
    *source_out = source;
    return WEFT_OK;
fail:
    wefti_source_release(source);
    return status;
}

void wefti_source_release(wefti_source *source) {
    if (!source) return;
#ifdef WEFTI_HAVE_ZLIB
    if (source->inflating) inflateEnd(&source->inflater);
#endif
    if (source->descriptor >= 0) close(source->descriptor);
    if (source->buffer) wefti_free(source->buffer, buffer_bytes);
    wefti_free_string(source->path);
    wefti_free(source, sizeof *source);
}

const char *wefti_source_path(const wefti_source *source) { return source->path; }
bool        wefti_source_compressed(const wefti_source *source) { return source->compressed; }
uint64_t    wefti_source_offset(const wefti_source *source) { return source->offset; }
uint64_t    wefti_source_file_bytes(const wefti_source *source) { return source->file_bytes; }

uint64_t wefti_source_most_bytes(const wefti_source *source) {
    uint64_t most = source->file_bytes;
    if (source->compressed && __builtin_mul_overflow(most, (uint64_t)1032, &most)) most = UINT64_MAX;
    return most;
}

/* TensorBoard events: a record is its length, a checksum of that, the bytes, and a checksum of those; the bytes are a
 * protocol buffer that is written by hand, because only three of its messages are needed. A record is one write, and one that
 * does not fit is cut off again. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/base.h"
#include "io/hash.h"
#include "weft/tensorboard.h"

enum { most_tag_bytes = 1000, most_record_bytes = most_tag_bytes + 128 };

struct weft_tensorboard {
    char    *path;
    int      descriptor;
    uint64_t end; /* of the whole records in the file */
};

typedef struct record {
    uint8_t bytes[most_record_bytes];
    size_t  length;
} record;

static void put(record *to, const void *bytes, size_t count) {
    memcpy(to->bytes + to->length, bytes, count);
    to->length += count;
}

static void put_varint(record *to, uint64_t value) {
    do to->bytes[to->length++] = (uint8_t)(value & 127) | (value > 127 ? 128 : 0);
    while (value >>= 7);
}

/* A field's key: its number, and how its value is written (0 varint, 1 eight bytes, 2 length first, 5 four bytes). */
static void put_key(record *to, unsigned field, unsigned wire) { put_varint(to, field << 3 | wire); }

static void put_bytes(record *to, unsigned field, const void *bytes, size_t count) {
    put_key(to, field, 2);
    put_varint(to, count);
    put(to, bytes, count);
}

/* Event.wall_time = 1, Event.step = 2. */
static void begin_event(record *to, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    double seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    put_key(to, 1, 1);
    put(to, &seconds, sizeof seconds);
    put_key(to, 2, 0);
    put_varint(to, (uint64_t)step);
}

static uint32_t masked_crc(const void *bytes, size_t count) {
    uint32_t crc = wefti_crc32c(bytes, count);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static weft_status write_record(weft_tensorboard *writer, const record *event) {
    record   framed = {.length = 0};
    uint64_t length = event->length;
    uint32_t length_crc = masked_crc(&length, sizeof length), crc = masked_crc(event->bytes, event->length);
    size_t   done = 0;
    put(&framed, &length, sizeof length);
    put(&framed, &length_crc, sizeof length_crc);
    put(&framed, event->bytes, event->length);
    put(&framed, &crc, sizeof crc);
    while (done < framed.length) {
        ssize_t now = pwrite(writer->descriptor, framed.bytes + done, framed.length - done, (off_t)(writer->end + done));
        if (now < 0 && errno == EINTR) continue;
        if (now == 0) errno = ENOSPC;
        if (now <= 0) {
            weft_status status = wefti_fail_errno("cannot write TensorBoard events to '%s'", writer->path);
            if (ftruncate(writer->descriptor, (off_t)writer->end) != 0)
                return wefti_fail(status, "%s (and a part of the record may stay there)", weft_error_message());
            return status;
        }
        done += (size_t)now;
    }
    writer->end += done;
    return WEFT_OK;
}

/* Event.file_version = 3. */
static weft_status write_version(weft_tensorboard *writer) {
    record event = {.length = 0};
    begin_event(&event, 0);
    put_bytes(&event, 3, "brain.Event:2", 13);
    return write_record(writer, &event);
}

static weft_status create_file(weft_tensorboard *writer, const char *folder) {
    char       host[65] = "localhost";
    wefti_text path = {0};
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) return wefti_fail_errno("cannot make the folder '%s'", folder);
    if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "localhost");
    for (int number = 0; writer->descriptor < 0 && number < 1000; number++) {
        path.length = 0;
        wefti_text_add(&path, "%s/events.out.tfevents.%010lld.%s.%ld.%d", folder, (long long)time(NULL), host,
                       (long)getpid(), number);
        if (path.failed) break;
        writer->descriptor = open(path.bytes, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (writer->descriptor < 0 && errno != EEXIST) break;
    }
    weft_status status = path.failed             ? wefti_fail(WEFT_E_NO_MEMORY, "out of memory for a path in '%s'", folder)
                         : writer->descriptor < 0 ? wefti_fail_errno("cannot write TensorBoard events to '%s'", path.bytes)
                                                  : wefti_copy_string(path.bytes, &writer->path);
    wefti_text_release(&path);
    return status;
}

weft_status weft_tensorboard_open(const char *folder, weft_tensorboard **writer_out) {
    if (!folder || !*folder || !writer_out)
        return wefti_fail(WEFT_E_INVALID, "weft_tensorboard_open: needs a folder and a place for the writer");
    weft_tensorboard *writer = NULL;
    weft_status       status;
    *writer_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *writer, "a TensorBoard writer", &writer));
    writer->descriptor = -1;
    WEFTI_TRY_GOTO(create_file(writer, folder), fail);
    WEFTI_TRY_GOTO(write_version(writer), fail);
    *writer_out = writer;
    return WEFT_OK;
fail:
    weft_tensorboard_release(writer);
    return status;
}

/* Event.summary = 5 { value = 1 { tag = 1, simple_value = 2 } }. */
weft_status weft_tensorboard_scalar(weft_tensorboard *writer, const char *tag, int64_t step, double value) {
    if (!writer || !tag || !*tag || strlen(tag) > most_tag_bytes)
        return wefti_fail(WEFT_E_INVALID, "weft_tensorboard_scalar: needs a writer and a tag of 1 to %d bytes",
                          most_tag_bytes);
    record event = {.length = 0}, scalar = {.length = 0}, summary = {.length = 0};
    float  single = (float)value;
    put_bytes(&scalar, 1, tag, strlen(tag));
    put_key(&scalar, 2, 5);
    put(&scalar, &single, sizeof single);
    put_bytes(&summary, 1, scalar.bytes, scalar.length);
    begin_event(&event, step);
    put_bytes(&event, 5, summary.bytes, summary.length);
    return write_record(writer, &event);
}

void weft_tensorboard_release(weft_tensorboard *writer) {
    if (!writer) return;
    if (writer->descriptor >= 0) close(writer->descriptor);
    wefti_free_string(writer->path);
    wefti_free(writer, sizeof *writer);
}

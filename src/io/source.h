/* Reading files as a stream of bytes, plain or gzip alike, and text files by line. */
#ifndef WEFTI_SOURCE_H
#define WEFTI_SOURCE_H

#include "core/base/base.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file formats are read and written on little-endian hosts");

typedef struct wefti_source wefti_source;

/* Opens a regular file; gzip is told by its first two bytes. Anything that is not a regular file is refused, without
 * waiting on it (a pipe without a writer would block for ever). */
WEFT_MUST_CHECK weft_status wefti_source_open(const char *path, wefti_source **source_out);
/* Fills `out` with `bytes` bytes; *read_out is less only at the end of the stream. Reaching the end of a gzip stream
 * verifies its checksum. */
WEFT_MUST_CHECK weft_status wefti_source_read(wefti_source *source, void *out, size_t bytes, size_t *read_out);
void        wefti_source_release(wefti_source *source);
const char *wefti_source_path(const wefti_source *source);
bool        wefti_source_compressed(const wefti_source *source);
uint64_t    wefti_source_offset(const wefti_source *source);     /* bytes handed out, uncompressed */
uint64_t    wefti_source_file_bytes(const wefti_source *source); /* of the file as it lies there */
/* Most bytes that the stream can hold, from the file's length: deflate expands by less than 1032. */
uint64_t wefti_source_most_bytes(const wefti_source *source);

/* Opens a regular file for reading, for those who map it or read it at offsets. Same refusals as above. */
WEFT_MUST_CHECK weft_status wefti_open_regular(const char *path, int *descriptor_out, uint64_t *bytes_out);
/* Reads exactly `bytes` bytes at `offset`; WEFT_E_CORRUPT where the file ends before. */
WEFT_MUST_CHECK weft_status wefti_read_at(int descriptor, const char *path, uint64_t offset, void *out, size_t bytes);

/* Lines of a stream, without their "\n" or "\r\n", NUL-terminated in place; valid until the next call. */
typedef struct wefti_lines {
    wefti_source *source;
    char         *buffer;
    size_t        capacity, begin, end;
    size_t        longest_bytes; /* a longer line is refused */
    int64_t       number;        /* of the line last handed out, from 1 */
    bool          finished;
} wefti_lines;

WEFT_MUST_CHECK weft_status wefti_lines_open(const char *path, size_t longest_bytes, wefti_lines *lines_out);
/* WEFT_END after the last. A line with a NUL byte in it is refused. */
WEFT_MUST_CHECK weft_status wefti_lines_next(wefti_lines *lines, char **line_out, size_t *length_out);
void wefti_lines_close(wefti_lines *lines);

#endif

/* Memory that is bounded: pieces of which those that were used last stay in memory and the others lie in a file.
 *
 * Whoever owns the pieces numbers them, holds their memory, and says here what it does with them; the file, the order of use and the bound are kept here.
 * The file has no name any more once it is open, so nothing is left of it after a kill. Room in it is taken when pieces come or grow, as soon
 * as all of them are more than the bound: a full disk is told before anything has changed, and what is written later has its place. Extents of one
 * size are dealt out again to pieces of that size. A piece keeps its extent while it is in memory, and is not written again if it has not changed.
 *
 * Where a piece cannot be written all the same (a broken disk, one that copies what it overwrites), it stays in memory, beyond the bound, and
 * wefti_spill_settle says so before the next change. Cost: 24 bytes a piece, 8 an extent that is free. One thread at a time. */
#ifndef WEFTI_SERVER_SPILL_H
#define WEFTI_SERVER_SPILL_H

#include <sys/types.h>

#include "core/base/base.h"

typedef struct wefti_spill wefti_spill;

typedef struct wefti_spill_options {
    const char *folder, *name; /* of the table, for messages; it lives as long as this */
    size_t      most_bytes;    /* in memory; one piece is there always */
    void       *owner;
    void *(*memory_of)(void *owner, uint32_t piece, size_t *bytes_out); /* of one that is in memory */
    void  (*drop)(void *owner, uint32_t piece);                         /* it is in the file: its memory goes */
    ssize_t (*write)(int file, const void *bytes, size_t count, off_t at); /* NULL: the system's, as read. For tests of what fails */
    ssize_t (*read)(int file, void *bytes, size_t count, off_t at);
} wefti_spill_options;

/* WEFT_E_INVALID without a folder; WEFT_E_NOT_FOUND, WEFT_E_IO … where no file can be made in it. */
WEFT_MUST_CHECK weft_status wefti_spill_create(const wefti_spill_options *options, wefti_spill **spill_out);
void wefti_spill_release(wefti_spill *spill); /* NULL is fine; memory of pieces is the owner's */

/* So many pieces more, each of so many bytes, that are nowhere yet. WEFT_E_NO_SPACE and what else the file system says, with the bytes: there are none more. */
WEFT_MUST_CHECK weft_status wefti_spill_add(wefti_spill *spill, uint64_t pieces, size_t bytes_each);
/* A piece that is in memory, or of no bytes, gets so many bytes: to be called before it does, as it makes room for what is more. Fails with nothing
 * changed. With as many bytes as before, after that, it takes it back. */
WEFT_MUST_CHECK weft_status wefti_spill_resize(wefti_spill *spill, uint32_t piece, size_t bytes);
/* Room in memory for so many bytes that come; `must`: failures are kept for wefti_spill_settle. */
WEFT_MUST_CHECK weft_status wefti_spill_make_room(wefti_spill *spill, size_t bytes, bool must);
/* It is in memory from now on, and the one that was used last; `changes`: it is not as in the file. */
void wefti_spill_enter(wefti_spill *spill, uint32_t piece, bool changes);
void wefti_spill_touch(wefti_spill *spill, uint32_t piece, bool changes);
bool wefti_spill_is_saved(const wefti_spill *spill, uint32_t piece); /* there is something of it in the file */
/* Bytes of a piece from its byte `from` on, as they are in the file. */
WEFT_MUST_CHECK weft_status wefti_spill_load(wefti_spill *spill, uint32_t piece, size_t from, void *memory, size_t bytes);
/* Goes back below the bound, if a failure led beyond: that failure, where it still fails. */
WEFT_MUST_CHECK weft_status wefti_spill_settle(wefti_spill *spill);

typedef struct wefti_spill_counts {
    uint64_t total, resident; /* bytes of all pieces; of those in memory */
    uint64_t held;            /* bytes that this takes itself */
    uint64_t file;            /* bytes that the file has room for */
    uint64_t found, loaded, written; /* pieces: used that were in memory; read from the file; written to it */
} wefti_spill_counts;
void wefti_spill_count(const wefti_spill *spill, wefti_spill_counts *counts_out);

/* Memory of a file without a name in `folder`, so that it is no more than the system wants to keep of it in memory. WEFT_E_NO_SPACE with the bytes … */
WEFT_MUST_CHECK weft_status wefti_spill_map(const char *folder, const char *name, size_t bytes, void *memory_out);
void wefti_spill_rest(void *memory, size_t bytes); /* it may leave memory until it is used again; `memory` begins a page */
void wefti_spill_unmap(void *memory, size_t bytes);

#endif

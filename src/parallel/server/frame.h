/* What workers and servers say to each other.
 *
 * A request is a frame, with what it carries behind the frame in the same message where that is little, and else in messages of its own
 * under the request's tag: a list of keys, then values. A reply likewise. Numbers are little endian, as every machine that this library
 * is built for has them. Where a server maps a worker's memory, a frame says where values are instead of bringing them; a frame of another build or from a stranger is refused by its first bytes and its sizes. */
#ifndef WEFTI_SERVER_FRAME_H
#define WEFTI_SERVER_FRAME_H

#include "core/iface/wire.h"
#include "weft/server.h"

#define WEFTI_SERVER_MAGIC UINT32_C(0x39535057) /* "WPS9": the last is the protocol's version */
#define WEFTI_SERVER_BRIEF UINT16_C(0x3942)     /* "B9" */

enum {
    WEFTI_FRAME_BYTES = 4096,      /* of a request that is one message, frame included */
    WEFTI_REPLY_BYTES = 1024,      /* of a reply that is */
    WEFTI_SERVER_TEXT_BYTES = 640, /* of an error's message */
    WEFTI_ALL_WORKERS = 4096       /* ranks that a server knows */
};

typedef enum wefti_frame_kind {
    WEFTI_SERVER_CREATE, /* body: a specification. Takes part in a table, which is made where it is not there */
    WEFTI_SERVER_OPEN,   /* body: a specification of which only the name counts; the reply's body is the whole */
    WEFTI_SERVER_PUSH, WEFTI_SERVER_PULL, WEFTI_SERVER_PUSH_PULL, WEFTI_SERVER_SET,
    WEFTI_SERVER_GIVE,    /* a unit's share of a sum that is being gathered. `clock`: of which evaluation; `keys`: the unit, plus 1 (work.h) */
    WEFTI_SERVER_VECTORS, /* body: commands; the answer's: their results */
    WEFTI_SERVER_WORK,    /* to the first server; body and answer: a wefti_work */
    WEFTI_SERVER_CLOCK,  /* ends the worker's clock of the table */
    WEFTI_SERVER_FORGET, /* a key set */
    WEFTI_SERVER_LEAVE,
    WEFTI_SERVER_RESIZE, /* `first`: the worker is ready for so manieth change of the split, and asks nothing until it has come or failed */
    WEFTI_SERVER_SAVE,   /* body: a path. `first`: the worker's how manieth snapshot. The answer's body is a wefti_server_share */
    WEFTI_SERVER_COMMIT, /* to the first server, of a snapshot by number; body: every server's share. Without a body: it came to nothing */
    WEFTI_SERVER_LOAD,   /* `first`: wefti_load_phase; body: a path */
    WEFTI_SERVER_REPLY,
    WEFTI_SERVER_KINDS
} wefti_frame_kind;

enum {
    WEFTI_SERVER_LISTED = 1 << 0, /* the body begins with `count` keys */
    WEFTI_SERVER_INLINE = 1 << 1, /* the body is in the frame's message */
    /* Memory of the worker that the server maps: the body has no values then, and the reply none either. */
    WEFTI_SERVER_SENT_IN_PLACE = 1 << 2,    /* the values that are pushed are at send_region, send_at */
    WEFTI_SERVER_RECEIVED_IN_PLACE = 1 << 3, /* rows are to be put at receive_region, receive_at. REPLY: they are there */
    WEFTI_SERVER_PACKED = 1 << 4,        /* LISTED: the list takes `first` bytes (coding.h) */
    WEFTI_SERVER_SENT_CODED = 1 << 5,    /* values are coded as the table's options say */
    WEFTI_SERVER_RECEIVED_CODED = 1 << 6, /* … as rows are to be */
    WEFTI_SERVER_ENTRIES = 1 << 7        /* what is pushed, and what is to be pulled, are entries (entries.h). The reply alone says how long it is */
};

typedef struct wefti_server_frame {
    uint32_t magic;
    uint8_t  kind, flags, dtype;
    uint8_t  part;       /* SET, PULL of a dense range: 0 the rows; k: their state k-1 as it is kept. REPLY: `clock` is then the first row's updates */
    uint32_t slot;       /* of the request at the worker: the tag of the answer */
    int32_t  status;     /* REPLY: the outcome; what the body says then is its message */
    uint64_t table;
    uint64_t number;     /* of the worker's requests to this server, from 1 on */
    uint64_t keys;       /* the key set's; 0: none */
    uint64_t first;      /* of a dense range, where there are no keys. REPLY: snapshots that the server has loaded */
    uint64_t count;      /* rows */
    uint64_t width;      /* elements of a row, as the worker has it */
    uint64_t clock;      /* the worker's */
    uint64_t timeout_ns; /* how long the server may let it wait */
    double   rate;       /* multiplies the rule's. SET of a state: the updates that rows have had */
    uint64_t body_bytes; /* of all that follows */
    uint64_t send_at, receive_at;
    uint32_t send_region, receive_region;
    uint32_t line_region, line; /* says how many of these bytes are there (follow.h), in the worker's region; 0: all that are sent */
} wefti_server_frame;
_Static_assert(sizeof(wefti_server_frame) == 128, "a frame has no holes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little endian");

/* Short forms of pulls and ends of clocks, and of answers of few bytes, which a wire of shared memory moves in one cache line. What they leave out the table
 * says: a request of width 0 is of the table's dtype and width, and of the server's share. */
typedef struct wefti_brief_request {
    uint16_t mark;
    uint8_t  kind, flags;
    uint32_t slot;
    uint64_t table, number, keys;
    uint32_t count, timeout; /* in 2^20 ns */
} wefti_brief_request;
enum { WEFTI_BRIEF_VALUES = 16 };
typedef struct wefti_brief_reply {
    uint16_t mark;
    uint8_t  kind, flags;
    uint32_t slot;
    uint64_t first, body_bytes;
    uint8_t  values[WEFTI_BRIEF_VALUES]; /* as many as there are */
} wefti_brief_reply;
_Static_assert(sizeof(wefti_brief_request) == 40 && sizeof(wefti_brief_reply) == 40, "what a cell of the ring wire holds");

typedef struct wefti_server_codec {
    int32_t  codec, error_feedback;
    double   ratio, threshold;
    uint64_t seed;
    int64_t  least;
} wefti_server_codec;

/* A table's specification, as it is sent. */
typedef struct wefti_server_spec {
    char     name[WEFT_TABLE_NAME_BYTES + 8], function[WEFT_TABLE_NAME_BYTES + 8];
    int64_t  rows, width;
    int32_t  sparse, dtype, staleness, split, start, rule, mean, solver, spares, hybrid;
    double   low, high;
    uint64_t seed, most_bytes, memory_bytes;
    double   rate, momentum, beta1, beta2, rho, epsilon, weight_decay, clip_value, l2, l1, group;
    int64_t  nesterov;
    double   ftrl[4];
    wefti_server_codec push, pull;
} wefti_server_spec;

/* A server's part of a snapshot: the file is the snapshot's path with this behind it. */
enum { WEFTI_SUFFIX_BYTES = 48 };
typedef struct wefti_server_share {
    char     suffix[WEFTI_SUFFIX_BYTES];
    uint64_t rows, bytes;
} wefti_server_share;
typedef enum wefti_load_phase { WEFTI_LOAD_PREPARE, WEFTI_LOAD_ADOPT, WEFTI_LOAD_DROP } wefti_load_phase;
static inline bool wefti_is_of_files(wefti_frame_kind kind) {
    return kind == WEFTI_SERVER_SAVE || kind == WEFTI_SERVER_COMMIT || kind == WEFTI_SERVER_LOAD;
}

/* Tags: the channel's, a kind, and a slot. */
enum { WEFTI_TAG_REQUEST = 1, WEFTI_TAG_REQUEST_BODY, WEFTI_TAG_REPLY, WEFTI_TAG_REPLY_BODY, WEFTI_TAG_TABLES, WEFTI_TAG_ROWS, WEFTI_TAG_ROWS_BODY };
static inline uint64_t wefti_server_tag(uint64_t kind, uint32_t slot) { return WEFTI_TAG_SERVER | kind << 32 | slot; }

static inline bool wefti_is_pull(wefti_frame_kind kind) { return kind == WEFTI_SERVER_PULL || kind == WEFTI_SERVER_PUSH_PULL; }
static inline bool wefti_is_of_rows(wefti_frame_kind kind) {
    return kind == WEFTI_SERVER_PUSH || kind == WEFTI_SERVER_SET || kind == WEFTI_SERVER_GIVE || wefti_is_pull(kind);
}

/* Makes a message short, in its place, where it has such a form; how long it is then. */
size_t wefti_server_shorten(void *message, size_t bytes);
/* Of one that came, in memory for a frame and a short answer's values: the long form, in its place. How long that is; 0: it is neither. */
size_t wefti_server_lengthen(void *message, size_t bytes);

/* WEFT_E_CORRUPT for what is no frame, in words; `bytes` came. */
WEFT_MUST_CHECK weft_status wefti_server_frame_check(const wefti_server_frame *frame, size_t bytes);

/* Between options and what is sent. Reading believes nothing: WEFT_E_CORRUPT. The strings of *options_out lie in the specification. */
WEFT_MUST_CHECK weft_status wefti_server_spec_write(const weft_table_options *options, wefti_server_spec *spec_out);
WEFT_MUST_CHECK weft_status wefti_server_spec_read(const wefti_server_spec *spec, weft_table_options *options_out);
/* In what two of them differ, by name; NULL: in nothing. */
const char *wefti_server_spec_differ(const wefti_server_spec *a, const wefti_server_spec *b);
/* What is wrong with options, named: all that can be told without a server. Fills in defaults. */
WEFT_MUST_CHECK weft_status wefti_server_options_check(weft_table_options *options);

#endif

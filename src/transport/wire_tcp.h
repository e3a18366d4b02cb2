/* Inside of the TCP wire, and of all wires over streams of bytes: wire_tcp.c opens, connects and closes; wire_tcp_out.c posts and sends;
 * wire_tcp_in.c receives. What a stream is made of is a socket, sealed or not, or what wire_own.c has from the program. */
#ifndef WEFTI_TRANSPORT_WIRE_TCP_H
#define WEFTI_TRANSPORT_WIRE_TCP_H

#include "transport/mesh.h"
#include "transport/network.h"
#include "transport/regions.h"
#include "transport/wire_common.h"

enum {
    TCP_LINE_BYTES = 64,           /* frames are padded to it, so that the system copies lines to lines: a twentieth quicker */
    TCP_HEADER_BYTES = TCP_LINE_BYTES,
    TCP_HEAD_BYTES = 4 << 10,      /* of small frames that go with one system call */
    TCP_COPY_BYTES = 2 << 10,      /* up to it, copying a payload behind its header costs less than a list of parts */
    TCP_STAGE_BYTES = 16 << 10,    /* read ahead: what is copied from here costs less than the system call it saves */
    TCP_EAGER_BYTES = 2 << 20,     /* above it, the answer that the receive is posted costs little beside the copy */
    TCP_SEGMENT_BYTES = 2 << 20,   /* few system calls, few packets cut short, and few changes between sending and receiving: with half of it all-reduces
                                      of 4 MiB on two ranks, which are two segments then, took a tenth longer */
    TCP_TOKEN_LISTENER = 1 << 24,
    TCP_CAUSE_BYTES = 120
};
_Static_assert(TCP_EAGER_BYTES <= WEFTI_MESSAGE_MOST_BYTES, "a message that comes before its receive is kept");
_Static_assert(TCP_SEGMENT_BYTES <= TCP_EAGER_BYTES, "a segment waits for no answer");

/* What a frame is. Every frame has the same header; `bytes` of payload follow MESSAGE, DATA, WRITE and READ_DATA, and zeros to the end of
 * the line. */
typedef enum tcp_kind {
    TCP_MESSAGE = 1, /* tag, bytes */
    TCP_READY,       /* a large message waits: tag, bytes, token (sender's) */
    TCP_CLEAR,       /* send it: token (sender's), offset (receiver's token) */
    TCP_DATA,        /* the large message: token (receiver's), bytes */
    TCP_WRITE,       /* region, offset, bytes; with NOTIFY in flags: tag */
    TCP_READ,        /* region, offset, bytes, token (reader's) */
    TCP_READ_DATA,   /* token (reader's), bytes */
    TCP_REGION,      /* region, bytes: there is one */
    TCP_WITHDRAWN,   /* region: there is not any more */
    TCP_BYE
} tcp_kind;

typedef struct tcp_header {
    uint8_t  kind, flags;
    uint32_t region;
    uint64_t tag, bytes, token, offset;
} tcp_header;

/* What an operation does next; in scratch[3]. scratch[0] is its token, [1] the peer's. */
typedef enum tcp_step { STEP_MESSAGE, STEP_READY, STEP_DATA, STEP_WRITE, STEP_READ, STEP_CLEAR, STEP_WAIT } tcp_step;

/* A read of a peer that is to be served from a region here. */
typedef struct tcp_serve {
    struct tcp_serve *next;
    uint32_t          region;
    uint64_t          offset, bytes, token;
} tcp_serve;

/* What is being sent, in one system call where the socket takes it: frames, of which the last one's payload may lie
 * elsewhere. Nothing is added until all of it is with the system. */
typedef struct tcp_out {
    uint8_t        head[TCP_HEAD_BYTES]; /* headers, each with its payload where that is short */
    size_t         head_bytes;           /* 0: nothing is being sent */
    size_t         whole_bytes;          /* of the head: frames that need no payload from elsewhere */
    const uint8_t *payload;              /* the last frame's, where it is long */
    size_t         payload_bytes;
    size_t         sent;                 /* of head and payload together */
    size_t         pad;                  /* bytes that end the line of the payload that was sent last; they go with the next frame */
    wefti_op_list  ops;                  /* that are done when it is with the system */
} tcp_out;

/* What is being received. */
typedef struct tcp_in {
    uint8_t       *stage;      /* [TCP_STAGE_BYTES] */
    size_t         have, used; /* bytes in it, and of those taken */
    size_t         pad;        /* bytes before the next header */
    bool           in_payload;
    bool           ended;      /* a receive has, since the link was last looked at: whoever waits for it may post the next */
    uint64_t       held_at;    /* the poll in which a message without a receive was left for the next one, for that reason */
    tcp_header     header;     /* of the frame whose payload comes in */
    uint8_t       *target;     /* where the next byte goes; NULL: nowhere */
    size_t         left, skip; /* bytes for the target, then bytes that do not fit */
    size_t         given, later; /* of a receive in pieces: bytes that were handed out, and those behind the piece that comes in */
    wefti_wire_op *op;
    wefti_message *message;
} tcp_in;

typedef struct tcp_link {
    wefti_wire_link state;
    int             socket;
    wefti_seal     *seal;      /* what encrypts it; NULL: nothing */
    wefti_stream   *stream;    /* instead of a socket; NULL: none */
    char            cause[TCP_CAUSE_BYTES]; /* why it is down, where that is known */
    bool            heard_bye, broken, wants_out;
    wefti_op_list   out_ops, waiting;
    tcp_serve      *serve_first, *serve_last;
    tcp_out         out;
    tcp_in          in;
    uint32_t        told; /* news of regions that were sent */
} tcp_link;

typedef struct tcp_wire tcp_wire;
/* What is beneath the links. */
typedef struct tcp_medium {
    size_t      wire_bytes; /* of the whole wire, which begins with a tcp_wire */
    const char *name;
    weft_status (*address)(wefti_wire *wire, void *address_out, size_t *bytes_out); /* these four: slots of the wire's table */
    weft_status (*connect)(wefti_wire *wire, int32_t peer, const void *address, size_t bytes);
    int (*descriptor)(wefti_wire *wire);
    weft_status (*arm)(wefti_wire *wire);
    void (*service)(tcp_wire *wire, uint64_t now_ns); /* brings links up */
    const char *(*cause)(const tcp_wire *wire, int32_t peer); /* why a link's stream has ended; NULL: not known. Asked of streams only */
    void (*close)(tcp_wire *wire);
} tcp_medium;

struct tcp_wire {
    wefti_wire_base   base;
    wefti_wire_ops    ops;    /* of the base */
    const tcp_medium *medium;
    tcp_link       *links; /* [size] */
    wefti_mesh      mesh;
    wefti_regions   regions;
    int             poller;
    bool            direct; /* so few links that asking each beats asking the poller */
    uint64_t        last_token;
    uint64_t        polls; /* so far */
    tcp_serve      *free_serves;
};

/* Opens a wire without links, in zeroed memory of medium->wire_bytes. Free it after a failure too. */
WEFT_MUST_CHECK weft_status wefti_tcp_open(tcp_wire *wire, const wefti_wire_options *options, const tcp_medium *medium);
/* Frees it, once its medium is closed. */
void wefti_tcp_free(tcp_wire *wire);
/* What a link needs before it can come up. */
WEFT_MUST_CHECK weft_status wefti_tcp_prepare(tcp_wire *wire, int32_t peer);
/* As sendmsg and recvmsg on the link's stream, without blocking. */
ssize_t wefti_tcp_link_send(tcp_link *link, const struct iovec *parts, int count);
ssize_t wefti_tcp_link_receive(tcp_link *link, const struct iovec *parts, int count);

weft_status wefti_tcp_post(wefti_wire *wire, wefti_wire_op *op);
void wefti_tcp_send_from(wefti_wire *wire, wefti_wire_op *op, const void *buffer);
/* Sends what the link's socket takes. */
void wefti_tcp_send(tcp_wire *wire, int32_t peer);
bool wefti_tcp_has_output(const tcp_wire *wire, const tcp_link *link);
/* Receives what has come. */
void wefti_tcp_receive(tcp_wire *wire, int32_t peer);
/* Begins to take a large message into a receive. */
void wefti_tcp_take_ready(tcp_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint64_t token);
/* Ends a link and all that waits on it. The cause may be NULL. */
void wefti_tcp_link_end(tcp_wire *wire, int32_t peer, wefti_wire_link state, const char *cause);
void wefti_tcp_header_write(uint8_t *bytes, const tcp_header *header);
bool wefti_tcp_header_read(const uint8_t *bytes, tcp_header *header);

#endif

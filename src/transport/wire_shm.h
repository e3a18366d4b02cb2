/* Inside of the shared-memory wire: wire_shm.c has the wire, wire_shm_connect.c the way to it. */
#ifndef WEFTI_TRANSPORT_WIRE_SHM_H
#define WEFTI_TRANSPORT_WIRE_SHM_H

#include "transport/wire_ring.h"

enum {
    SHM_COOKIE_BYTES = 16,
    SHM_NAME_BYTES = 24,
    SHM_PASSED = 2,          /* descriptors in one packet, at most */
    SHM_MOST_GUESTS = 64,    /* connections that have not said who they are */
    SHM_MOST_REGIONS = 65536 /* bound on what a peer may announce */
};
#define SHM_MAGIC UINT64_C(0x314d4853544645)

/* What the poller's events mean; smaller ones are a peer's socket. */
enum { SHM_TOKEN_DOORBELL = 1 << 24, SHM_TOKEN_LISTENER, SHM_TOKEN_GUEST = 1 << 25 };

typedef enum shm_packet_kind { SHM_HELLO = 1, SHM_WELCOME, SHM_REGION, SHM_REGION_WITHDRAWN } shm_packet_kind;

/* All that is ever said on a socket; with it go descriptors: segment and doorbell, or a region's memory. */
typedef struct shm_packet {
    uint64_t magic;
    uint32_t kind, version;
    int32_t  from, to, size;
    uint32_t epoch;
    uint64_t job;
    uint64_t data_bytes;                /* of a ring */
    uint64_t probe;                     /* address of a word that holds SHM_MAGIC: can it be read from outside? */
    uint8_t  cookie[SHM_COOKIE_BYTES];  /* of the listener */
    uint32_t region, reserved;
    uint64_t bytes;
} shm_packet;

typedef struct shm_announcement {
    shm_packet_kind kind;
    uint32_t        region;
} shm_announcement;

typedef enum shm_region_state { SHM_REGION_UNKNOWN, SHM_REGION_MAPPED, SHM_REGION_GONE } shm_region_state;
typedef struct shm_peer_region {
    void            *base;
    size_t           size_bytes;
    shm_region_state state;
} shm_peer_region;

/* An address, as it is handed to peers. */
typedef struct shm_address {
    uint64_t magic;
    uint8_t  host[16]; /* boot id: another one is another host */
    uint64_t network;  /* inode of the network name space, which abstract names belong to */
    char     name[SHM_NAME_BYTES];
    uint8_t  cookie[SHM_COOKIE_BYTES];
    uint8_t  reserved[8];
} shm_address;

typedef struct shm_link {
    int              socket;
    bool             dials;    /* this end dials, and has not got through */
    uint64_t         redial_ns;
    shm_address      address;
    ring_segment    *segment;  /* the peer's, mapped */
    uint32_t         told;     /* announcements that it has been sent */
    shm_peer_region *regions;  /* [region_capacity] by id - 1 */
    uint32_t         region_capacity;
} shm_link;

typedef struct shm_guest {
    int      socket; /* 0: free */
    uint64_t since_ns;
} shm_guest;

typedef struct shm_wire {
    ring_wire         ring;
    shm_link         *links; /* [size] */
    size_t            segment_bytes;
    int               segment_memory, poller, listener;
    uint64_t          served_ns;
    bool              look_now; /* sockets first, whatever the time */
    uint32_t          epoch;
    uint64_t          job;
    uint64_t          probe;    /* holds SHM_MAGIC */
    shm_address       address;
    shm_announcement *log;
    uint32_t          log_count, log_capacity;
    shm_guest         guests[SHM_MOST_GUESTS];
    uint64_t          strangers; /* connections that were dropped */
} shm_wire;

weft_status wefti_shm_memory_create(size_t size_bytes, const char *what, int *memory_out, void **base_out);
/* Maps a peer's memory; NULL where it is not what it should be. */
void *wefti_shm_memory_map(int memory, size_t size_bytes);
/* A number for the job's name. */
uint64_t wefti_shm_job(const char *job);

weft_status wefti_shm_address(wefti_wire *wire, void *address_out, size_t *bytes_out);
weft_status wefti_shm_connect(wefti_wire *wire, int32_t peer, const void *address, size_t bytes);
weft_status wefti_shm_listen(shm_wire *wire);
void        wefti_shm_hang_up(shm_wire *wire);
/* Dials peers that were to be dialled. */
void wefti_shm_dial(shm_wire *wire, uint64_t now_ns);
void wefti_shm_accept(shm_wire *wire, uint64_t now_ns);
void wefti_shm_hear_guest(shm_wire *wire, int32_t guest);
void wefti_shm_hear_answer(shm_wire *wire, int32_t peer);
void wefti_shm_drop_slow_guests(shm_wire *wire, uint64_t now_ns);

/* true: sent (or the socket is dead, which its reader finds out); false: no room now. */
bool wefti_shm_packet_send(int socket, const shm_packet *packet, const int *memory, int count);
/* 1: a packet of the right form; 0: none now; -1: the other end is gone, or sends nonsense. */
int wefti_shm_packet_receive(int socket, shm_packet *packet_out, int given_out[SHM_PASSED]);

#endif

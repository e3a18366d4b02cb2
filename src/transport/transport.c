/* Composing the transport: place, control channel, wire, group, fault.
 *
 * Joining takes four exchanges over the control channel: who runs where (which decides the wire, the same on all ranks),
 * the wire's addresses, the doors for calls after a fault, and that everyone is connected. A rank that fails on the way tells the others why, so that they
 * fail with its reason instead of a timeout. */
#include "transport/transport_inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/handshake.h"
#ifdef WEFTI_HAVE_MPI
#include "transport/meet_mpi.h"
#include "transport/wire_mpi_api.h"
#endif

/* What ranks tell each other when they join. */
typedef struct introduction {
    uint64_t host;                  /* equal on ranks that can share memory */
    char     wire[WEFTI_WIRE_WISH_BYTES]; /* wished for */
    uint64_t mpi;                   /* 1: an MPI launcher started it, and MPI can be loaded */
    char     name[WEFTI_RANK_NAME_BYTES];
} introduction;

typedef struct wire_address {
    uint64_t bytes;
    uint8_t  address[WEFTI_WIRE_ADDRESS_BYTES];
} wire_address;

/* A number for this host, name spaces and user, which must agree for memory to be shared. */
static uint64_t host_number(void) {
    uint64_t    user = geteuid();
    char        boot[64] = "";
    struct stat network = {0};
    FILE       *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) {
        if (!fgets(boot, sizeof boot, file)) boot[0] = 0;
        fclose(file);
    }
    if (stat("/proc/self/ns/net", &network) != 0) network.st_ino = 0;
    uint64_t hash = wefti_hash(wefti_hash(WEFTI_HASH_BEGIN, boot, strlen(boot)), &network.st_ino, sizeof network.st_ino);
    return wefti_hash(hash, &user, sizeof user);
}

/* --- place --- */

/* Whether the ranks meet over MPI: where WEFT_STORE says so, and where nothing says a store and MPI is what carries them or what
 * started them. */
static bool meets_by_mpi(const wefti_transport_options *options, const wefti_place *place, const char *wish) {
#ifdef WEFTI_HAVE_MPI
    const char *named = options->store ? options->store : getenv("WEFT_STORE");
    if (place->size < 2 || place->store_descriptor >= 0) return false;
    if (named && *named) return strcmp(named, "mpi") == 0;
    return strcmp(wish, "mpi") == 0 || (!place->store[0] && wefti_mpi_is_likely());
#else
    (void)options, (void)place, (void)wish;
    return false;
#endif
}

static weft_status meet_by_mpi(const wefti_transport_options *options, wefti_place *place) {
#ifdef WEFTI_HAVE_MPI
    return wefti_meet_by_mpi(place, options->host ? options->host : wefti_host_system(), host_number(),
                             options->timeout_ns ? options->timeout_ns : WEFTI_TRANSPORT_TIMEOUT_NS);
#else
    (void)options, (void)place;
    return WEFT_E_UNSUPPORTED;
#endif
}

static weft_status find_store(const wefti_transport_options *options, const char *wish, transport_inside *inside) {
    wefti_place *place = &inside->place;
    if (options->network) {
        *place = (wefti_place){.rank = options->rank, .size = options->size, .local_rank = -1, .local_size = -1,
                               .launcher = "none", .store_descriptor = -1};
        return WEFT_OK;
    }
    if (options->size == 0) {
        WEFTI_TRY(wefti_place_read(place));
    } else {
        /* The environment still gives the job, the secret and, for rank 0, the store's socket. */
        if (options->size < 1 || options->rank < 0 || options->rank >= options->size)
            return wefti_fail(WEFT_E_INVALID, "rank %d of %d: ranks go from 0 to the size less one", (int)options->rank,
                              (int)options->size);
        WEFTI_TRY(wefti_place_read(place));
        if (strcmp(place->launcher, "none") != 0 && (place->size != options->size || place->rank != options->rank))
            return wefti_fail(WEFT_E_MISMATCH, "the program says rank %d of %d, its launcher (%s) rank %d of %d: start as many as the "
                              "program says, or let it leave rank and size to the launcher",
                              (int)options->rank, (int)options->size, place->launcher, (int)place->rank, (int)place->size);
        place->rank = options->rank;
        place->size = options->size;
    }
    if (options->store) {
        if (strlen(options->store) >= sizeof place->store) return wefti_fail(WEFT_E_INVALID, "the store's address is too long");
        snprintf(place->store, sizeof place->store, "%s", options->store);
        place->store_ports = 1;
    }
    if (meets_by_mpi(options, place, wish)) {
        WEFTI_TRY(meet_by_mpi(options, place));
        inside->met_by_mpi = true;
        return WEFT_OK;
    }
    if (place->size > 1 && !place->store[0] && place->store_descriptor < 0)
        return wefti_fail(WEFT_E_INVALID, "%s says %d ranks, but not where they meet: set WEFT_STORE=host:port, with an "
                          "address of rank 0's host, on every rank", options->size ? "the program" : place->launcher,
                          (int)place->size);
    return WEFT_OK;
}

static weft_status find_place(const wefti_transport_options *options, const char *wish, transport_inside *inside) {
    wefti_place *place = &inside->place;
    WEFTI_TRY(find_store(options, wish, inside));
    place->encrypt = place->encrypt || options->encrypt;
    inside->transport.encrypts = place->encrypt && place->size > 1;
    return wefti_can_encrypt(inside->transport.encrypts, place->secret_bytes);
}

static bool is_wire(const char *name) {
    for (const wefti_wire_kind *kind = wefti_wire_kinds; kind->name; kind++)
        if (strcmp(kind->name, name) == 0) return true;
    return false;
}

static weft_status check_own_wire(const weft_wire_kind *own) {
    if (!own->name || !*own->name || strlen(own->name) > WEFT_WIRE_NAME_BYTES || strcmp(own->name, "auto") == 0 || is_wire(own->name))
        return wefti_fail(WEFT_E_INVALID, "the program's own wire is called '%s': give it a name of 1 to %d characters that none of Weft's "
                          "wires has", own->name ? own->name : "", WEFT_WIRE_NAME_BYTES);
    if (!own->open || !own->address || !own->connect || !own->link || !own->send || !own->receive || !own->close)
        return wefti_fail(WEFT_E_INVALID, "the program's own wire '%s' lacks a function: all but progress must be there (weft/wire.h)",
                          own->name);
    return WEFT_OK;
}

static weft_status find_wish(const wefti_transport_options *options, char wish_out[WEFTI_WIRE_WISH_BYTES]) {
    const weft_wire_kind *own = options->own_wire;
    const char           *wish = options->wire ? options->wire : getenv("WEFT_WIRE");
    if (own) WEFTI_TRY(check_own_wire(own));
    if (!wish || !*wish) wish = "auto";
    if (own && strcmp(wish, "auto") == 0) wish = own->name;
    memset(wish_out, 0, WEFTI_WIRE_WISH_BYTES);
    bool between_processes = is_wire(wish) && strcmp(wish, "inproc") != 0;
    if (between_processes || strcmp(wish, "auto") == 0 || (own && strcmp(wish, own->name) == 0)) {
        snprintf(wish_out, WEFTI_WIRE_WISH_BYTES, "%s", wish);
        return WEFT_OK;
    }
    char list[128];
    wefti_wire_list(true, list, sizeof list);
    return wefti_fail(WEFT_E_NOT_FOUND, "there is no wire '%s' between processes in this build; there are: auto, %s%s%s", wish, list,
                      own ? ", the program's own " : "", own ? own->name : "");
}

/* --- joining --- */

/* From everyone's introduction: who shares this host, and the wire that all take. */
static weft_status choose_wire(wefti_transport *transport, const introduction *all, const char **wire_out) {
    bool one_host = true, mpi = true;
    for (int32_t rank = 0; rank < transport->size; rank++) {
        transport->nodes[rank] = rank;
        for (int32_t other = rank - 1; other >= 0; other--)
            if (all[other].host == all[rank].host) transport->nodes[rank] = other;
        mpi = mpi && all[rank].mpi;
        if (strcmp(all[rank].wire, all[0].wire) != 0)
            return wefti_fail(WEFT_E_MISMATCH, "rank 0 wants the wire '%.15s', rank %d '%.15s': set WEFT_WIRE alike on all",
                              all[0].wire, (int)rank, all[rank].wire);
        if (all[rank].host != all[transport->rank].host) {
            one_host = false;
            continue;
        }
        if (rank < transport->rank) transport->local_rank++;
        transport->local_size++;
    }
    if (strcmp(all[0].wire, "shm") == 0 && !one_host)
        return wefti_fail(WEFT_E_UNSUPPORTED, "the shm wire works inside one host (and one user), and the ranks are on "
                          "several: use the tcp wire");
    mpi = mpi && !transport->encrypts; /* MPI sends as it likes */
    *wire_out = strcmp(all[0].wire, "auto") != 0 ? all[0].wire : one_host ? "shm" : mpi ? "mpi" : "tcp";
    return WEFT_OK;
}

/* Room for what all ranks say, until the next time. It is the transport's, so that it is freed with it whatever becomes of the rank. */
static weft_status make_room(transport_inside *inside, size_t each_bytes, void *all_out) {
    size_t bytes = (size_t)inside->transport.size * each_bytes;
    wefti_free(inside->said, inside->said_bytes);
    inside->said = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "what all ranks say", &inside->said));
    inside->said_bytes = bytes;
    memcpy(all_out, &inside->said, sizeof inside->said);
    return WEFT_OK;
}

static weft_status wait_for_links(wefti_transport *transport, wefti_wire *wire, uint64_t deadline_ns) {
    const wefti_host *host = transport->host;
    for (int32_t peer = 0; peer < transport->size; peer++)
        for (;;) {
            wefti_wire_link link = wire->ops->link(wire, peer);
            if (link == WEFTI_LINK_UP) break;
            uint64_t now_ns = wefti_host_now(host);
            WEFTI_TRY(wefti_fault_status(transport->fault));
            if (link != WEFTI_LINK_CONNECTING)
                return wefti_fail(WEFT_E_PEER, "the %s link to rank %d broke while the ranks connected", wire->can.name, (int)peer);
            if (now_ns >= deadline_ns)
                return wefti_fail(WEFT_E_TIMEOUT, "the %s link to rank %d did not come up in time", wire->can.name, (int)peer);
            WEFTI_TRY(wefti_wire_progress(wire, now_ns));
            if (wire->ops->link(wire, peer) != WEFTI_LINK_UP) wefti_wire_rest(wire, WEFTI_MILLISECOND_NS);
        }
    return WEFT_OK;
}

/* Tells all ranks the wire's address, and connects it to theirs. `what` is compared. */
static weft_status connect_wire(wefti_transport *transport, wefti_wire *wire, const char *what, uint64_t deadline_ns) {
    wire_address mine = {0}, *all = NULL;
    size_t       bytes = 0;
    weft_status  status = wire->ops->address(wire, mine.address, &bytes);
    mine.bytes = bytes;
    if (status == WEFT_OK) status = make_room((transport_inside *)transport, sizeof *all, &all);
    if (status == WEFT_OK) status = wefti_transport_exchange(transport, what, &mine, sizeof mine, all);
    for (int32_t peer = 0; peer < transport->size && status == WEFT_OK; peer++) {
        if (peer == transport->rank) continue;
        if (all[peer].bytes > WEFTI_WIRE_ADDRESS_BYTES)
            status = wefti_fail(WEFT_E_CORRUPT, "rank %d gave an address of %llu bytes", (int)peer, (unsigned long long)all[peer].bytes);
        else
            status = wire->ops->connect(wire, peer, all[peer].address, all[peer].bytes);
    }
    return status == WEFT_OK ? wait_for_links(transport, wire, deadline_ns) : status;
}

/* All have it, or nobody: to whoever still connects, one who has closed it already would look like one who has died. */
static weft_status agree_on_links(wefti_transport *transport, weft_status status) {
    uint8_t mine = (uint8_t)status, *all = NULL;
    char    why[WEFTI_MESSAGE_BYTES];
    snprintf(why, sizeof why, "%s", weft_error_message());
    WEFTI_TRY(make_room((transport_inside *)transport, sizeof *all, &all));
    weft_status said = wefti_transport_exchange(transport, "links of another wire", &mine, sizeof mine, all);
    if (status != WEFT_OK) return wefti_fail(status, "%s", why);
    for (int32_t rank = 0; said == WEFT_OK && rank < transport->size; rank++)
        if (all[rank] != WEFT_OK) said = wefti_fail(WEFT_E_PEER, "rank %d could not connect to the other ranks (its own message says why)", (int)rank);
    return said;
}

/* The address of this host that others reach, as text. */
static void find_interface(transport_inside *inside, char interface_out[64]) {
    snprintf(interface_out, 64, "%s", inside->place.interface);
    if (!interface_out[0] && !inside->network) wefti_control_interface(inside->control, interface_out, 64);
}

/* Before the first fault every rank has the seat of its number. */
static weft_status take_seats(transport_inside *inside) {
    size_t size = (size_t)inside->transport.size;
    WEFTI_TRY(wefti_alloc(size * sizeof *inside->members, "seats", &inside->members));
    for (size_t i = 0; i < size; i++) inside->members[i] = (int32_t)i;
    inside->seat = inside->transport.rank;
    inside->seats = inside->transport.size;
    return inside->network ? WEFT_OK : wefti_alloc(size * sizeof *inside->doors, "the ranks' doors", &inside->doors);
}

weft_status wefti_transport_name_doors(transport_inside *inside) {
    weft_status status = WEFT_OK;
    inside->named_doors = inside->network != NULL; /* in which all are found by their seats */
    for (int32_t seat = 0; inside->doors && seat < inside->seats && status == WEFT_OK; seat++)
        inside->named_doors = wefti_door_named(seat, inside->seats, &inside->doors[seat], &status);
    return status;
}

/* Where each rank will be called after a fault. MPI does not survive one. */
static weft_status open_doors(transport_inside *inside) {
    wefti_transport      *transport = &inside->transport;
    wefti_socket_address *all = NULL;
    char                  interface[64];
    bool                  mpi = inside->met_by_mpi || strcmp(transport->wire_name, "mpi") == 0;
    bool                  first = !inside->members;
    if (first) WEFTI_TRY(take_seats(inside));
    if (first && !mpi) WEFTI_TRY(wefti_transport_name_doors(inside));
    if (!inside->door && inside->network) {
        inside->door = wefti_door_open_network(inside->network);
    } else if (!inside->door && !mpi) {
        find_interface(inside, interface);
        inside->door = wefti_door_open(&inside->place, interface, &inside->doors[inside->seat]);
    }
    if (inside->door) wefti_control_keep_door(inside->control, inside->door); /* for the first time */
    if (inside->network) return WEFT_OK;
    WEFTI_TRY(make_room(inside, sizeof *all, &all));
    WEFTI_TRY(wefti_transport_exchange(transport, "doors", &inside->doors[inside->seat], sizeof *all, all));
    for (int32_t rank = 0; rank < transport->size; rank++) inside->doors[inside->members[rank]] = all[rank];
    return WEFT_OK;
}

static weft_status open_wire(transport_inside *inside, const char *name, wefti_wire **wire_out) {
    wefti_transport   *transport = &inside->transport;
    char               interface[64];
    wefti_wire_options options = {.host = transport->host, .rank = transport->rank, .size = transport->size,
                                  .job = inside->place.job, .secret = inside->place.secret,
                                  .secret_bytes = inside->place.secret_bytes, .epoch = inside->place.epoch,
                                  .encrypt = transport->encrypts, .own = inside->own_wire};
    find_interface(inside, interface);
    options.interface = interface;
    options.shared = inside->network ? inside->network->shared : NULL;
    return inside->network ? inside->network->open(&options, wire_out) : wefti_wire_open(name, &options, wire_out);
}

/* With one rank there is nobody but itself: a wire inside of the process does. */
static weft_status open_lone_wire(transport_inside *inside, wefti_wire **wire_out) {
    wefti_wire_options options = {.host = inside->transport.host, .size = 1};
    return wefti_wire_inproc_open(&options, wire_out);
}

weft_status wefti_transport_open_wire(wefti_transport *transport, const char *what, wefti_wire **wire_out) {
    transport_inside *inside = (transport_inside *)transport;
    wefti_wire       *wire = NULL;
    *wire_out = NULL;
    if (transport->size == 1) return open_lone_wire(inside, wire_out);
    weft_status status = open_wire(inside, transport->wire_name, &wire);
    /* Who has none says so at the exchange that the others wait in. */
    if (status != WEFT_OK) wefti_transport_fail(transport, status, weft_error_message());
    WEFTI_TRY(status);
    status = connect_wire(transport, wire, what, wefti_deadline_after(wefti_host_now(transport->host), transport->timeout_ns));
    status = agree_on_links(transport, status);
    if (status != WEFT_OK) wire->ops->close(wire, 0);
    else *wire_out = wire;
    return status;
}

static weft_status open_group(transport_inside *inside, const wefti_transport_options *options) {
    wefti_transport    *transport = &inside->transport;
    wefti_group_options group = {.host = transport->host,
                                 .wire = transport->wire,
                                 .size = transport->size,
                                 .index = transport->rank,
                                 .timeout_ns = transport->timeout_ns,
                                 .reducer = options->reducer,
                                 .fault = transport->fault,
                                 .nodes = transport->nodes,
                                 .watch = transport->watch};
    return wefti_collective_engine_weft()->open(&group, &transport->group);
}

static void name_self(const transport_inside *inside, char name_out[WEFTI_RANK_NAME_BYTES]) {
    char host[64] = "?";
    if (!inside->network) gethostname(host, sizeof host - 1);
    host[sizeof host - 1] = 0;
    memset(name_out, 0, WEFTI_RANK_NAME_BYTES);
    snprintf(name_out, WEFTI_RANK_NAME_BYTES, "host %.50s, process %ld", host, (long)getpid());
}

static void take_names(wefti_transport *transport, const introduction *all) {
    for (int32_t rank = 0; rank < transport->size; rank++) {
        memcpy(transport->names[rank], all[rank].name, WEFTI_RANK_NAME_BYTES);
        transport->names[rank][WEFTI_RANK_NAME_BYTES - 1] = 0;
    }
    wefti_fault_name_ranks(transport->fault, transport->names[0], WEFTI_RANK_NAME_BYTES, transport->size);
}

/* Where ranks are lacking, newcomers are heard that come later. */
static weft_status open_newcomers(transport_inside *inside) {
    const wefti_place *place = &inside->place;
    if (!inside->takes_newcomers || place->rank != 0 || place->size == inside->seats) return WEFT_OK;
    return wefti_calls_open(&(wefti_calls_options){.host = inside->transport.host, .place = place, .network = inside->network, .seat = inside->seat, .seats = inside->seats,
                                                   .door = inside->door, .doors = inside->doors, .most_bytes = WEFTI_GATHER_FRAME_BYTES, .announcing = true},
                            &inside->newcomers);
}

static weft_status open_control(transport_inside *inside, const wefti_transport_options *options) {
    wefti_transport *transport = &inside->transport;
    WEFTI_TRY(open_newcomers(inside));
    return wefti_control_open(&(wefti_control_options){.host = transport->host, .place = &inside->place, .network = inside->network,
                                                       .timeout_ns = transport->timeout_ns, .no_thread = options->no_control_thread,
                                                       .fault = transport->fault, .watch = transport->watch, .door = inside->door,
                                                       .calls = inside->calls, .newcomers = inside->newcomers, .members = inside->members},
                              &inside->control);
}

static weft_status join(transport_inside *inside, const wefti_transport_options *options, const char *wish) {
    wefti_transport *transport = &inside->transport;
    uint64_t         deadline_ns = wefti_deadline_after(wefti_host_now(transport->host), transport->timeout_ns);
    introduction     mine = {.host = inside->network ? inside->network->host_number : host_number()}, *all = NULL;
    const char      *wire = NULL;
    char             ready = wefti_tuning_wish();
    snprintf(mine.wire, sizeof mine.wire, "%s", wish);
#ifdef WEFTI_HAVE_MPI
    mine.mpi = wefti_mpi_is_likely();
#endif
    WEFTI_TRY(open_control(inside, options));
    name_self(inside, mine.name);
    WEFTI_TRY(wefti_alloc((size_t)transport->size * sizeof *transport->names, "names of ranks", &transport->names));
    WEFTI_TRY(wefti_alloc((size_t)transport->size * sizeof *transport->nodes, "who shares a host", &transport->nodes));
    WEFTI_TRY(make_room(inside, sizeof *all, &all));
    weft_status status = wefti_transport_exchange(transport, "join", &mine, sizeof mine, all);
    if (status == WEFT_OK) take_names(transport, all);
    if (status == WEFT_OK) status = choose_wire(transport, all, &wire);
    if (status == WEFT_OK) status = open_wire(inside, wire, &transport->wire);
    if (status == WEFT_OK) {
        transport->wire_name = transport->wire->can.name;
        status = connect_wire(transport, transport->wire, "addresses", deadline_ns);
    }
    if (status == WEFT_OK) status = open_doors(inside);
    if (status == WEFT_OK) status = open_group(inside, options);
    char *everyone = NULL;
    if (status == WEFT_OK) status = make_room(inside, 1, &everyone);
    if (status == WEFT_OK) status = wefti_transport_exchange(transport, "ready", &ready, 1, everyone);
    if (status == WEFT_OK) status = wefti_tuning_agree(everyone, transport->size);
    wefti_free(inside->said, inside->said_bytes);
    inside->said = NULL;
    return status;
}

weft_status wefti_transport_tune(wefti_transport *transport) {
    return transport->group ? wefti_tuning_start(transport->group, &transport->tuning, &transport->tuned) : WEFT_OK;
}

weft_status wefti_transport_create(const wefti_transport_options *options, transport_inside **inside_out) {
    transport_inside *inside = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *inside, "the transport", &inside));
    wefti_transport *transport = &inside->transport;
    transport->host = options->host ? options->host : wefti_host_system();
    transport->timeout_ns = options->timeout_ns ? options->timeout_ns : WEFTI_TRANSPORT_TIMEOUT_NS;
    transport->wire_name = "none";
    inside->own_wire = options->own_wire;
    transport->reducer = options->reducer;
    inside->network = options->network;
    *inside_out = inside;
    return WEFT_OK;
}

weft_status wefti_transport_enter(transport_inside *inside, const wefti_transport_options *options, const char *wish) {
    wefti_transport *transport = &inside->transport;
    WEFTI_TRY(wefti_fault_create(transport->host, &transport->fault));
    WEFTI_TRY(wefti_watch_create(transport->host, &transport->watch));
    transport->rank = inside->place.rank;
    transport->size = inside->place.size;
    transport->launcher = inside->place.launcher;
    if (transport->size > 1) return join(inside, options, wish);
    transport->local_size = 1;
    /* The last one of a world that had more keeps its door: ranks that were left behind are to find that its process lives. */
    return inside->door ? open_control(inside, options) : WEFT_OK;
}

static weft_status give(transport_inside *inside, weft_status status, wefti_transport **transport_out) {
    wefti_transport *transport = &inside->transport;
    if (status == WEFT_OK) {
        *transport_out = transport;
        return WEFT_OK;
    }
    if (inside->control) wefti_transport_fail(transport, status, weft_error_message());
    wefti_transport_close(transport);
    return status;
}

static bool rejoins(const wefti_transport_options *options) {
    const char *text = options->network ? NULL : getenv("WEFT_REJOIN");
    return options->rejoins || (text && *text);
}

weft_status wefti_transport_open(const wefti_transport_options *options, wefti_transport **transport_out) {
    static const wefti_transport_options defaults;
    transport_inside *inside = NULL;
    *transport_out = NULL;
    if (!options) options = &defaults;
    WEFTI_TRY(wefti_transport_create(options, &inside));
    char        wish[WEFTI_WIRE_WISH_BYTES] = "";
    weft_status status = WEFT_OK;
    if (options->network)
        snprintf(wish, sizeof wish, "%s", options->network->wire_name);
    else
        status = find_wish(options, wish);
    if (status == WEFT_OK) status = find_place(options, wish, inside);
    memcpy(inside->wish, wish, sizeof inside->wish);
    if (status == WEFT_OK && rejoins(options) && inside->place.size > 1) {
        *transport_out = &inside->transport; /* a simulated rank that dies meanwhile is closed by it */
        wefti_transport *next = NULL;
        status = wefti_transport_come_in(inside, options, &next);
        *transport_out = next;
        wefti_transport_close(&inside->transport);
        return status;
    }
    if (status == WEFT_OK) status = wefti_transport_enter(inside, options, wish);
    return give(inside, status, transport_out);
}

void wefti_transport_close(wefti_transport *transport) {
    if (!transport) return;
    transport_inside *inside = (transport_inside *)transport;
    char              message[WEFTI_MESSAGE_BYTES]; /* leaving is not to hide why */
    snprintf(message, sizeof message, "%s", weft_error_message());
    wefti_transport_stop_going(inside);
    wefti_dump_forget(transport);
    if (transport->group) transport->group->engine->close(transport->group);
    transport->group = NULL;
    /* The goodbye on the control channel comes first: a link that ends after it is no fault to anybody. It waits: a simulated rank that dies
     * meanwhile has it all closed again, from the beginning. */
    wefti_control_close(inside->control);
    inside->control = NULL;
    wefti_calls_close(inside->newcomers);
    inside->newcomers = NULL;
    if (transport->wire) transport->wire->ops->close(transport->wire, WEFTI_SECOND_NS);
    transport->wire = NULL;
#ifdef WEFTI_HAVE_MPI
    if (inside->met_by_mpi) wefti_mpi_leave(transport->fault && wefti_fault_verdict(transport->fault) == WEFT_OK);
#endif
    wefti_fault_release(transport->fault);
    wefti_watch_release(transport->watch);
    wefti_free(transport->names, (size_t)transport->size * sizeof *transport->names);
    wefti_free(transport->nodes, (size_t)transport->size * sizeof *transport->nodes);
    wefti_free(inside->members, (size_t)transport->size * sizeof *inside->members);
    wefti_free(inside->doors, (size_t)inside->seats * sizeof *inside->doors);
    wefti_door_release(inside->door);
    wefti_free(inside->said, inside->said_bytes);
    explicit_bzero(&inside->place, sizeof inside->place);
    wefti_free(inside, sizeof *inside);
    (void)wefti_fail(WEFT_OK, "%s", message);
}

weft_status wefti_transport_exchange(wefti_transport *transport, const char *name, const void *mine, size_t bytes,
                                     void *all_out) {
    transport_inside *inside = (transport_inside *)transport;
    if (inside->control) return wefti_control_exchange(inside->control, name, mine, bytes, transport->timeout_ns, all_out);
    if (bytes) memcpy(all_out, mine, bytes);
    return WEFT_OK;
}

void wefti_transport_fail(wefti_transport *transport, weft_status status, const char *cause) {
    char text[WEFTI_MESSAGE_BYTES];
    snprintf(text, sizeof text, "rank %d: %s", (int)transport->rank, cause);
    wefti_fault_raise(transport->fault, status, transport->rank, text);
}

weft_status wefti_transport_ask(wefti_transport *transport, uint64_t timeout_ns, wefti_text *text_out) {
    transport_inside *inside = (transport_inside *)transport;
    if (inside->control) return wefti_control_ask(inside->control, timeout_ns, text_out);
    wefti_text_add(text_out, "rank 0, process %ld:\n", (long)getpid());
    wefti_watch_describe(transport->watch, text_out);
    return WEFT_OK;
}

int32_t wefti_transport_straggler(wefti_transport *transport, double *share_out) {
    transport_inside *inside = (transport_inside *)transport;
    if (share_out) *share_out = 0;
    return transport && inside->control ? wefti_control_straggler(inside->control, share_out) : -1;
}

void wefti_transport_answer(wefti_transport *transport, int eventfd) {
    transport_inside *inside = (transport_inside *)transport;
    if (inside->control) wefti_control_answer(inside->control, eventfd);
}

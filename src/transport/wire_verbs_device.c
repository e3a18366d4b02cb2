/* Which devices, ports and GIDs a verbs wire uses, and what they can.
 *
 *   WEFT_VERBS_DEVICE         "mlx5_0", "mlx5_0:1,mlx5_1:1" (side by side) or "all"; default: the first with a port that is up
 *   WEFT_VERBS_GID            index in the port's table; default: on Ethernet the RoCE v2 address of WEFT_INTERFACE, else the
 *                             first RoCE v2 one that routes, else any; on InfiniBand 0
 *   WEFT_VERBS_TRAFFIC_CLASS  of the packets, 0 to 255: switches choose lossless queues by it
 *   WEFT_VERBS_TIMEOUT        n from 1 to 31: a packet that nobody answers is sent again after 4.096 us times 2^n; default 15,
 *                             134 ms. After six times in vain the peer counts as gone: more where hosts may be late by a second
 *
 * Devices side by side carry chunks of the same transfers, the first of one rank to the first of another: they are used so
 * only when asked for, since nothing tells whether they reach each other. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/wire_verbs.h"

enum { MOST_GIDS = 256, LIST_BYTES = 600 };

/* --- words --- */

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static weft_status read_number(const char *name, long least, long most, long *number_out) {
    const char *text = setting(name);
    char       *end = NULL;
    if (!text) return WEFT_OK;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < least || value > most)
        return wefti_fail(WEFT_E_INVALID, "verbs: %s=%s: expected a number from %ld to %ld", name, text, least, most);
    *number_out = value;
    return WEFT_OK;
}

static void add_words(char *list, size_t *used, const char *format, ...) WEFTI_PRINTF(3, 4);
static void add_words(char *list, size_t *used, const char *format, ...) {
    va_list arguments;
    if (*used >= LIST_BYTES) return;
    va_start(arguments, format);
    int length = vsnprintf(list + *used, LIST_BYTES - *used, format, arguments);
    va_end(arguments);
    if (length > 0) *used += (size_t)length;
}

static const char *gid_kind(uint32_t type) {
    return type == IBV_GID_TYPE_ROCE_V2 ? "RoCE v2" : type == IBV_GID_TYPE_ROCE_V1 ? "RoCE v1" : "InfiniBand";
}

static bool is_mapped(const union ibv_gid *gid) {
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid->raw, prefix, sizeof prefix) == 0;
}

/* "10.0.0.1" or "fe80::1" */
static void gid_text(const union ibv_gid *gid, char text_out[INET6_ADDRSTRLEN]) {
    bool mapped = is_mapped(gid);
    inet_ntop(mapped ? AF_INET : AF_INET6, mapped ? gid->raw + 12 : gid->raw, text_out, INET6_ADDRSTRLEN);
}

/* "rxe0: port 1 active; mlx5_0: port 1 down" of all devices. */
static void list_devices(const wefti_verbs_api *api, struct ibv_device **devices, int count, char list_out[LIST_BYTES]) {
    size_t used = 0;
    list_out[0] = 0;
    for (int i = 0; i < count; i++) {
        struct ibv_context    *context = api->open_device(devices[i]);
        struct ibv_device_attr device = {0};
        add_words(list_out, &used, "%s%s:", i ? "; " : "", api->get_device_name(devices[i]));
        if (!context || api->query_device(context, &device) != 0) add_words(list_out, &used, " cannot be opened");
        for (uint8_t port = 1; port <= device.phys_port_cnt; port++) {
            struct ibv_port_attr state = {0};
            bool up = api->query_port(context, port, &state) == 0 && state.state == IBV_PORT_ACTIVE;
            add_words(list_out, &used, "%s port %d %s", port > 1 ? "," : "", port, up ? "active" : "down");
        }
        if (context) api->close_device(context);
    }
}

/* --- GIDs --- */

/* The GID that an interface's address would have. */
static weft_status find_interface(const char *interface, union ibv_gid *gid_out) {
    wefti_socket_address address;
    WEFTI_TRY(wefti_interface_find(interface, &address));
    memset(gid_out, 0, sizeof *gid_out);
    if (address.storage.ss_family == AF_INET6) {
        memcpy(gid_out->raw, &((const struct sockaddr_in6 *)&address.storage)->sin6_addr, sizeof gid_out->raw);
    } else {
        gid_out->raw[10] = gid_out->raw[11] = 0xff;
        memcpy(gid_out->raw + 12, &((const struct sockaddr_in *)&address.storage)->sin_addr, 4);
    }
    return WEFT_OK;
}

/* How well an entry of a RoCE port serves; the interface's own address is best. */
static int gid_rank(const struct ibv_gid_entry *entry, const union ibv_gid *interface) {
    if (entry->gid_type != IBV_GID_TYPE_ROCE_V2) return 1;
    if (interface && memcmp(entry->gid.raw, interface->raw, sizeof interface->raw) == 0) return 5;
    if (is_mapped(&entry->gid)) return 4;
    return entry->gid.raw[0] == 0xfe && (entry->gid.raw[1] & 0xc0) == 0x80 ? 2 : 3; /* a link-local address does not route */
}

static weft_status fail_gid(verbs_wire *wire, verbs_rail *rail, uint32_t entries, long wanted) {
    char   list[LIST_BYTES] = "", text[INET6_ADDRSTRLEN];
    size_t used = 0;
    for (uint32_t i = 0; i < entries; i++) {
        struct ibv_gid_entry entry;
        if (wire->api->query_gid(rail->context, rail->port, i, &entry, 0, sizeof entry) != 0) continue;
        gid_text(&entry.gid, text);
        add_words(list, &used, "%s%u %s (%s)", used ? ", " : "", i, text, gid_kind(entry.gid_type));
    }
    if (wanted < 0)
        return wefti_fail(WEFT_E_NOT_FOUND, "verbs: %s has no GID: give its network interface an address, or set it up", rail->name);
    return wefti_fail(WEFT_E_NOT_FOUND, "verbs: WEFT_VERBS_GID=%ld: %s has no such GID; it has: %s", wanted, rail->name,
                      used ? list : "none");
}

static weft_status choose_gid(verbs_wire *wire, verbs_rail *rail, uint32_t entries, const union ibv_gid *interface) {
    long wanted = -1;
    int  best = 0;
    WEFTI_TRY(read_number("WEFT_VERBS_GID", 0, 65535, &wanted));
    if (entries > MOST_GIDS) entries = MOST_GIDS;
    for (uint32_t i = 0; i < entries; i++) {
        struct ibv_gid_entry entry;
        if (wanted >= 0 && (uint32_t)wanted != i) continue;
        if (wire->api->query_gid(rail->context, rail->port, i, &entry, 0, sizeof entry) != 0) continue;
        int rank = rail->link_layer == IBV_LINK_LAYER_ETHERNET ? gid_rank(&entry, interface) : 1;
        if (rank <= best) continue;
        best = rank;
        rail->gid = entry.gid;
        rail->gid_index = i;
        rail->gid_type = (uint8_t)entry.gid_type;
    }
    return best > 0 ? WEFT_OK : fail_gid(wire, rail, entries, wanted);
}

/* --- one rail --- */

/* Gigabits a second of a port, as its codes say: lanes times their rate. */
static double port_rate(const struct ibv_port_attr *port) {
    double lanes = port->active_width == 2 ? 4 : port->active_width == 4 ? 8 : port->active_width == 8 ? 12
                   : port->active_width == 16 ? 2 : 1;
    switch (port->active_speed) {
    case 1: return lanes * 2.5;
    case 2: return lanes * 5;
    case 4:
    case 8: return lanes * 10;
    case 16: return lanes * 14;
    case 32: return lanes * 25;
    case 64: return lanes * 50;
    default: return lanes * 100;
    }
}

static weft_status read_limits(verbs_wire *wire, verbs_rail *rail) {
    struct ibv_device_attr device = {0};
    int                    error = wire->api->query_device(rail->context, &device);
    if (error) return wefti_fail(WEFT_E_DEVICE, "verbs: %s does not say what it can: %s", rail->name, strerror(error));
    rail->most_requests = device.max_qp_wr > 0 ? (uint32_t)device.max_qp_wr : 0;
    rail->most_completions = device.max_cqe > 0 ? (uint32_t)device.max_cqe : 0;
    rail->reads_out = (uint8_t)(device.max_qp_init_rd_atom > 16 ? 16 : device.max_qp_init_rd_atom);
    rail->reads_in = (uint8_t)(device.max_qp_rd_atom > 16 ? 16 : device.max_qp_rd_atom);
    if (rail->most_requests < VERBS_QUEUE || rail->reads_out < 1 || rail->reads_in < 1)
        return wefti_fail(WEFT_E_UNSUPPORTED, "verbs: %s allows %u requests in a queue and %d RDMA reads; %d and 1 are needed",
                          rail->name, rail->most_requests, rail->reads_out, VERBS_QUEUE);
    return WEFT_OK;
}

static weft_status read_port(verbs_wire *wire, verbs_rail *rail, const union ibv_gid *interface) {
    struct ibv_port_attr port = {0};
    int                  error = wire->api->query_port(rail->context, rail->port, &port);
    if (error) return wefti_fail(WEFT_E_NOT_FOUND, "verbs: %s does not answer: %s", rail->name, strerror(error));
    if (port.state != IBV_PORT_ACTIVE)
        return wefti_fail(WEFT_E_LINK, "verbs: %s is down: bring its network interface up, or plug it in", rail->name);
    rail->link_layer = port.link_layer == IBV_LINK_LAYER_ETHERNET ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND;
    rail->lid = port.lid;
    rail->mtu = (uint8_t)port.active_mtu;
    rail->chunk_bytes = port.max_msg_sz && port.max_msg_sz < VERBS_CHUNK_BYTES ? port.max_msg_sz : VERBS_CHUNK_BYTES;
    rail->bytes_per_ns = port_rate(&port) / 8;
    WEFTI_TRY(read_limits(wire, rail));
    return choose_gid(wire, rail, (uint32_t)port.gid_tbl_len, interface);
}

/* What cannot be had, with the system's reason. */
static weft_status fail_part(const verbs_rail *rail, const char *what) {
    int error = errno;
    return wefti_fail(error == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "verbs: %s gives no %s: %s", rail->name, what,
                      error ? strerror(error) : "no reason given");
}

static weft_status open_parts(verbs_wire *wire, verbs_rail *rail, int32_t size) {
    const wefti_verbs_api *api = wire->api;
    uint64_t entries = (uint64_t)(size > 1 ? size - 1 : 1) * (VERBS_QUEUE + wire->slots + wire->tokens);
    if (entries > rail->most_completions)
        return wefti_fail(WEFT_E_UNSUPPORTED, "verbs: %s holds %u completions, and %d ranks need %llu: use fewer ranks or the "
                          "tcp wire", rail->name, rail->most_completions, (int)size, (unsigned long long)entries);
    errno = 0;
    if (!(rail->pd = api->alloc_pd(rail->context))) return fail_part(rail, "protection domain");
    if (!(rail->channel = api->create_comp_channel(rail->context))) return fail_part(rail, "completion channel");
    int flags = fcntl(rail->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(rail->channel->fd, F_SETFL, flags | O_NONBLOCK) != 0) return fail_part(rail, "non-blocking channel");
    if (!(rail->cq = api->create_cq(rail->context, (int)entries, rail, rail->channel, 0))) return fail_part(rail, "completion queue");
    return WEFT_OK;
}

static weft_status open_rail(verbs_wire *wire, struct ibv_device *device, uint8_t port, const wefti_wire_options *options) {
    verbs_rail *rail = &wire->rails[wire->rail_count];
    rail->port = port;
    snprintf(rail->name, sizeof rail->name, "%.50s:%d", wire->api->get_device_name(device), port);
    errno = 0;
    if (!(rail->context = wire->api->open_device(device)))
        return wefti_fail(errno == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "verbs: %s cannot be opened: %s", rail->name,
                          errno ? strerror(errno) : "no reason given");
    wire->rail_count++; /* from here on close gives it back */
    union ibv_gid interface;
    bool          wished = options->interface && *options->interface;
    if (wished) WEFTI_TRY(find_interface(options->interface, &interface));
    WEFTI_TRY(read_port(wire, rail, wished ? &interface : NULL));
    const verbs_rail *first = &wire->rails[0];
    if (rail->link_layer != first->link_layer || rail->gid_type != first->gid_type)
        return wefti_fail(WEFT_E_INVALID, "verbs: %s speaks %s and %s %s: devices side by side must be of one kind", first->name,
                          gid_kind(first->gid_type), rail->name, gid_kind(rail->gid_type));
    return open_parts(wire, rail, options->size);
}

/* --- which --- */

/* Whether the wish names the device, and which of its ports (0: any that is up). */
static bool is_wished(const char *wish, size_t length, const char *name, uint8_t *port_out) {
    const char *colon = memchr(wish, ':', length);
    size_t      name_length = colon ? (size_t)(colon - wish) : length;
    long        port = colon ? strtol(colon + 1, NULL, 10) : 0;
    *port_out = !colon ? 0 : port >= 1 && port < 255 ? (uint8_t)port : 255; /* which no device has */
    return strlen(name) == name_length && strncmp(name, wish, name_length) == 0;
}

/* The first port of a device that is up; 0: none. */
static uint8_t port_that_is_up(const wefti_verbs_api *api, struct ibv_device *device) {
    struct ibv_context    *context = api->open_device(device);
    struct ibv_device_attr limits = {0};
    uint8_t                found = 0;
    if (!context) return 0;
    if (api->query_device(context, &limits) == 0)
        for (uint8_t port = 1; port <= limits.phys_port_cnt && !found; port++) {
            struct ibv_port_attr state = {0};
            if (api->query_port(context, port, &state) == 0 && state.state == IBV_PORT_ACTIVE) found = port;
        }
    api->close_device(context);
    return found;
}

static weft_status open_named(verbs_wire *wire, struct ibv_device **devices, int count, const char *wish, size_t length,
                              const wefti_wire_options *options) {
    char list[LIST_BYTES];
    for (int i = 0; i < count; i++) {
        uint8_t port;
        if (!is_wished(wish, length, wire->api->get_device_name(devices[i]), &port)) continue;
        struct ibv_context    *context = port ? wire->api->open_device(devices[i]) : NULL;
        struct ibv_device_attr limits = {0};
        bool exists = !port || (context && wire->api->query_device(context, &limits) == 0 && port <= limits.phys_port_cnt);
        if (context) wire->api->close_device(context);
        if (!exists) break;
        if (!port && !(port = port_that_is_up(wire->api, devices[i]))) port = 1; /* which then says that it is down */
        return open_rail(wire, devices[i], port, options);
    }
    list_devices(wire->api, devices, count, list);
    return wefti_fail(WEFT_E_NOT_FOUND, "verbs: WEFT_VERBS_DEVICE names '%.*s', and there is no such device or port; there are: %s",
                      (int)length, wish, list);
}

static weft_status open_wished(verbs_wire *wire, struct ibv_device **devices, int count, const char *wish,
                               const wefti_wire_options *options) {
    for (const char *at = wish; *at;) {
        size_t length = strcspn(at, ",");
        if (wire->rail_count == VERBS_RAILS)
            return wefti_fail(WEFT_E_INVALID, "verbs: WEFT_VERBS_DEVICE=%s names more than %d devices", wish, VERBS_RAILS);
        WEFTI_TRY(open_named(wire, devices, count, at, length, options));
        at += length + (at[length] == ',');
    }
    return WEFT_OK;
}

static weft_status open_found(verbs_wire *wire, struct ibv_device **devices, int count, bool all,
                              const wefti_wire_options *options) {
    char list[LIST_BYTES];
    for (int i = 0; i < count && wire->rail_count < (all ? VERBS_RAILS : 1); i++) {
        uint8_t port = port_that_is_up(wire->api, devices[i]);
        if (port) WEFTI_TRY(open_rail(wire, devices[i], port, options));
    }
    if (wire->rail_count) return WEFT_OK;
    list_devices(wire->api, devices, count, list);
    return wefti_fail(WEFT_E_NOT_FOUND, "verbs: no device has a port that is up; there are: %s", list);
}

weft_status wefti_verbs_rails_open(verbs_wire *wire, const wefti_wire_options *options) {
    const char *wish = setting("WEFT_VERBS_DEVICE");
    long        traffic_class = 0, timeout = VERBS_ACK_TIMEOUT;
    int         count = 0;
    WEFTI_TRY(read_number("WEFT_VERBS_TRAFFIC_CLASS", 0, 255, &traffic_class));
    WEFTI_TRY(read_number("WEFT_VERBS_TIMEOUT", 1, 31, &timeout));
    wire->ack_timeout = (uint8_t)timeout;
    wire->traffic_class = (uint8_t)traffic_class;
    errno = 0;
    struct ibv_device **devices = wire->api->get_device_list(&count);
    if (!devices || count <= 0) {
        bool scarce = !devices && errno == ENOMEM;
        if (devices) wire->api->free_device_list(devices);
        if (scarce) return wefti_fail(WEFT_E_NO_MEMORY, "verbs: out of memory for the list of devices");
        return wefti_fail(WEFT_E_NOT_FOUND, "verbs: this host has no RDMA device (a soft one: rdma link add rxe0 type rxe netdev eth0); "
                          "the tcp wire needs none");
    }
    bool        all = wish && strcmp(wish, "all") == 0;
    weft_status status = wish && !all ? open_wished(wire, devices, count, wish, options)
                                      : open_found(wire, devices, count, all, options);
    wire->api->free_device_list(devices);
    return status;
}

void wefti_verbs_rails_close(verbs_wire *wire) {
    const wefti_verbs_api *api = wire->api;
    for (int32_t r = 0; r < wire->rail_count; r++) {
        verbs_rail *rail = &wire->rails[r];
        if (rail->cq) api->destroy_cq(rail->cq);
        if (rail->channel) api->destroy_comp_channel(rail->channel);
        if (rail->pd) api->dealloc_pd(rail->pd);
        if (rail->context) api->close_device(rail->context);
        *rail = (verbs_rail){0};
    }
    wire->rail_count = 0;
}

/* Network interfaces of this host: what a name or an address of one stands for, and a list of them for errors.
 *
 * An interface's name comes before a host's. Of several addresses its first IPv4 one is taken, else an IPv6 one that routes: a link-local
 * address means something only beside an interface of the peer's, which this rank cannot know. */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/socket.h"

static bool is_link_local(const struct sockaddr *address) {
    return address->sa_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

/* Whether peers could be told of it. */
static bool is_address(const struct ifaddrs *entry) {
    return entry->ifa_addr && (entry->ifa_flags & IFF_UP) && (entry->ifa_addr->sa_family == AF_INET || entry->ifa_addr->sa_family == AF_INET6) &&
           !is_link_local(entry->ifa_addr);
}

static void add(char *text, size_t bytes, size_t *used, const char *first, const char *second) {
    if (*used < bytes) *used += (size_t)snprintf(text + *used, bytes - *used, "%s%s", first, second);
}

/* "lo (127.0.0.1, ::1), eth0 (10.0.0.7)": those that are up and have an address. */
static void list_into(const struct ifaddrs *all, char *text_out, size_t bytes) {
    size_t used = 0;
    text_out[0] = 0;
    for (const struct ifaddrs *at = all; at; at = at->ifa_next) {
        const struct ifaddrs *before = all;
        while (before != at && !(is_address(before) && strcmp(before->ifa_name, at->ifa_name) == 0)) before = before->ifa_next;
        if (before != at || !is_address(at)) continue; /* has been named, or is none */
        add(text_out, bytes, &used, used ? ", " : "", at->ifa_name);
        for (const struct ifaddrs *same = at; same; same = same->ifa_next) {
            if (!is_address(same) || strcmp(same->ifa_name, at->ifa_name) != 0) continue;
            bool        six = same->ifa_addr->sa_family == AF_INET6;
            char        words[INET6_ADDRSTRLEN] = "?";
            const void *from = six ? (const void *)&((const struct sockaddr_in6 *)(const void *)same->ifa_addr)->sin6_addr
                                   : (const void *)&((const struct sockaddr_in *)(const void *)same->ifa_addr)->sin_addr;
            inet_ntop(same->ifa_addr->sa_family, from, words, sizeof words);
            add(text_out, bytes, &used, same == at ? " (" : ", ", words);
        }
        add(text_out, bytes, &used, ")", "");
    }
    if (used >= bytes) memcpy(text_out + bytes - 4, "...", 4);
    if (!used) snprintf(text_out, bytes, "none that is up and has an address");
}

void wefti_interface_list(char *text_out, size_t bytes) {
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0) {
        snprintf(text_out, bytes, "which the system does not say: %s", strerror(errno));
        return;
    }
    list_into(all, text_out, bytes);
    freeifaddrs(all);
}

/* The address of the interface `name`. */
static weft_status take_named(const struct ifaddrs *all, const char *name, wefti_socket_address *address_out) {
    const struct ifaddrs *best = NULL, *some = NULL;
    for (const struct ifaddrs *at = all; at; at = at->ifa_next) {
        if (strcmp(at->ifa_name, name) != 0) continue;
        some = at;
        if (is_address(at) && (!best || (best->ifa_addr->sa_family == AF_INET6 && at->ifa_addr->sa_family == AF_INET))) best = at;
    }
    if (!some) return WEFT_E_AGAIN;
    if (!best) {
        char list[WEFTI_INTERFACES_BYTES];
        list_into(all, list, sizeof list);
        return wefti_fail(WEFT_E_LINK, "the network interface '%s' %s: bring it up and give it one, or name another; there are: %s", name,
                          some->ifa_flags & IFF_UP ? "has no address that other hosts could reach" : "is down", list);
    }
    *address_out = (wefti_socket_address){.bytes = best->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)};
    memcpy(&address_out->storage, best->ifa_addr, address_out->bytes);
    wefti_socket_set_port(address_out, 0);
    return WEFT_OK;
}

weft_status wefti_interface_find(const char *text, wefti_socket_address *address_out) {
    struct ifaddrs *all = NULL;
    char            host[300], list[WEFTI_INTERFACES_BYTES];
    if (getifaddrs(&all) == 0) {
        weft_status status = take_named(all, text, address_out);
        freeifaddrs(all);
        if (status != WEFT_E_AGAIN) return status;
    }
    snprintf(host, sizeof host, "[%.250s]:0", text);
    if (*text && wefti_socket_resolve(host, address_out) == WEFT_OK) return WEFT_OK;
    wefti_interface_list(list, sizeof list);
    return wefti_fail(WEFT_E_NOT_FOUND, "'%.250s' is neither a network interface nor an address of this host; there are: %s; set "
                      "WEFT_INTERFACE to one of these names or addresses", text, list);
}

weft_status wefti_interface_check(const wefti_socket_address *address) {
    wefti_socket_address any_port = *address;
    char                 list[WEFTI_INTERFACES_BYTES];
    wefti_socket_set_port(&any_port, 0);
    int  probe = socket(any_port.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool bound = probe >= 0 && bind(probe, (struct sockaddr *)&any_port.storage, any_port.bytes) == 0;
    int  error = errno;
    if (probe >= 0) close(probe);
    if (bound) return WEFT_OK;
    wefti_interface_list(list, sizeof list);
    return wefti_fail(error == EADDRNOTAVAIL ? WEFT_E_NOT_FOUND : WEFT_E_IO, "this host cannot listen on %s: %s; its interfaces are: %s",
                      wefti_socket_text(address).text, strerror(error), list);
}

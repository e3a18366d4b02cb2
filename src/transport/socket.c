/* TCP sockets: addresses, listening, dialling. Nothing but resolving a name ever blocks. */
#include "transport/socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

weft_status wefti_socket_resolve(const char *text, wefti_socket_address *address_out) {
    char        host[256];
    const char *colon = strrchr(text, ':');
    size_t      length = colon ? (size_t)(colon - text) : 0;
    const char *start = text;
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
        start++;
        length -= 2;
    }
    char *end = NULL;
    long  port = colon ? strtol(colon + 1, &end, 10) : -1;
    if (!colon || length == 0 || length >= sizeof host || end == colon + 1 || *end || port < 0 || port > 65535)
        return wefti_fail(WEFT_E_INVALID, "'%s' is no address: expected host:port with a port up to 65535", text);
    memcpy(host, start, length);
    host[length] = 0;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *found = NULL;
    int             error = getaddrinfo(host, NULL, &hints, &found);
    if (error) { /* AI_ADDRCONFIG hides loopback on a host without a network */
        hints.ai_flags = 0;
        error = getaddrinfo(host, NULL, &hints, &found);
    }
    if (error || !found)
        return wefti_fail(WEFT_E_NOT_FOUND, "the host '%s' of '%s' is not known: %s", host, text, gai_strerror(error));
    memset(address_out, 0, sizeof *address_out);
    memcpy(&address_out->storage, found->ai_addr, found->ai_addrlen);
    address_out->bytes = found->ai_addrlen;
    freeaddrinfo(found);
    wefti_socket_set_port(address_out, (uint16_t)port);
    return WEFT_OK;
}

bool wefti_socket_is_loopback(const wefti_socket_address *address) {
    if (address->storage.ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)&address->storage)->sin_addr.s_addr) >> 24 == 127;
    if (address->storage.ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)&address->storage)->sin6_addr);
    return false;
}

uint16_t wefti_socket_port(const wefti_socket_address *address) {
    return ntohs(address->storage.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)&address->storage)->sin6_port
                                                        : ((const struct sockaddr_in *)&address->storage)->sin_port);
}

void wefti_socket_set_port(wefti_socket_address *address, uint16_t port) {
    if (address->storage.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&address->storage)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&address->storage)->sin_port = htons(port);
}

wefti_socket_string wefti_socket_text(const wefti_socket_address *address) {
    wefti_socket_string out;
    char                host[INET6_ADDRSTRLEN] = "?";
    bool                six = address->storage.ss_family == AF_INET6;
    const void         *bytes = six ? (const void *)&((const struct sockaddr_in6 *)&address->storage)->sin6_addr
                                    : (const void *)&((const struct sockaddr_in *)&address->storage)->sin_addr;
    inet_ntop(six ? AF_INET6 : AF_INET, bytes, host, sizeof host);
    snprintf(out.text, sizeof out.text, six ? "[%s]:%u" : "%s:%u", host, wefti_socket_port(address));
    return out;
}

void wefti_socket_prepare(int socket) {
    int one = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(socket, F_SETFD, FD_CLOEXEC);
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
}

/* On loopback there is no link to share, and a congestion control that paces what it sends (BBR, the default of some
 * systems) makes a message wait three times as long as the rest of its way takes. Every Linux has Reno, which does not pace, and
 * lets everybody choose it. Before the connection: what has once paced goes on pacing. Accepted sockets inherit it. */
static void choose_congestion_control(int socket, const wefti_socket_address *address) {
    if (wefti_socket_is_loopback(address)) (void)setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

static weft_status fail_listen(const wefti_socket_address *address, int error) {
    if (error == EADDRNOTAVAIL) WEFTI_TRY(wefti_interface_check(address));
    if (error == EADDRINUSE)
        return wefti_fail(WEFT_E_EXISTS, "the port of %s is taken: another job runs there, or an earlier one has not ended; choose another one",
                          wefti_socket_text(address).text);
    return wefti_fail(WEFT_E_IO, "cannot listen on %s: %s", wefti_socket_text(address).text, strerror(error));
}

weft_status wefti_socket_listen(wefti_socket_address *address, int *socket_out) {
    int listener = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    if (listener < 0) return wefti_fail_errno("cannot create a socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* not held up by connections that just ended */
    choose_congestion_control(listener, address);
    if (bind(listener, (struct sockaddr *)&address->storage, address->bytes) != 0 || listen(listener, 1024) != 0) {
        int error = errno;
        close(listener);
        return fail_listen(address, error);
    }
    address->bytes = sizeof address->storage;
    getsockname(listener, (struct sockaddr *)&address->storage, &address->bytes);
    *socket_out = listener;
    return WEFT_OK;
}

weft_status wefti_socket_dial(const wefti_socket_address *address, int *socket_out) {
    int dialled = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (dialled < 0) return wefti_fail_errno("cannot create a socket");
    wefti_socket_prepare(dialled);
    choose_congestion_control(dialled, address);
    if (connect(dialled, (const struct sockaddr *)&address->storage, address->bytes) != 0 && errno != EINPROGRESS) {
        int error = errno;
        close(dialled);
        weft_status status = wefti_fail(WEFT_E_LINK, "cannot connect to %s: %s", wefti_socket_text(address).text, strerror(error));
        errno = error;
        return status;
    }
    *socket_out = dialled;
    return WEFT_OK;
}

weft_status wefti_socket_connected(int socket) {
    struct pollfd wait = {.fd = socket, .events = POLLOUT};
    int           error = 0;
    socklen_t     length = sizeof error;
    if (poll(&wait, 1, 0) == 0) return WEFT_E_AGAIN;
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    if (error == 0) { /* a port can connect to itself when nobody listens there: that is no peer */
        struct sockaddr_storage here = {0}, there = {0};
        socklen_t               here_bytes = sizeof here, there_bytes = sizeof there;
        getsockname(socket, (struct sockaddr *)&here, &here_bytes);
        if (getpeername(socket, (struct sockaddr *)&there, &there_bytes) != 0) error = ENOTCONN;
        else if (here_bytes == there_bytes && memcmp(&here, &there, here_bytes) == 0) error = ECONNREFUSED;
    }
    if (error == 0) return WEFT_OK;
    weft_status status = wefti_fail(WEFT_E_LINK, "cannot connect: %s", strerror(error));
    errno = error;
    return status;
}

int wefti_socket_accept(int listener) {
    int accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (accepted >= 0) wefti_socket_prepare(accepted);
    return accepted;
}
